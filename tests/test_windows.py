"""Sketches, panes and lateness: what a window says equals what the samples say."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.windows import (
    SIZES_S,
    Contribution,
    Pane,
    Sketch,
    WindowPolicy,
    decode_pane,
    encode_pane,
    pane_start,
    start_of,
    window_record,
)
from pipeline.windows.sketch import RELATIVE_ACCURACY
from topics.models import WINDOW

#: From nothing to a job of five days.
durations = st.integers(0, 5 * 86_400_000) | st.sampled_from([0, 1, 999, 1_000, 60_000])
samples = st.lists(durations, max_size=60)
quantiles = st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0])

T0 = 1_700_000_040_000  # a whole minute
contributions = st.lists(
    st.builds(
        Contribution,
        at=st.just(T0),
        fleet=st.just("f"),
        name=st.sampled_from(["queue", "run", "stranded.orphan", "stranded.stale_queue"]),
        ms=durations,
    )
    | st.builds(
        Contribution,
        at=st.just(T0),
        fleet=st.just("f"),
        name=st.sampled_from(["success", "failure"]),
        ms=st.none(),
    ),
    max_size=30,
)


def sketch_of(values: list[int]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(samples.filter(bool), quantiles)
def test_a_quantile_is_within_one_percent(values: list[int], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    told = sketch_of(values).quantile(q)
    assert told is not None
    assert abs(told - exact) <= RELATIVE_ACCURACY * exact * (1 + 1e-9)


@given(samples)
def test_count_and_sum_are_exact_and_the_maximum_within_one_percent(values: list[int]) -> None:
    sketch = sketch_of(values)
    assert (sketch.count, sketch.sum_ms) == (len(values), sum(values))
    assert sketch.zeros == values.count(0)
    largest = max(values, default=0)
    # Rounded to a whole millisecond, which matters below 100 ms.
    assert abs(sketch.max_ms - largest) <= RELATIVE_ACCURACY * largest + 0.5


@given(samples, samples)
def test_merging_is_having_seen_both(a: list[int], b: list[int]) -> None:
    one = sketch_of(a)
    kept = one.copy()
    one.merge(sketch_of(b))
    assert one == sketch_of(a + b)
    assert kept == sketch_of(a)


@given(samples, samples)
def test_taking_a_sample_out_is_never_having_seen_it(stay: list[int], go: list[int]) -> None:
    sketch = sketch_of(stay + go)
    for value in go:
        sketch.add(value, -1)
    assert sketch == sketch_of(stay)


def test_nothing_has_no_quantile() -> None:
    assert Sketch().quantile(0.5) is None
    assert Sketch().max_ms == 0


def pane_of(said: list[Contribution]) -> Pane:
    pane = Pane()
    for each in said:
        pane.add(each, 1)
    return pane


@given(contributions, contributions, st.integers(-1, 2**40), st.integers(-1, 2**40))
def test_panes_add_up_and_survive_their_bytes(
    a: list[Contribution], b: list[Contribution], fence: int, other: int
) -> None:
    pane, more = pane_of(a), pane_of(b)
    pane.fence, more.fence = fence, other
    pane.merge(more)
    assert pane == pane_of(a + b)
    assert pane.fence == max(fence, other)
    again = decode_pane(encode_pane(pane))
    assert again == pane
    assert again.fence == pane.fence
    for each in b:
        pane.add(each, -1)
    assert pane == pane_of(a)
    # The other one was only read.
    assert more == pane_of(b)


def test_what_was_told_and_taken_back_is_told_as_nothing() -> None:
    pane = Pane()
    for weight in (1, -1):
        pane.add(Contribution(T0, "f", "queue", 1_000), weight)
        pane.add(Contribution(T0, "f", "success", None), weight)
    assert pane == Pane()
    assert (pane != Pane()) is False
    record = window_record(
        pane, fleet="f", partition=0, size_s=60, start=T0, closed=False, rev=7, at=T0 + 5_000
    )
    assert record["families"]["queue"]["count"] == 0
    assert record["conclusions"] == {"success": 0}

    assert pane.filled().empty
    assert not pane.empty, "records go on to tell it"


def test_what_is_not_inside_is_not_taken_out() -> None:
    pane = Pane()
    for each in (Contribution(T0, "f", "queue", 1_000), Contribution(T0, "f", "success", None)):
        pane.add(each, -1)
        pane.add(each, 1)
        pane.add(Contribution(T0, "f", "failure", each.ms), -1)
    assert pane == pane_of(
        [Contribution(T0, "f", "queue", 1_000), Contribution(T0, "f", "success", None)]
    )


@given(contributions)
def test_a_window_record_follows_the_contract(said: list[Contribution]) -> None:
    record = window_record(
        pane_of(said),
        fleet="f", partition=3, size_s=300, start=T0, closed=True, rev=9, at=T0 + 5_000,
    )  # fmt: skip
    window = WINDOW.validate_json(msgspec.json.encode(record))
    assert window.id == f"f|300|{T0}|3@9"
    counted = {family.value: values for family, values in window.families.items()}
    counted |= {f"stranded.{kind.value}": values for kind, values in window.stranded.items()}
    for name in ("queue", "run", "stranded.orphan", "stranded.stale_queue"):
        values = [each.ms for each in said if each.name == name and each.ms is not None]
        if values:
            assert (counted[name].count, counted[name].sum_ms) == (len(values), sum(values))
            assert counted[name].zeros + sum(counted[name].bins.values()) == len(values)
        else:
            assert name not in counted


@pytest.mark.parametrize("size_s", SIZES_S)
@given(st.integers(0, 4_000_000_000_000))
def test_windows_tumble(size_s: int, at: int) -> None:
    start = start_of(at, size_s)
    assert start <= at < start + size_s * 1_000
    assert start % (size_s * 1_000) == 0
    # Each pane lies in one window of each size.
    assert start_of(pane_start(at), size_s) == start


@given(st.integers(0, 4_000_000_000_000))
def test_a_pane_outlives_every_window_that_it_is_part_of(at: int) -> None:
    policy = WindowPolicy(lateness_ms=1_000, grace_ms=500)
    start = pane_start(at)
    for size_s in SIZES_S:
        first = start_of(start, size_s)
        assert policy.closes_at(first, size_s) == first + size_s * 1_000 + 1_000
        assert policy.forgotten_at(start) >= policy.closes_at(first, size_s) + 500
