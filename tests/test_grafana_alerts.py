"""Alerts over ClickHouse: each fires and stays silent, on rows that the sink wrote.

Grafana is not here. What it does with an answer is little: of each label's numbers the last one,
compared with the bound of the rule. That is done from the very file that Grafana is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from clickhouse_driver import Client

from dashboards import config
from dashboards.alerts import SQL_ALERTS
from dashboards.generate import HERE
from dashboards.macros import Range, expand
from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from tests.test_sink_rows import FakeRecord, job_state, on
from tests.test_sink_telemetry import record, written
from topics.events.pools import PoolSampled
from topics.models import Conclusion, Family, JobAttributes, Sample, Status, Timing

MINUTE: Final = 60_000
HOUR: Final = 60 * MINUTE
#: Each scenario has days of its own, so that none sees another's rows.
NOW: Final = int(time.time()) // 60 * MINUTE
DAYS: Final = 4 * 24 * HOUR

_FILE: Final = yaml.safe_load((HERE / "grafana-alerts" / "history.yaml").read_text())
RULES: Final[dict[str, Any]] = {
    rule["title"]: rule for group in _FILE["groups"] for rule in group["rules"]
}
#: Labels, and the number; of an alert because of silence no number.
Firing = dict[tuple[str, ...], float | None]


class Scenario:
    """Rows around a moment, and what a rule makes of them then."""

    numbers = iter(range(1, 1_000_000))

    def __init__(self, url: str, reader: Client, number: int) -> None:
        self.now = NOW - number * DAYS
        self._url, self._reader = url, reader

    def jobs(self, number: int, ago_ms: int, **changes: Any) -> list[FakeRecord]:
        """Jobs that completed so long ago after they had run for five minutes."""
        ended = self.now - ago_ms
        return [self._job(ended, next(self.numbers), changes) for _ in range(number)]

    def _job(self, ended: int, number: int, changes: dict[str, Any]) -> FakeRecord:
        changes = dict(changes)
        repo = changes.pop("repo", "acme/app")
        waited = changes.pop("waited_ms", 5_000)
        ran = changes.pop("ran_ms", 5 * MINUTE)
        known: dict[str, Any] = {
            "occurred_at": ended, "received_at": ended, "since": ended, "fleet": "f",
            "status": Status.COMPLETED, "conclusion": Conclusion.SUCCESS,
            "queued_at": ended - ran - waited, "started_at": ended - ran, "completed_at": ended,
            "job": JobAttributes(repo=repo),
            "timings": {Family.QUEUE: Timing(ms=waited), Family.RUN: Timing(ms=ran)},
        }  # fmt: skip
        return on(rows.JOB_STATES, job_state(number, rev=9, **(known | changes)), offset=number)

    def given_up(self, number: int, ago_ms: int) -> list[FakeRecord]:
        """Jobs that were cancelled while they waited."""
        return self.jobs(
            number, ago_ms, conclusion=Conclusion.CANCELLED, started_at=None, abandoned_ms=9_000,
            timings={Family.QUEUE: Timing(missing="not_started")},
        )  # fmt: skip

    def skipped(self, number: int, ago_ms: int) -> list[FakeRecord]:
        """Jobs that nobody asked a runner for."""
        return self.jobs(
            number, ago_ms, conclusion=Conclusion.SKIPPED, started_at=None, abandoned_ms=0,
            timings={Family.QUEUE: Timing(missing="not_started")},
        )  # fmt: skip

    def waiting(self, number: int, since_ms: int) -> list[FakeRecord]:
        """Jobs that still wait."""
        since = self.now - since_ms
        return self.jobs(
            number, 0, status=Status.QUEUED, since=since, queued_at=since, started_at=None,
            completed_at=None, conclusion=None, timings={},
        )  # fmt: skip

    def pools(self, runners: Iterable[int | None]) -> list[FakeRecord]:
        """A sample a minute of the last hour, of each of these pools."""
        return [
            record(PoolSampled(
                id=f"{self.now}|{pool}|{minute}", source="s", fleet="f", pool=f"p{pool}",
                occurred_at=self.now - minute * MINUTE, received_at=self.now, observed=observed,
            ))
            for pool, observed in enumerate(runners)
            for minute in range(1, 60)
        ]  # fmt: skip

    def sample(self, ago_ms: int) -> list[FakeRecord]:
        """What the clock writes."""
        at = self.now - ago_ms
        told = Sample(
            id=f"s|{at}", source="s", key="f|queued|0", occurred_at=at, received_at=at, fleet="f",
            partition=0, status=Status.QUEUED, count=0, oldest_ms=0,
        )  # fmt: skip
        return [on(rows.SAMPLES, told)]

    def write(self, *some: list[FakeRecord]) -> None:
        written(self._url, *(each for told in some for each in told))

    def firing(self, name: str) -> Firing:
        """For which labels the rule is true."""
        rule = RULES[name]
        asked, last, bound = (step["model"] for step in rule["data"])
        assert (last["expression"], bound["expression"], rule["condition"]) == ("A", "B", "C")
        assert (last["reducer"], bound["conditions"][0]["evaluator"]["type"]) == ("last", "gt")
        start = self.now - rule["data"][0]["relativeTimeRange"]["from"] * 1000
        sql = expand(asked["rawSql"], Range(start, self.now))
        found, columns = self._reader.execute(sql, with_column_types=True)
        kinds = [kind for _, kind in columns]
        assert kinds[0].startswith("DateTime")
        assert all("String" in kind for kind in kinds[1:-1])
        assert "String" not in kinds[-1]
        if not found:
            return {(): None} if rule["noDataState"] == "Alerting" else {}
        latest = {tuple(row[1:-1]): float(row[-1]) for row in found}
        [most] = bound["conditions"][0]["evaluator"]["params"]
        return {labels: value for labels, value in latest.items() if value > most}


Make = Callable[[], Scenario]


@pytest.fixture(scope="module")
def made(server: EmbeddedClickHouse) -> Iterator[Make]:
    schema.apply(server.url)
    numbers = iter(range(1, 20))
    with schema.connected(server.reader_url) as reader:
        yield lambda: Scenario(server.url, reader, next(numbers))


def test_failures_that_rise(made: Make) -> None:
    there = made()
    for repo, before, lately in (
        ("acme/same", 10, 10),
        ("acme/bound", 5, 10),
        ("acme/worse", 5, 11),
    ):
        there.write(
            there.jobs(20 - before, 30 * HOUR, repo=repo),
            there.jobs(before, 30 * HOUR, repo=repo, conclusion=Conclusion.TIMED_OUT),
            there.jobs(20 - lately, HOUR, repo=repo),
            there.jobs(lately, HOUR, repo=repo, conclusion=Conclusion.FAILURE),
        )
    # Too few lately, too few before, and what is neither success nor failure.
    failed = Conclusion.FAILURE
    there.write(
        there.jobs(20, 30 * HOUR, repo="acme/few"),
        there.jobs(19, HOUR, repo="acme/few", conclusion=failed),
        there.jobs(19, 30 * HOUR, repo="acme/new"),
        there.jobs(20, HOUR, repo="acme/new", conclusion=failed),
        there.jobs(20, 30 * HOUR, repo="acme/stopped"),
        there.jobs(19, HOUR, repo="acme/stopped", conclusion=failed),
        there.jobs(30, HOUR, repo="acme/stopped", conclusion=Conclusion.CANCELLED),
        there.jobs(20, 30 * HOUR, repo="acme/copied"),
        there.jobs(19, HOUR, repo="acme/copied", conclusion=failed),
        there.jobs(9, HOUR, repo="acme/copied", conclusion=failed, copied=True),
    )
    assert there.firing("RepositoryFailureTrend") == {("acme/worse",): pytest.approx(0.3)}


def test_jobs_that_are_given_up(made: Make) -> None:
    there, worse, few, longer_ago = made(), made(), made(), made()
    there.write(
        there.jobs(16, 30 * MINUTE), there.given_up(4, 30 * MINUTE), there.skipped(9, 30 * MINUTE)
    )
    assert there.firing("JobsCancelledWhileWaiting") == {}
    worse.write(
        worse.jobs(16, 30 * MINUTE), worse.given_up(5, 30 * MINUTE), worse.skipped(9, 30 * MINUTE)
    )
    assert worse.firing("JobsCancelledWhileWaiting") == {("f",): pytest.approx(5 / 21)}
    few.write(few.given_up(19, 30 * MINUTE))
    assert few.firing("JobsCancelledWhileWaiting") == {}
    longer_ago.write(longer_ago.given_up(30, 61 * MINUTE))
    assert longer_ago.firing("JobsCancelledWhileWaiting") == {}


def test_more_work_than_runners_can_do(made: Make) -> None:
    """Two runners do two hours of work in an hour: 24 jobs of five minutes."""
    full, over, given_up, unknown = made(), made(), made(), made()
    full.write(full.pools([2, 0]), full.jobs(24, 20 * MINUTE))
    assert full.firing("FleetOverloaded") == {}
    over.write(over.pools([1, 1]), over.jobs(25, 20 * MINUTE))
    assert over.firing("FleetOverloaded") == {("f",): pytest.approx(25 / 24)}
    # Those who gave up had asked for work as well.
    given_up.write(
        given_up.pools([2]), given_up.jobs(20, 20 * MINUTE), given_up.given_up(5, 20 * MINUTE)
    )
    assert given_up.firing("FleetOverloaded") == {("f",): pytest.approx(25 / 24)}
    # What nobody knows is not too little.
    unknown.write(unknown.pools([None]), unknown.jobs(40, 20 * MINUTE))
    assert unknown.firing("FleetOverloaded") == {}


def test_jobs_of_a_repository_that_wait(made: Make) -> None:
    fine, late, still, few = made(), made(), made(), made()
    too_long = config.QUEUE_SLO_S * 1000 + 1
    fine.write(
        fine.jobs(47, HOUR), fine.jobs(3, HOUR, waited_ms=too_long),
        fine.jobs(9, 7 * HOUR, waited_ms=too_long), fine.jobs(9, HOUR, waited_ms=too_long - 1),
    )  # fmt: skip
    assert fine.firing("RepositoryQueueTime") == {}
    late.write(late.jobs(46, HOUR), late.jobs(4, HOUR, waited_ms=too_long))
    assert late.firing("RepositoryQueueTime") == {("acme/app",): pytest.approx(0.08)}
    few.write(few.jobs(19, HOUR, waited_ms=too_long))
    assert few.firing("RepositoryQueueTime") == {}
    # What waits now would be in no sample. It is the last scenario: it waits for all others, too.
    still.write(
        still.jobs(46, HOUR),
        still.waiting(3, too_long + 1_000),
        still.waiting(40, too_long - 2_000),
    )
    assert still.firing("RepositoryQueueTime") == {("acme/app",): pytest.approx(3 / 49)}


def test_history_that_stands_still(made: Make) -> None:
    fresh, old, none = made(), made(), made()
    fresh.write(fresh.sample(config.FRESH_S * 1000))
    assert fresh.firing("HistoryNotFresh") == {}
    old.write(old.sample((config.FRESH_S + 1) * 1000))
    assert old.firing("HistoryNotFresh") == {(): config.FRESH_S + 1}
    none.write(none.sample(2 * HOUR))
    assert none.firing("HistoryNotFresh") == {(): None}


def test_every_rule_is_tried() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert RULES.keys() == SQL_ALERTS.keys()
    for name in RULES:
        assert source.count(f'firing("{name}")') >= 1, name


def test_rules_are_as_grafana_takes_them() -> None:
    assert _FILE["apiVersion"] == 1
    for rule in RULES.values():
        assert rule["noDataState"] in {"OK", "NoData", "Alerting"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert [step["refId"] for step in rule["data"]] == ["A", "B", "C"]
        asked, *expressions = rule["data"]
        assert asked["datasourceUid"] == config.CLICKHOUSE_UID
        assert {each["datasourceUid"] for each in expressions} == {"__expr__"}
        # Variables are chosen by people; nobody looks when a rule is evaluated.
        assert "conditionalAll" not in asked["model"]["rawSql"]
        assert "${" not in asked["model"]["rawSql"]
