"""The seeded world that dashboards are tried on: every table has rows, and they tell the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from clickhouse_driver import Client

from pipeline.local import EmbeddedClickHouse
from tests.support.seeded import Seeded, fill


@pytest.fixture(scope="module")
def seeded(server: EmbeddedClickHouse) -> Seeded:
    return fill(server.url, int(time.time() * 1000))


@pytest.fixture(scope="module")
def client(server: EmbeddedClickHouse, seeded: Seeded) -> Iterator[Client]:
    with Client.from_url(server.reader_url) as connection:
        yield connection


def test_every_table_and_every_view_has_rows(client: Client) -> None:
    names = [name for (name,) in client.execute("SHOW TABLES")]
    rows = {name: client.execute(f"SELECT count() FROM {name}")[0][0] for name in names}
    assert len(rows) > 20
    assert min(rows.values()) > 0, rows


def test_jobs_and_their_timings_are_those_of_the_truth(client: Client, seeded: Seeded) -> None:
    found = client.execute(
        "SELECT key, fleet, conclusion, queue_ms, claim_to_start_ms, run_ms, total_ms"
        " FROM job_timings FINAL"
    )
    assert {key: told for key, *told in found} == {
        key: [
            job.fleet,
            job.conclusion,
            *(ms if isinstance(ms := job.timings[family], int) else None
              for family in ("queue", "claim_to_start", "run", "total")),
        ]
        for key, job in seeded.jobs.jobs.items()
        if job.status == "completed"
    }  # fmt: skip
    assert len(found) > 500


def test_what_gets_stuck_is_found(client: Client, seeded: Seeded) -> None:
    kinds = client.execute(
        "SELECT kind, countIf(left_at IS NULL), count() FROM stalls FINAL GROUP BY kind"
    )
    assert len(kinds) >= 5
    assert sum(still for _, still, _ in kinds) > 0
    assert seeded.records["runners.commands"] > 20
