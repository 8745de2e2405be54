"""The exporter over a catalogue made for these tests: groups, levels, distributions."""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Bag
from collections.abc import Iterator
from typing import Any

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.effects import Note
from pipeline.exporter import SAMPLES_SLICE, Exporter
from pipeline.metrics import FLEET, PREFIX, Counter, Gauge, Histogram, Label, Level

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
