"""The exporter over a catalogue made for these tests: groups, levels, distributions."""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Bag
from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import prometheus_client
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics, telemetry
from pipeline.effects import Note
from pipeline.exporter import EVERYTHING, SAMPLES_SLICE, Exporter, _values
from pipeline.fleet import FleetLedger
from pipeline.ledger import LIVE, Ledger
from pipeline.metrics import FLEET, PREFIX, Counter, Gauge, Histogram, Label, Level
from tests.support.fleet_world import BASE, seen
from topics.models import (
    ClaimFact,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    Milestone,
    RunnerRef,
)
from topics.recovery import RunnerState
from topics.tables import JOBS_TABLE

OUTCOME = Label("outcome", ("won", "lost"))
#: Of pools only, and of every fleet.
CLAIMED = Counter[tuple[str, str]]("claimed", "Claims.", "claims", (FLEET, OUTCOME), group="pools")
BOOT = Histogram[tuple[str]]("boot", "Boots.", "seconds", (FLEET,), group="pools", buckets=(1, 5))
SEEN = Counter[tuple[str]]("seen", "Events.", "events", (FLEET,))
WANTED = Gauge[tuple[str, str]]("wanted", "Wanted.", "machines", (FLEET, OUTCOME), group="pools")
OLDEST = Gauge[tuple[str]]("oldest", "Oldest.", "seconds", (FLEET,), over="max")
BACKLOG = Gauge[tuple[str]]("backlog", "Backlog.", "runs", (OUTCOME,), in_advance=False)
WAITED = Histogram[tuple[()]]("waited", "Waited.", "seconds", buckets=(0, 0.5, 2, 10))
CATALOGUE: tuple[metrics.Metric[Any], ...] = (
    CLAIMED, BOOT, SEEN, WANTED, OLDEST, BACKLOG, WAITED,
)  # fmt: skip


def samples(exporter: Exporter) -> dict[str, float]:
    async def pause() -> None:
        pass

    text = asyncio.run(exporter.exposition(pause)).decode()
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name.removeprefix(PREFIX): float(value) for name, _, value in pairs}


def of_fleet(found: dict[str, float], fleet: str) -> dict[str, float]:
    return {name: value for name, value in found.items() if f'fleet="{fleet}"' in name}


def test_a_fleet_has_the_series_of_a_group_once_it_is_seen_in_it() -> None:
    exporter = Exporter(catalogue=CATALOGUE)
    exporter.count(SEEN, ("a",))
    assert not [name for name in of_fleet(samples(exporter), "a") if "claimed" in name]
    exporter.count(BOOT, ("b",), 3)
    found = samples(exporter)
    assert not [name for name in of_fleet(found, "a") if "boot" in name]
    assert of_fleet(found, "b") == {
        'claimed_total{fleet="b",outcome="won"}': 0,
        'claimed_total{fleet="b",outcome="lost"}': 0,
        'boot_bucket{fleet="b",le="1.0"}': 0,
        'boot_bucket{fleet="b",le="5.0"}': 1,
        'boot_bucket{fleet="b",le="+Inf"}': 1,
        'boot_count{fleet="b"}': 1,
        'boot_sum{fleet="b"}': 3,
    }


def test_a_level_of_a_group_makes_its_counters_too() -> None:
    exporter = Exporter(catalogue=CATALOGUE)
    exporter.watch_levels(lambda: iter([(WANTED, ("a", "won"), 2)]))
    found = samples(exporter)
    assert found['wanted{fleet="a",outcome="won"}'] == 2
    assert found['wanted{fleet="a",outcome="lost"}'] == 0
    assert found['boot_count{fleet="a"}'] == found['claimed_total{fleet="a",outcome="won"}'] == 0
    assert 'seen_total{fleet="a"}' not in found


