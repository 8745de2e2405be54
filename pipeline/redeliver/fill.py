"""One pass over the list of one hook: read what is new, and ask for what is missed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.providers.api import Detail
from pipeline.providers.calls import Failed
from pipeline.providers.deliveries import Asked, HookLog
from pipeline.redeliver.missed import Missed, News
from topics.missed import HookSeen, MissedDelivery, RunsTold

log = logging.getLogger(__name__)

#: Records by key, in the order to write them; None takes one back.
Written = Sequence[tuple[str, MissedDelivery | HookSeen | RunsTold | None]]
#: Why a pass ended that was told to: it is no failure.
ENDED: Final = "it was told to end"
#: Changed records that are written at once, though the pass goes on.
_MOST_UNWRITTEN: Final = 1_000


@dataclass
class Pass:
    """What a pass did, or part of it."""

    news: News
    #: Deliveries that the list showed, and requests to have one sent again by what came of them.
    looked: int
    asked: dict[Asked, int]
    #: Why it ended before its end; empty when it did not.
    trouble: str = ""


class Filler:
    """Makes passes.

    Args:
        missed: what is known.
        hook: its list.
        write: writes records, and returns when they are there for good. What it raises ends the
            pass; then what is known is to be loaded anew.
        now: Unix time in ms.
        pause: waits so many seconds; False: it is not to go on.
    """

    def __init__(
        self,
        missed: Missed,
        hook: HookLog,
        write: Callable[[Written], None],
        now: Callable[[], int],
        pause: Callable[[float], bool],
    ) -> None:
        self.missed = missed
        self._hook = hook
        self._write = write
        self._now = now
        self._pause = pause

    def run(self) -> Pass:
        """Make one pass, as far as limits allow."""
        done = Pass(News(), 0, {})
        unwritten = 0
        self.missed.begin(self._now())
        while not done.trouble and (step := self.missed.step(self._now())) is not None:
            if not isinstance(step, str):
                unwritten = 0
                self._ask(step, done)
            elif not self._pause(self._hook.opens()):
                done.trouble = ENDED
            else:
                read = self._read(step, done)
                unwritten += read
                if unwritten >= _MOST_UNWRITTEN:
                    unwritten = 0
                    self._keep()
        done.news = self.missed.end(self._now())
        self._keep()
        return done

    def _keep(self) -> None:
        changes = self.missed.changes(self._now())
        if changes:
            self._write(changes)

    def _read(self, cursor: str, done: Pass) -> int:
        try:
            page = self._hook.page(cursor)
        except Failed as failed:
            if cursor and failed.detail in (Detail.MALFORMED, Detail.FORBIDDEN):
                self.missed.refused()
            else:
                done.trouble = f"the list of {self._hook.name} cannot be read: {failed.detail}"
            return 0
        self.missed.read(page, self._now())
        done.looked += len(page.attempts)
        return len(page.attempts)

    def _ask(self, several: Sequence[MissedDelivery], done: Pass) -> None:
        self.missed.asking(several, self._now())
        # First written, then done: who comes after us must not ask for the same again.
        self._keep()
        for each in several:
            asked = Asked.NOT
            if not done.trouble and self._pause(self._hook.opens()):
                asked = self._hook.redeliver(each.first)
                done.asked[asked] = done.asked.get(asked, 0) + 1
            self.missed.answered(each, asked)
            if asked is Asked.NOT and not done.trouble:
                done.trouble = f"{self._hook.name} may not be asked now to deliver again"
            log.info("%s: delivery %s asked for: %s", self._hook.name, each.guid, asked)
