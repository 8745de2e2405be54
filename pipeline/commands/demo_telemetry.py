"""What the demo's fleets say of themselves, all five families, and what is true of it."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

from clickhouse_driver import Client
from prometheus_client.parser import text_string_to_metric_families

from pipeline.commands.connections import ask
from pipeline.commands.demo_check import Check
from pipeline.commands.failure import Failure, short
from pipeline.metrics import PREFIX
from pipeline.simulate import (
    telemetry_pools,
    telemetry_reconcilers,
    telemetry_runners,
    telemetry_schedulers,
)
from pipeline.simulate.telemetry import STEP_MS, Told
from pipeline.telemetry import FAMILIES
from pipeline.telemetry.pools import COUNTS
from sinks.telemetry_rows import TABLES
from topics.catalogue import EVENTS
from topics.events import Event
from topics.producer import Producer


class Play(Protocol):
    """Plays a part of the world for some fleets between two times, by a seed.

    ``at``: of which moment the truth is told, the end unless given.
    """

    def __call__(
        self, fleets: Sequence[str], start: int, end: int, seed: int, *, at: int | None = None
    ) -> Told: ...


#: Values of metrics by name and labels.
Series = dict[tuple[str, ...], float]
_NAME: Final = re.compile("[{ ]")
_SUFFIXES: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_count", "_sum")}
#: The metric that a sample is of, by its name; buckets are not looked at.
_METRICS: Final = {
    f"{PREFIX}{each.name}{suffix}": each
    for family in FAMILIES.values()
    for each in family.metrics
    for suffix in _SUFFIXES[each.kind]
}

#: So many times as often as in the tests of an hour: the demo has a minute.
_PACE: Final = 4
PARTS: Final[tuple[Play, ...]] = (
    telemetry_pools.play,
    telemetry_runners.play,
    partial(telemetry_schedulers.play, pace=_PACE),
    partial(telemetry_reconcilers.play, pace=_PACE),
)
_ANSWER_S: Final = 30.0
#: Gauges that grow with the clock, and no two programs look at it at the same time.
AGES: Final = frozenset(
    {
        "pool_booting_oldest_seconds",
        "queue_oldest_dispatchable_seconds",
        "runner_buffer_oldest_seconds",
        "runner_task_oldest_seconds",
        "runner_uptime_oldest_seconds",
        "scheduler_queue_oldest_seconds",
        "scheduler_run_oldest_seconds",
        "reconciler_silent_seconds",
        "reconciler_violation_oldest_seconds",
        "reconciler_work_oldest_seconds",
    }
)
#: Gauges of jobs: their own log knows more of them than this world does.
_OF_JOBS: Final = frozenset({"pool_starved_jobs", "pool_saturated_jobs"})


class Telemetry:
    """Says in real time what happens in some fleets, from a thread of its own, until it ends."""

    def __init__(self, kafka: str, fleets: Sequence[str], seed: int, lasts_s: float) -> None:
        """``lasts_s``: it never goes on for longer."""
        self._kafka = kafka
        self._fleets = tuple(fleets)
        self._seed = seed
        self.start_ms = int(time.time() * 1000)
        self._planned = _play(
            self._fleets, self.start_ms, self.start_ms + _whole(int(lasts_s * 1000)), seed
        )
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._until = self.start_ms
        #: Events sent so far.
        self.sent = 0
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise :class:`Failure` when events cannot be sent."""
        if self._error is not None:
            raise Failure(f"the telemetry cannot be sent: {short(self._error)}")

    def end(self, patience_s: float = 20.0) -> None:
        """Say no more; what was said ends with a whole step."""
        self._ending.set()
        self._thread.join(patience_s)

    def truth(self, at: int) -> Told:
        """What happened until it ended, and what follows from that ``at`` a later moment in ms."""
        return _play(self._fleets, self.start_ms, self._until, self._seed, at)

    def _run(self) -> None:
        try:
            with Producer(self._kafka, client_id="runnerstream-demo") as producer:
                self._send(producer)
        except BaseException as error:
            self._error = error

    def _send(self, producer: Producer) -> None:
        waiting = iter(self._planned.events)
        event = next(waiting, None)
        step = self.start_ms
        while not self._ending.is_set():
            # A step is said as a whole, once it is over.
            step += STEP_MS
            if self._ending.wait(max(0.0, step / 1000 - time.time())):
                break
            while event is not None and event.occurred_at < step:
                producer.send(EVENTS, event.fleet.encode(), _value(event))
                self.sent += 1
                event = next(waiting, None)
            producer.flush()
            self._until = step
            if event is None:
                break


