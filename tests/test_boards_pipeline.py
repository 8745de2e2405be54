"""The dashboards Recovery and Pipeline: what they show is true, and what they ask for exists."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from clickhouse_driver import Client

from dashboards.ask import ask
from dashboards.boards import pipeline, recovery
from dashboards.model import Dashboard, Promql, Sql
from pipeline.local import EmbeddedClickHouse
from pipeline.simulate import Cause
from tests.support.clients import ClientUnavailable
from tests.support.prometheus import promtool
from tests.support.seeded import PAUSED, Seeded, fill, window

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
#: When each is found at the latest: an orphan after 5 min, what is in a queue or runs after 1 h. A
#: job whose start was lost lives: the first question frees it, or nobody notices.
FOUND_MS: Final = {
    **dict.fromkeys(Cause, 10 * MINUTE_MS),
    **dict.fromkeys((Cause.MISSED, Cause.GHOST, Cause.LOST_COMPLETED), 70 * MINUTE_MS),
}
LIVES: Final = frozenset({Cause.LOST_STARTED})

Row = dict[str, Any]


@pytest.fixture(scope="module")
def seeded(server: EmbeddedClickHouse) -> Seeded:
    # More happens at noon than at night: at the same time of a day the same happens.
    noon = int(time.time() * 1000) // DAY_MS * DAY_MS - DAY_MS // 2
    return fill(server.url, noon, jobs=300, hours=2.5, telling_h=0.02)


@pytest.fixture(scope="module")
def client(server: EmbeddedClickHouse, seeded: Seeded) -> Iterator[Client]:
    with Client.from_url(server.reader_url) as connection:
        yield connection


class Shown:
    """What panels show of a seeded world."""

    def __init__(self, client: Client, seeded: Seeded) -> None:
        self._client = client
        self._seeded = seeded

    def rows(self, title: str, board: Dashboard = recovery.BOARD, fleet: str = "") -> list[Row]:
        """Of the last six hours, in which all of it happened."""
        [query] = board.panel(title).queries
        assert isinstance(query, Sql)
        over = window(self._seeded, 360, fleet=[fleet] if fleet else [])
        columns, rows = ask(self._client, query.text, over)
        return [dict(zip((name for name, _ in columns), row, strict=True)) for row in rows]

    def value(self, title: str, board: Dashboard = recovery.BOARD) -> Any:
        """Of a panel with one number."""
        [row] = self.rows(title, board)
        [value] = row.values()
        return value

    def totals(self, title: str, label: str, value: str, **of: Any) -> Counter[str]:
        """The sum over time by label, of what is not 0."""
        found: Counter[str] = Counter()
        for row in self.rows(title, **of):
            found[row[label]] += row[value]
        return +found


@pytest.fixture(scope="module")
def shown(client: Client, seeded: Seeded) -> Shown:
    return Shown(client, seeded)


@pytest.fixture(scope="module")
def stalls(client: Client) -> list[Row]:
    names = ("key", "fleet", "kind", "since", "opened_at", "left_at", "stranded_ms", "withheld")
    rows = client.execute(f"SELECT {', '.join(names)} FROM stalls FINAL")
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_what_is_stuck_is_what_the_world_says(shown: Shown, seeded: Seeded) -> None:
    listed = [row["job"] for row in shown.rows("What is stuck")]
    still = {
        f"github:github.com:{job}": stuck
        for job, stuck in seeded.stuck.items()
        if stuck.freed_at is None
    }
    must = {
        key
        for key, stuck in still.items()
        if stuck.cause not in LIVES and stuck.at + FOUND_MS[stuck.cause] < seeded.end_ms
    }
    assert len(must) > 3
    assert must <= set(listed) <= set(still)
    assert shown.value("Stuck jobs") == len(listed)


def test_ages_and_the_levels_over_time_are_those_of_the_rows(
    shown: Shown, seeded: Seeded, stalls: list[Row]
) -> None:
    end = datetime.fromtimestamp(seeded.end_ms / 1000, UTC)
    since = min(each["since"] for each in stalls if each["left_at"] is None)
    assert shown.value("Stuck for longest") == (end - since).total_seconds() * 1000
    levels = shown.rows("Stuck jobs by kind")
    times = sorted({row["time"] for row in levels})
    step = times[1] - times[0]
    assert {later - sooner for sooner, later in pairwise(times)} == {step}
    for place in range(0, len(times), 7):
        until = (times[place] + step).replace(tzinfo=UTC)
        at = Counter(
            each["kind"]
            for each in stalls
            if each["opened_at"] < until and (each["left_at"] is None or each["left_at"] >= until)
            and each["left_at"] != each["opened_at"]
        )  # fmt: skip
        told = {row["kind"]: row["stuck"] for row in levels if row["time"] == times[place]}
        assert +Counter(told) == at, times[place]


def test_stalls_are_counted_once_and_timed_by_rank(shown: Shown, stalls: list[Row]) -> None:
    opened = Counter(each["kind"] for each in stalls)
    assert shown.totals("Stalls opened", "kind", "opened") == opened
    left = [each for each in stalls if each["left_at"] is not None]
    assert shown.totals("Stalls ended", "kind", "ended") == Counter(each["kind"] for each in left)
    table = {row["kind"]: row for row in shown.rows("Stranded time by kind")}
    # What is asked about because it runs for long was not stranded.
    assert set(table) == {each["kind"] for each in left} - {"missed_completion"}
    for kind, row in table.items():
        times = sorted(each["stranded_ms"] for each in left if each["kind"] == kind)
        ranks = {name: times[int(of * len(times))] for name, of in
                 (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}  # fmt: skip
        assert {name: row[name] for name in ranks} == ranks, kind
        assert (row["stalls"], row["lost"]) == (len(times), sum(times))
    detected = [row for row in shown.rows("Time to detect, p95 by kind") if row["kind"] == "orphan"]
    assert detected
    assert all(5 * MINUTE_MS <= row["p95"] <= 6 * MINUTE_MS for row in detected)


def test_a_fleet_that_is_chosen_is_the_only_one(shown: Shown, stalls: list[Row]) -> None:
    of_fleet = Counter(each["kind"] for each in stalls if each["fleet"] == PAUSED)
    assert shown.totals("Stalls opened", "kind", "opened", fleet=PAUSED) == of_fleet


def test_commands_ended_as_their_dispatcher_says(
    shown: Shown, seeded: Seeded, client: Client
) -> None:
    ended = shown.totals("Commands ended, by result", "result", "commands")
    answered = Counter(str(result) for result in seeded.answers.values())
    assert answered["done"] > 10
    # Others failed before anybody was asked, or nobody did them in time.
    asked = {result: number for result, number in ended.items()
             if result not in ("failed", "expired")}  # fmt: skip
    assert asked == answered
    told = shown.rows("What commands came to")
    jobs = Counter(str(result) for command, result in seeded.answers.items()
                   if not command.startswith("wake_fleet"))  # fmt: skip
    assert sum(row["done"] for row in told) == jobs["done"]
    [(dry, number)] = client.execute("SELECT countIf(dry_run = 1), count() FROM commands FINAL")
    latest = [row["dry_run"] for row in shown.rows("Latest commands")]
    assert Counter(latest) == Counter({"yes": dry, "": number - dry})


def test_a_command_that_hits_a_living_job_is_seen(
    shown: Shown, seeded: Seeded, server: EmbeddedClickHouse
) -> None:
    assert shown.value("Commands against living jobs") == len(seeded.hits) == 0
    with Client.from_url(server.url) as writer:
        [(key, started)] = writer.execute(
            "SELECT key, started_at FROM jobs FINAL WHERE run_ms > 60000 LIMIT 1"
        )
        # It was begun five seconds after the job had started, and done.
        writer.execute(
            "INSERT INTO outcomes (key, command_id, kind, at, job_key, command, result) SELECT"
            " %(key)s, 'requeue|x', kind, toDateTime64(%(at)s, 3) + 5, %(key)s, 'requeue', result"
            " FROM values('kind String, result String',"
            " ('command.started', ''), ('command.ended', 'done'))",
            {"key": key, "at": started.timestamp()},
        )
    try:
        assert shown.value("Commands against living jobs") == 1
    finally:
        with Client.from_url(server.url) as writer:
            writer.execute(
                "DELETE FROM outcomes WHERE command_id = 'requeue|x'",
                settings={"lightweight_deletes_sync": 2},
            )


def test_switches_and_dead_letters_are_told(
    shown: Shown, seeded: Seeded, stalls: list[Row]
) -> None:
    fleets = {row["fleet"]: row for row in shown.rows("Fleets")}
    assert (fleets["macos"]["mode"], fleets["macos"]["says_who"]) == ("dry_run", "ada")
    assert fleets["macos"]["why"] == "a new dispatcher"
    assert fleets["linux-small"]["says_who"] == "configuration"
    withheld = shown.totals("Commands withheld, the last of each stall", "withheld", "stalls")
    assert withheld == Counter(each["withheld"] for each in stalls if each["withheld"])
    assert withheld.total() > 5
    letters = seeded.records["runners.dead-letters"]
    assert shown.value("Dead letters", pipeline.BOARD) == letters > 5
    by_reason = shown.totals("Dead letters by reason", "reason", "letters", board=pipeline.BOARD)
    assert by_reason.total() == letters
    assert len(shown.rows("Latest dead letters", pipeline.BOARD)) == min(letters, 100)


# --- questions to Prometheus ----------------------------------------------------------------------

#: What Prometheus itself knows of each page that it reads.
OF_PROMETHEUS: Final = {"up": frozenset[str](), "scrape_samples_scraped": frozenset[str]()}
OF_A_TARGET: Final = frozenset({"job", "instance", "le"})
_NAME: Final = re.compile(r"\b(?:runnerstream|process|python)_\w+|\bup\b|\bscrape_samples_scraped")


@pytest.fixture(scope="module")
def known() -> Mapping[str, frozenset[str]]:
    """The labels of each metric that the docs tell of; tests/test_docs.py compares them with the
    code."""
    found: dict[str, frozenset[str]] = dict(OF_PROMETHEUS)
    for page in DOCS.glob("*.md"):
        for line in page.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("| `") and len(cells) > 3 and _NAME.match(cells[0].strip("`")):
                labels = frozenset(re.findall(r"`(\w+)`", cells[3 if len(cells) == 6 else 2]))
                name = cells[0].strip("`")
                found[name] = labels
                if cells[1] == "histogram":
                    found |= dict.fromkeys(
                        (f"{name}_bucket", f"{name}_sum", f"{name}_count"), labels
                    )
    assert len(found) > 200
    return found


def promql() -> Iterator[tuple[str, Promql]]:
    for board in (recovery.BOARD, pipeline.BOARD):
        for panel in board.panels:
            for query in panel.queries:
                if isinstance(query, Promql):
                    yield f"{board.title}, {panel.title}", query


def test_every_metric_and_label_that_is_asked_for_exists(
    known: Mapping[str, frozenset[str]],
) -> None:
    for where, query in promql():
        names = _NAME.findall(query.text)
        assert names, where
        assert set(names) <= set(known), where
        labels = frozenset[str]().union(*(known[name] for name in names)) | OF_A_TARGET
        grouped = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", query.text)
        chosen = re.findall(r'(\w+)(?:=~|!~|!=|=)"', query.text)
        asked = {label.strip() for group in grouped for label in group.split(",")} | set(chosen)
        assert asked <= labels, where
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels, where


def test_a_metric_that_does_not_exist_would_be_noticed(
    known: Mapping[str, frozenset[str]],
) -> None:
    assert "runnerstream_ready" in known
    assert known["runnerstream_batch_seconds_bucket"] == {"stage"}
    assert known["runnerstream_gateway_requests_total"] == {"provider", "action", "outcome"}
    assert "runnerstream_redy" not in known


def test_every_question_to_prometheus_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"asked:{number}", "expr": query.text.replace("$__rate_interval", "5m")}
        for number, (_, query) in enumerate(promql())
    ]
    assert len(rules) > 50
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))  # JSON is YAML
    try:
        code, told = promtool("check", "rules", str(file))
    except ClientUnavailable as missing:
        pytest.skip(str(missing))
    assert code == 0, told
    assert f"{len(rules)} rules found" in told
