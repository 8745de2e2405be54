"""The demo's dispatchers, pools and runners: what they say, and what is true of it."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from clickhouse_driver import Client
from prometheus_client.parser import text_string_to_metric_families

from pipeline.commands.connections import ask
from pipeline.commands.demo_check import Check
from pipeline.commands.failure import Failure, short
from pipeline.metrics import PREFIX
from pipeline.simulate import telemetry_pools, telemetry_runners
from pipeline.simulate.telemetry import Told
from pipeline.telemetry import CATALOGUE
from pipeline.telemetry.pools import COUNTS
from sinks.telemetry_rows import TABLES
from topics.catalogue import EVENTS
from topics.events import Event
from topics.producer import Producer

#: Plays a part of the world for some fleets between two times, by a seed.
Play = Callable[[Sequence[str], int, int, int], Told]

PARTS: Final[tuple[Play, ...]] = (telemetry_pools.play, telemetry_runners.play)
#: Every part of the world moves at this interval. ms.
STEP_MS: Final = telemetry_pools.STEP_MS
_ANSWER_S: Final = 30.0
#: Gauges that follow from the clock, or from jobs that this world knows nothing of.
_MOVING: Final = (
    *("_seconds", "_starved_jobs", "_saturated_jobs"),
    *("runners_known", "runners_silent", "runner_tasks_silent"),
)


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

    def truth(self) -> Told:
        """What happened until it ended."""
        return _play(self._fleets, self.start_ms, self._until, self._seed)

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


def compare(check: Check, said: Telemetry, url: str, client: Client) -> None:
    """Compare the truth with the metrics of the worker at ``url``, and with ClickHouse.

    Raises :class:`Failure` when nobody answers there.
    """
    truth = said.truth()
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_ANSWER_S) as response:
            shown = series(response.read().decode())
    except OSError as error:
        raise Failure(f"no worker answers at {url}: {short(error)}") from error
    counted = {
        (what, fleet): n for fleet, counts in truth.counts.items() for what, n in counts.items()
    }
    check.of("metrics", "telemetry: counts", _named(counted), _counters(shown, counted))
    levels = {
        (name, *labels): value
        for (name, *labels), value in truth.levels.items()
        if not name.endswith(_MOVING)
    }
    check.of(
        "metrics",
        "telemetry: levels",
        levels,
        {where: shown.get((PREFIX + where[0], *where[1:]), "nothing") for where in levels},
    )
    posted = Counter((each.fleet, each.kind) for each in truth.events)
    check.of(
        "ClickHouse", "telemetry: events, each once", dict(posted), stored(client, said.start_ms)
    )


def series(page: str) -> dict[tuple[str, ...], float]:
    """Samples of a page of metrics by name and label values, as the catalogue orders them."""
    order = {PREFIX + each.name: [label.name for label in each.labels] for each in CATALOGUE}
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(page):
        names = order.get(family.name)
        if names is None:
            continue
        for sample in family.samples:
            if "le" not in sample.labels:
                labels = (sample.labels[name] for name in names)
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


_KINDS: Final = {each.name: each for each in CATALOGUE}


def _named(counted: dict[tuple[str, str], int]) -> dict[tuple[str, ...], int]:
    """Counts by the series that shows them: those of several fleets together where it has none."""
    found: Counter[tuple[str, ...]] = Counter()
    for (what, fleet), n in counted.items():
        found[_series_of(what, fleet)] += n
    return dict(found)


def _counters(
    shown: dict[tuple[str, ...], float], counted: dict[tuple[str, str], int]
) -> dict[tuple[str, ...], int]:
    found = {}
    for what, fleet in counted:
        where = _series_of(what, fleet)
        value = shown.get(where, 0.0)
        found[where] = round(value * 1000) if where[0].endswith("_sum") else round(value)
    return found


def _series_of(what: str, fleet: str) -> tuple[str, ...]:
    """The series that shows a count; see :mod:`pipeline.telemetry.panes`."""
    name, *labels = what.split("|")
    metric = _KINDS[name]
    suffix = "_total"
    if metric.kind == "histogram":
        suffix = "_count"
        if labels and labels[-1] == "sum":
            suffix, labels = "_sum", labels[:-1]
    return (f"{PREFIX}{name}{suffix}", *((fleet,) if metric.by_fleet else ()), *labels)


def _play(fleets: Sequence[str], start: int, end: int, seed: int) -> Told:
    told = Told(at=end)
    for play in PARTS:
        told.add(play(fleets, start, end, seed))
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told


def _whole(ms: int) -> int:
    return max(STEP_MS, ms - ms % STEP_MS)


def _value(event: Event) -> bytes:
    return event.model_dump_json(exclude_none=True, exclude_defaults=False).encode()
