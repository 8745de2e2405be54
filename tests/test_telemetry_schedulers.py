"""Schedulers: what the fold makes of a simulated world equals what happened there."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.simulate.telemetry import Told
from pipeline.simulate.telemetry_schedulers import play
from pipeline.telemetry import loops, schedulers
from pipeline.telemetry.scheduler_metrics import PLAN_BUCKETS
from pipeline.telemetry.subject import FRESH_MS, HOUR_MS, KEPT_MS
from tests.support.chaos import chaos
from tests.support.telemetry import MINUTE, START, Seen, durable, event, muddled, tick

END = 14 * MINUTE
RUN: dict[str, Any] = {"run_id": "r", "schedule_id": "s", "mode": "analysis_only"}


def of_run(kind: str, at: int, id_: str = "", **said: Any) -> Any:
    return event(kind, at, id_, **{**RUN, **said})


def world(seed: int, fleets: tuple[str, ...] = ("f0", "f1")) -> Told:
    return play(fleets, START, START + END, seed)


@settings(max_examples=settings.default.max_examples // 25)
@given(seed=st.integers(0, 2**32))
def test_the_truth_comes_out_whatever_happens_on_the_way(seed: int) -> None:
    """Duplicates, disorder, and death between any two writes."""
    told = world(seed)
    log = [*muddled(told.events, seed), tick(END)]
    seen = Seen([], 1)
    seen.durable = chaos(durable(), log, seed, death=0.005)
    seen.ledger = seen.again()
    assert seen.levels == pytest.approx(told.levels)
    assert +seen.sums == sum(told.counts.values(), Counter())


@settings(max_examples=settings.default.max_examples // 50)
@given(seed=st.integers(0, 2**32))
def test_what_is_lost_of_what_was_said_again_leaves_levels_as_they_are(seed: int) -> None:
    """All of a run that is over but its end, leases, progress, and samples but the last."""
    told, rng = world(seed), random.Random(seed)
    over = {(e.fleet, e.subject) for e in told.events if e.kind == "run.finished"}
    last = max(each.occurred_at for each in told.events if each.kind == "queue.depth")

    def needed(each: Any) -> bool:
        if each.kind == "queue.depth":
            return bool(each.occurred_at == last)
        if each.kind in ("run.finished", "schedule.missed", "schedule.caught_up"):
            return True
        return each.kind != "segment.leased" and (each.fleet, each.subject) not in over

    kept = [each for each in told.events if needed(each) or rng.random() < 0.5]
    seen = Seen([*muddled(kept, seed), tick(END)])
    assert seen.levels == pytest.approx(told.levels)


def test_the_metrics_count_what_happened_and_each_failure_rises() -> None:
    counts: Counter[str] = Counter()
    stuck = 0.0
    labels = {
        "scheduler_planner_runs": ("fleet", "mode", "status"),
        "scheduler_segments": ("fleet", "mode", "status"),
        "scheduler_images": ("mode", "delta"),
        "scheduler_runs_finished": ("fleet", "result"),
        "scheduler_dead_lettered": ("fleet", "queue"),
        "scheduler_planner_latency_seconds": ("mode", "status"),
        "scheduler_run_duration_seconds": ("mode", "result"),
        "scheduler_planner_wait_seconds": (),
        "scheduler_planning_seconds": (),
        "scheduler_segment_retries": ("fleet",),
        "scheduler_schedules_missed": ("fleet",),
        "scheduler_schedules_caught_up": ("fleet",),
    }
    for seed in range(6):
        told = world(seed, ("f0",))
        seen = Seen([*muddled(told.events, seed), tick(END)])
        for what, n in told.counts["f0"].items():
            name, *values = what.split("|")
            if "sum" in values:
                continue
            names: tuple[str, ...] = labels.get(name, ("fleet", "mode"))
            values = ["f0", *values] if names[:1] == ("fleet",) else values
            shown = f"{name}_count" if name.endswith("_seconds") else f"{name}_total"
            assert seen.counted(shown, **dict(zip(names, values, strict=True))) == n, what
        counts += told.counts["f0"]
        stuck += told.levels["scheduler_runs_not_draining", "f0"]
    ends = {what.rpartition("|")[2] for what in counts}
    assert {"persist_failed", "run_missing", "failed", "cancelled", "error", "no_work"} <= ends
    assert counts["scheduler_dead_lettered|runner"]
    assert counts["scheduler_schedules_missed"]
    assert stuck


# --- what went wrong elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("result", ["completed", "cancelled", "error", "no_work", "unknown"])
def test_no_end_leaves_a_run_active_and_every_end_but_no_work_has_a_duration(result: str) -> None:
    log = [of_run("run.created", 0), of_run("run.planned", 1, status="enqueued", images=9)]
    began = Seen([*log, tick(MINUTE)])
    assert began.levels["scheduler_runs_active", "f0", "analysis_only"] == 1
    assert began.levels["scheduler_run_oldest_seconds", "f0", "active"] == 60
    over = Seen([*log, of_run("run.finished", 2, result=result, duration_ms=7_000), tick(MINUTE)])
    assert over.levels["scheduler_runs_active", "f0", "analysis_only"] == 0
    assert over.levels["scheduler_run_oldest_seconds", "f0", "active"] == 0
    assert over.counted("scheduler_runs_finished_total", fleet="f0", result=result) == 1
    sampled = over.counted(
        "scheduler_run_duration_seconds_count", mode="analysis_only", result=result
    )
    assert sampled == (result != "no_work")


def test_a_run_without_work_or_whose_planning_failed_is_not_active() -> None:
    for status in ("no_work", "failed"):
        log = [of_run("run.created", 0), of_run("run.planned", 1, status=status, latency_ms=40)]
        seen = Seen([*log, tick(MINUTE)])
        assert seen.levels["scheduler_runs_active", "f0", "analysis_only"] == 0
        assert seen.levels["scheduler_runs_planning", "f0"] == 0
        # Unless it was tried again.
        again = Seen([*log, of_run("segment.leased", 2, segment_id="g"), tick(MINUTE)])
        assert again.levels["scheduler_runs_active", "f0", "analysis_only"] == 1


def test_a_late_word_does_not_open_a_run_that_is_over() -> None:
    log = [of_run("run.planned", 0, status="enqueued"), of_run("run.finished", 1, result="error")]
    late = of_run("segment.finished", 0, segment_id="g", status="completed", images=3)
    for hours in (0, 5, 7):
        seen = Seen([*log, tick(hours * HOUR_MS + MINUTE), late])
        assert sum(v for w, v in seen.levels.items() if w[0] == "scheduler_runs_active") == 0
        assert (
            not seen.ledger.subjects[("schedulers", "f0", "run:r")].all("segments")
            if (hours < 6)
            else not seen.ledger.subjects
        )
    assert KEPT_MS < 7 * HOUR_MS


def test_a_run_that_nobody_mentions_any_more_is_given_up_and_counted() -> None:
    begun = of_run("run.planned", 0, status="enqueued", images=4)
    due = event("schedule.missed", 0, schedule_id="s", due_at=START)
    day = schedulers.SILENT_MS
    seen = Seen([begun, due, tick(day)])
    assert seen.levels["scheduler_runs_active", "f0", "analysis_only"] == 1
    assert seen.levels["scheduler_schedules_behind", "f0"] == 1
    assert seen.counted("scheduler_given_up_total", fleet="f0", what="run") == 0
    seen = Seen([begun, due, tick(day), tick(day + MINUTE), tick(day + 2 * MINUTE)])
    assert seen.levels == {}
    assert seen.counted("scheduler_given_up_total", fleet="f0", what="run") == 1
    assert seen.counted("scheduler_given_up_total", fleet="f0", what="schedule") == 1


def test_a_segment_that_is_given_out_twice_counts_once() -> None:
    done = {"segment_id": "g", "status": "completed", "images": 5, "new": 2, "kev": 1}
    log = [
        of_run("run.planned", 0, status="enqueued", images=9),
        of_run("segment.finished", 1, segment_id="g", status="persist_failed", new=2),
        of_run("segment.finished", 2, **done, attempt=2),
        of_run("segment.finished", 3, **done, attempt=3),
        tick(MINUTE),
    ]
    seen = Seen(log)
    by = {"fleet": "f0", "mode": "analysis_only"}
    assert seen.counted("scheduler_findings_total", **by) == 2
    assert seen.counted("scheduler_findings_kev_total", **by) == 1
    assert seen.counted("scheduler_segments_total", **by, status="completed") == 1
    assert seen.counted("scheduler_segments_total", **by, status="persist_failed") == 1
    assert seen.levels["scheduler_backlog", "f0"] == 4


def test_waiting_for_the_planner_is_told_apart_from_planning() -> None:
    seen = Seen([of_run("run.planned", 0, status="enqueued", wait_ms=9_000, latency_ms=9_300)])
    assert seen.sums["scheduler_planner_latency_seconds|analysis_only|enqueued|sum"] == 9_300
    assert seen.sums["scheduler_planner_wait_seconds|sum"] == 9_000
    assert seen.sums["scheduler_planning_seconds|sum"] == 300
    assert sum(bound < 5 for bound in PLAN_BUCKETS) > 3, "a second is told from a tenth of one"


def test_labels_are_in_one_case_and_of_closed_lists() -> None:
    for metric in schedulers.FAMILY.metrics:
        for label in metric.labels[metric.by_fleet :]:
            assert isinstance(label.values, tuple), "no schedule is a label"
            assert all(value == value.lower() for value in label.values)


# --- levels -----------------------------------------------------------------------------------


def test_backlogs_add_up_and_the_largest_is_told() -> None:
    log = [
        of_run("run.planned", 0, run_id="a", status="enqueued", images=10),
        of_run("run.planned", 0, run_id="b", status="enqueued", images=30),
        of_run("segment.finished", 1, run_id="a", segment_id="g", status="completed", images=4),
        of_run("run.progress", 2, run_id="b", processed=5, total=31),
    ]
    levels = Seen([*log, tick(MINUTE)]).levels
    assert levels["scheduler_backlog", "f0"] == 6 + 26
    assert levels["scheduler_backlog_largest", "f0", "analysis_only"] == 26
    # Of a run of which nobody said how much it has to do, nothing is known.
    leased = Seen([of_run("segment.leased", 0, segment_id="g"), tick(MINUTE)]).levels
    assert ("scheduler_backlog", "f0") not in leased
    assert leased["scheduler_runs_active", "f0", "analysis_only"] == 1


def test_a_backlog_that_does_not_drain_is_seen() -> None:
    def stuck(*more: Any, at: int) -> float | None:
        begun = of_run("run.planned", 0, status="enqueued", images=10)
        return Seen([begun, *more, tick(at)]).levels.get(("scheduler_runs_not_draining", "f0"))

    done = of_run("segment.finished", 8 * MINUTE, segment_id="g", status="completed", images=2)
    failed = of_run("segment.finished", 8 * MINUTE, segment_id="g", status="persist_failed")
    still = of_run("run.progress", 9 * MINUTE, processed=0, total=10)
    assert stuck(at=10 * MINUTE) == 0
    assert stuck(at=11 * MINUTE) == 1
    assert stuck(done, at=18 * MINUTE) == 0
    assert stuck(done, at=19 * MINUTE) == 1
    assert stuck(failed, still, at=11 * MINUTE) == 1
    # To say the same again is no progress; more is.
    two = of_run("run.progress", 8 * MINUTE, processed=2, total=10)
    same = of_run("run.progress", 16 * MINUTE, processed=2, total=10)
    assert stuck(two, at=17 * MINUTE) == 0
    assert stuck(two, same, at=19 * MINUTE) == 1
    assert stuck(of_run("run.finished", MINUTE, result="error"), at=20 * MINUTE) == 0


def test_a_queue_is_silent_when_its_scheduler_is() -> None:
    log = [
        event("queue.depth", 0, queue="runner", depth=3, oldest_at=START - 5_000, dead_letters=2),
        event("queue.depth", 0, queue="planner", depth=0),
    ]
    levels = Seen([*log, tick(MINUTE)]).levels
    assert levels["scheduler_queue_depth", "f0", "runner"] == 3
    assert levels["scheduler_queue_oldest_seconds", "f0", "runner"] == 65
    assert levels["scheduler_queue_oldest_seconds", "f0", "planner"] == 0
    assert levels["scheduler_queue_dead_letters", "f0"] == 2
    assert Seen([*log, tick(FRESH_MS + 1)]).levels == {}


def test_a_schedule_is_behind_until_it_is_caught_up_with() -> None:
    def said(kind: str, due: int, at: int) -> Any:
        return event(kind, at, schedule_id="s", due_at=START + due)

    missed = [said("schedule.missed", 0, 1), said("schedule.missed", 5, 6)]
    assert Seen([*missed, tick(MINUTE)]).levels["scheduler_schedules_behind", "f0"] == 1
    one = Seen([*missed, said("schedule.caught_up", 0, 7), tick(MINUTE)])
    assert one.levels["scheduler_schedules_behind", "f0"] == 1
    both = Seen([said("schedule.caught_up", 5, 8), *missed, tick(MINUTE)])
    assert both.levels["scheduler_schedules_behind", "f0"] == 0


def test_what_is_remembered_of_a_run_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers, "MOST_SEGMENTS", 5)
    done = [
        of_run("segment.finished", n, segment_id=f"g{n}", status="completed", images=1)
        for n in range(9)
    ]
    for seed in range(3):
        seen = Seen([*muddled(done, seed), tick(MINUTE)])
        assert set(seen.ledger.subjects[("schedulers", "f0", "run:r")].all("segments")) == {
            f"g{n}" for n in range(9)
        } - set(loops.too_many([f"g{n}" for n in range(9)], 5))
        assert seen.counted("scheduler_given_up_total", fleet="f0", what="segment") == 4


def test_what_contradicts_itself_is_the_same_in_any_order() -> None:
    said = [
        of_run("run.planned", 3, "a", status="no_work"),
        of_run("run.planned", 3, "b", status="enqueued", images=7, mode="content_refresh"),
        of_run("run.progress", 4, "c", processed=5, total=9, mode="other"),
        of_run("run.progress", 5, "d", processed=2, total=8),
        of_run("segment.finished", 4, "e", segment_id="g", status="completed", images=1),
        of_run("segment.finished", 4, "f", segment_id="g", status="completed", images=3),
    ]
    want = Seen([*said, tick(MINUTE)])
    for seed in range(40):
        got = Seen([*muddled(said, seed), tick(MINUTE)])
        assert got.levels == want.levels
        assert [view["backlog"] for view in got.views] == [view["backlog"] for view in want.views]
