"""Runner processes and their server: they poll, run tasks, report, fall silent, die and come back.

Servers have outages, in which every call fails. A runner may crash, and says nothing of that: it
comes back after a while, without its tasks, or it does not, and then its server takes them. One
may be told to stop, and one may find that its server does not know it any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from pipeline.simulate.telemetry import STEP_MS, Told

#: A server takes a task of which nothing was heard for so long.
REAPED_MS: Final = 240_000
#: What people wait for: a runner is gone without a word for so long, silent, its task silent. ms.
_GONE_MS, _SILENT_MS, _TASK_SILENT_MS = 300_000, 60_000, 120_000
#: A runner asks this seldom at most, and first. ms.
_FIRST_MS, _MOST_MS = 2_000, 60_000

# What happens in a step, with which chance.
_CRASH, _STOP, _UNREGISTER, _OUTAGE = 0.004, 0.003, 0.001, 0.02
_TASK, _EMPTY, _TIMEOUT = 0.3, 0.65, 0.05


class _Task:
    """A task of a runner, while it has one."""

    def __init__(self, name: str, at: int) -> None:
        self.name = name
        self.assigned = self.word = at
        self.started = self.finalizing = self.reported = 0
        #: Log rows that wait, since when; and what the latest report said of that.
        self.rows = self.since = 0
        self.left: tuple[int, int] = (0, 0)
        self.steps = 0

    @property
    def state(self) -> str:
        if self.finalizing:
            return "finalizing"
        return "running" if self.started else "assigned"


class _Polls:
    """The latest poll of a runner, and its streaks."""

    def __init__(self) -> None:
        self.result = ""
        self.at = self.empty = self.errors = 0


class _Runner:
    """A runner, whether its process runs or not."""

    def __init__(self, world: _Fleet, name: str, says_buffer: bool) -> None:
        self.world, self.name, self.says_buffer = world, name, says_buffer
        self.capacity = world.rng.randint(1, 3)
        self.tasks: dict[str, _Task] = {}
        self.is_up = self.has_stopped = self.is_unregistered = False
        self.down_until = 0
        self.clock = self.made = self.heard = self.booted = 0
        self.polls = _Polls()
        self.status: dict[str, Any] = {}
        self.reports_logs = self.reports_states = False

    # -- the process ---------------------------------------------------------------------------

    def step(self, at: int) -> None:
        self.clock = at
        rng = self.world.rng
        if not self.is_up:
            if at >= self.down_until and not self.is_unregistered:
                self._boot()
            return
        if rng.random() < _CRASH:
            self.is_up, self.down_until = False, at + STEP_MS * rng.choice((3, 20, 40, 10_000))
            return
        for task in list(self.tasks.values()):
            self._work(task)
        if len(self.tasks) < self.capacity:
            self._ask()
        if self.is_up and (at // STEP_MS) % 2:
            self._say_status()
        if self.is_up and rng.random() < _STOP:
            self._stop("shutdown", forced=bool(self.tasks))

    def _now(self) -> int:
        self.clock += self.world.rng.randint(1, 100)
        return self.clock

    def say(self, kind: str, **said: Any) -> int:
        at = self._now()
        self.world.told.tell(kind, self.world.name, at, runner=self.name, **said)
        self.heard = at
        return at

    def _boot(self) -> None:
        self.is_up, self.has_stopped = True, False
        self.tasks.clear()
        self.polls = _Polls()
        self.booted = self._now()
        self.say("runner.info", name=self.name, runner_version="0.3.1", capacity=self.capacity)
        self._say_status()

    def _say_status(self) -> None:
        waiting = [task.since for task in self.tasks.values() if task.rows]
        at = self._now()
        self.status = {
            "uptime_ms": at - self.booted,
            "capacity": self.capacity,
            "running": sum(task.state == "running" for task in self.tasks.values()),
            "backoff_ms": self._backoff(),
            "ready": not self.world.is_out,
        }
        if self.says_buffer:
            self.status["buffer_rows"] = sum(task.rows for task in self.tasks.values())
            self.status["buffer_since"] = min(waiting, default=None)
        self.world.told.tell("runner.status", self.world.name, at, runner=self.name, **self.status)
        self.heard = self.status["at"] = at

    def _backoff(self) -> int:
        streak = max(self.polls.empty, self.polls.errors)
        doubled: int = _FIRST_MS * 2 ** min(max(0, streak - 1), 5)
        return min(doubled, _MOST_MS)

    def _stop(self, reason: str, forced: bool) -> None:
        self.say("runner.stopped", reason=reason, forced=forced)
        self.count("runner_stops", "forced" if forced else "orderly")
        self.tasks.clear()
        self.is_up, self.has_stopped = False, True
        self.is_unregistered = reason == "unregistered"
        self.down_until = self.clock + STEP_MS * self.world.rng.choice((4, 10_000))

    def count(self, *what: str, value: int = 1) -> None:
        self.world.told.count(self.world.name, *what, value=value)

    def took(self, metric: str, *labels: str, ms: int) -> None:
        self.count(metric, *labels)
        self.count(metric, *labels, "sum", value=ms)

    # -- polls ---------------------------------------------------------------------------------

    def _ask(self) -> None:
        rng, duration = self.world.rng, self.world.rng.randint(4, 3_000)
        polls = self.polls
        if rng.random() < _UNREGISTER:
            self._polled("unauthenticated", duration)
            self._stop("unregistered", forced=bool(self.tasks))
            return
        result = "error"
        if not self.world.is_out:
            result = rng.choices(("task", "empty", "timeout"), (_TASK, _EMPTY, _TIMEOUT))[0]
        # Its own timeout changes no streak: it is a sign of nothing.
        if result == "task":
            polls.empty = polls.errors = 0
        elif result == "empty":
            polls.empty, polls.errors = polls.empty + 1, 0
        elif result == "error":
            polls.errors += 1
        self._polled(result, None if result == "timeout" else duration)
        if result == "error":
            self._failed("fetch_task")
        if result == "task":
            self.made += 1
            name = f"{self.name}-{self.made}"
            at = self._now()
            self.world.told.tell(
                "task.assigned", self.world.name, at, runner=self.name, task_id=name
            )
            self.tasks[name] = _Task(name, at)

    def _polled(self, result: str, duration: int | None) -> None:
        self.polls.result = result
        self.polls.at = self.say(
            "runner.poll", result=result, duration_ms=duration,
            consecutive_empty=self.polls.empty, consecutive_errors=self.polls.errors,
        )  # fmt: skip
        self.count("runner_polls", result)
        if duration is not None:
            self.took("runner_poll_seconds", ms=duration)

    def _failed(self, method: str) -> None:
        self.say("client.error", method=method, code="unavailable", retryable=True)
        self.count("runner_client_errors", method)

    # -- tasks ---------------------------------------------------------------------------------

    def _of(self, task: _Task, kind: str, **said: Any) -> int:
        task.word = self.say(kind, task_id=task.name, **said)
        return task.word

    def _work(self, task: _Task) -> None:
        rng = self.world.rng
        if not task.started:
            task.started = self._of(task, "task.started", job_id=f"job-{task.name}")
            return
        if task.finalizing:
            self._close(task)
            return
        if rng.random() < 0.7:
            task.rows += rng.randint(1, 150)
            task.since = task.since or self.clock
        if task.rows:
            trigger = "batch" if task.rows >= 100 else rng.choice(("interval", "latency"))
            self._report_log(task, trigger)
        if rng.random() < 0.6:
            self._report_state(task, rng.choice(("interval", "heartbeat", "transition")))
        if rng.random() < 0.3:
            task.steps += 1
            result = rng.choice(("success", "failure", "skipped"))
            self._of(task, "step.finished", number=task.steps, result=result, duration_ms=70)
            self.count("runner_steps", result)
        if rng.random() < 0.03:
            reason = rng.choice(("key_too_long", "value_too_long"))
            self._of(task, "task.output_dropped", reason=reason, length=300)
            self.count("runner_outputs_dropped", reason)
        if rng.random() < 0.12:
            task.finalizing = self._of(task, "task.finalizing", result="success")

    def _report_log(self, task: _Task, trigger: str) -> None:
        out, took = self.world.is_out, self.world.rng.randint(3, 2_500)
        sent = 0 if out else task.rows
        if not out and trigger == "interval":
            sent = self.world.rng.randint(1, task.rows)  # the server took a part of it
        result = "error" if out else "success"
        task.rows -= sent
        task.since = task.since if task.rows else 0
        task.left = (task.rows, task.since)
        self._of(
            task, "report.log", result=result, duration_ms=took, trigger=trigger, rows=sent,
            rows_left=task.rows, oldest_since=task.since or None,
        )  # fmt: skip
        self.reports_logs = True
        self.count("runner_log_reports", result)
        self.count("runner_report_triggers", "log", trigger)
        self.took("runner_log_report_seconds", ms=took)
        self.count("runner_log_rows", value=sent)
        if out:
            self._failed("update_log")

    def _report_state(self, task: _Task, trigger: str) -> None:
        out, took = self.world.is_out, self.world.rng.randint(3, 2_500)
        result = "error" if out else "success"
        at = self._of(task, "report.state", result=result, duration_ms=took, trigger=trigger)
        if not out:
            task.reported = at
        self.reports_states = True
        self.count("runner_state_reports", result)
        self.count("runner_report_triggers", "state", trigger)
        self.took("runner_state_report_seconds", ms=took)
        if out:
            self._failed("update_task")

    def _close(self, task: _Task) -> None:
        self._report_log(task, "close")
        self._report_state(task, "close")
        if self.world.is_out and self.clock - task.finalizing < 2 * STEP_MS:
            return
        if self.world.is_out:
            lost = task.rows
            self._of(task, "task.flush_failed", method="update_log", attempts=10, rows_lost=lost)
            self.count("runner_flushes_failed", "update_log")
            self.count("runner_log_rows_lost", value=lost)
        result = self.world.rng.choice(("success", "success", "failure", "cancelled"))
        took, flushed = self.clock - task.started, self.clock - task.finalizing
        self._of(
            task, "task.finished", result=result, end_cause="own", duration_ms=took,
            flush_ms=flushed, steps=task.steps,
        )  # fmt: skip
        self.count("runner_tasks", result)
        self.took("runner_task_seconds", ms=took)
        self.took("runner_task_result_seconds", result, ms=took)
        self.took("runner_task_flush_seconds", ms=flushed)
        del self.tasks[task.name]

    # -- the server ----------------------------------------------------------------------------

    def reap(self, at: int) -> None:
        """The server takes what it has not heard of for too long."""
        for task in list(self.tasks.values()):
            if not self.is_up and at - task.word > REAPED_MS:
                self.world.told.tell(
                    "task.reaped", self.world.name, at, runner=self.name, task_id=task.name,
                    sweep="zombie", silent_ms=at - task.word,
                )  # fmt: skip
                self.count("runner_tasks_reaped", "zombie")
                del self.tasks[task.name]

    # -- the truth -----------------------------------------------------------------------------

    def levels(self, add: Callable[..., None], end: int) -> None:
        """What can be known of it at the end."""
        tasks, recent = list(self.tasks.values()), end - self.heard <= _GONE_MS
        alive = recent and not self.has_stopped
        polls = self.polls
        if self.is_unregistered or (alive and polls.result):
            add("runners_unregistered", int(self.is_unregistered))
        if recent:
            add("runners_known", int(alive))
            add("runner_capacity", self.capacity if alive else 0)
        if recent or tasks:
            for state in ("assigned", "running", "finalizing"):
                add("runner_tasks_open", sum(t.state == state for t in tasks), state)
            add("runner_tasks_open", 0, "lost")
            add("runners_silent", int(bool(tasks) and end - self.heard > _SILENT_MS))
            oldest = max((end - task.assigned for task in tasks), default=0)
            add("runner_task_oldest_seconds", oldest / 1000, most=True)
            if self.reports_states:
                waits = [end - max(t.reported, t.started) for t in tasks if t.started]
                add("runner_tasks_silent", sum(wait > _TASK_SILENT_MS for wait in waits))
        if not alive:
            return
        add("runner_uptime_oldest_seconds", (end - self.booted) / 1000, most=True)
        add("runner_started_newest_timestamp_seconds", self.booted / 1000, most=True)
        if polls.result:
            stuck = polls.result == "error" and max(polls.empty, polls.errors) >= 6
            add("runner_polls_stuck", int(stuck and end - polls.at <= _GONE_MS))
        if end - self.status["at"] <= _GONE_MS:
            add("runners_not_ready", int(not self.status["ready"]))
            got = polls.result == "task" and polls.at > self.status["at"]
            waits_ms = 0 if got else self.status["backoff_ms"]
            add("runner_backoff_seconds", waits_ms / 1000, most=True)
        self._buffer_levels(add, end)

    def _buffer_levels(self, add: Callable[..., None], end: int) -> None:
        if self.says_buffer and end - self.status["at"] <= _GONE_MS:
            rows, since = self.status["buffer_rows"], self.status["buffer_since"]
        elif self.reports_logs:
            left = [task.left for task in self.tasks.values() if task.left[0]]
            rows, since = sum(each[0] for each in left), min((e[1] for e in left), default=None)
        else:
            return
        add("runner_buffer_rows", rows)
        add("runner_buffer_rows_max", rows, most=True)
        add("runner_buffer_oldest_seconds", (end - since) / 1000 if rows else 0, most=True)


class _Fleet:
    """Some runners and their server."""

    def __init__(self, told: Told, name: str, rng: random.Random, runners: int) -> None:
        self.told, self.name, self.rng = told, name, rng
        self.is_out = False
        self.out_until = 0
        self.runners = [_Runner(self, f"{name}-r{n}", n % 2 == 0) for n in range(runners)]

    def play(self, start: int, end: int) -> None:
        for at in range(start, end - STEP_MS + 1, STEP_MS):
            if at >= self.out_until and self.rng.random() < _OUTAGE:
                self.out_until = at + STEP_MS * self.rng.choice((2, 8, 40))
            self.is_out = at < self.out_until
            for runner in self.runners:
                runner.step(at)
                runner.reap(at + STEP_MS - 1)
        for runner in self.runners:
            runner.levels(self._add, self.told.at)
            for task in runner.tasks.values():
                self.told.store(1, "runner_tasks", self.name, runner.name, task.state)

    def _add(self, name: str, value: float, *labels: str, most: bool = False) -> None:
        where = (name, self.name, *labels)
        before = self.told.levels.get(where, 0.0)
        self.told.levels[where] = max(before, value) if most else before + value


def play(
    fleets: Sequence[str],
    start: int,
    end: int,
    seed: int = 0,
    runners: int = 3,
    at: int | None = None,
) -> Told:
    """What the runners of some fleets say between two times in ms.

    ``at``: of which moment the truth is told, the end unless given.
    """
    told = Told(at=end if at is None else at)
    for number, name in enumerate(fleets):
        rng = random.Random(f"{seed}|runners|{number}")
        _Fleet(told, name, rng, runners).play(start, end)
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told
