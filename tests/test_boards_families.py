"""The dashboards of runners, schedulers and reconcilers: all that the models show is there, and the
answers are what happened.

The world is played without the fold and without SQL, so each number is told by two ways that have
nothing in common. On its way some of it is written again, and some ends under another id.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from clickhouse_driver import Client

from dashboards.ask import ask
from dashboards.boards import act_runner, reconciler, scheduler
from dashboards.macros import Range
from dashboards.model import Dashboard, Sql
from pipeline.local import EmbeddedClickHouse
from pipeline.simulate.telemetry import Told
from sinks import rows, schema
from sinks.metrics import SinkMetrics
from sinks.writer import Writer
from tests.support.seeded import TELLING, telling
from tests.test_sink_telemetry import record

MINUTE: Final = 60_000
#: The world ends on a full minute: there a series ends with how things are.
END: Final = int(time.time()) // 60 * MINUTE
#: A fleet with what takes more than an hour.
SLOW: Final = "slow"


@pytest.fixture(scope="module")
def world() -> Told:
    return telling(7, END - 45 * MINUTE, END)


def slow() -> Told:
    """A task that nobody has mentioned for an hour, another that is silent, and a reconciler that
    is busy with nothing."""
    told = Told(END)
    for ago, kind, task in (
        (90, "assigned", "lost"), (80, "started", "lost"),
        (59, "assigned", "waits"), (30, "started", "silent"),
    ):  # fmt: skip
        told.tell(f"task.{kind}", SLOW, END - ago * MINUTE, runner="r", task_id=task)
    for ago, task in ((70, "lost"), (20, "silent")):
        told.tell(
            "report.state", SLOW, END - ago * MINUTE, runner="r", task_id=task, result="success"
        )
    told.tell("work.moved", SLOW, END - 70 * MINUTE, reconciler="c", work_id="w", to_state="open")
    for ago, actions in ((50, 150), (10, 51)):
        told.tell(
            "reconciler.tick", SLOW, END - ago * MINUTE, reconciler="c", tick_id=str(ago),
            wall_ms=9, actions=actions,
        )  # fmt: skip
    return told


@pytest.fixture(scope="module")
def client(server: EmbeddedClickHouse, world: Told) -> Iterator[Client]:
    """A connection to where all of it was written."""
    schema.apply(server.url)
    ends = [each for each in world.events if each.statement != each.id]
    again = [each.model_copy(update={"id": f"{each.id}|again"}) for each in ends[::5]]
    events = [*world.events, *slow().events]
    writer = Writer(server.url, SinkMetrics())
    for number_, batch in enumerate((events, events[::7], again)):
        tables, failed = rows.build([rows.decode(record(each)) for each in batch])
        assert failed == []
        assert writer.write(tables, str(number_)) == []
    writer.close()
    with Client.from_url(server.reader_url) as connection:
        yield connection


def over(board: Dashboard, **chosen: list[str]) -> Range:
    """Six hours up to the end of the world, by the minute; of the fleets that it is played for."""
    everything: dict[str, list[str]] = {each.name: [] for each in board.variables}
    return Range(END - 360 * MINUTE, END, 60, everything | {"fleet": [*TELLING]} | chosen)


def frames(
    client: Client, board: Dashboard, title: str, **chosen: list[str]
) -> list[list[dict[str, Any]]]:
    """The answers to the questions of a panel, row by row."""
    answers = []
    for query in board.panel(title).queries:
        assert isinstance(query, Sql)
        columns, found = ask(client, query.text, over(board, **chosen))
        names = [name for name, _ in columns]
        answers.append([dict(zip(names, row, strict=True)) for row in found])
    return answers


def number(client: Client, board: Dashboard, title: str, **chosen: list[str]) -> dict[str, Any]:
    """The one row of a number."""
    [[row]] = frames(client, board, title, **chosen)
    return row


def totals(rows_: list[dict[str, Any]], per: int = 1) -> dict[str, float]:
    """What series of so much in so many seconds add up to, without what is 0."""
    found: Counter[str] = Counter()
    for row in rows_:
        for name, value in row.items():
            if isinstance(value, int | float):
                found[name] += value * 60 / per  # type: ignore[assignment]
    return {name: value for name, value in found.items() if value}


def last(rows_: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the last minute, which is the end of the world."""
    assert rows_[-1]["time"].timestamp() * 1000 == END
    return [row for row in rows_ if row["time"] == rows_[-1]["time"]]


