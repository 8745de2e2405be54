"""Histories of telemetry made up by hypothesis: ten minutes of one or two fleets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.support.telemetry import MINUTE, START, event
from topics.events.dispatch import ClaimOutcome, DispatchOutcome, MintOutcome
from topics.events.pools import BootOutcome
from topics.events.runners import (
    EndCause,
    Method,
    PollResult,
    ReportResult,
    Sweep,
    TaskResult,
    Trigger,
)

FLEETS = st.sampled_from(["f0", "f1"])
#: When something happened, in ms.
TIMES = st.integers(0, 9 * MINUTE)
MS = st.integers(0, 400_000)
SMALL = st.integers(0, 6)


def maybe(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """That, or nothing."""
    return st.none() | one


def told(kind: str, **said: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An event of a kind."""
    return st.builds(
        lambda at, fleet, n, said: event(kind, at, f"{kind}|{at}|{fleet}|{n}", fleet=fleet, **said),
        TIMES,
        FLEETS,
        st.integers(0, 10_000),
        st.fixed_dictionaries(said),
    )


def once(each: Any) -> Any:
    """The event at the one time at which what it states happened, by whatever id it is told."""
    at = START + int(each.task_id) * 2 * MINUTE
    return each.model_copy(update={"occurred_at": at, "received_at": at})


DISPATCH = (
    told("dispatch.request", outcome=st.sampled_from(DispatchOutcome), duration_ms=maybe(MS)),
    told("claim.attempt", outcome=st.sampled_from(ClaimOutcome)),
    told("runner.mint", outcome=st.sampled_from(MintOutcome), duration_ms=maybe(MS)),
)
_COUNTS = ("desired", "observed", "max", "ready", "idle", "booting", "occupied")
POOLS = (
    told("pool.sample", pool=st.sampled_from(["", "p", "q"]), **{n: maybe(SMALL) for n in _COUNTS}),
    told("queue.sample", queued=maybe(SMALL), withheld=maybe(SMALL)),
    told("accounts.sample", enabled=SMALL),
    told("machine.boot", outcome=st.sampled_from(BootOutcome), duration_ms=maybe(MS)),
)

_RUNNER: Mapping[str, st.SearchStrategy[Any]] = {"runner": st.sampled_from(["r", "s"])}
_TASK = {**_RUNNER, "task_id": st.sampled_from(["1", "2", "3"])}
_SINCE = maybe(TIMES.map(lambda at: START + at))
_REPORT = {
    **_TASK,
    "result": st.sampled_from(ReportResult),
    "trigger": st.sampled_from(Trigger),
    "duration_ms": maybe(MS),
}
RUNNERS = (
    told("runner.info", **_RUNNER, capacity=maybe(SMALL), runner_version=st.just("1")),
    told("runner.status", **_RUNNER, capacity=maybe(SMALL), running=maybe(SMALL),
         uptime_ms=maybe(MS), backoff_ms=maybe(MS), buffer_rows=maybe(SMALL), buffer_since=_SINCE,
         ready=maybe(st.booleans())),
    told("runner.poll", **_RUNNER, result=st.sampled_from(PollResult), duration_ms=maybe(MS),
         consecutive_empty=SMALL, consecutive_errors=SMALL),
    told("runner.stopped", **_RUNNER, reason=st.sampled_from(["", "unregistered"]),
         forced=st.booleans()),
    told("task.assigned", **_TASK, job_id=st.sampled_from(["", "j"])),
    told("task.started", **_TASK, job_id=st.sampled_from(["", "k"])),
    told("task.finalizing", **_TASK, result=st.sampled_from(TaskResult)),
    told("task.finished", **_TASK, result=st.just(TaskResult.SUCCESS),
         end_cause=st.just(EndCause.OWN), duration_ms=st.just(7), flush_ms=st.just(3)).map(once),
    told("step.finished", **_TASK, number=SMALL, result=st.just(TaskResult.FAILURE)).map(once),
    told("report.log", **_REPORT, rows=SMALL, rows_left=SMALL, oldest_since=_SINCE),
    told("report.state", **_REPORT),
    told("task.output_dropped", **_TASK, reason=st.just("key_too_long")),
    told("task.flush_failed", **_TASK, method=st.sampled_from(Method), rows_lost=SMALL),
    told("task.reaped", **_TASK, sweep=st.sampled_from(Sweep)),
    told("client.error", **_RUNNER, method=st.sampled_from(Method)),
    told("runner.scrape", **_RUNNER, polls=st.dictionaries(st.sampled_from(PollResult), SMALL),
         jobs=st.dictionaries(st.sampled_from(TaskResult), SMALL),
         histograms=st.dictionaries(st.sampled_from(["poll", "job", "log", "state"]),
                                    st.just(((0.5, 1.0), (1, 0, 2), 9.5)))),
)  # fmt: skip
_KINDS: Mapping[str, tuple[st.SearchStrategy[Any], ...]] = {
    "dispatch": DISPATCH,
    "pools": POOLS,
    "runners": RUNNERS,
}

#: A history of each family, without two events of one id.
HISTORIES: Mapping[str, st.SearchStrategy[list[Any]]] = {
    family: st.lists(st.one_of(*each), max_size=25, unique_by=lambda e: e.id)
    for family, each in _KINDS.items()
}
