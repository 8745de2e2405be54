"""Events of whoever keeps pools of runners: how many there are, and should be."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from topics.events.base import Count, Event, MaybeNamed, Millis, Ms, Text


class BootOutcome(StrEnum):
    """What became of a machine that was started."""

    #: It is ready.
    READY = "ready"
    FAILED = "failed"
    #: It was given up.
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"


class PoolSampled(Event):
    """How a pool is. None: not known, which is not 0. The latest of a pool counts."""

    kind: Literal["pool.sample"] = "pool.sample"
    #: Empty for a fleet of one pool.
    pool: MaybeNamed = ""
    #: Runners that should be, that are, and that may be at most.
    desired: Count | None = None
    observed: Count | None = None
    max: Count | None = None
    #: Runners that could take a job, that wait for one, that boot, that have one.
    ready: Count | None = None
    idle: Count | None = None
    booting: Count | None = None
    occupied: Count | None = None
    #: Since when the one that boots for longest does.
    booting_since: Millis | None = None


class QueueSampled(Event):
    """What the dispatcher may do with the fleet's queue. The latest counts."""

    kind: Literal["queue.sample"] = "queue.sample"
    queued: Count | None = None
    #: Queued, and not to be given out: their account has as many as it may.
    withheld: Count | None = None
    #: Since when the longest waiting of the others waits; None without any.
    dispatchable_since: Millis | None = None


class AccountsSampled(Event):
    """Accounts whose jobs are taken. The latest counts."""

    kind: Literal["accounts.sample"] = "accounts.sample"
    enabled: Count


class MachineBooted(Event):
    """A machine of a pool was started."""

    kind: Literal["machine.boot"] = "machine.boot"
    outcome: BootOutcome = BootOutcome.READY
    pool: MaybeNamed = ""
    runner: MaybeNamed = ""
    machine: MaybeNamed = ""
    duration_ms: Ms | None = None
    reason: Text = ""


EVENTS = (PoolSampled, QueueSampled, AccountsSampled, MachineBooted)
