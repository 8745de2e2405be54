"""How much a ledger keeps: jobs and runs for how long, and how many fleets by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.jobs import Run
from pipeline.jobs.facts import DAY_MS
from topics.models import JobFact

#: Fleets that have samples and windows of their own, per partition: further ones share ``other``.
MAX_FLEETS: Final = 200
OTHER_FLEET: Final = "other"

#: Jobs and runs that a tick forgets, some 5 us each: those of a whole day are due at once.
MOST_FORGOTTEN: Final = 5_000


@dataclass(frozen=True, slots=True)
class Retention:
    """How long states are kept. Milliseconds."""

    #: A completed job stays as a tombstone at least as long as its events can be redelivered:
    #: GitHub 3 days, GHES 7 days; one day on top.
    completed_ms: int = 8 * DAY_MS
    #: A job that never ends is forgotten this long after it was last heard of: GitHub ends a run
    #: after 35 days, an approval gate waits 30.
    unfinished_ms: int = 70 * DAY_MS

    def job_due(self, heard: int, completed_at: int | None) -> int:
        """Clock time at which a job may be forgotten. ``heard``: see :func:`heard_until`."""
        # From when it was last heard of: one record with a wrong clock cannot make that earlier.
        if completed_at is None:
            return heard + self.unfinished_ms
        return (completed_at if completed_at >= heard else heard) + self.completed_ms

    def run_due(self, run: Run) -> int:
        """Clock time at which a run may be forgotten."""
        heard = heard_until(run.first_seen, run.last_seen)
        ended = [attempt.completed_at for attempt in run.attempts.values()]
        if ended and all(ended):
            due = max(at for at in ended if at) + self.completed_ms
        else:
            due = heard + self.unfinished_ms
        return max(due, heard + self.completed_ms)

    def too_old(self, fact: JobFact, clock: int) -> bool:
        """Whether the job's tombstone may be gone already: history only, never a new job.

        Never before the first tick, with a clock of 0.
        """
        if not clock:
            return False
        latest = fact.occurred_at
        for clocks in fact.times.values():
            latest = max(latest, *clocks.values())
        kept = (
            self.completed_ms
            if any(milestone == "completed" for milestone in fact.times)
            else self.unfinished_ms
        )
        return latest < clock - kept


def heard_until(first_seen: int, last_seen: int) -> int:
    """When it was first heard of, or the end of the day of the latest event: the later.

    ``last_seen`` is the first millisecond of that day, 0 when nobody knows.
    """
    end = last_seen + DAY_MS
    return end if last_seen and end > first_seen else first_seen