def counted(world: Told, metric: str, place: int = 0) -> dict[str, float]:
    """How often what happened in all fleets, by a label: of durations not their sums."""
    found: Counter[str] = Counter()
    for counts in world.counts.values():
        for what, times in counts.items():
            name, *labels = what.split("|")
            if name == metric and "sum" not in labels:
                found[labels[place] if labels else ""] += times
    return {label: times for label, times in found.items() if times}


def level(world: Told, name: str, *labels: str, most: bool = False) -> float:
    """A level at the end, over all fleets."""
    of = [n for where, n in world.levels.items() if where[0] == name and where[2:] == labels]
    assert of, name
    return max(of) if most else sum(of)


# --- what is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "titles"),
    [
        (
            act_runner.BOARD,
            "Fleet info table | Poll outcomes | Poll latency p50/p95/p99 | Backoff level | "
            "Jobs by status /min, success ratio | Job duration p50/p95/p99 | "
            "Job duration heatmap | Running vs capacity; utilisation ratio | "
            "RPC errors by method | Log/state report latency, error ratio | "
            "Log buffer rows, oldest-row age | Flush trigger mix and rows/flush | Go/process",
        ),
        (
            scheduler.BOARD,
            "Planner Runs per Status | Planner Latency P95 | Planner Latency P99 | "
            "Runner Segments per Status | New findings per severity | "
            "Runner backlog per schedule | Active runs | Images processed, delta vs none | "
            "Run duration p50/p95",
        ),
        (
            reconciler.BOARD,
            "Events Drained per Tick | Actions Emitted per Tick by Type | Side Effects | "
            "Invariant Violations | Reconciler Wall Clock Time | Pending Event Queue Depth",
        ),
    ],
    ids=lambda each: each.title if isinstance(each, Dashboard) else "",
)
def test_what_the_models_show_is_found_by_its_title(board: Dashboard, titles: str) -> None:
    shown = Counter(panel.title for panel in board.panels)
    assert max(shown.values()) == 1
    assert {title for title in titles.split(" | ") if title not in shown} == set()