def pools(url: str) -> str:
    """How the pools are, in words. Raises :class:`Failure` when the worker does not answer."""
    found = ask(url, "/telemetry", {"family": "pools", "limit": 1_000}, 3.0).get("subjects", [])
    every = [pool for one in found for pool in one["pools"].values()]
    if not every:
        return ""
    told = {name: sum(pool[name] or 0 for pool in every) for name in COUNTS}
    starved = sum(one["starved"] or 0 for one in found)
    return (
        f"{told['ready']} of {told['desired']} runners ready, {told['idle']} idle, "
        f"{told['occupied']} occupied, {told['booting']} booting; {starved} jobs wait beside them"
    )


def runners(url: str) -> str:
    """How the runners are, in words. Raises :class:`Failure` when the worker does not answer."""
    found = ask(url, "/telemetry", {"family": "runners", "limit": 1_000}, 3.0).get("subjects", [])
    if not found:
        return ""
    alive = [one for one in found if one["alive"]]
    tasks = {state: sum(one[state] for one in found) for state in ("running", "finalizing", "lost")}
    return (
        f"{len(alive)} of {len(found)} alive, "
        f"{sum(one['silent'] for one in alive)} of them silent; tasks: {tasks['running']} running, "
        f"{tasks['finalizing']} finalizing, {tasks['lost']} lost"
    )


def schedulers(shown: Series) -> str:
    """How the schedulers are, in words, by the metrics of a worker."""
    if not _total(shown, "scheduler_planner_runs_total"):
        return ""
    told = {name: _total(shown, f"scheduler_{name}") for name in _SCHEDULERS}
    return (
        f"{told['runs_planning']:,} runs planning, {told['runs_active']:,} active, "
        f"{told['runs_not_draining']:,} stuck, {told['runs_finished_total']:,} over; "
        f"{told['backlog']:,} images left; {told['schedules_behind']:,} schedules behind"
    )


def reconcilers(shown: Series) -> str:
    """How the reconcilers are, in words, by the metrics of a worker."""
    told = {name: _total(shown, f"reconciler{name}") for name in _RECONCILERS}
    if not told["s"]:
        return ""
    closed = _total(shown, "reconciler_work_moved_total", "closed")
    return (
        f"{told['s']:,}, {told['s_overdue']:,} overdue; work: {told['_work']:,} open, "
        f"{closed:,} closed, {told['_work_flapping']:,} flapping; "
        f"{told['_entities_in_loop']:,} in loops; {told['_violations']:,} violations"
    )


_SCHEDULERS: Final = (
    *("runs_planning", "runs_active", "runs_finished_total", "runs_not_draining"),
    *("backlog", "schedules_behind"),
)
_RECONCILERS: Final = (
    *("s", "s_overdue", "_work", "_work_flapping", "_entities_in_loop", "_violations"),
)


def _total(shown: Series, name: str, last: str = "") -> int:
    """A metric over all fleets; of its last label one value, or all."""
    return round(
        sum(
            value
            for where, value in shown.items()
            if where[0] == PREFIX + name and last in ("", where[-1])
        )
    )