def test_fleets_beyond_the_limit_share_a_label_in_every_group() -> None:
    exporter = Exporter(2, CATALOGUE)
    for fleet in ("a", "b", "c", "d", "other"):
        exporter.count(SEEN, (fleet,))
    exporter.count(CLAIMED, ("d", "won"))
    exporter.count(CLAIMED, ("a", "lost"))
    found = samples(exporter)
    assert (found['seen_total{fleet="a"}'], found['seen_total{fleet="other"}']) == (1, 3)
    assert not of_fleet(found, "d")
    assert found['claimed_total{fleet="other",outcome="won"}'] == 1
    assert found['claimed_total{fleet="a",outcome="lost"}'] == 1
    assert not [name for name in of_fleet(found, "b") if "claimed" in name]


def test_levels_are_brought_together_as_their_gauge_says() -> None:
    """Of two sources, which are two partitions or more; fleets beyond the first share a label."""
    exporter = Exporter(1, CATALOGUE)
    one: list[Level] = [
        (OLDEST, ("a",), -3),
        (WANTED, ("a", "won"), 2),
        (OLDEST, ("b",), 4),
        (WANTED, ("b", "lost"), 1),
    ]
    other: list[Level] = [
        (WANTED, ("a", "won"), 5),
        (OLDEST, ("c",), 9),
        (OLDEST, ("a",), -7),
        (WANTED, ("c", "lost"), 3),
    ]
    exporter.watch_levels(lambda: iter(one))
    exporter.watch_levels(lambda: iter(other))
    found = samples(exporter)
    assert found['oldest{fleet="a"}'] == -3
    assert found['oldest{fleet="other"}'] == 9
    assert found['wanted{fleet="a",outcome="won"}'] == 7
    assert found['wanted{fleet="other",outcome="lost"}'] == 4
    assert found['wanted{fleet="other",outcome="won"}'] == 0


def test_a_gauge_is_silent_while_its_source_is_blind() -> None:
    levels: list[Level] = []
    exporter = Exporter(catalogue=CATALOGUE)
    exporter.watch_levels(lambda: iter(levels))
    assert not [name for name in samples(exporter) if "backlog" in name]
    levels += [(BACKLOG, ("won",), 3), (WANTED, ("a", "won"), 1)]
    found = samples(exporter)
    assert (found['backlog{outcome="won"}'], found['backlog{outcome="lost"}']) == (3, 0)
    levels.clear()
    assert not [name for name in samples(exporter) if "backlog" in name or "wanted" in name]


def test_levels_are_looked_at_in_slices() -> None:
    exporter = Exporter(1, CATALOGUE)
    pauses = 0

    async def pause() -> None:
        nonlocal pauses
        pauses += 1

    def source() -> Iterator[Level]:
        before = pauses
        for n in range(4 * SAMPLES_SLICE):
            yield OLDEST, (f"fleet-{n}",), n
        assert pauses - before >= 4

    exporter.watch_levels(source)
    asyncio.run(exporter.exposition(pause))


@given(st.lists(st.floats(0, 20)))
def test_a_distribution_is_told_as_prometheus_client_tells_it(values: list[float]) -> None:
    exporter, registry = Exporter(catalogue=(WAITED,)), prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram(
        PREFIX + WAITED.name, WAITED.help, registry=registry, buckets=WAITED.buckets
    )
    for value in values:
        exporter.count(WAITED, (), value)
        theirs.observe(value)
    expected = prometheus_client.generate_latest(registry).decode().splitlines()
    told = prometheus_client.generate_latest(exporter.registry).decode().splitlines()
    assert told == [line for line in expected if "_created" not in line]


@given(st.lists(st.floats(0, 20)), st.lists(st.sampled_from((0.0, 0.3, 2.0, 10.0, math.inf))))
def test_what_others_observed_counts_as_if_it_had_been_observed(
    own: list[float], bounds: list[float]
) -> None:
    """0.3 is a bound that the metric does not have."""
    one, many = Exporter(catalogue=(WAITED,)), Exporter(catalogue=(WAITED,))
    for value in own:
        one.count(WAITED, (), value)
        many.count(WAITED, (), value)
    for bound in bounds:
        one.count(WAITED, (), min(bound, 11.0))
    total = sum(min(bound, 11.0) for bound in bounds)
    many.note([Note(WAITED, (), total, Bag(bounds))])
    told = samples(many)
    for name, value in samples(one).items():
        assert math.isclose(told[name], value, abs_tol=1e-9), name


