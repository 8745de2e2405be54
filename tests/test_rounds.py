"""What is told at intervals: when, and with what."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from topics.rounds import Rounds


def test_what_has_one_interval_goes_round_together() -> None:
    rounds = Rounds[int]()
    assert rounds.due_at == math.inf
    rounds.add("a", 30, 1, at=0)
    assert rounds.take(0) == [("a", 1)]
    rounds.add("b", 30, 2, at=10)
    assert rounds.due_at == 10
    assert rounds.take(10) == [("a", 1), ("b", 2)]
    assert rounds.take(39) == []
    rounds.add("c", 5, 3, at=39)
    assert rounds.take(39) == [("c", 3)]
    assert rounds.take(40) == [("a", 1), ("b", 2)]
    rounds.remove("c")
    # What is added for later joins what goes round before.
    rounds.add("d", 30, 4, at=70)
    assert rounds.take(69) == []
    rounds.add("e", 30, 5, at=99)
    assert rounds.take(70) == [("a", 1), ("b", 2), ("d", 4), ("e", 5)]
    rounds.remove("d")
    rounds.remove("e")
    # After a standstill one round is enough.
    assert rounds.take(1_000) == [("a", 1), ("b", 2)]
    assert rounds.due_at == 1_030
    rounds.clear()
    assert (rounds.due_at, "a" in rounds) == (math.inf, False)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([2, 3, None]), st.integers(1, 4)),
        max_size=30,
    )
)
def test_each_is_told_at_least_once_an_interval_and_not_after_its_end(
    steps: list[tuple[str, int | None, int]],
) -> None:
    """Looked at each second, with additions and removals between."""
    rounds, every, told, now = Rounds[str](), dict[str, int](), dict[str, int](), 0
    for name, interval, seconds in steps:
        if interval is None:
            rounds.remove(name)
            every.pop(name, None)
        else:
            rounds.add(name, interval, name, now)
            every[name], told[name] = interval, now - interval
        for _ in range(seconds):
            for slot, what in rounds.take(now):
                assert slot == what
                assert slot in every
                told[slot] = now
            assert all(now - told[each] < every[each] for each in every)
            assert (rounds.due_at > now) is True
            now += 1
    assert {name for name in "ab" if name in rounds} == every.keys()
