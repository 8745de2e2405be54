"""``/webhooks``: what no route fits, of two workers, asked over HTTP."""

from __future__ import annotations

from typing import Any, Final

import pytest

from pipeline.agents.normalise import record_facts
from pipeline.agents.unrouted import Unrouted
from pipeline.ledger import Ledger
from pipeline.routes import Routes
from tests.support.house import House
from tests.test_routes import T0, TOLD, hook

EVIL: Final = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def told() -> list[Unrouted]:
    """What two workers have seen."""
    seen = [Unrouted(Routes(TOLD)) for _ in range(2)]
    for which, repo, times in ((0, "other/app", 2), (1, "other/app", 3), (1, f"acme/{EVIL}", 1)):
        for _ in range(times):
            record_facts(hook(["linux"], repo), look=seen[which].look)
    return seen


def test_all_workers_tell_what_no_route_fits(told: list[Unrouted]) -> None:
    with (
        House({1: Ledger(1, lambda key: None)}) as other,
        House({0: Ledger(0, lambda key: None)}, peers={other.url: {1}}) as house,
    ):
        status, answer = house.get("/webhooks")
        assert (status, answer["routes"], answer["no_fleet"]) == (200, False, [])
        assert "No routes are configured" in house.get("/webhooks", "text/html")[1]
        house.worker.unrouted, other.worker.unrouted = told
        status, answer = house.get("/webhooks")
        assert (status, answer["routes"], answer["incomplete"]) == (200, True, [])

        def rows(reason: str) -> list[Any]:
            return [(one["about"], one["deliveries"]) for one in answer[reason]]

        assert rows("no_account") == [("github.com/other", 5)]
        assert rows("no_fleet") == [
            (f"acme/{EVIL}: linux (account acme)", 1), ("other/app: linux", 5),
        ]  # fmt: skip
        one = answer["no_account"][0]
        assert (one["first_at"], one["last_at"], one["job_key"]) == (T0, T0, "github:github.com:7")
        assert one["last_ms"] == answer["now"] - T0
        page = house.get("/webhooks", "text/html")[1]
        assert "other/app: linux" in page
        assert EVIL not in page
        assert house.get("/webhooks?x=1")[0] == 400
