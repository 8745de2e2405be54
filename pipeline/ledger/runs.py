"""The workflow runs of a partition: what they learn, and what they tell their jobs."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

from pipeline import metrics
from pipeline.effects import Effects, Output
from pipeline.jobs import (
    Run,
    decode_run,
    encode_outcome,
    encode_run,
    link_run,
    merge_run,
    run_outcomes,
)
from pipeline.ledger.limits import Retention
from pipeline.ledger.pending import Pending
from topics.catalogue import JOBS
from topics.models import RunFact, RunLink
from topics.tables import JOBS_TABLE


class Runs:
    """Every run by key, the decoded ones, and those that are not in the table yet.

    ``value_of`` reads the table. ``expiry`` is the heap that jobs and runs share. ``size`` is how
    many decoded runs are kept between batches.
    """

    def __init__(
        self,
        value_of: Callable[[bytes], bytes | None],
        retention: Retention,
        expiry: list[tuple[int, str]],
        pending: Pending,
        size: int,
    ) -> None:
        self._value_of = value_of
        self._retention = retention
        self._expiry = expiry
        self._pending = pending
        self._size = size
        #: Clock time at which each may be forgotten.
        self._due: dict[str, int] = {}
        self._decoded: dict[str, Run] = {}
        #: What the batch under way has changed.
        self._dirty: dict[str, None] = {}
        #: The runs of each flush that is not in the table yet, the oldest first.
        self._unwritten: deque[list[str]] = deque()

    def __contains__(self, key: str) -> bool:
        return key in self._due

    def on_record(self, record: RunFact | RunLink) -> None:
        """Add what is said about a run, and tell its jobs what follows."""
        key = record.key
        before = self._decoded.get(key)
        if before is None and key in self._due:
            value = self._value_of(key.encode())
            if value is not None:
                before = decode_run(value)
        if isinstance(record, RunLink):
            after = link_run(before, record)
        else:
            after = merge_run(before, record)
        if after is before:
            self._pending.note(metrics.DUPLICATE_FACTS, ())
            return
        for outcome in run_outcomes(before, after):
            self._pending.outputs.append(
                Output(JOBS, None, outcome.key.encode(), encode_outcome(outcome))
            )
        self.know(after)
        self._decoded[key] = after
        self._pending.gone.pop(key, None)
        self._dirty[key] = None

    def know(self, run: Run) -> None:
        """There is such a run: remember when it may be forgotten."""
        due = self._retention.run_due(run)
        if self._due.get(run.key) != due:
            self._due[run.key] = due
            heapq.heappush(self._expiry, (due, run.key))

    def expire(self, key: str, clock: int) -> bool:
        """Forget a known run that is due; whether it was."""
        if self._due[key] > clock:
            return False
        del self._due[key]
        self._decoded.pop(key, None)
        self._dirty.pop(key, None)
        return True

    def flush(self, effects: Effects) -> None:
        """Write the changed runs."""
        writes = effects.writes(JOBS_TABLE)
        for key in self._dirty:
            writes.append((key.encode(), encode_run(self._decoded[key])))
        self._unwritten.append(list(self._dirty))
        self._dirty.clear()

    def written(self) -> None:
        """The oldest flush is in the table: drop what no later one has changed when they are many.

        What is dropped is read from the table next, where a changed one would be older.
        """
        self._unwritten.popleft()
        if len(self._decoded) > self._size:
            ahead = set().union(*self._unwritten, self._dirty)
            for key in self._decoded.keys() - ahead:
                del self._decoded[key]
