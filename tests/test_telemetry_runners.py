"""Runners: what the fold makes of a simulated world equals what happened there, and each trap."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import Counter as Counts
from pipeline.simulate.telemetry_runners import play
from pipeline.telemetry import runner_metrics as metrics
from pipeline.telemetry.runners import LOST_MS, LOST_UNREPORTED_MS
from pipeline.telemetry.subject import HOUR_MS, KEPT_MS, LATE_MS
from tests.support.chaos import chaos
from tests.support.telemetry import MINUTE, START, Seen, durable, event, muddled, tick
from topics.events import EVENT
from topics.reading import read

END = 12 * MINUTE
SECOND = 1_000


def of(kind: str, at: int, **said: Any) -> Any:
    """An event of runner ``r``."""
    return event(kind, at, **{"runner": "r", **said})


def status(at: int, **said: Any) -> Any:
    return of("runner.status", at, **said)


def tasks(seen: Seen) -> dict[str, float]:
    """Open tasks of the fleet by state, those that there are."""
    found = {where[2]: n for where, n in seen.levels.items() if where[0] == "runner_tasks_open"}
    return {state: n for state, n in found.items() if n}


def level(log: list[Any], name: str) -> float | None:
    return Seen(log).levels.get((name, "f0"))


# -- the world -------------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples // 10)
@given(seed=st.integers(0, 2**32))
def test_the_truth_comes_out_whatever_happens_on_the_way(seed: int) -> None:
    """Duplicates, disorder, and death between any two writes."""
    told = play(["f0", "f1"], START, START + END, seed, runners=1 + seed % 3)
    log = [*muddled(told.events, seed), tick(END)]
    seen = Seen([], 1)
    seen.durable = chaos(durable(), log, seed, death=0.01)
    seen.ledger = seen.again()
    assert seen.levels == pytest.approx(told.levels)
    assert +seen.sums == sum(told.counts.values(), Counter())


@settings(max_examples=settings.default.max_examples // 10)
@given(seed=st.integers(0, 2**32), kept=st.floats(0, 1))
def test_what_is_lost_leaks_nothing(seed: int, kept: float) -> None:
    """Of a part of the events no level is beyond what there was, and none stays."""
    told = play(["f0"], START, START + END, seed)
    rng = random.Random(seed)
    some = [each for each in told.events if rng.random() < kept]
    seen = Seen([*some, tick(END)])
    open_ = {each.task_id for each in some if hasattr(each, "task_id")}
    for where in seen.ledger.subjects:
        view = seen.ledger.view(where)
        assert view is not None
        assert len(view["tasks"]) == sum(view[state] for state in metrics.STATES)
        assert set(view["tasks"]) <= open_
        over = {each.task_id for each in some if each.kind in ("task.finished", "task.reaped")}
        assert not over & set(view["tasks"])
    later = END + LOST_UNREPORTED_MS + MINUTE
    levels = Seen([*some, tick(END), tick(later)]).levels
    for where, n in levels.items():
        assert n == 0 or where[2:] == ("lost",), where
    last = END + KEPT_MS + 2 * HOUR_MS
    assert Seen([*some, tick(END), tick(later), tick(last)]).ledger.subjects == {}


def test_the_metrics_count_what_happened_and_each_failure_rises() -> None:
    told = play(["f0"], START, START + END, 8, runners=12)
    seen = Seen([*muddled(told.events, 1), tick(END)])
    named = {metric.name: metric for metric in metrics.METRICS}
    for what, n in told.counts["f0"].items():
        name, *values = what.split("|")
        if "sum" in values:
            continue
        metric = named[name]
        labels = dict(zip((each.name for each in metric.labels[metric.by_fleet :]), values,
                          strict=True))  # fmt: skip
        labels |= {"fleet": "f0"} if metric.by_fleet else {}
        suffix = "total" if isinstance(metric, Counts) else "count"
        assert seen.counted(f"{name}_{suffix}", **labels) == n, what
    counted = {what.partition("|")[0] for what, n in told.counts["f0"].items() if n}
    assert {each.name for each in metrics.METRICS if each.kind != "gauge"} <= counted
    failures = {
        "runner_polls|error", "runner_log_reports|error", "runner_state_reports|error",
        "runner_client_errors|update_log", "runner_tasks|failure",
    }  # fmt: skip
    assert failures <= {what for what, n in told.counts["f0"].items() if n}


def test_every_gauge_of_trouble_rises_in_the_world() -> None:
    risen: set[str] = set()
    for seed in (10, 11):
        told = play(["f0"], START, START + END, seed, runners=4)
        levels = Seen([*told.events, tick(END)]).levels
        assert levels == pytest.approx(told.levels)
        risen |= {where[0] for where, n in levels.items() if n}
    assert {each.name for each in metrics.METRICS if each.kind == "gauge"} <= risen


# -- traps of the reference (A.9) ------------------------------------------------------------------


def test_a_task_that_says_nothing_is_silent_though_its_runner_is_not() -> None:
    """1: heartbeats of a quiet task went missing, and it was reaped."""
    log = [
        of("task.started", 0, task_id="1"),
        of("report.state", 5 * SECOND, task_id="1", result="success", trigger="interval"),
        status(125 * SECOND),
    ]
    assert level([*log, tick(125 * SECOND)], "runner_tasks_silent") == 0
    assert level([*log, tick(126 * SECOND)], "runner_tasks_silent") == 1
    # A report that failed did not reach the server.
    failed = of("report.state", 100 * SECOND, task_id="1", result="error")
    assert level([*log, failed, tick(126 * SECOND)], "runner_tasks_silent") == 1
    # Of who reports no state nobody knows.
    assert level([log[0], tick(126 * SECOND)], "runner_tasks_silent") is None


def test_a_timeout_of_its_own_is_no_latency_and_no_error() -> None:
    """3: DeadlineExceeded is told apart, and swamps no histogram."""
    seen = Seen([of("runner.poll", 0, result="timeout", duration_ms=5_000)])
    assert seen.sums == {"runner_polls|timeout": 1}


def test_a_runner_at_the_longest_backoff_that_fails_is_stuck() -> None:
    """3, 4: empty answers alone are no trouble, and a fully loaded runner polls not at all."""

    def stuck(**said: Any) -> float | None:
        log = [of("runner.poll", 0, **said), status(10 * MINUTE), tick(10 * MINUTE)]
        assert level(log, "runner_polls_stuck") == 0, "it is long ago"
        return level([of("runner.poll", 0, **said), tick(SECOND)], "runner_polls_stuck")

    assert stuck(result="error", consecutive_errors=6) == 1
    assert stuck(result="error", consecutive_empty=6, consecutive_errors=1) == 1
    assert stuck(result="error", consecutive_errors=5) == 0
    assert stuck(result="empty", consecutive_empty=60) == 0


def test_what_a_process_polled_is_nothing_of_the_next() -> None:
    log = [of("runner.poll", 0, result="error", consecutive_errors=9)]
    assert level([*log, tick(20 * SECOND)], "runner_polls_stuck") == 1
    again = status(20 * SECOND, uptime_ms=10_000)
    assert level([*log, again, tick(20 * SECOND)], "runner_polls_stuck") is None


def test_backoff_is_over_once_a_task_came() -> None:
    log = [status(0, backoff_ms=60_000), of("runner.poll", 1, result="task")]
    assert level([log[0], tick(2)], "runner_backoff_seconds") == 60
    assert level([*log, tick(2)], "runner_backoff_seconds") == 0


def test_the_buffer_grows_on_failures_and_is_empty_once_its_task_is_over() -> None:
    """8: one writer's gauge froze while rows piled up, and stayed after a failed close."""
    first = of("report.log", 0, task_id="1", result="success", rows=5, rows_left=0)
    failed = of("report.log", 5_000, task_id="1", result="error", rows_left=70,
                oldest_since=START + 1_000)  # fmt: skip
    other = of("report.log", 6_000, task_id="2", result="success", rows_left=3,
               oldest_since=START + 5_500)  # fmt: skip
    second = event("report.log", 7_000, runner="s", task_id="9", result="error", rows_left=10)
    levels = Seen([first, failed, other, second, tick(11_000)]).levels
    assert levels["runner_buffer_rows", "f0"] == 83
    assert levels["runner_buffer_rows_max", "f0"] == 73
    assert levels["runner_buffer_oldest_seconds", "f0"] == 10
    lost = of("task.flush_failed", 8_000, task_id="1", method="update_log", rows_lost=70)
    over = of("task.finished", 9_000, task_id="1", result="failure")
    after = Seen([first, failed, other, lost, over, tick(11_000)])
    assert after.levels["runner_buffer_rows", "f0"] == 3
    assert after.sums["runner_log_rows_lost"] == 70
    # What the runner says of all its tasks wins.
    told = status(10_000, buffer_rows=0)
    assert level([first, failed, told, tick(11_000)], "runner_buffer_oldest_seconds") == 0


