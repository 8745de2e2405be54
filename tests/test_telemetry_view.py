"""``/telemetry``: real handlers over real ledgers of two workers, asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from pipeline.ledger import Ledger
from pipeline.telemetry import FAMILIES
from tests.support.house import House
from tests.support.telemetry import START, event, tick

EVIL: Final = "<script>alert(1)</script>~\u202e"


@pytest.fixture(scope="module")
def houses() -> Iterator[tuple[House, House]]:
    """Two workers; the first knows the second."""
    with (
        House({1: Ledger(1, lambda key: None)}) as other,
        House({0: Ledger(0, lambda key: None)}, peers={other.url: {1}}) as house,
    ):
        told: dict[int, list[Any]] = {
            0: [
                event("pool.sample", 1, pool="east", idle=2, desired=5),
                event("pool.sample", 2, pool=EVIL, idle=1),
                event("queue.sample", 3, queued=7),
                event("machine.boot", 4, duration_ms=41_000, fleet=EVIL, pool="p"),
                event("dispatch.request", 5, outcome="served", duration_ms=30),
                event("dispatch.request", 6, outcome="empty", duration_ms=20),
            ],
            1: [event("pool.sample", 1, fleet=f"g{n}", idle=n) for n in range(5)],
        }
        for which, partition in ((house, 0), (other, 1)):
            for offset, record in enumerate([*told[partition], tick(10)]):
                which.worker.telemetry_ledgers[partition].apply(offset, record)
        yield house, other


def test_a_subject_says_how_it_is_and_what_was_counted(houses: tuple[House, House]) -> None:
    status, answer = houses[0].get("/telemetry?family=dispatch")
    assert status == 200
    assert answer["subjects"] == [
        {
            "fleet": "f0",
            "name": "",
            "last_request_at": START + 6,
            "counts": {
                "dispatch_request_seconds|empty": 1,
                "dispatch_request_seconds|empty|sum": 20,
                "dispatch_request_seconds|served": 1,
                "dispatch_request_seconds|served|sum": 30,
                "dispatch_requests|empty": 1,
                "dispatch_requests|served": 1,
            },
        }
    ]
    (pools,) = houses[0].get("/telemetry?family=pools&fleet=f0")[1]["subjects"]
    assert (pools["queued"], pools["starved"], pools["saturated"]) == (7, 3, 4)
    assert pools["pools"]["east"]["desired"] == 5
    assert pools["pools"]["east"]["ready"] is None


def test_any_worker_answers_for_all_in_pages(houses: tuple[House, House]) -> None:
    house = houses[0]
    whole = house.get("/telemetry?family=pools")[1]
    listed = [(one["fleet"], one["name"]) for one in whole["subjects"]]
    assert listed == sorted(listed)
    assert (len(listed), whole["matched"], whole["incomplete"]) == (7, 7, [])
    assert whole["families"] == dict.fromkeys(FAMILIES, 0) | {"dispatch": 1, "pools": 7}
    paged, cursor = [], ""
    while cursor is not None:
        page = house.get(f"/telemetry?family=pools&limit=2&cursor={cursor}")[1]
        assert 0 < len(page["subjects"]) <= 2
        paged += [(one["fleet"], one["name"]) for one in page["subjects"]]
        following = page["next"]
        cursor = following and following.replace("<", "%3C").replace("\u202e", "%E2%80%AE")
    assert paged == listed


def test_mistakes_are_refused(houses: tuple[House, House]) -> None:
    for wrong in ("family=jobs", "cursor=x", "cursor=9~ab", "cursor=-1~ab", "limit=0", "name=rack"):
        assert houses[0].get(f"/telemetry?{wrong}")[0] == 400


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_shows_names_of_strangers_as_text(
    houses: tuple[House, House], family: str
) -> None:
    status, page = houses[0].get(f"/telemetry?family={family}&format=html")
    assert status == 200
    assert "<h1>" in page
    assert "<script" not in page
    assert 'href="/telemetry" aria-current="page"' in page


def test_a_worker_that_has_not_loaded_its_telemetry_is_missed(
    houses: tuple[House, House],
) -> None:
    house, other = houses
    kept = other.worker.telemetry_ledgers.pop(1)
    try:
        answer = house.get("/telemetry?family=pools")[1]
    finally:
        other.worker.telemetry_ledgers[1] = kept
    assert answer["matched"] == 2
    assert [gap["partitions"] for gap in answer["incomplete"]] == [[1]]
