"""One pass over the runs of one repository: what changed since is told as facts.

A run that is over is asked about once. One that is open is asked about in each pass, and told when
its jobs or itself changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from pipeline.providers.api import Detail
from pipeline.providers.base import Fact
from pipeline.providers.calls import Failed
from pipeline.providers.runs import ListedRun, RunLog
from pipeline.redeliver.fill import ENDED, Written
from topics.missed import RunsTold

log = logging.getLogger(__name__)

#: Runs of a repository that are remembered; of more, the ones with the highest ids.
_MOST_RUNS: Final = 5_000
#: What is wrong with all of it, and not with a single run.
_OF_ALL: Final = frozenset({Detail.LIMITED, Detail.UNREACHABLE, Detail.UNSUPPORTED})


@dataclass
class Told:
    """What a pass told, or part of it."""

    runs: int = 0
    facts: int = 0
    #: Why it ended before its end; empty when it did not.
    trouble: str = ""


class Reconciler:
    """Makes passes.

    Args:
        repo: its runs.
        lookback: how old a run may be, in ms.
        calls: requests of one pass, about.
        write: as that of :class:`pipeline.redeliver.fill.Filler`.
        post: posts facts, and returns when they are there for good; raises as ``write`` does.
        now: Unix time in ms.
        pause: waits so many seconds; False: it is not to go on.
    """

    def __init__(
        self,
        repo: RunLog,
        lookback: int,
        calls: int,
        write: Callable[[Written], None],
        post: Callable[[Sequence[Fact]], None],
        now: Callable[[], int],
        pause: Callable[[float], bool],
    ) -> None:
        self._repo, self._lookback, self._most = repo, lookback, calls
        self._write, self._post = write, post
        self._now, self._pause = now, pause
        #: By the run's id: its stamp when it was told last, ``|``, and a digest of what was told.
        self.told: dict[str, str] = {}

    def load(self, record: RunsTold) -> None:
        """Take in what was written before."""
        self.told = dict(record.told)

    def run(self) -> Told:
        """Make one pass, as far as limits allow."""
        done = Told()
        before = dict(self.told)
        try:
            self._pass(done)
        except Failed as failed:
            done.trouble = f"{self._repo.name} cannot be read: {failed.detail}"
        if self.told != before:
            now = self._now()
            name = self._repo.name
            record = RunsTold(
                id=f"{name}|{now}", source="runnerstream", occurred_at=now, received_at=now,
                key=name, told=self.told,
            )  # fmt: skip
            self._write([(name, record)])
        return done

    def _pass(self, done: Told) -> None:
        since = self._now() - self._lookback
        listed: dict[str, ListedRun] = {}
        more, page = True, 0
        while more and page < self._most:
            page += 1
            if not self._pause(self._repo.opens()):
                done.trouble = ENDED
                return
            found, more = self._repo.runs(since, page)
            listed.update((str(run.id), run) for run in found)
        if not more:
            # What the list has no more, nobody asks about again.
            self.told = {run: stamp for run, stamp in self.told.items() if run in listed}
        changed = {run.id for run in listed.values() if not self._known(run)}
        asked = [run for run in listed.values() if run.open or run.id in changed]
        # What changed first; of these the oldest, which are about to leave the list.
        asked.sort(key=lambda run: (run.id not in changed, run.id))
        for run in asked[: max(0, self._most - page)]:
            if not self._pause(self._repo.opens()):
                done.trouble = ENDED
                return
            try:
                facts = self._repo.facts(run, self._now())
            except Failed as failed:
                if failed.detail in _OF_ALL:
                    raise
                log.warning("run %d of %s cannot be read: %s", run.id, self._repo.name, failed)
                if failed.again:
                    continue
                facts = ()
            # The id of a fact has a digest of what the API said.
            ids = "".join(sorted(fact.id for fact in facts)).encode()
            mark = f"{run.stamp}|{blake2b(ids, digest_size=8).hexdigest()}"
            if mark == self.told.get(str(run.id)):
                continue
            self._post(facts)
            self.told[str(run.id)] = mark
            done.runs += 1
            done.facts += len(facts)
        for name in sorted(self.told, key=int)[:-_MOST_RUNS]:
            del self.told[name]

    def _known(self, run: ListedRun) -> bool:
        return self.told.get(str(run.id), "").rpartition("|")[0] == run.stamp