def test_a_task_is_running_or_finalizing_and_then_counted() -> None:
    """9: it was in neither for a minute and more."""
    log = [of("task.assigned", 0, task_id="1")]
    steps = (
        (of("task.started", 1, task_id="1"), {"running": 1}),
        (of("task.finalizing", 2, task_id="1", result="success"), {"finalizing": 1}),
        (of("report.log", 3, task_id="1", result="error", trigger="close"), {"finalizing": 1}),
        (of("task.finished", 4, task_id="1", duration_ms=4_000, flush_ms=2_000), {}),
    )
    assert tasks(Seen([*log, tick(5)])) == {"assigned": 1}
    for each, want in steps:
        log.append(each)
        seen = Seen([*log, tick(5)])
        assert tasks(seen) == want
        assert seen.sums["runner_tasks|unknown"] == int(not want)
    assert seen.sums["runner_task_seconds|sum"] == 4_000
    assert seen.sums["runner_task_flush_seconds|sum"] == 2_000


def test_every_value_of_a_label_is_there_before_it_happens() -> None:
    """10: a first error was no rise."""
    registry = Seen([of("runner.poll", 0, result="empty")]).exporter.registry
    for metric in metrics.METRICS:
        if isinstance(metric, Counts) and metric.by_fleet and len(metric.labels) > 1:
            label = metric.labels[1]
            assert isinstance(label.values, tuple)
            for value in label.values:
                where = {"fleet": "f0", label.name: value}
                assert registry.get_sample_value(metric.shown, where) is not None