def scrape(url: str, timeout_s: float = 3.0) -> Series:
    """The metrics of telemetry of a worker. Raises :class:`Failure` when it does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=timeout_s) as response:
            return series(response.read().decode())
    except OSError as error:
        raise Failure(f"no worker answers at {url}: {short(error)}") from error


def compare(check: Check, said: Telemetry, url: str, client: Client) -> None:
    """Compare the truth with the metrics of the worker at ``url``, and with ClickHouse.

    Raises :class:`Failure` when nobody answers there.
    """
    shown = scrape(url, _ANSWER_S)
    truth = said.truth(int(time.time() * 1000))
    compare_metrics(check, truth, shown)
    posted = Counter((each.fleet, each.kind) for each in truth.events)
    check.of(
        "ClickHouse", "telemetry: events, each once", dict(posted), stored(client, said.start_ms)
    )


def compare_metrics(check: Check, truth: Told, shown: Series) -> None:
    """Compare the truth with what a worker shows, which shows nothing else but zeros."""
    fleets = {*truth.counts, *(fleet for _, fleet, *_ in truth.levels)}
    counted = Counter[tuple[str, ...]]()
    for fleet, counts in truth.counts.items():
        for what, n in counts.items():
            # Those of several fleets together where the metric has none.
            counted[_series_of(what, fleet)] += n
    levels = {
        (PREFIX + name, *labels): value
        for (name, *labels), value in truth.levels.items()
        if name not in AGES | _OF_JOBS
    }
    found: dict[tuple[str, ...], int] = {}
    stands: dict[tuple[str, ...], float] = {}
    for where, value in shown.items():
        metric = _METRICS[where[0]]
        # What there may be is told as 0 before it happens.
        if (metric.by_fleet and where[1] not in fleets) or not (
            value or where in counted or where in levels
        ):
            continue
        if metric.kind != "gauge":
            found[where] = round(value * 1000 if where[0].endswith("_sum") else value)
        elif metric.name not in AGES | _OF_JOBS:
            stands[where] = value
    check.of("metrics", "telemetry: counts", dict(counted), found)
    check.of("metrics", "telemetry: levels", levels, stands)


def series(page: str) -> Series:
    """Samples of a page of metrics by name and label values, as the catalogue orders them."""
    found: Series = {}
    # Most lines are buckets; to understand all of them at every look would take too long.
    lines = [line for line in page.splitlines() if _NAME.split(line, maxsplit=1)[0] in _METRICS]
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            labels = (sample.labels[label.name] for label in _METRICS[sample.name].labels)
            found[(sample.name, *labels)] = sample.value
    return found


def stored(client: Client, since_ms: int) -> dict[tuple[str, str], int]:
    """Events in ClickHouse by fleet and kind."""
    found: dict[tuple[str, str], int] = {}
    for table in TABLES.values():
        for fleet, kind, n in client.execute(
            f"SELECT fleet, kind, count() FROM {table.name} FINAL WHERE source = 'simulator' AND "
            "occurred_at >= fromUnixTimestamp64Milli(%(since)s) GROUP BY fleet, kind",
            {"since": since_ms},
        ):
            found[fleet, kind] = n
    return found


def _series_of(what: str, fleet: str) -> tuple[str, ...]:
    """The series that shows a count; see :mod:`pipeline.telemetry.panes`."""
    name, *labels = what.split("|")
    if f"{PREFIX}{name}_total" in _METRICS:
        shown = f"{PREFIX}{name}_total"
    elif labels and labels[-1] == "sum":
        shown, labels = f"{PREFIX}{name}_sum", labels[:-1]
    else:
        shown = f"{PREFIX}{name}_count"
    return (shown, *((fleet,) if _METRICS[shown].by_fleet else ()), *labels)


def _play(fleets: Sequence[str], start: int, end: int, seed: int, at: int | None = None) -> Told:
    told = Told(at=end if at is None else at)
    for play in PARTS:
        told.add(play(fleets, start, end, seed, at=at))
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told


def _whole(ms: int) -> int:
    return max(STEP_MS, ms - ms % STEP_MS)


def _value(event: Event) -> bytes:
    return event.model_dump_json(exclude_none=True, exclude_defaults=False).encode()
