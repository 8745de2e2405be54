"""The rules of recovery as an operator writes them."""

from __future__ import annotations

import pytest

from pipeline.policies import names, policies
from pipeline.settings import Settings
from topics.recovery import Mode


def test_a_fleet_has_its_own_rules_and_those_of_all() -> None:
    jobs, fleets = policies(
        {"*": {"orphan": 120, "per_tick": 3}, "large": {"stale_queue": 7200.5, "mode": "paused"}},
        Mode.LIVE,
    )
    assert (jobs.of("any").orphan_ms, jobs.of("large").orphan_ms) == (120_000, 120_000)
    assert (jobs.of("any").stale_queue_ms, jobs.of("large").stale_queue_ms) == (
        3_600_000, 7_200_500,
    )  # fmt: skip
    assert (fleets.of("any").mode, fleets.of("large").mode) == (Mode.LIVE, Mode.PAUSED)
    assert fleets.of("large").per_tick == 3


def test_every_name_can_be_said() -> None:
    told = {name: value for name, value in names().items() if name != "mode"}
    jobs, fleets = policies({"*": told})
    assert (jobs, fleets) == policies({})


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"*": {"orfan": 120}}, "'orfan' is not one of"),
        ({"large": 5}, "large: expected an object"),
        ({"*": {"orphan": -1}}, "orphan is -1"),
        ({"*": {"orphan": "soon"}}, "orphan is 'soon'"),
        ({"*": {"orphan": True}}, "orphan is True"),
        ({"*": {"requeue_queued": 1}}, "requeue_queued is 1"),
        ({"*": {"mode": "off"}}, "'off'"),
        ({"*": {"cool_down": 90_000}}, "at most an hour"),
    ],
)
def test_what_cannot_be_is_refused_by_name(told: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        policies(told)
    with pytest.raises(ValueError, match=why):
        Settings(recovery_policies=told)


def test_without_a_word_nothing_is_commanded() -> None:
    assert policies({})[1].of("any").mode is Mode.DRY_RUN
    assert Settings().recovery == "dry_run"