def test_the_bounds_are_those_of_act_runner() -> None:
    """A.1: what a page says counts in the same bucket here."""
    assert metrics.POLL_BUCKETS == (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
    assert metrics.REPORT_BUCKETS == (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
    assert tuple(2**n for n in range(14)) == metrics.TASK_BUCKETS


def test_a_fleet_has_no_more_series_than_it_may() -> None:
    cost = 0
    for metric in metrics.METRICS:
        if metric.by_fleet:
            values = [each.values for each in metric.labels[1:] if isinstance(each.values, tuple)]
            buckets = getattr(metric, "buckets", ())
            cost += math.prod(map(len, values)) * (len(buckets) + 3 if buckets else 1)
    assert cost <= 70


# -- processes -------------------------------------------------------------------------------------


def test_tasks_of_a_process_that_ended_are_not_open() -> None:
    log = [of("task.started", 0, task_id="1"), status(SECOND, uptime_ms=60_000)]
    assert tasks(Seen([*log, tick(5_000)])) == {"running": 1}
    stopped = of("runner.stopped", 2_000, forced=True)
    assert tasks(Seen([*log, stopped, tick(5_000)])) == {}
    assert level([*log, stopped, tick(5_000)], "runners_known") == 0
    # Killed, it says nothing; the next one says since when it runs.
    again = status(20_000, uptime_ms=10_000)
    assert tasks(Seen([*log, again, tick(20_000)])) == {}
    assert level([*log, again, tick(20_000)], "runner_uptime_oldest_seconds") == 10
    # A word after the restart is about a task that it has.
    told = of("report.state", 19_000, task_id="1", result="success")
    assert tasks(Seen([*log, again, told, tick(20_000)])) == {"running": 1}


def test_a_silent_runner_is_one_with_tasks() -> None:
    idle, busy = [status(0)], [status(0), of("task.started", 0, task_id="1")]
    assert level([*idle, tick(61 * SECOND)], "runners_silent") == 0
    assert level([*busy, tick(60 * SECOND)], "runners_silent") == 0
    assert level([*busy, tick(61 * SECOND)], "runners_silent") == 1
    # Also when all else of it is not told any more.
    levels = Seen([*busy, tick(30 * MINUTE)]).levels
    assert levels["runners_silent", "f0"] == 1
    assert ("runners_known", "f0") not in levels


def test_what_nobody_mentions_is_lost_and_then_forgotten() -> None:
    reported = of("report.state", 0, task_id="1", result="success")
    assert tasks(Seen([reported, tick(LOST_MS)])) == {"running": 1}
    assert tasks(Seen([reported, tick(LOST_MS + 1)])) == {"lost": 1}
    started = of("task.started", 0, task_id="2")
    assert tasks(Seen([started, tick(LOST_MS + 1)])) == {"running": 1}
    assert tasks(Seen([started, tick(LOST_UNREPORTED_MS + 1)])) == {"lost": 1}
    assert tasks(Seen([started, tick(KEPT_MS + MINUTE)])) == {}


def test_a_late_word_does_not_open_what_is_over() -> None:
    over = of("task.reaped", MINUTE, task_id="1", sweep="zombie")
    late = of("report.log", 2 * MINUTE, task_id="1", result="success")
    assert tasks(Seen([over, late, tick(2 * MINUTE)])) == {}
    assert tasks(Seen([over, tick(KEPT_MS + MINUTE), late, tick(KEPT_MS + 2 * MINUTE)])) == {}


def test_what_is_said_of_a_runner_once_stays_while_it_is_heard() -> None:
    log = [of("runner.info", 0, capacity=4), *(status(n * HOUR_MS) for n in range(1, 9))]
    ticks = [tick(n * HOUR_MS) for n in range(1, 9)]
    both = [log[0]] + [each for pair in zip(log[1:], ticks, strict=True) for each in pair]
    assert level(both, "runner_capacity") == 4


def test_a_runner_that_its_server_does_not_know_is_told_for_an_hour() -> None:
    log = [of("runner.poll", 0, result="unauthenticated"), of("runner.stopped", 1)]
    assert level([*log, tick(HOUR_MS)], "runners_unregistered") == 1
    assert level([*log, tick(HOUR_MS + 1)], "runners_unregistered") == 0


def test_readiness_and_capacity_are_those_of_fresh_words() -> None:
    log = [status(0, ready=False, capacity=3), status(1, ready=True, capacity=2)]
    levels = Seen([*log[::-1], tick(2)]).levels
    assert (levels["runners_not_ready", "f0"], levels["runner_capacity", "f0"]) == (0, 2)
    assert Seen([*log, tick(LATE_MS)]).levels == {}


# -- scraped ---------------------------------------------------------------------------------------


def test_a_page_counts_as_exactly_as_events() -> None:
    """Bucket by bucket, once, and its level is what the runner says."""
    scraped = of(
        "runner.scrape", 0, polls={"task": 2, "empty": 7}, jobs={"failure": 1},
        log_reports={"error": 3}, state_reports={"success": 4}, client_errors={"update_log": 3},
        histograms={
            "job": ((1.0, 2.0, 8192.0), (1, 0, 2, 1), 12_000.5),
            "log": ((0.01,), (4, 1), 0.5),
        },
    )  # fmt: skip
    seen = Seen([scraped, scraped, status(1, running=2, capacity=3), tick(2)])
    assert seen.counted("runner_polls_total", fleet="f0", result="empty") == 7
    assert seen.counted("runner_log_reports_total", fleet="f0", result="error") == 3
    for bound, n in (("1.0", 1), ("2.0", 1), ("4096.0", 1), ("8192.0", 3), ("+Inf", 4)):
        assert seen.counted("runner_task_seconds_bucket", fleet="f0", le=bound) == n
    assert seen.counted("runner_task_seconds_sum", fleet="f0") == 12_000.5
    assert seen.counted("runner_log_report_seconds_bucket", result="unknown", le="0.01") == 4
    assert tasks(seen) == {"running": 2}
    assert seen.sums["runner_task_seconds"] == 4


@pytest.mark.parametrize(
    "odd",
    [
        '{"job": [[1.0], [1], 2.0]}', '{"job": [[2.0, 1.0], [1, 1, 1], 2.0]}',
        '{"job": [[1.0], [1, -1], 2.0]}', '{"job": [[1.0], [1, 1], NaN]}',
        '{"job": [[NaN], [1, 1], 1.0]}', '{"job": [[1.0], [1, 1e300], 1.0]}',
        '{"job": [[1.0], [1, 1], 1e300]}', '{"other": [[1.0], [1, 1], 1.0]}', "7",
    ],
)  # fmt: skip
def test_a_distribution_that_cannot_be_is_none(odd: str) -> None:
    value = (
        '{"kind": "runner.scrape", "id": "x", "source": "s", "fleet": "f0", "runner": "r", '
        f'"occurred_at": {START}, "received_at": {START}, "polls": {{"task": 1}}, '
        f'"histograms": {odd}}}'
    )
    found = read(EVENT, value.encode())
    assert Seen([found]).sums == {"runner_polls|task": 1}