#: Of families that events of their own are told by: a dozen counters and two distributions each.
#: What families of telemetry count of fleets.
FAMILIES: tuple[metrics.Metric[Any], ...] = tuple(
    metric for metric in telemetry.CATALOGUE if metric.by_fleet
)
#: Five groups of our own: a counter with twelve values, a distribution and a gauge each.
MADE: tuple[metrics.Metric[Any], ...] = tuple(
    each
    for group in ("one", "two", "three", "four", "five")
    for each in (
        Counter[tuple[str, str]](
            f"{group}_events", "E.", "events", (FLEET, Label("kind", tuple("abcdefghijkl"))),
            group=group,
        ),
        Histogram[tuple[str]](f"{group}_a", "A.", "s", (FLEET,), group=group, buckets=(1, 2, 3)),
        Gauge[tuple[str]](f"{group}_levels", "L.", "things", (FLEET,), group=group),
    )
)  # fmt: skip
#: Series of a fleet whose jobs are claimed, in all.
EACH = 67


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, len(MADE) - 1))),
    st.integers(200, 600),
)
def test_the_bound_on_series_holds_whoever_comes(
    seen: list[tuple[int, int]], max_series: int
) -> None:
    exporter = Exporter(10, (*MADE, metrics.FLEETS_UNNAMED), max_series)
    levels: list[Level] = []
    exporter.watch_levels(lambda: iter(levels))
    named: set[tuple[str, str]] = set()
    for number, which in seen:
        metric, fleet = MADE[which], f"f{number}"
        if isinstance(metric, Gauge):
            levels.append((metric, (fleet,), 1))
            samples(exporter)
        elif isinstance(metric, Counter):
            exporter.count(metric, (fleet, "a"))
        else:
            exporter.count(metric, (fleet,), 1)
        is_named = exporter.fleet(fleet, metric.group) == fleet
        assert is_named or (metric.group, fleet) not in named, "a name is kept"
        if is_named:
            named.add((metric.group, fleet))
    found = samples(exporter)
    assert len(found) <= max_series
    asked = {(MADE[which].group, f"f{number}") for number, which in seen}
    assert found["fleets_unnamed"] == len({fleet for _, fleet in asked - named})


def test_other_families_leave_half_of_the_room_to_jobs() -> None:
    exporter = Exporter()
    for fleet, metric in product(range(100), FAMILIES):
        exporter.fleet(f"f{fleet}", metric.group)
    room = (4_900 - Exporter()._spent) // 2 // EACH
    for fleet in range(100):
        exporter.count(metrics.TRANSITIONS, (f"f{fleet}", "claimed"))
    named = {name.split('"')[1] for name in samples(exporter)
             if name.startswith("job_claim_to_start_seconds_count")}  # fmt: skip
    assert 20 < room <= len(named)
    assert len(samples(exporter)) <= 4_900


def a_job(number: int, fleet: str) -> tuple[list[JobFact], list[JobFact]]:
    """A job of a fleet: until it is claimed, and from its start by a runner of its own."""
    envelope = {"source": "t", "received_at": BASE, "key": f"github:github.com:{number}"}

    def fact(name: str, at_s: int, **more: Any) -> JobFact:
        at = BASE + 1_000 * at_s
        return JobFact(id=f"{number}:{name}", occurred_at=at, cause=name, **envelope, **more)

    def reached(milestone: Milestone, at_s: int) -> dict[Milestone, dict[Clock, int]]:
        return {milestone: {Clock.PROVIDER: BASE + 1_000 * at_s}}

    claim = ClaimFact(handle=f"c-{number}", claimed_at=BASE + 2_000, runner=f"vm-{number}")
    attributes = JobAttributes(pool=fleet, name=f"build {number}", repo=f"acme/r-{number}")
    runner = RunnerRef(id=number + 1, name=f"vm-{number}")
    return (
        [
            fact("queued", 0, times=reached(Milestone.QUEUED, 0), job=attributes),
            fact("claimed", 2, claim=claim),
        ],
        [
            fact("started", 9, times=reached(Milestone.STARTED, 9), executed_by=runner),
            fact(
                "completed", 99, times=reached(Milestone.COMPLETED, 99),
                conclusion=Conclusion.SUCCESS,
            ),
        ],
    )  # fmt: skip


