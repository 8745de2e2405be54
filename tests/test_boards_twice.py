"""What is written twice changes nothing that is shown.

Rows are written again after every crash, and ClickHouse lets both stand until it merges them. Here
it never does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from clickhouse_driver import Client

from dashboards.alerts import SQL_ALERTS
from dashboards.ask import ask
from dashboards.boards import BOARDS
from dashboards.macros import Range
from dashboards.telemetry.events import one_by
from pipeline.local import EmbeddedClickHouse
from tests.support.boards import asks, chosen, said
from tests.support.seeded import Seeded, fill

DAY_S: Final = 86_400
#: By dashboard: what was asked, the columns, and the answer, when all was written once.
Answers = dict[str, list[tuple[str, Range, str, Any, list[Any]]]]


@pytest.fixture(scope="module")
def seeded(server: EmbeddedClickHouse) -> Seeded:
    noon = int(time.time()) // DAY_S * DAY_S - DAY_S // 2
    return fill(server.url, noon * 1000, jobs=400, hours=2.0)


@pytest.fixture(scope="module")
def once(server: EmbeddedClickHouse, seeded: Seeded) -> Answers:
    """What everything answers; then all rows are there twice."""
    end = seeded.end_ms

    def over(values: Any) -> Range:
        return Range(end - 2 * 3_600_000, end, 60, values)

    found: Answers = {}
    with Client.from_url(server.reader_url) as reader:
        [(key,)] = reader.execute("SELECT min(key) FROM stalls")
        for board in BOARDS:
            values = chosen(board, reader, over)
            if "key" in values:
                values["key"] = [key]
            range_ = over(values)
            found[board.title] = [
                (what, range_, sql, *ask(reader, sql, range_)) for what, sql in asks(board)
            ]
        for alert in SQL_ALERTS.values():
            range_ = Range(end - alert.over_s * 1000, end, 60, {})
            found.setdefault("alerts", []).append(
                (alert.name, range_, alert.sql, *ask(reader, alert.sql, range_))
            )
    again = {"insert_deduplicate": 0, "deduplicate_insert": "disable"}
    with Client.from_url(server.url) as client:
        client.execute("SYSTEM STOP MERGES")
        tables = client.execute(
            "SELECT name FROM system.tables WHERE database = currentDatabase()"
            " AND engine = 'ReplacingMergeTree' AND name != 'schema_migrations'"
        )
        for (table,) in tables:
            client.execute(f"INSERT INTO {table} SELECT * FROM {table} FINAL", settings=again)
    return found


def test_rows_are_there_twice(server: EmbeddedClickHouse, once: Answers) -> None:
    with Client.from_url(server.url) as client:
        for table in ("gauges", "job_timings", "runner_events", "reconciler_events", "stalls"):
            [(all_, distinct)] = client.execute(
                f"SELECT count(), (SELECT count() FROM {table} FINAL) FROM {table}"
            )
            assert all_ >= 2 * distinct > 0, table


@pytest.mark.parametrize("title", [*(board.title for board in BOARDS), "alerts"])
def test_what_is_shown_is_the_same(
    title: str,
    server: EmbeddedClickHouse,
    once: Answers,
    record_property: Callable[[str, object], None],
) -> None:
    different, filled = [], 0
    with Client.from_url(server.reader_url) as reader:
        for what, range_, sql, columns, wanted in once[title]:
            types, found = ask(reader, sql, range_)
            if (columns, sorted(map(said, wanted))) != (types, sorted(map(said, found))):
                different.append(f"{what}: {wanted[:2]} once, {found[:2]} twice")
            filled += bool(wanted)
    record_property(
        "tried: rows written twice",
        {"dashboard": title, "queries": len(once[title]), "with rows": filled,
         "different": len(different)},
    )  # fmt: skip
    assert different == [], "\n".join(different)
    assert filled or title in ("Pipeline", "alerts")


def test_what_has_no_value_is_not_all_the_same(server: EmbeddedClickHouse) -> None:
    rows = (
        "SELECT 'f' AS fleet, arrayJoin(['a', 'b', 'b']) AS schedule_id,"
        " CAST(NULL, 'Nullable(DateTime64(3))') AS due_at"
    )
    with Client.from_url(server.url) as client:
        found = client.execute(f"SELECT * FROM ({rows}){one_by('schedule_id, due_at')}")
    assert [name for _, name, _ in sorted(found)] == ["a", "b"]
