"""``/runners``: real handlers over real ledgers of two workers, asked over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from pipeline.ledger import Ledger
from tests.support.fleet_world import host_gone, job, seen
from tests.support.house import House
from topics.recovery import RunnerState

EVIL: Final = "<script>alert(1)</script>~\u202e"
NOW: Final = int(time.time() * 1000)


@pytest.fixture(scope="module")
def houses() -> Iterator[tuple[House, House]]:
    """Two workers; the first knows the second."""
    with (
        House({1: Ledger(1, lambda key: None)}) as other,
        House({0: Ledger(0, lambda key: None)}, peers={other.url: {1}}) as house,
    ):
        told: dict[int, list[Any]] = {
            0: [
                seen("vm-1", NOW - 9_000, RunnerState.STARTING, held=7, claim="h7", host="rack"),
                seen("vm-1", NOW - 5_000, host="rack"),
                seen("vm-2", NOW - 4_000, RunnerState.IDLE),
                seen("vm-3", NOW - 9_000, RunnerState.BUSY, held=8, host="rock"),
                host_gone("rock", NOW - 2_000),
                seen(EVIL, NOW - 1_000, RunnerState.IDLE, fleet=EVIL),
            ],
            1: [seen(f"vm-{n}", NOW, RunnerState.BUSY, held=n, fleet="g") for n in range(5)],
        }
        for which, partition in ((house, 0), (other, 1)):
            for offset, record in enumerate(told[partition]):
                which.worker.fleet_ledgers[partition].apply(offset, record)
        yield house, other


def test_a_runner_says_what_it_holds_and_when_it_was_seen(houses: tuple[House, House]) -> None:
    status, answer = houses[0].get("/runners?fleet=f0")
    assert status == 200
    first, second, third = answer["runners"]
    assert first.pop("silent_ms") >= 5_000
    assert first == {
        "runner": "vm-1", "fleet": "f0", "state": "starting", "since": NOW - 9_000,
        "job": job(7), "claim": "h7", "host": "rack", "seen": NOW - 5_000, "heartbeats": True,
    }  # fmt: skip
    assert (second["state"], second["job"], second["claim"]) == ("idle", "", "")
    # Gone with its host; what it held then is shown.
    assert (third["state"], third["since"], third["job"]) == ("gone", NOW - 2_000, job(8))
    assert third["seen"] == NOW - 9_000


def test_any_worker_answers_for_all_in_pages(houses: tuple[House, House]) -> None:
    house = houses[0]
    whole = house.get("/runners")[1]
    listed = [(one["fleet"], one["runner"]) for one in whole["runners"]]
    assert len(listed) == 9
    assert listed == sorted(listed)
    assert (whole["matched"], whole["incomplete"]) == (9, [])
    assert whole["states"] | {"busy": 5, "idle": 2, "starting": 1, "gone": 1} == whole["states"]
    assert sum(whole["states"].values()) == 9
    paged, cursor = [], ""
    while cursor is not None:
        page = house.get(f"/runners?limit=2&cursor={cursor}")[1]
        assert 0 < len(page["runners"]) <= 2
        paged += [(one["fleet"], one["runner"]) for one in page["runners"]]
        following = page["next"]
        cursor = following and following.replace("<", "%3C").replace("\u202e", "%E2%80%AE")
    assert paged == listed


def test_states_are_chosen_and_mistakes_refused(houses: tuple[House, House]) -> None:
    house = houses[0]
    chosen = house.get("/runners?state=idle,gone")[1]
    assert {one["state"] for one in chosen["runners"]} == {"idle", "gone"}
    assert chosen["matched"] == len(chosen["runners"]) == 3
    assert chosen["states"]["busy"] == 5, "what else there is stays in sight"
    for wrong in ("state=live", "cursor=x", "cursor=9~ab", "cursor=-1~ab", "limit=0", "host=rack"):
        assert house.get(f"/runners?{wrong}")[0] == 400


def test_the_page_shows_names_of_strangers_as_text(houses: tuple[House, House]) -> None:
    status, page = houses[0].get("/runners?format=html")
    assert status == 200
    assert "<h1>9 runners</h1>" in page
    assert "<script" not in page
    assert f'href="/jobs/{job(7)}"' in page
    assert 'href="/runners" aria-current="page"' in page


def test_a_worker_that_has_not_loaded_its_fleets_is_missed(houses: tuple[House, House]) -> None:
    house, other = houses
    kept = other.worker.fleet_ledgers.pop(1)
    try:
        answer = house.get("/runners")[1]
    finally:
        other.worker.fleet_ledgers[1] = kept
    assert answer["matched"] == 4
    assert [gap["partitions"] for gap in answer["incomplete"]] == [[1]]
