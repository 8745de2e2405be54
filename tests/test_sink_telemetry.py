"""Telemetry to rows, and the rows in their tables on a real ClickHouse."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from clickhouse_driver import Client
from pydantic import TypeAdapter, ValidationError

from pipeline.local import EmbeddedClickHouse
from pipeline.simulate.telemetry_pools import play
from sinks import rows, schema
from sinks.metrics import SinkMetrics
from sinks.telemetry_rows import TABLES, fields
from sinks.writer import Writer
from tests.support.telemetry import depth, tick
from tests.test_sink_rows import FakeRecord, built, on
from topics.events import FAMILIES, MODELS, Event, key_of

#: Rows older than their table's TTL would be gone at once.
T0 = int(time.time()) // 3_600 * 3_600_000

_databases = (f"test_telemetry_{number}" for number in itertools.count())


@pytest.fixture
def url(server: EmbeddedClickHouse) -> str:
    made = schema.with_database(server.url, next(_databases))
    schema.apply(made)
    return made


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with schema.connected(url) as connection:
        yield connection


#: A value for a field is the first of these that it takes.
TRIED: tuple[Any, ...] = (
    T0 + 5, 7, True, {"a": 3}, ("a", "b"), "w", ({"poll": ((1.0, 2.0), (1, 2, 3), 5.5)}),
)  # fmt: skip


def filled(kind: str, model: type[Event]) -> Event:
    """An event with a value in every field."""
    said: dict[str, Any] = {"kind": kind, "fleet": "f", "source": "s", "id": f"id|{kind}",
                            "occurred_at": T0, "received_at": T0 + 1}  # fmt: skip
    for name in fields([model]):
        declared = model.model_fields[name]
        adapter = TypeAdapter(Annotated[declared.annotation, *declared.metadata, None])
        for value in (*TRIED, *_closed(declared.annotation)):
            try:
                found = adapter.validate_python(value)
            except ValidationError:
                continue
            if found not in (None, ""):
                said[name] = value
                break
    return model(**said)


def _closed(annotation: Any) -> Iterator[Any]:
    """The values of a closed list, and of a map by one."""
    yield from getattr(annotation, "__args__", ())
    if isinstance(annotation, type):
        yield from list(getattr(annotation, "__members__", {}).values())
    for inner in getattr(annotation, "__args__", ()):
        for value in list(getattr(inner, "__members__", {}).values()):
            yield {value: 4}


def record(event: Event, **place: Any) -> FakeRecord:
    return on(rows.TELEMETRY, event.model_copy(update={"key": key_of(event)}), **place)


def written(url: str, *records: FakeRecord) -> None:
    """As the sink writes them."""
    tables, failed = rows.build([rows.decode(each) for each in records])
    assert failed == []
    writer = Writer(url, SinkMetrics())
    try:
        assert writer.write(tables, f"token-{time.monotonic_ns()}") == []
    finally:
        writer.close()


EVERY = [record(filled(kind, model)) for kind, model in MODELS.items()]


def test_every_field_has_a_value_in_some_row() -> None:
    found = built(*EVERY)
    for family, models in FAMILIES.items():
        told = found[TABLES[family].name]
        for name in fields(models):
            assert any(row[name] not in (None, 0, "", {}, [], False) for row in told), name


def test_every_kind_is_stored_once_however_often_it_is_written(url: str, client: Client) -> None:
    """Nothing is refused, and what is written again replaces itself."""
    for _ in range(2):
        written(url, *EVERY)
    stored = {
        kind
        for table in TABLES.values()
        for (kind,) in client.execute(f"SELECT kind FROM {table.name} FINAL")
    }
    assert stored == MODELS.keys()
    rows_ = sum(
        client.execute(f"SELECT count() FROM {t.name} FINAL")[0][0] for t in TABLES.values()
    )
    assert rows_ == len(EVERY)
    assert client.execute("SELECT histograms[1].sum, polls FROM runner_events FINAL "
                          "WHERE kind = 'runner.scrape'") == [(5.5, {"task": 4})]  # fmt: skip


def test_the_clock_and_the_depth_of_queues_make_no_rows() -> None:
    assert built(on(rows.TELEMETRY, tick(0)), on(rows.TELEMETRY, depth(0, 1, 5))) == {}


def test_sql_finds_what_happened(url: str, client: Client) -> None:
    start = T0 - 1_800_000
    told = play(["f0", "f1"], start, start + 1_800_000, 3)
    written(url, *map(record, told.events))
    written(url, *map(record, told.events[::2]))
    for fleet, counts in told.counts.items():
        found: Counter[str] = Counter()
        for metric, table, kind in (
            ("dispatch_requests", "dispatch_events", "dispatch.request"),
            ("claim_attempts", "dispatch_events", "claim.attempt"),
            ("runner_mints", "dispatch_events", "runner.mint"),
            ("machine_boots", "pool_events", "machine.boot"),
        ):
            for outcome, n in client.execute(
                f"SELECT outcome, count() FROM {table} FINAL WHERE fleet = %(fleet)s AND "
                "kind = %(kind)s GROUP BY outcome",
                {"fleet": fleet, "kind": kind},
            ):
                found[f"{metric}|{outcome}"] = n
        assert found == {name: n for name, n in counts.items() if "_seconds" not in name}
        levels = client.execute(
            "SELECT sum(i), sum(o), sum(d) FROM (SELECT argMax(idle, occurred_at) AS i, "
            "argMax(occupied, occurred_at) AS o, argMax(desired, occurred_at) AS d FROM "
            "pool_events FINAL WHERE fleet = %(fleet)s AND kind = 'pool.sample' GROUP BY pool)",
            {"fleet": fleet},
        )
        wanted = (told.levels["pool_runners", fleet, s] for s in ("idle", "occupied", "desired"))
        assert levels == [tuple(wanted)]


def test_who_may_only_read_sees_them_all(server: EmbeddedClickHouse) -> None:
    schema.apply(server.url)
    written(server.url, *EVERY)
    with schema.connected(server.reader_url) as reader:
        for table in TABLES.values():
            assert reader.execute(f"SELECT count() > 0 FROM {table.name} FINAL") == [(1,)]
