"""From telemetry to the names of other systems, through fold, exporter and page.

What must stand there is in :mod:`tests.support.compat_truth`, which knows neither fold nor
declarations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline import telemetry
from pipeline.compat.systems import SYSTEMS
from pipeline.simulate import (
    telemetry_pools,
    telemetry_reconcilers,
    telemetry_runners,
    telemetry_schedulers,
)
from pipeline.simulate.telemetry import Told
from tests.support.compat_truth import (
    CALLED,
    DISPATCHED,
    ENDED,
    MODES,
    PLANNED,
    POLLED,
    RUNNERS,
    SEGMENTS,
    STELLAOPS,
    THERE,
    Place,
    There,
)
from tests.support.telemetry import MINUTE, START, durable, event, muddled, tick
from tests.test_compat import both, text_of
from topics.events import KINDS

END: Final = 12 * MINUTE
FLEETS: Final = ("f0", "f1")

# --- the page ---------------------------------------------------------------------------------

#: Labels of a series with their values.
Where = frozenset[tuple[str, str]]
#: A name, and those.
Series = tuple[str, Where]


class Shown:
    """A page as prometheus_client reads it."""

    def __init__(self, text: str) -> None:
        #: As it is written there.
        self.kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        # The parser gives every counter a name that ends so.
        named = {
            name if name.endswith("_total") else f"{name}_total": name
            for name, kind in self.kinds.items()
            if kind == "counter"
        }
        self.samples: dict[str, dict[Where, float]] = {}
        for family in text_string_to_metric_families(text):
            for each in family.samples:
                where = frozenset(each.labels.items())
                samples = self.samples.setdefault(named.get(each.name, each.name), {})
                assert where not in samples
                samples[where] = each.value

    def counts(self, wanted: Callable[[str], bool]) -> dict[Series, float]:
        """All that only rises of some metrics: counters, and how many a distribution has."""
        names = [
            f"{name}_count" if kind == "histogram" else name
            for name, kind in self.kinds.items()
            if kind != "gauge" and wanted(name)
        ]
        return {
            (name, where): value
            for name in names
            for where, value in self.samples.get(name, {}).items()
        }


class Live:
    """The fold with an exporter, and the page beside it."""

    def __init__(self) -> None:
        self._page, self._exporter = both()
        self._durable = durable()
        self._ledger = self._durable.ledger()
        self._offset = 0
        self._exporter.watch_levels(self._ledger.levels)

    def tell(self, *log: Any) -> Shown:
        """The page after these records."""
        for each in log:
            self._ledger.apply(self._offset, each)
            self._offset += 1
        self._exporter.note(self._ledger.flush().notes)
        self._ledger.written()
        return Shown(text_of(self._page, self._exporter))


def at(there: There, place: Place) -> Where:
    return frozenset(zip(there.labels, place, strict=True))


# --- worlds -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> Told:
    """Twelve minutes of two fleets in which each gauge is something in the end."""
    world = Told(START + END)
    for part, seed in (
        (telemetry_pools, 15), (telemetry_runners, 11), (telemetry_schedulers, 12),
        (telemetry_reconcilers, 13),
    ):  # fmt: skip
        world.add(part.play(FLEETS, START, START + END, seed))
    for fleet, enabled in zip(FLEETS, (7, 5), strict=True):
        world.tell("accounts.sample", fleet, START + END - MINUTE, enabled=enabled)
        world.levels["accounts", fleet] = enabled
    return world


@pytest.fixture(scope="module")
def shown(told: Told) -> Shown:
    """The page of that world: its events came twice and in disorder."""
    return Live().tell(*muddled(told.events, 1), tick(END))


def test_every_metric_that_follows_from_telemetry_is_here() -> None:
    following = {
        theirs.name
        for system in SYSTEMS.values()
        for theirs in system.metrics
        if any(source.metric in telemetry.CATALOGUE for source in theirs.follows)
    }
    assert set(THERE) == following
    assert len(RUNNERS) == 16
    assert len(STELLAOPS) == 11


@pytest.mark.parametrize("name", THERE)
def test_what_is_served_is_what_happened(name: str, told: Told, shown: Shown) -> None:
    there = THERE[name]
    assert shown.kinds[name] == there.kind
    wanted = {at(there, place): value for place, value in there.truth(told).items()}
    assert any(wanted.values()), "nothing of it happens in this world"
    if there.kind == "histogram":
        is_distributed(name, there, wanted, shown)
        return
    found = shown.samples[name]
    assert {frozenset(label for label, _ in where) for where in found} == {frozenset(there.labels)}
    assert {where: n for where, n in found.items() if n} == pytest.approx(
        {where: n for where, n in wanted.items() if n}
    )


def is_distributed(
    name: str, there: There, wanted: Mapping[Where, list[float]], shown: Shown
) -> None:
    """Each bucket, number and sum is that of the durations."""
    numbers, sums = shown.samples[f"{name}_count"], shown.samples[f"{name}_sum"]
    buckets = dict(shown.samples[f"{name}_bucket"])
    assert wanted.keys() <= numbers.keys() == sums.keys()
    for where, number in numbers.items():
        assert {label for label, _ in where} == set(there.labels)
        durations = wanted.get(where, [])
        assert number == len(durations)
        assert sums[where] == pytest.approx(sum(durations))
        for bound in (*there.bounds, math.inf):
            (le,) = (
                label for bucket in buckets for label in bucket - where
                if bucket > where and float(label[1]) == bound
            )  # fmt: skip
            below = sum(each <= bound for each in durations)
            assert buckets.pop(where | {le}) == below, (where, bound)
    assert not buckets, "bounds that are not theirs"


# --- one by one -------------------------------------------------------------------------------


def its(name: str, n: float = 1, **labels: str) -> dict[Series, float]:
    """A series that rises by ``n``."""
    return {(name, frozenset(labels.items())): n}


def both_names(name: str, **labels: str) -> dict[Series, float]:
    """The same of a runner, under each of its names."""
    return its(f"act_runner_{name}", 1, **labels) | its(f"gitea_runner_{name}", 1, **labels)


#: An event, and what rises.
One = tuple[Any, dict[Series, float]]


def of_dispatchers() -> Iterator[One]:
    requests = "tuist_runners_dispatch_request"
    for ours, theirs in DISPATCHED.items():
        yield (
            event("dispatch.request", 1, outcome=ours, duration_ms=7),
            its(f"{requests}_count", fleet="f0", outcome=theirs)
            | its(f"{requests}_duration_milliseconds_count", outcome=theirs),
        )
    yield (
        event("machine.boot", 1, duration_ms=30_000),
        its("tart_kubelet_vm_boot_duration_seconds_count", pool="f0"),
    )
    yield event("machine.boot", 1, outcome="timed_out", duration_ms=30_000), {}


def of_runners() -> Iterator[One]:
    def of(kind: str, **said: Any) -> Any:
        return event(kind, 1, runner="r", **said)

    for ours, theirs in POLLED.items():
        rises = both_names("poll_fetch_total", fleet="f0", result=theirs) if theirs else {}
        yield of("runner.poll", result=ours), rises
    yield (
        of("runner.poll", result="error", duration_ms=60_000),
        both_names("poll_fetch_total", fleet="f0", result="error")
        | both_names("poll_fetch_duration_seconds_count", fleet="f0"),
    )
    for result in ("success", "failure", "cancelled", "skipped", "unknown"):
        yield (
            of("task.finished", task_id=result, result=result, duration_ms=9),
            both_names("job_total", fleet="f0", status=result)
            | both_names("job_duration_seconds_count", fleet="f0"),
        )
    for what in ("log", "state"):
        for result in ("success", "error"):
            yield (
                of(f"report.{what}", task_id="1", result=result, duration_ms=9),
                both_names(f"report_{what}_total", fleet="f0", result=result)
                | both_names(f"report_{what}_duration_seconds_count"),
            )
    for ours, theirs in CALLED.items():
        rises = both_names("client_errors_total", fleet="f0", method=theirs) if theirs else {}
        yield of("client.error", method=ours), rises


def of_schedulers() -> Iterator[One]:
    for ours, mode in MODES.items():
        assert mode is not None

        def of(kind: str, run: str, ours: str = ours, **said: Any) -> Any:
            return event(kind, 1, run_id=f"{ours} {run}", mode=ours, **said)

        for status, theirs in PLANNED.items():
            labels = {"mode": mode, "status": str(theirs)}
            yield (
                of("run.planned", status, status=status, latency_ms=9),
                its("scheduler_planner_runs_total", **labels)
                | its("scheduler_planner_latency_seconds_count", **labels) if theirs else {},
            )  # fmt: skip
        for status, theirs in SEGMENTS.items():
            rises = its("scheduler_runner_segments_total", mode=mode, status=str(theirs))
            said = {"images": 5, "images_with_delta": 2, "new": 9, "critical": 4, "high": 3,
                    "kev": 1}  # fmt: skip
            images, new = "scheduler_runner_images_total", "scheduler_runner_delta"
            if status == "completed":
                rises |= its(images, 2, mode=mode, delta="true")
                rises |= its(images, 3, mode=mode, delta="false") | its(
                    f"{new}_total", 9, mode=mode
                )
                rises |= its(f"{new}_critical_total", 4, mode=mode)
                rises |= its(f"{new}_high_total", 3, mode=mode)
                rises |= its(f"{new}_kev_total", 1, mode=mode)
            finished = of("segment.finished", status, segment_id="g", status=status, **said)
            yield finished, rises if theirs else {}
        for result, theirs in ENDED.items():
            name = "scheduler_run_duration_seconds_count"
            rises = its(name, mode=mode, result=theirs) if theirs else {}
            yield of("run.finished", result, result=result, duration_ms=9), rises


def of_reconcilers() -> Iterator[One]:
    name = "gastown_reconciler"

    def ticked(number: int, **said: Any) -> Any:
        return event("reconciler.tick", 1, reconciler="c", tick_id=str(number), wall_ms=3, **said)

    ok = its(f"{name}_ticks_total", outcome="ok") | its(f"{name}_tick_duration_seconds_count")
    failed = {
        key: n for key, n in ok.items() if key not in its(f"{name}_ticks_total", outcome="ok")
    }
    yield ticked(0), ok
    yield ticked(1, failed=True), failed | its(f"{name}_ticks_total", outcome="failed")
    yield ticked(2, events_drained=3), ok | its(f"{name}_events_drained_total", 3)
    yield ticked(3, events_failed=1), ok | its(f"{name}_events_failed_total")
    yield ticked(4, actions=2), ok | its(f"{name}_actions_emitted_total", 2)
    effects = f"{name}_side_effects_total"
    for number, outcome in enumerate(("succeeded", "failed"), 5):
        yield (
            ticked(number, effects_attempted=2, **{f"effects_{outcome}": 1}),
            ok | its(effects, 2, outcome="attempted") | its(effects, outcome=outcome),
        )
    for outcome in ("applied", "failed", "suppressed", "unknown"):
        yield (
            event("reconciler.action", 1, reconciler="c", type="x", outcome=outcome),
            its(f"{name}_actions_total", outcome=outcome),
        )
    where = {"reconciler": "c", "invariant": "i", "entity": "e"}
    yield (
        event("reconciler.violation_opened", 1, **where),
        its(f"{name}_invariant_violations_opened_total"),
    )
    yield event("reconciler.violation_closed", 2, **where), {}


def test_what_a_runners_own_page_said_stands_here_again() -> None:
    """Of a runner that is scraped: what its counters and buckets grew by."""
    names = {"poll": "poll_fetch", "job": "job", "log": "report_log", "state": "report_state"}
    bounds = {short: RUNNERS[f"{name}_duration_seconds"].bounds for short, name in names.items()}
    grown = {short: (each, tuple(range(1, len(each) + 2)), 100.5) for short, each in bounds.items()}
    scraped = event(
        "runner.scrape", 0, "p", runner="r", polls={"task": 2, "empty": 7, "error": 1},
        jobs={"failure": 3}, log_reports={"error": 4}, state_reports={"success": 5},
        client_errors={"update_log": 4}, histograms=grown,
    )  # fmt: skip
    shown = Live().tell(scraped, scraped)
    for namespace in ("act_runner", "gitea_runner"):
        for name, labels, n in (
            ("poll_fetch_total", {"result": "empty"}, 7), ("job_total", {"status": "failure"}, 3),
            ("report_log_total", {"result": "error"}, 4),
            ("report_state_total", {"result": "success"}, 5),
            ("client_errors_total", {"method": "UpdateLog"}, 4),
        ):  # fmt: skip
            where = frozenset({"fleet": "f0", **labels}.items())
            assert shown.samples[f"{namespace}_{name}"][where] == n
        for short, name in names.items():
            there = f"{namespace}_{name}_duration_seconds"
            assert set(shown.samples[f"{there}_sum"].values()) == {100.5}
            buckets = {
                float(dict(where)["le"]): n for where, n in shown.samples[f"{there}_bucket"].items()
            }
            up_to = accumulate(grown[short][1])
            assert buckets == dict(zip((*bounds[short], math.inf), up_to, strict=True))


def of_nothing() -> Iterator[One]:
    """What none of those systems counts."""
    runner, run = {"runner": "r"}, {"run_id": "n"}
    task, work = {**runner, "task_id": "n"}, {"reconciler": "c", "work_id": "w"}
    for kind, said in (
        ("runner.mint", {"outcome": "failed"}), ("pool.sample", {"idle": 1}),
        ("queue.sample", {"queued": 1}), ("accounts.sample", {"enabled": 1}),
        ("runner.info", {**runner, "capacity": 1}), ("runner.status", {**runner, "running": 1}),
        ("runner.stopped", {**runner, "forced": True}), ("task.assigned", task),
        ("task.started", task), ("task.finalizing", {**task, "result": "failure"}),
        ("step.finished", {**task, "result": "failure"}),
        ("task.output_dropped", {**task, "reason": "key_too_long"}),
        ("task.flush_failed", {**task, "method": "update_log", "rows_lost": 2}),
        ("task.reaped", {**task, "sweep": "zombie"}), ("run.created", run),
        ("segment.leased", {**run, "segment_id": "g", "attempt": 2}),
        ("run.progress", {**run, "processed": 1, "total": 2}),
        ("queue.depth", {"queue": "runner", "depth": 3}),
        ("queue.dead_lettered", {**run, "queue": "runner"}),
        ("schedule.caught_up", {"schedule_id": "s", "due_at": START}),
        # A tick says it as well, or it hides it; then it is in a metric of ours.
        ("reconciler.effect", {"reconciler": "c", "type": "x", "outcome": "failed"}),
        ("work.moved", {**work, "from_state": "closed", "to_state": "failed"}),
    ):  # fmt: skip
        yield event(kind, 3, **said), {}


#: Of each family an event that makes its series of ``f0``, and none of theirs rises by.
FIRST: Final = (
    event("claim.attempt", 0, outcome="ok"),
    event("machine.boot", 0, outcome="failed"),
    event("runner.poll", 0, runner="r", result="unauthenticated"),
    event("schedule.missed", 0, schedule_id="s", due_at=START),
    event("work.dispatch_failed", 0, reconciler="c", work_id="w"),
)


def test_every_series_rises_from_zero_by_an_event_and_no_other_does() -> None:
    """So each counter of failures does, and none was missing before."""
    live = Live()
    first = before = live.tell(*FIRST).counts(THERE.__contains__)
    assert not any(first.values())
    risen: set[Series] = set()
    kinds = {each.kind for each in FIRST} | {"runner.scrape"}
    for family in (of_dispatchers, of_runners, of_schedulers, of_reconcilers, of_nothing):
        for number, (each, wanted) in enumerate(family()):
            after = live.tell(each, each).counts(THERE.__contains__)
            assert after.keys() == first.keys(), each
            rose = {key: n - before[key] for key, n in after.items() if n != before[key]}
            assert rose == wanted, (number, each)
            risen |= rose.keys()
            kinds.add(each.kind)
            before = after
    assert risen == first.keys()
    assert kinds == set(KINDS)
