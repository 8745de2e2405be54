"""Plain SQL on what the sink wrote finds what happened in a simulated world.

The world is played without the fold and without ClickHouse: so each number is told twice, by ways
that have nothing in common. On its way some of it is written again, some is told under another id,
and nothing comes in order.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from clickhouse_driver import Client

from pipeline.local import EmbeddedClickHouse
from pipeline.simulate import telemetry_reconcilers, telemetry_runners, telemetry_schedulers
from pipeline.simulate.telemetry import Told
from sinks import rows, schema
from sinks.metrics import SinkMetrics
from sinks.writer import Writer
from tests.support.telemetry_sql import BY_FAMILY
from tests.test_sink_telemetry import record
from topics.events import Event

MINUTE: Final = 60_000
#: The end of the world. Rows older than their table's TTL would be gone at once.
END: Final = int(time.time()) // 3_600 * 3_600_000
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "telemetry.md"

Levels = Mapping[tuple[str, ...], float]


@cache
def told(family: str) -> Told:
    """A world of a family in which every level is something at its end."""
    if family == "runners":
        return telemetry_runners.play(["f0", "f1"], END - 20 * MINUTE, END, 30, runners=5)
    if family == "schedulers":
        return telemetry_schedulers.play(["f0", "f1"], END - 243 * 5_000, END, 5)
    world = Told(at=END)
    for fleet, seed in (("f0", 167), ("f1", 6), ("f2", 11), ("f3", 15)):
        world.add(telemetry_reconcilers.play([fleet], END - 62 * MINUTE, END, seed, 1))
    return world


def as_it_comes(events: Sequence[Event], rng: random.Random) -> list[Event]:
    """Out of order, a fifth of it again: an end also by somebody else, under another id."""
    again = [
        each.model_copy(update={"id": f"{each.id}|again"}) if each.statement != each.id else each
        for each in events
        if rng.random() < 0.2
    ]
    log = [*events, *again]
    rng.shuffle(log)
    return log


def write(url: str, log: Sequence[Event], rng: random.Random) -> None:
    """As sinks do that are stopped and killed: each begins somewhere in what the one before wrote,
    and cuts the log into other batches."""
    records = [record(each) for each in log]
    position = 0
    while position < len(records):
        begin = max(0, position - rng.randrange(400))
        writer = Writer(url, SinkMetrics())
        for _ in range(3):
            batch = records[begin : begin + rng.randint(500, 2_500)]
            if batch:
                tables, failed = rows.build([rows.decode(each) for each in batch])
                assert failed == []
                assert writer.write(tables, f"{begin}+{len(batch)}") == []
            begin += len(batch)
        writer.close()
        position = begin


@pytest.fixture(scope="module")
def client(server: EmbeddedClickHouse) -> Iterator[Client]:
    """A connection to where all of it was written."""
    url = schema.with_database(server.url, "test_truth")
    schema.apply(url)
    for family in BY_FAMILY:
        rng = random.Random(family)
        write(url, as_it_comes(told(family).events, rng), rng)
    with schema.connected(url) as connection:
        yield connection


def found(client: Client, sql: str, at: int = END) -> list[tuple[Any, ...]]:
    """What SQL finds when it is asked at a time."""
    asked = sql.replace("now()", f"fromUnixTimestamp64Milli({at}, 'UTC')")
    answer: list[tuple[Any, ...]] = client.execute(asked)
    return answer


def true(family: str, metric: str) -> Levels:
    """What happened, and how things were at the end: by labels, the fleet first; ``sum`` after them
    is that of durations. What is 0 is left out: of what there is none SQL has no row."""
    world = told(family)
    truth = {where[1:]: n for where, n in world.levels.items() if where[0] == metric and n}
    for fleet, counts in world.counts.items():
        for what, n in counts.items():
            name, *labels = what.split("|")
            if name == metric and n:
                truth[fleet, *labels] = n
    return truth


@pytest.mark.parametrize("family", BY_FAMILY)
def test_there_is_a_question_for_all_that_is_true(family: str) -> None:
    world = told(family)
    names = {where[0] for where in world.levels}
    names |= {what.partition("|")[0] for counts in world.counts.values() for what in counts}
    assert BY_FAMILY[family].keys() == names
    assert all(true(family, name) for name in names), "and it is not nothing"


@pytest.mark.parametrize(
    ("family", "metric"),
    [(family, metric) for family, each in BY_FAMILY.items() for metric in each],
)
def test_sql_finds_what_happened(client: Client, family: str, metric: str) -> None:
    truth, got = true(family, metric), {}
    for row in found(client, BY_FAMILY[family][metric]):
        *where, value = row
        if any("sum" in labels for labels in truth):
            *where, times, value = row
            got[*where, "sum"] = value
            value = times
        if value:
            got[tuple(where)] = value
    assert got == pytest.approx(truth)


# --- the questions of the page ----------------------------------------------------------------


def documented(title: str) -> str:
    """The statement of the page that begins with this comment."""
    match = re.search(rf"^-- {title}.*?;$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match.group().rstrip(";")


def test_the_page_finds_open_tasks_and_those_that_are_lost(client: Client) -> None:
    question = documented("Open tasks of each runner")
    stored = told("runners").stored
    open_ = {where[1:]: n for where, n in stored.items() if where[0] == "runner_tasks"}
    assert {row[:-1]: row[-1] for row in found(client, question)} == open_
    # Nobody says anything for five hours.
    later = found(client, question, END + 5 * 60 * MINUTE)
    assert {state for _, _, state, _ in later} == {"lost"}
    assert sum(n for *_, n in later) == sum(open_.values())


def test_the_page_finds_what_each_schedule_has_left_to_do(client: Client) -> None:
    got = {row[:-1]: row[-1] for row in found(client, documented("What each schedule"))}
    assert got == {where[1:]: n for where, n in told("schedulers").stored.items()}


def test_the_page_finds_what_is_broken_and_since_when(client: Client) -> None:
    got = found(client, documented("What is broken"))
    by_invariant = Counter((fleet, invariant) for fleet, _, invariant, *_ in got)
    stored = told("reconcilers").stored
    assert by_invariant == {w[1:]: n for w, n in stored.items() if w[0].startswith("violations")}
    for (fleet,), age in true("reconcilers", "reconciler_violation_oldest_seconds").items():
        since = min(row[4] for row in got if row[0] == fleet)
        assert END - since.timestamp() * 1000 == pytest.approx(age * 1000)
    assert max(row[5] for row in got) > 1, "some broke again"


def test_the_page_finds_which_actions_there_were(client: Client) -> None:
    got = {row[:-1]: row[-1] for row in found(client, documented("Actions within"))}
    stored = told("reconcilers").stored
    assert got == {where[1:]: n for where, n in stored.items() if where[0] == "actions_by_type"}
