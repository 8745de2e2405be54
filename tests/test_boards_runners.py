"""The dashboards Runners and Jobs: that what they show is true.

That every query runs is asked for all dashboards together, elsewhere. Here the answers are compared
with the truth of a simulated world, and with rows made by hand where a mistake is likely.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from clickhouse_driver import Client

from dashboards import config, generate, sql
from dashboards.ask import ask
from dashboards.boards import BOARDS, jobs, runners
from dashboards.macros import Range, expand
from dashboards.model import Dashboard, Sql
from pipeline.compat.tuist_shows import PANELS
from pipeline.local import EmbeddedClickHouse
from pipeline.simulate.truth import JobTruth
from sinks import schema
from tests.support.seeded import ACCOUNTS, Seeded, fill

RUNNERS, JOBS = runners.BOARD, jobs.BOARD
MINUTE = 60_000
#: Short buckets and long ones: windows of 5 minutes, and of an hour.
STEPS = (60, 2_000)
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
Rows = list[dict[str, Any]]


def chosen(board: Dashboard, **values: str) -> dict[str, Sequence[str]]:
    none: dict[str, Sequence[str]] = {variable.name: () for variable in board.variables}
    return none | {name: (value,) for name, value in values.items()}


def answer(client: Client, board: Dashboard, title: str, over: Range, number: int = 0) -> Rows:
    query = board.panel(title).queries[number]
    assert isinstance(query, Sql)
    columns, rows = ask(client, query.text, over)
    return [dict(zip([name for name, _ in columns], row, strict=True)) for row in rows]


def ms_of(at: Any) -> int:
    return round(at.timestamp() * 1000)


# --- what there is ------------------------------------------------------------------------------


def test_runners_has_all_32_entries_of_the_model_by_their_titles() -> None:
    sections = dict.fromkeys(panel.section for panel in PANELS)
    assert (len(sections), len(PANELS)) == (7, 25)
    rows = {row.title: {panel.title for panel in row.panels} for row in RUNNERS.rows}
    for panel in PANELS:
        assert panel.title in rows[panel.section]
    ours = [row.title for row in RUNNERS.rows if row.title in sections]
    assert ours == list(sections)
    shown = json.loads(generate.written(RUNNERS))["panels"]
    assert {panel.title for panel in PANELS} | set(sections) <= {each["title"] for each in shown}


def test_titles_are_unique_and_every_panel_answers_every_question() -> None:
    for board in (RUNNERS, JOBS):
        titles = [panel.title for panel in board.panels]
        assert len(set(titles)) == len(titles)
        for panel in board.panels:
            said = (panel.healthy, panel.deviation, panel.todo, panel.no_data, panel.unit)
            assert all(said), panel.title
            assert panel.thresholds[0][0] is None, panel.title


def test_links_lead_to_dashboards_that_know_what_is_chosen() -> None:
    boards = {board.uid: {variable.name for variable in board.variables} for board in BOARDS}
    found = 0
    for board in (RUNNERS, JOBS):
        for panel in board.panels:
            for link in panel.links.values():
                assert {*link.values, *link.keep} <= boards[link.to], panel.title
                assert set(link.keep) <= boards[board.uid]
                assert not set(link.keep) & set(link.values)
                found += 1
    assert found > 20
    told = generate.written(JOBS)
    assert "/d/runnerstream-runners?${__url_time_range}" in told
    assert '&var-key=${__data.fields[\\"key\\"]:percentencode}&${fleet:queryparam}' in told


# --- against the truth --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeded(server: EmbeddedClickHouse) -> Seeded:
    # A full hour: so the same jobs are in the same buckets whenever this runs.
    end = int(time.time()) // 3_600 * 3_600_000
    return fill(server.url, end, jobs=320, hours=2.0, telling_h=0.35)


@pytest.fixture(scope="module")
def client(server: EmbeddedClickHouse, seeded: Seeded) -> Iterator[Client]:
    with Client.from_url(server.reader_url) as connection:
        yield connection


def whole(world: Seeded, board: Dashboard = RUNNERS, step: int = 60, **values: str) -> Range:
    """All that happened; simulated jobs may end after the world does."""
    return Range(world.start_ms, world.end_ms + 60 * MINUTE, step, chosen(board, **values))


def every(step: int) -> int:
    """Seconds of a bucket, as in dashboards/sql.py."""
    size = 3_600 if step > 1_800 else 300
    return -(-step // size) * size


def counted(world: Seeded) -> list[JobTruth]:
    return [job for job in world.jobs.jobs.values() if not job.copied]


def ranked(values: list[int]) -> dict[str, int]:
    """As quantileExact does."""
    values.sort()
    return {name: values[math.floor(q * len(values))] for name, q in QUANTILES.items()}


def by_bucket(
    found: list[JobTruth], at: str, value: Callable[[JobTruth], Any], step: int
) -> dict[int, dict[str, int]]:
    buckets: dict[int, list[int]] = defaultdict(list)
    for job in found:
        when, ms = getattr(job, at), value(job)
        if when is not None and isinstance(ms, int):
            buckets[when // (every(step) * 1000) * every(step) * 1000].append(ms)
    return {bucket: ranked(values) for bucket, values in buckets.items()}


def told_late(client: Client, world: Seeded, family: str, fleet: str, step: int) -> set[int]:
    """Buckets of which windows lack a sample: it came too late for them, or at the very end."""
    wanted: Counter[int] = Counter()
    size = 3_600 if step > 1_800 else 300
    length = every(step) * 1000
    for (of, what, seconds, start), (count, _) in world.jobs.windows.items():
        if (what, seconds) == (family, size) and fleet in ("", of):
            wanted[start // length * length] += count
    found = dict(
        client.execute(
            f"""SELECT intDiv(toUnixTimestamp64Milli(start), {length}) * {length} AS bucket,
            sum(count) FROM windows_merged WHERE family = '{family}' AND size_s = {size}
            AND '{fleet}' IN ('', fleet) GROUP BY bucket"""
        )
    )
    return {bucket for bucket, count in wanted.items() if found.get(bucket) != count}


def of_family(family: str) -> Callable[[JobTruth], Any]:
    return lambda job: job.timings[family]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("title", "family", "at"),
    [
        ("Enqueue → running (JIT-mint included)", "queue", "started_at"),
        ("Claim → running", "claim_to_start", "started_at"),
        ("Run time (running → completed)", "run", "completed_at"),
        ("Total time (enqueue → completed)", "total", "completed_at"),
    ],
)
def test_quantiles_of_windows_are_those_of_the_truth(
    client: Client, seeded: Seeded, title: str, family: str, at: str, step: int
) -> None:
    fleets = Counter(job.fleet for job in counted(seeded) if isinstance(job.timings[family], int))
    [(busiest, _)] = fleets.most_common(1)
    for fleet in ("", busiest):
        values = {"fleet": fleet} if fleet else {}
        truth = [job for job in counted(seeded) if fleet in ("", job.fleet)]
        wanted = by_bucket(truth, at, of_family(family), step)
        late = told_late(client, seeded, family, fleet, step)
        assert len(wanted) - len(late) >= (1 if step > 1_800 else 10)
        rows = answer(client, RUNNERS, title, whole(seeded, step=step, **values))
        rows = [row for row in rows if ms_of(row["time"]) not in late]
        assert [ms_of(row["time"]) for row in rows] == sorted(wanted.keys() - late)
        for row in rows:
            exact = wanted[ms_of(row["time"])]
            told = {q: pytest.approx(exact[q], rel=0.0101) for q in QUANTILES}
            assert {q: row[q] for q in QUANTILES} == told


@pytest.mark.parametrize("step", STEPS)
def test_the_time_to_the_claim_is_exact(client: Client, seeded: Seeded, step: int) -> None:
    def wait(job: JobTruth) -> int | None:
        if job.queued_at is None or job.claimed_at is None:
            return None
        raw = job.claimed_at - job.queued_at
        return max(0, raw) if raw >= -1_000 else None

    wanted = by_bucket(counted(seeded), "claimed_at", wait, step)
    rows = answer(client, RUNNERS, "Queue time (enqueue → claim)", whole(seeded, step=step))
    assert {ms_of(row["time"]): {q: row[q] for q in QUANTILES} for row in rows} == wanted
    live = [job for job in counted(seeded) if job.claimed_at and job.status != "completed"]
    assert len(live) > 3  # of those that are not over, too


@pytest.mark.parametrize(("title", "family"), [("Wait trend", "queue"), ("Run time trend", "run")])
def test_trends_of_jobs_are_exact(client: Client, seeded: Seeded, title: str, family: str) -> None:
    over = [job for job in counted(seeded) if job.status == "completed"]
    wanted = by_bucket(over, "completed_at", of_family(family), 60)
    rows = answer(client, JOBS, title, whole(seeded, JOBS))
    assert {ms_of(row["time"]): {q: row[q] for q in QUANTILES} for row in rows} == wanted


def amounts(rows: Rows, value: str, over: Range, *labels: str) -> Counter[tuple[Any, ...]]:
    """How many there were, from how many a second."""
    length = every(over.interval_s)
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        passed = over.end_ms // 1000 - ms_of(row["time"]) // 1000
        found[tuple(row[label] for label in labels)] += round(
            row[value] * max(60, min(length, passed)), 6
        )
    return found


@pytest.mark.parametrize("step", STEPS)
def test_rates_add_up_to_what_there_was(client: Client, seeded: Seeded, step: int) -> None:
    over, known = whole(seeded, step=step), counted(seeded)

    def shown(title: str, value: str, *labels: str, number: int = 0) -> Counter[tuple[Any, ...]]:
        return amounts(answer(client, RUNNERS, title, over, number), value, over, *labels)

    asked = Counter(
        (job.fleet,) for job in known if job.conclusion != "skipped" and job.queued_at is not None
    )
    assert shown("Jobs enqueued / sec by fleet", "enqueued", "fleet") == asked
    ended: Counter[tuple[str]] = Counter()
    for (_, conclusion, size, _), number in seeded.jobs.conclusions.items():
        ended[(conclusion,)] += number if size == 300 else 0
    shown_ended = shown("Jobs completed / sec by conclusion", "completed", "conclusion")
    assert not shown_ended - ended
    # But for what came too late for its window.
    assert (ended - shown_ended).total() <= 3 + 0.02 * ended.total()
    claimed = sum(job.claimed_at is not None for job in known)
    begun = sum(job.started_at is not None for job in known)
    assert shown("Claim and run rate", "claimed") == {(): claimed}
    assert shown("Claim and run rate", "running", number=1) == {(): begun}
    told: Counter[tuple[str]] = Counter()
    for counts in seeded.telemetry.counts.values():
        for name, number in counts.items():
            if name.startswith("dispatch_requests|"):
                told[(name.split("|")[1],)] += number
    assert shown("Dispatch requests / sec by outcome", "requests", "outcome") == told


def test_the_goal_and_its_budget_are_those_of_the_truth(client: Client, seeded: Seeded) -> None:
    waits = [job.timings["queue"] for job in counted(seeded)]
    known = [ms for ms in waits if isinstance(ms, int)]
    share = sum(ms <= config.QUEUE_SLO_S * 1000 for ms in known) / len(known)
    near = sum(abs(ms / config.QUEUE_SLO_S / 1000 - 1) <= 0.0101 for ms in known) / len(known)
    [row] = answer(client, RUNNERS, "Queue-time SLO", whole(seeded))
    assert row["within"] == pytest.approx(share, abs=near + 1e-9)
    assert 0.2 < share < 0.99
    budgets = answer(client, RUNNERS, "Error budget left", whole(seeded))
    fleet, left = budgets[0]["fleet"], budgets[0]["left"]
    [one] = answer(client, RUNNERS, "Queue-time SLO", whole(seeded, fleet=fleet))
    assert left == pytest.approx(1 - (1 - one["within"]) / (1 - config.QUEUE_SLO))
    assert len(budgets) == len({job.fleet for job in counted(seeded)
                                if isinstance(job.timings["queue"], int)})  # fmt: skip


def test_the_heatmap_holds_every_wait_once(client: Client, seeded: Seeded) -> None:
    waits = [job.timings["queue"] for job in counted(seeded)]
    known = [ms for ms in waits if isinstance(ms, int)]
    found: Counter[float] = Counter()
    for row in answer(client, RUNNERS, "Queue time distribution (heatmap)", whole(seeded)):
        found[math.inf if row["le"] == "+Inf" else float(row["le"])] += row["jobs"]
    assert sum(found.values()) == len(known)
    at_most = 0
    for edge in sorted(found):
        at_most += found[edge]
        low, high = edge * 0.989, edge * 1.011
        assert sum(ms <= low for ms in known) <= at_most <= sum(ms <= high for ms in known)


def test_who_gave_up_waiting_is_told_apart_from_who_was_skipped(
    client: Client, seeded: Seeded
) -> None:
    ended = [job for job in counted(seeded) if job.status == "completed"]
    ended = [job for job in ended if job.conclusion != "skipped"]
    gone = [job for job in ended if job.conclusion == "cancelled" and job.abandoned_ms is not None]
    assert gone
    title = "Shed share: cancelled while they waited"
    for fleet in {job.fleet for job in gone}:
        # One bucket: the whole time.
        over = Range(0, seeded.end_ms + 60 * MINUTE, 2 * 10**9, chosen(RUNNERS, fleet=fleet))
        [row] = answer(client, RUNNERS, title, over)
        of = [job for job in ended if job.fleet == fleet]
        shed = [job for job in gone if job.fleet == fleet]
        assert row["shed"] == pytest.approx(len(shed) / len(of))


def test_levels_of_pools_are_those_of_the_truth(client: Client, seeded: Seeded) -> None:
    over = Range(seeded.start_ms, seeded.end_ms, 60, chosen(RUNNERS))
    levels = seeded.telemetry.levels
    of_pools: Counter[str] = Counter()
    for (name, _, *state), value in levels.items():
        if name == "pool_runners":
            of_pools[state[0]] += round(value)
    wanted = {
        "Desired runners": of_pools["desired"],
        "Idle runners": of_pools["idle"],
        "Withheld jobs": sum(value for key, value in levels.items() if key[0] == "queue_withheld"),
        "Accounts enabled": ACCOUNTS,
    }
    for title, value in wanted.items():
        assert answer(client, RUNNERS, title, over) == [{"now": value}], title
    # Nobody said anything for a long time: not 0, but nothing.
    later = Range(seeded.end_ms, seeded.end_ms + 60 * MINUTE, 60, chosen(RUNNERS))
    for title in wanted:
        assert answer(client, RUNNERS, title, later) == [], title
    assert answer(client, RUNNERS, "Mac minis reporting", later) == []
    [hosts] = answer(client, RUNNERS, "Mac minis reporting", over)
    assert hosts["hosts"] > 0


def test_minutes_and_cost_are_those_of_the_truth(
    client: Client, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        (job.fleet, ms)
        for job in counted(seeded)
        if job.status == "completed" and isinstance(ms := job.timings["run"], int)
    ]
    rows = answer(client, JOBS, "Minutes and cost per repository", whole(seeded, JOBS))
    minutes = sum(ms for _, ms in runs) / MINUTE
    assert sum(row["minutes"] for row in rows) == pytest.approx(minutes)
    assert sum(row["cost"] for row in rows) == pytest.approx(minutes * config.PRICE)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    monkeypatch.setattr(config, "PRICES", {"macos": 0.5, "o'brien\\": 1})
    text = f"SELECT {sql.price()} FROM (SELECT arrayJoin(['macos', 'o\\'brien\\\\', 'x']) AS fleet)"
    assert client.execute(text) == [(0.5,), (1,), (config.PRICE,)]


def test_drill_downs_count_every_job_once(client: Client, seeded: Seeded) -> None:
    over = [job for job in counted(seeded) if job.status == "completed"]
    for title in ("By repository", "By workflow"):
        rows = answer(client, JOBS, title, whole(seeded, JOBS))
        assert sum(row["jobs"] for row in rows) == len(over), title
        for row in rows:  # what is not known is not 0
            assert (row["run p50"] is None) == (row["run p95"] is None) == (row["minutes"] is None)
    assert any(row["minutes"] is None for row in rows)
    repo = rows[0]["repo"]
    some = answer(client, JOBS, "By workflow", whole(seeded, JOBS, repo=repo))
    assert some == [row for row in rows if row["repo"] == repo]
    [runner] = answer(client, JOBS, "By runner", whole(seeded, JOBS, runner=over[0].runner))
    assert runner["jobs"] == sum(job.runner == over[0].runner for job in over)


def test_the_story_of_one_job_is_told_whenever_it_was(client: Client, seeded: Seeded) -> None:
    job = next(job for job in counted(seeded) if job.status == "completed" and job.claimed_at)
    long_after = Range(
        seeded.end_ms + 300 * MINUTE, seeded.end_ms + 360 * MINUTE, 60, chosen(JOBS, key=job.key)
    )
    story = answer(client, JOBS, "One job: what happened", long_after)
    assert {row["key"] for row in story} == {job.key}
    assert [row["time"] for row in story] == sorted(row["time"] for row in story)
    assert {"queued", "claimed", "running", "completed"} <= {row["status"] for row in story}
    [told] = answer(client, JOBS, "One job", long_after)
    assert (told["key"], told["conclusion"]) == (job.key, job.conclusion)
    steps = answer(client, JOBS, "One job: steps", long_after)
    assert [row["number"] for row in steps] == [step[0] for step in job.steps]


# --- by hand ------------------------------------------------------------------------------------

T0 = int(time.time()) // 3_600 * 3_600 - 3 * 3_600
HAND = Range(T0 * 1000, (T0 + 3_600) * 1000, 60, chosen(RUNNERS))
WIDE = Range(T0 * 1000, (T0 + 3_600) * 1000, 1_800, chosen(RUNNERS))
WIDEST = Range(T0 * 1000, (T0 + 3_600) * 1000, 3_600, chosen(RUNNERS))


@pytest.fixture(scope="module")
def hand(server: EmbeddedClickHouse) -> Iterator[Client]:
    url = schema.with_database(server.url, "by_hand")
    schema.apply(url)
    with Client.from_url(url) as connection:
        _depths(connection)
        _pools(connection)
        _jobs(connection)
        yield connection


def at(seconds: int) -> str:
    return f"fromUnixTimestamp64Milli({(T0 + seconds) * 1000}, 'UTC')"


def _depths(client: Client) -> None:
    """Two partitions of fleet a with 3 and 4 jobs, every 20 s; no word on claims."""
    client.execute(
        f"""INSERT INTO gauges (fleet, status, occurred_at, partition, count, oldest_ms)
        SELECT 'a', 'queued', {at(0)} + toIntervalSecond(number * 20), part, 3 + part, 90000
        FROM numbers(180) ARRAY JOIN [0, 1] AS part"""
    )


def _pools(client: Client) -> None:
    """Of fleet a pool x with all told, pool y that tells no occupied; fleet b has no queue."""
    for fleet, pool, idle, occupied in (
        ("a", "x", 2, "6"),
        ("a", "y", 3, "NULL"),
        ("b", "", 9, "1"),
    ):
        client.execute(
            f"""INSERT INTO pool_events
            (fleet, kind, occurred_at, id, received_at, pool, desired, observed, max, idle,
             occupied)
            SELECT '{fleet}', 'pool.sample', {at(0)} + toIntervalSecond(number * 30) AS t,
              concat('{pool}', toString(number)), t, '{pool}', 10, 8,
              if('{pool}' = 'x', 20, NULL), {idle}, {occupied}
            FROM numbers(120)"""
        )  # fmt: skip
    client.execute(
        f"""INSERT INTO pool_events
        (fleet, kind, occurred_at, id, received_at, outcome, duration_ms)
        SELECT 'a', 'machine.boot', {at(60)}, id, {at(60)} + toIntervalSecond(again), outcome, ms
        FROM (SELECT arrayJoin([('1', 'ready', 4000), ('2', 'ready', 40000), ('3', 'failed', 9000)])
          AS t, t.1 AS id, t.2 AS outcome, t.3 AS ms) ARRAY JOIN [0, 5] AS again"""
    )


def _jobs(client: Client) -> None:
    """Twelve jobs of fleet a in the first half hour, which run for 4 minutes, as the windows know;
    and a flaky one."""
    client.execute(
        f"""INSERT INTO job_timings (key, rev, fleet, repo, workflow, name, sha, conclusion,
          queued_at, completed_at, run_ms, run_attempt, received_at)
        SELECT *, {at(0)} FROM (
        SELECT concat('k', toString(number)), 1, 'a', 'o/r', 'w', 'n', toString(number), 'success',
          {at(0)} + toIntervalSecond(number * 60) AS q, q + 240, 240000, 1 FROM numbers(10)
        UNION ALL SELECT 'f1', 1, 'a', 'o/r', 'w', 'n', 'same', 'failure', {at(600)}, {at(840)},
          240000, 1
        UNION ALL SELECT 'f2', 1, 'a', 'o/r', 'w', 'n', 'same', 'success', {at(900)}, {at(1140)},
          240000, 2
        UNION ALL SELECT 'g1', 1, 'z', 'o/r', 'w', 'm', 'other', 'success', {at(0)}, {at(60)},
          1, 1
        UNION ALL SELECT 'g2', 1, 'z', 'o/r', 'w', 'm', 'other', 'failure', {at(60)}, {at(90)},
          1, 1)"""
    )
    client.execute(
        f"""INSERT INTO windows (fleet, size_s, start, partition, family, rev, count, sum_ms)
        SELECT 'a', 300, {at(0)}, arrayJoin([0, 1]), 'run', 1, 6, 6 * 240000"""
    )


def test_depth_is_never_added_up_over_minutes(hand: Client) -> None:
    for over in (HAND, WIDE, WIDEST):
        rows = answer(hand, RUNNERS, "Queued jobs", over)
        assert {row["jobs"] for row in rows} == {7}
        assert {row["age"] for row in answer(hand, RUNNERS, "Oldest queued job", over)} == {90}
        rows = answer(hand, RUNNERS, "Queue length by fleet", over)
        assert {(row["fleet"], row["jobs"]) for row in rows} == {("a", 7)}
        # The fleet is known, and nobody has a claim: 0, and not the last that was told.
        assert {row["jobs"] for row in answer(hand, RUNNERS, "Pre-mint (claimed)", over)} == {0}
    assert len(answer(hand, RUNNERS, "Queued jobs", HAND)) == 60


def test_pools_are_added_up_and_what_is_not_told_is_not_zero(hand: Client) -> None:
    for over in (HAND, WIDE, WIDEST):
        rows = answer(hand, RUNNERS, "RunnerPool replicas (desired vs observed)", over)
        a = {(row["desired"], row["observed"]) for row in rows if row["fleet"] == "a"}
        assert a == {(20, 16)}
        rows = answer(hand, RUNNERS, "Pool utilisation (running / observed)", over)
        assert {(row["fleet"], row["utilisation"]) for row in rows} == {("a", 6 / 8), ("b", 1 / 8)}
        rows = answer(hand, RUNNERS, "Ready vs booting runners", over)
        assert {(row["ready"], row["booting"]) for row in rows} == {(None, None)}
        # 7 wait and 5 are idle; of b nobody tells how many wait.
        rows = answer(hand, RUNNERS, "Starved warm capacity", over)
        assert {(row["fleet"], row["starved"]) for row in rows} == {("a", 5)}
    assert answer(hand, RUNNERS, "Starved jobs", HAND) == [{"now": 5}]
    [row] = answer(hand, RUNNERS, "Fleets", HAND)
    told = ("fleet", "queued", "oldest", "running", "observed", "idle", "booting")
    assert [row[name] for name in told] == ["a", 7, 90, 0, 16, 5, None]


def test_the_offered_load_is_minutes_asked_for_over_minutes_to_be_had(hand: Client) -> None:
    rows = answer(hand, RUNNERS, "Offered load against capacity by fleet (rho)", WIDE)
    # 12 jobs of 4 minutes in the first half hour; at most 20 runners in pool x, and 8 there are
    # in pool y, which has no most. Of b no job is known to run for any time.
    assert {(row["fleet"], ms_of(row["time"]) // 1000 - T0): row["rho"] for row in rows} == {
        ("a", 0): pytest.approx(12 * 4 / (28 * 30)),
        ("a", 1_800): 0,
    }
    rows = answer(hand, RUNNERS, "Runner-minutes asked for and to be had", WIDE)
    assert [(row["asked for"], row["to be had"]) for row in rows] == [(48, 840), (0, 840)]


def test_a_boot_that_is_told_twice_counts_once(hand: Client) -> None:
    rows = answer(hand, RUNNERS, "Boots / sec by pool", HAND)
    assert {row["outcome"]: round(row["boots"] * 300, 6) for row in rows} == {
        "ready": 2,
        "failed": 1,
    }
    rows = answer(hand, RUNNERS, "Boot time distribution (heatmap)", HAND)
    assert [(row["le"], row["boots"]) for row in rows] == [("5", 1), ("45", 1)]
    [row] = answer(hand, RUNNERS, "Boot time (p50 / p95 / p99)", HAND)
    assert (row["p50"], row["p99"]) == (40, 40)


def test_flaky_is_what_failed_and_then_succeeded(hand: Client) -> None:
    over = Range(HAND.start_ms, HAND.end_ms, 60, chosen(JOBS))
    [row] = answer(hand, JOBS, "Flaky jobs", over)
    assert (row["job"], row["commits"], row["flaked"], row["key"]) == ("n", 11, 1, "f2")
    assert row["minutes lost"] == 4
    again = answer(
        hand, JOBS, "Re-run rate", Range(HAND.start_ms, HAND.end_ms, 3_600, chosen(JOBS))
    )
    assert [each["run again"] for each in again] == [pytest.approx(1 / 14)]


def test_a_bucket_is_a_multiple_of_its_windows() -> None:
    text = f"{sql.BUCKETS} SELECT size, every"
    for step, wanted in ((1, 300), (300, 300), (301, 600), (1_800, 1_800), (4_320, 7_200)):
        made = expand(text, Range(0, 1, step))
        assert f"if({step} > 1800" in made
        assert every(step) == wanted
