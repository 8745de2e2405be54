"""Pools of runners: how many there are and should be, what their queue may give, how they boot.
Pure.

A sample is a level: the latest of each pool counts, however often it comes, and one that nobody
has confirmed for five minutes is not told any more. What a sample leaves out is not known, which
is not 0. *Starved* are jobs that wait while runners of the fleet are idle, *saturated* those that
wait because none is: the two call for different people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from pipeline.metrics import Counter, Gauge, Histogram, Label, Level, Source
from pipeline.telemetry.subject import (
    FRESH_MS,
    HOUR_MS,
    MINUTE_MS,
    Family,
    Subject,
    earliest,
    known,
    latest,
)
from topics.events import Event
from topics.events.pools import (
    AccountsSampled,
    BootOutcome,
    MachineBooted,
    PoolSampled,
    QueueSampled,
)
from topics.recovery import Depth

_GROUP: Final = "pools"
_FLEET: Final = Label("fleet", Source.FLEET)
#: What a sample says of runners, in the order of a runner's life.
COUNTS: Final = ("desired", "observed", "max", "ready", "idle", "booting", "occupied")
#: 5 s to 1 h: a container, a virtual machine, a metal one. A machine that never boots is in no
#: bucket: see the age of the oldest.
BOOT_BUCKETS: Final = (5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 1800, 3600)
#: What our own jobs' fold says of a queue counts for so long: it says it at each tick.
_DEPTH_MS: Final = MINUTE_MS

RUNNERS: Final = Gauge[tuple[str, str]](
    "pool_runners",
    "Runners of the fleet's pools: desired, observed, max as whoever keeps them says; ready to "
    "take a job, idle, booting, occupied by one.",
    "runners",
    (_FLEET, Label("state", COUNTS)),
    group=_GROUP,
    partial=True,
)
BOOTING_OLDEST: Final = Gauge[tuple[str]](
    "pool_booting_oldest_seconds",
    "For how long the runner boots that boots for longest, 0 when none does.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
BOOTS: Final = Counter[tuple[str, str]](
    "machine_boots",
    "Machines that were started, by what became of them.",
    "machines",
    (_FLEET, Label("outcome", tuple(each.value for each in BootOutcome))),
    group=_GROUP,
)
BOOT_SECONDS: Final = Histogram[tuple[str]](
    "machine_boot_seconds",
    "From a machine's start until it was ready.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    buckets=BOOT_BUCKETS,
)
WITHHELD: Final = Gauge[tuple[str]](
    "queue_withheld",
    "Queued jobs that the dispatcher may not give out: their account has as many as it may.",
    "jobs",
    (_FLEET,),
    group=_GROUP,
)
DISPATCHABLE_OLDEST: Final = Gauge[tuple[str]](
    "queue_oldest_dispatchable_seconds",
    "For how long the job waits that waits for longest and may be given out, 0 when none does.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
STARVED: Final = Gauge[tuple[str]](
    "pool_starved_jobs",
    "Jobs that wait while runners of their fleet are idle: as many as could run at once.",
    "jobs",
    (_FLEET,),
    group=_GROUP,
)
SATURATED: Final = Gauge[tuple[str]](
    "pool_saturated_jobs",
    "Jobs that wait because no runner of their fleet is idle.",
    "jobs",
    (_FLEET,),
    group=_GROUP,
)
ACCOUNTS: Final = Gauge[tuple[()]](
    "accounts_enabled",
    "Accounts whose jobs are taken, as the dispatcher says.",
    "accounts",
    in_advance=False,
    over="max",
)


class Pool(Struct, frozen=True, omit_defaults=True):
    """The latest sample of a pool. None: not known."""

    at: int
    id: str
    desired: int | None = None
    observed: int | None = None
    max: int | None = None
    ready: int | None = None
    idle: int | None = None
    booting: int | None = None
    occupied: int | None = None
    booting_since: int | None = None


class Queue(Struct, frozen=True, omit_defaults=True):
    """The latest word of the dispatcher on the queue."""

    at: int
    id: str
    queued: int | None = None
    withheld: int | None = None
    since: int | None = None


class Accounts(Struct, frozen=True):
    """The latest word on accounts."""

    at: int
    id: str
    enabled: int


class Waiting(Struct, frozen=True):
    """Queued jobs in one partition of our own log. Told at each tick, so it is in no table."""

    at: int
    id: str
    queued: int


def apply(subject: Subject, event: Event | Depth) -> None:
    """See :attr:`Family.apply`."""
    at, id_ = event.occurred_at, event.id
    if isinstance(event, PoolSampled):
        said = {name: getattr(event, name) for name in (*COUNTS, "booting_since")}
        pool = latest(subject.get("pools", event.pool), Pool(at, id_, **said))
        subject.put("pools", pool, event.pool)
    elif isinstance(event, QueueSampled):
        queue = Queue(at, id_, event.queued, event.withheld, event.dispatchable_since)
        subject.put("queue", latest(subject.get("queue"), queue))
    elif isinstance(event, AccountsSampled):
        accounts = Accounts(at, id_, event.enabled)
        subject.put("accounts", latest(subject.get("accounts"), accounts))
    elif isinstance(event, MachineBooted):
        subject.note(BOOTS, event.outcome.value)
        if event.outcome is BootOutcome.READY and event.duration_ms is not None:
            subject.note(BOOT_SECONDS, value=event.duration_ms / 1000)
    elif isinstance(event, Depth):
        name = str(event.partition)
        waiting = Waiting(at, id_, event.counts.get("queued", 0))
        subject.put("waiting", latest(subject.get("waiting", name), waiting), name)


def tick(subject: Subject, clock: int) -> None:
    """See :attr:`Family.tick`: what nobody has confirmed for an hour is gone."""
    for part in ("pools", "queue", "accounts", "waiting"):
        for name, thing in list(subject.all(part).items()):
            if clock - thing.at > HOUR_MS:
                subject.drop(part, name)


def levels(subject: Subject, clock: int) -> Iterator[Level]:
    """See :attr:`Family.levels`."""
    fleet, pools = subject.fleet, _fresh(subject, "pools", clock)
    queue: Queue | None = next(iter(_fresh(subject, "queue", clock)), None)
    accounts: Accounts | None = next(iter(_fresh(subject, "accounts", clock)), None)
    counts = {name: _sum(getattr(pool, name) for pool in pools) for name in COUNTS}
    for name, count in counts.items():
        if count is not None:
            yield RUNNERS, (fleet, name), count
    if pools and any(pool.booting is not None or pool.booting_since for pool in pools):
        since = earliest(*(pool.booting_since for pool in pools))
        yield BOOTING_OLDEST, (fleet,), _age(clock, since)
    if queue is not None:
        if queue.withheld is not None:
            yield WITHHELD, (fleet,), queue.withheld
        yield DISPATCHABLE_OLDEST, (fleet,), _age(clock, queue.since)
    if accounts is not None:
        yield ACCOUNTS, (), accounts.enabled
    starved, saturated = _waiting(queued(subject, clock), counts["idle"])
    yield from known(((STARVED, (fleet,), starved), (SATURATED, (fleet,), saturated)))


def view(subject: Subject, clock: int) -> dict[str, Any]:
    """See :attr:`Family.view`."""
    queue: Queue | None = subject.get("queue")
    pools = _fresh(subject, "pools", clock)
    waiting = queued(subject, clock)
    starved, saturated = _waiting(waiting, _sum(pool.idle for pool in pools))
    return {
        "pools": {
            name: {
                "sampled_at": pool.at,
                **{each: getattr(pool, each) for each in (*COUNTS, "booting_since")},
            }
            for name, pool in sorted(subject.all("pools").items())
        },
        "queued": waiting,
        "withheld": queue.withheld if queue else None,
        "dispatchable_since": queue.since if queue else None,
        "starved": starved,
        "saturated": saturated,
    }


def queued(subject: Subject, clock: int) -> int | None:
    """Jobs that wait: by our own log, else by the dispatcher's word; None when nobody knows."""
    waiting: Iterable[Waiting] = subject.all("waiting").values()
    told = [each for each in waiting if clock - each.at <= _DEPTH_MS]
    if told:
        return sum(each.queued for each in told)
    queues: list[Queue] = _fresh(subject, "queue", clock)
    return queues[0].queued if queues else None


def _waiting(waiting: int | None, idle: int | None) -> tuple[int | None, int | None]:
    """Those that starve, and those that wait for capacity."""
    if waiting is None or idle is None:
        return None, None
    return min(waiting, idle), max(0, waiting - idle)


def _fresh(subject: Subject, part: str, clock: int) -> list[Any]:
    return [each for each in subject.all(part).values() if clock - each.at <= FRESH_MS]


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum of those that are known; None when none is."""
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


def _age(clock: int, since: int | None) -> float:
    return 0.0 if since is None else max(0, clock - since) / 1000


FAMILY: Final = Family(
    name="pools",
    parts={"pools": Pool, "queue": Queue, "accounts": Accounts},
    metrics=(
        RUNNERS, BOOTING_OLDEST, BOOTS, BOOT_SECONDS, WITHHELD, DISPATCHABLE_OLDEST, STARVED,
        SATURATED, ACCOUNTS,
    ),
    apply=apply,
    levels=levels,
    view=view,
    tick=tick,
)  # fmt: skip