RUNNERS, JOBS = 10_000, 1_000_000


class Folds:
    """A partition of either log, and what of it is exported; each job stands for ``weight``."""

    def __init__(self, exporter: Exporter, weight: int) -> None:
        self.weight = weight
        self.states: dict[bytes, bytes | None] = {}
        self.jobs, self.fleets = Ledger(0, self.states.get), FleetLedger(0)
        self.exporter = exporter
        self.offset = 0
        exporter.watch_levels(self.levels)

    def levels(self) -> Iterator[Level]:
        for where, count in self.jobs.counts().items():
            if where[1] in LIVE:
                yield metrics.JOBS, where, count
                yield metrics.OLDEST, where, 1
        for fleet, _, mode in self.fleets.levels():
            yield metrics.RECOVERY_BREAKER_OPEN, (fleet,), 0
            yield metrics.RECOVERY_MODE, (fleet, mode.value), 1

    def work(self, numbers: range) -> None:
        for part in (0, 1):
            for number in numbers:
                for fact in a_job(number, f"fleet-{number % 50}")[part]:
                    self.offset += 1
                    self.jobs.apply(self.offset, fact)
            effects = self.jobs.flush()
            self.states |= dict(effects.writes(JOBS_TABLE))
            self.jobs.written()
            for _ in range(self.weight):
                self.exporter.note(effects.notes)
        # What is over is of no use to those that follow.
        for number in numbers:
            self.states.pop(f"github:github.com:{number}".encode(), None)
        for each in numbers:
            number = each % RUNNERS
            runner = seen(f"vm-{number}", BASE, RunnerState.IDLE, fleet=f"fleet-{number % 50}")
            self.fleets.apply(each, runner)
        self.exporter.note(self.fleets.flush().notes)


def test_fifty_fleets_ten_thousand_runners_a_million_jobs_leave_few_series() -> None:
    """Jobs and runners through the folds; then, of each fleet, whatever can be told by every
    family there is. By night it is a million jobs, else ten thousand that count a hundred times.
    """
    jobs = JOBS if settings.default.max_examples > 1_000 else RUNNERS
    exporter = Exporter()
    folds = Folds(exporter, JOBS // jobs)
    folds.work(range(500))
    before = samples(exporter)
    for first in range(500, jobs, 500):
        folds.work(range(first, first + 500))
    found = samples(exporter)
    assert found.keys() == before.keys(), "what jobs and runners are called is in no label"
    done = [value for name, value in found.items() if name.startswith("jobs_completed_total{")]
    assert sum(done) == JOBS
    for metric in ("job_queue_seconds_count", "job_claim_to_start_seconds_count", "jobs"):
        fleets = {
            name for name in found if name.startswith(f"{metric}{{") and '"other"' not in name
        }
        assert len({name.split('"')[1] for name in fleets}) == 50, metric
    assert found["fleets_unnamed"] == 0
    everything: list[Level] = []
    exporter.watch_levels(lambda: iter(everything))
    for metric, fleet in product(EVERYTHING, range(50)):
        told = metric.by_fleet or metric.together
        for rest in product(*(_values(label) for label in metric.labels[told:])):
            labels = (f"fleet-{fleet}", *rest) if told else rest
            if isinstance(metric, Gauge):
                everything.append((metric, labels, 1))
            else:
                exporter.count(cast(Any, metric), labels)
    assert len(found) < len(samples(exporter)) < 5_000
