"""Histories of telemetry made up by hypothesis: ten minutes of one or two fleets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.support.telemetry import MINUTE, event
from topics.events.dispatch import ClaimOutcome, DispatchOutcome, MintOutcome
from topics.events.pools import BootOutcome

FLEETS = st.sampled_from(["f0", "f1"])
#: When something happened, in ms.
TIMES = st.integers(0, 9 * MINUTE)
MS = st.integers(0, 400_000)
SMALL = st.integers(0, 6)


def maybe(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """That, or nothing."""
    return st.none() | one


def told(kind: str, **said: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An event of a kind."""
    return st.builds(
        lambda at, fleet, n, said: event(kind, at, f"{kind}|{at}|{fleet}|{n}", fleet=fleet, **said),
        TIMES,
        FLEETS,
        st.integers(0, 10_000),
        st.fixed_dictionaries(said),
    )


DISPATCH = (
    told("dispatch.request", outcome=st.sampled_from(DispatchOutcome), duration_ms=maybe(MS)),
    told("claim.attempt", outcome=st.sampled_from(ClaimOutcome)),
    told("runner.mint", outcome=st.sampled_from(MintOutcome), duration_ms=maybe(MS)),
)
_COUNTS = ("desired", "observed", "max", "ready", "idle", "booting", "occupied")
POOLS = (
    told("pool.sample", pool=st.sampled_from(["", "p", "q"]), **{n: maybe(SMALL) for n in _COUNTS}),
    told("queue.sample", queued=maybe(SMALL), withheld=maybe(SMALL)),
    told("accounts.sample", enabled=SMALL),
    told("machine.boot", outcome=st.sampled_from(BootOutcome), duration_ms=maybe(MS)),
)

_KINDS: Mapping[str, tuple[st.SearchStrategy[Any], ...]] = {"dispatch": DISPATCH, "pools": POOLS}

#: A history of each family, without two events of one id.
HISTORIES: Mapping[str, st.SearchStrategy[list[Any]]] = {
    family: st.lists(st.one_of(*each), max_size=25, unique_by=lambda e: e.id)
    for family, each in _KINDS.items()
}