@pytest.mark.parametrize(
    ("board", "title", "kind", "column", "unit"),
    [
        (act_runner.BOARD, "Job duration p50/p95/p99", "task.finished", "duration_ms", 1000),
        (act_runner.BOARD, "Final flush", "task.finished", "flush_ms", 1000),
        (act_runner.BOARD, "Log/state report latency, error ratio", "report.log", "duration_ms", 1),
        (scheduler.BOARD, "Planner Latency P95", "run.planned", "latency_ms", 1000),
        (scheduler.BOARD, "Planner Latency P99", "run.planned", "latency_ms", 1000),
        (scheduler.BOARD, "Run duration p50/p95", "run.finished", "duration_ms", 1000),
        (reconciler.BOARD, "Reconciler Wall Clock Time", "reconciler.tick", "wall_ms", 1),
        (reconciler.BOARD, "Slowest effects", "reconciler.effect", "duration_ms", 1),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_quantiles_are_those_of_the_truth(
    client: Client, world: Told, board: Dashboard, title: str, kind: str, column: str, unit: int
) -> None:
    """All of the range in one point. Of two values beside each other either may be it."""
    query = board.panel(title).queries[0]
    assert isinstance(query, Sql)
    columns, found = ask(client, query.text, replace(over(board), interval_s=10**9))
    names = [name for name, _ in columns]
    label = next((name for name in ("mode", "result") if name in names), "")
    seen = 0
    for row in (dict(zip(names, values, strict=True)) for values in found):
        known = sorted(
            told[column]
            for told in (event.model_dump() for event in world.events if event.kind == kind)
            if told[column] is not None and (not label or told[label] == row[label])
        )
        for name in {"p50", "p95", "p99"} & row.keys():
            place = int(name[1:]) / 100 * len(known)
            beside = known[max(0, int(place) - 1) : int(place) + 2]
            assert beside[0] <= row[name] * unit + 0.01 <= beside[-1] + 0.02, name
            seen += 1
    assert seen >= 1


# --- runners ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "metric", "per"),
    [
        ("Poll outcomes", "runner_polls", 1),
        ("Jobs by status /min, success ratio", "runner_tasks", 60),
        ("RPC errors by method", "runner_client_errors", 1),
        ("Tasks taken from their runner", "runner_tasks_reaped", 3600),
    ],
)
def test_what_runners_did_is_counted_once(
    client: Client, world: Told, title: str, metric: str, per: int
) -> None:
    shown = frames(client, act_runner.BOARD, title)[0]
    truth = counted(world, metric)
    assert len(truth) >= (1 if "taken" in title else 3)
    assert totals(shown, per) == pytest.approx(truth)


def test_what_was_lost_on_the_way_is_counted(client: Client, world: Told) -> None:
    [shown] = frames(client, act_runner.BOARD, "Flush failures, rows lost, outputs dropped")
    assert totals(shown, 60) == pytest.approx(
        {
            "flush_failures": sum(counted(world, "runner_flushes_failed").values()),
            "rows_lost": sum(counted(world, "runner_log_rows_lost").values()),
            "outputs_dropped": sum(counted(world, "runner_outputs_dropped").values()),
        }
    )
    [shown] = frames(client, act_runner.BOARD, "Starts and stops")
    starts = sum(event.kind == "runner.info" for event in world.events)
    assert totals(shown, 3600) == pytest.approx(
        counted(world, "runner_stops") | {"started": starts}
    )


def test_which_tasks_are_open_is_told_now_and_over_time(client: Client, world: Told) -> None:
    truth = {
        state: level(world, "runner_tasks_open", state)
        for state in ("assigned", "running", "finalizing", "lost")
    }
    [scraped] = [
        event.running  # type: ignore[attr-defined]
        for event in world.events
        if event.kind == "runner.status" and event.occurred_at == END and "9101" in event.subject
    ]
    own = truth | {"running": truth["running"] - scraped}
    assert min(own["running"], truth["finalizing"]) > 0
    assert number(client, act_runner.BOARD, "Open tasks by state") == own
    [now] = last(frames(client, act_runner.BOARD, "Tasks open over time")[0])
    assert {state: now[state] for state in own} == own

    capacity = level(world, "runner_capacity")
    shown = number(client, act_runner.BOARD, "Utilisation ratio")
    assert shown["utilisation"] == pytest.approx(truth["running"] / capacity)
    now_by_fleet = last(
        frames(client, act_runner.BOARD, "Running vs capacity; utilisation ratio")[0]
    )
    assert sum(row["running"] for row in now_by_fleet) == truth["running"]
    assert sum(row["capacity"] for row in now_by_fleet) == capacity
    assert number(client, act_runner.BOARD, "Runners heard of") == {
        "runners": level(world, "runners_known")
    }


def test_a_task_that_nobody_mentions_is_lost(client: Client) -> None:
    states = number(client, act_runner.BOARD, "Open tasks by state", fleet=[SLOW])
    assert states == {"assigned": 1, "running": 1, "finalizing": 0, "lost": 1}
    silent = number(client, act_runner.BOARD, "Silent tasks and runners", fleet=[SLOW])
    assert silent == {"tasks": 1, "runners": 1}
    shown = frames(client, act_runner.BOARD, "Tasks open over time", fleet=[SLOW])[0]
    began = min(row["time"] for row in shown if row["lost"])
    assert END - began.timestamp() * 1000 == 9 * MINUTE, "an hour after its last word"
    [row] = frames(client, act_runner.BOARD, "Fleet info table", fleet=[SLOW])[0]
    assert (row["state"], row["lost"]) == ("gone", 1)


@pytest.mark.parametrize(
    ("board", "title"),
    [(act_runner.BOARD, "Tasks open over time"), (scheduler.BOARD, "Active runs")],
)
def test_a_long_range_is_told_at_fewer_instants_of_the_same(
    client: Client, board: Dashboard, title: str
) -> None:
    [query] = board.panel(title).queries
    assert isinstance(query, Sql)
    every_minute, wide = (
        {
            int(time.timestamp()): values
            for time, *values in ask(client, query.text, replace(over(board), interval_s=step))[1]
        }
        for step in (60, 12 * 60)
    )
    expected: dict[int, list[int]] = {}
    for at, values in every_minute.items():
        if at % 120 == 0:
            before = expected.setdefault(at // 720 * 720, values)
            expected[at // 720 * 720] = [*map(max, before, values)]
    assert wide == expected
    assert len(wide) > 3


def test_silence_and_what_waits_are_told(client: Client, world: Told) -> None:
    assert number(client, act_runner.BOARD, "Silent tasks and runners") == {
        "tasks": level(world, "runner_tasks_silent"), "runners": level(world, "runners_silent"),
    }  # fmt: skip
    oldest = level(world, "runner_buffer_oldest_seconds", most=True)
    assert number(client, act_runner.BOARD, "Oldest log row that waits")["oldest"] == pytest.approx(
        oldest
    )
    [now] = last(frames(client, act_runner.BOARD, "Log buffer rows, oldest-row age")[0])
    assert now["rows"] == level(world, "runner_buffer_rows") > 0
    assert now["most_of_a_runner"] == level(world, "runner_buffer_rows_max", most=True)
    assert now["oldest"] == pytest.approx(oldest)
    backoffs = last(frames(client, act_runner.BOARD, "Backoff level")[0])
    assert len(backoffs) == 2


# --- schedulers -------------------------------------------------------------------------------


def test_what_a_scheduler_did_is_counted_once(client: Client, world: Told) -> None:
    def shown(title: str, per: int = 1, query: int = 0) -> dict[str, float]:
        return totals(frames(client, scheduler.BOARD, title)[query], per)

    def findings(what: str) -> float:
        return sum(counted(world, f"scheduler_findings{what}").values())

    assert shown("Planner Runs per Status") == pytest.approx(
        counted(world, "scheduler_planner_runs", 1)
    )
    assert shown("Runner Segments per Status") == pytest.approx(
        counted(world, "scheduler_segments", 1)
    )
    assert shown("Runs finished by result", 60) == pytest.approx(
        counted(world, "scheduler_runs_finished")
    )
    assert shown("New findings per severity", 60) == pytest.approx(
        {
            "critical": findings("_critical"), "high": findings("_high"), "kev": findings("_kev"),
            "total": findings(""),
        }
    )  # fmt: skip
    images = counted(world, "scheduler_images", 1)
    assert shown("Images processed, delta vs none", 60) == pytest.approx(
        {"delta": images["true"], "none": images["false"]}
    )
    assert shown("Segments that are tried again", 60)["again"] == pytest.approx(
        sum(counted(world, "scheduler_segment_retries").values())
    )
    assert shown("Segments that are tried again", 60, 1)["given_up"] == pytest.approx(
        sum(counted(world, "scheduler_dead_lettered").values())
    )
    assert shown("Missed schedules", 3600) == pytest.approx(
        {
            "missed": sum(counted(world, "scheduler_schedules_missed").values()),
            "caught_up": sum(counted(world, "scheduler_schedules_caught_up").values()),
        }
    )


def test_what_is_left_to_do_is_told_by_mode_and_by_schedule(client: Client, world: Told) -> None:
    modes = {
        mode: level(world, "scheduler_runs_active", mode)
        for mode in ("analysis_only", "content_refresh", "other")
    }
    assert number(client, scheduler.BOARD, "Active runs by mode") == modes
    [now] = last(frames(client, scheduler.BOARD, "Active runs")[0])
    assert {mode: now[mode] for mode in modes} == modes

    stored: Counter[str] = Counter()
    for (name, _, *where), left in world.stored.items():
        if name == "schedule_backlog":
            stored[where[0]] += left  # type: ignore[assignment]
    by_schedule = last(frames(client, scheduler.BOARD, "Runner backlog per schedule")[0])
    assert {row["schedule"]: row["images"] for row in by_schedule} == stored
    drains = frames(client, scheduler.BOARD, "Backlog by schedule, whether it drains")[0]
    assert sum(row["backlog"] for row in drains) == sum(stored.values())
    assert {"a run is stuck"} < {row["state"] for row in drains} | {"drains"}
    assert number(client, scheduler.BOARD, "Backlog")["images"] == level(world, "scheduler_backlog")


def test_what_hangs_and_what_was_missed_is_told(client: Client, world: Told) -> None:
    stuck = level(world, "scheduler_runs_not_draining")
    assert number(client, scheduler.BOARD, "Stuck runs")["stuck"] == stuck > 0
    longest = frames(client, scheduler.BOARD, "Runs that are open for longest")[0]
    assert sum(row["state"] == "stuck" for row in longest) == stuck
    oldest = number(client, scheduler.BOARD, "Oldest open run")
    assert oldest == pytest.approx(
        {
            "planning": level(world, "scheduler_run_oldest_seconds", "planning", most=True),
            "executing": level(world, "scheduler_run_oldest_seconds", "active", most=True),
        }
    )
    behind = level(world, "scheduler_schedules_behind")
    assert number(client, scheduler.BOARD, "Schedules behind")["schedules"] == behind
    listed = frames(client, scheduler.BOARD, "Schedules that are behind")[0]
    assert sum(row["state"] == "behind" for row in listed) == behind
    queues = last(frames(client, scheduler.BOARD, "Queue depth and in flight")[0])
    assert {row["queue"]: row["depth"] for row in queues} == {
        queue: level(world, "scheduler_queue_depth", queue) for queue in ("planner", "runner")
    }


# --- reconcilers ------------------------------------------------------------------------------


def test_levels_are_those_of_the_latest_tick(client: Client, world: Told) -> None:
    waiting = number(client, reconciler.BOARD, "Pending Event Queue Depth")["waiting"]
    truth = sum(level(world, "reconciler_pending_events", state) for state in ("new", "retry"))
    assert waiting == truth > 0
    [now] = last(frames(client, reconciler.BOARD, "Pending events")[0])
    assert now["new"] + now["tried_again"] == truth
    silent = level(world, "reconciler_silent_seconds", most=True)
    assert number(client, reconciler.BOARD, "Tick age")["oldest"] == pytest.approx(silent)
    assert level(world, "reconcilers_overdue") > 0
    assert number(client, reconciler.BOARD, "Overdue, breaker open, draining") == {
        "overdue": level(world, "reconcilers_overdue"),
        "breaker_open": level(world, "reconciler_breaker_open"),
        "draining": level(world, "reconciler_draining"),
    }


def test_what_is_broken_is_counted_once_for_each_entity(client: Client, world: Told) -> None:
    broken = level(world, "reconciler_violations")
    assert number(client, reconciler.BOARD, "Invariant Violations")["open"] == broken > 0
    stored: Counter[str] = Counter()
    for (name, _, *where), n in world.stored.items():
        if name == "violations_by_invariant":
            stored[where[0]] += n  # type: ignore[assignment]
    now = last(frames(client, reconciler.BOARD, "Violations open by invariant")[0])
    assert {row["invariant"]: row["open"] for row in now} == stored
    listed = frames(client, reconciler.BOARD, "Open violations")[0]
    assert Counter(row["invariant"] for row in listed) == stored
    oldest = level(world, "reconciler_violation_oldest_seconds", most=True)
    assert listed[0]["age"] == pytest.approx(oldest, abs=1)


def test_loops_flapping_and_no_progress_are_found(client: Client, world: Told) -> None:
    odd = number(client, reconciler.BOARD, "Loops, flapping, no progress")
    assert odd == {
        "in_loop": level(world, "reconciler_entities_in_loop"),
        "flapping": level(world, "reconciler_work_flapping"),
        "without_progress": level(world, "reconcilers_without_progress"),
    }
    assert min(odd["in_loop"], odd["flapping"]) > 0
    [listed] = frames(client, reconciler.BOARD, "Loops")
    assert (
        len({(row["fleet"], row["reconciler"], row["entity"]) for row in listed})
        == (odd["in_loop"])
    )


def test_who_is_busy_with_nothing_is_found(client: Client) -> None:
    odd = number(client, reconciler.BOARD, "Loops, flapping, no progress", fleet=[SLOW])
    assert odd == {"in_loop": 0, "flapping": 0, "without_progress": 1}
    [row] = frames(client, reconciler.BOARD, "Activity without progress", fleet=[SLOW])[0]
    assert (row["actions"], row["closed"], row["waiting"]) == (201, 0, 1)


def test_what_ticks_did_is_counted_once(client: Client, world: Told) -> None:
    def shown(title: str) -> dict[str, float]:
        return totals(frames(client, reconciler.BOARD, title)[0], 60)

    effects: Mapping[str, float] = counted(world, "reconciler_effects")
    attempted = sum(counted(world, "reconciler_effects_attempted").values())
    assert shown("Side Effects") == pytest.approx({"attempted": attempted, **effects})
    assert shown("Effects by outcome") == pytest.approx(counted(world, "reconciler_effect_results"))
    assert shown("Actions by outcome") == pytest.approx(counted(world, "reconciler_action_results"))
    ticks = counted(world, "reconciler_ticks")
    assert shown("Ticks by outcome") == pytest.approx(
        {"ok": ticks["ok"], "with_a_failed_phase": ticks["failed"]}
    )
    # Per tick, and of all ticks together what they did.
    per_minute = Counter(
        event.occurred_at // MINUTE * MINUTE
        for event in world.events
        if event.kind == "reconciler.tick"
    )
    by_type = frames(client, reconciler.BOARD, "Actions Emitted per Tick by Type")[0]
    actions = sum(
        row["actions"] * per_minute[int(row["time"].timestamp()) * 1000] for row in by_type
    )
    assert actions == pytest.approx(sum(counted(world, "reconciler_actions").values()))
