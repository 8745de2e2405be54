"""A scheduler: runs are created on time or late, planned, split into segments, done piece by piece.

Planning finds nothing now and then, or fails; results of segments cannot be stored and are tried
again; a queue gives a finished segment out once more; runs fail, are cancelled, or hang until
somebody gives them up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.simulate.telemetry import STEP_MS, Told

#: A run that has finished nothing for so long, and has something to do, is stuck. ms.
STUCK_MS: Final = 600_000
MODES: Final = ("analysis_only", "content_refresh", "other")
#: What planning comes to, and how often.
_PLANS: Final = {"enqueued": 14, "no_work": 3, "failed": 1, "unknown": 0}
#: Of runs that are executed, those that hang. In a step, those that are cancelled, or fail; and of
#: those that hang the ones that are given up.
_HANGS, _CANCELLED, _FAILS, _GIVEN_UP = 0.15, 0.01, 0.01, 0.004
#: In how many steps each schedule is due once, at pace 1; and the queues are looked at.
_DUE, _SAMPLED = 24, 6


@dataclass
class _Run:
    name: str
    schedule: str
    mode: str
    created: int
    hangs: bool
    #: Images of each segment that is not completed, and how often it was taken.
    left: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    total: int = 0
    #: When it last got on.
    moved: int = 0

    @property
    def said(self) -> dict[str, str]:
        return {"run_id": self.name, "schedule_id": self.schedule, "mode": self.mode}


class _Scheduler:
    """The scheduler of one fleet: how many runs there are is counted up and down here, while the
    fold must tell it from what it knows."""

    def __init__(self, told: Told, fleet: str, rng: random.Random) -> None:
        self.told, self.fleet, self.rng = told, fleet, rng
        self.planning: list[_Run] = []
        self.active: list[_Run] = []
        self.modes: dict[str, int] = {}
        #: When those that were ever missed were so, and not caught up with.
        self.missed: dict[str, int | None] = {}
        self.dead_letters = 0
        self.made = 0
        #: Of each queue what was last said: how many, since when the oldest, dead letters.
        self.queues: dict[str, tuple[int, int | None, int]] = {}

    def tell(self, kind: str, at: int, **said: object) -> None:
        self.told.tell(kind, self.fleet, at, **said)

    def count(self, *what: str, value: int = 1) -> None:
        if value:
            self.told.count(self.fleet, *what, value=value)

    def measure(self, *what: str, ms: int) -> None:
        self.count(*what)
        self.count(*what, "sum", value=ms)

    def due(self, at: int, schedule: str) -> None:
        """A schedule is due: it is run, or missed and caught up with the next time."""
        if self.rng.random() < 0.2:
            self.tell("schedule.missed", at, schedule_id=schedule, due_at=at)
            self.count("scheduler_schedules_missed")
            self.missed[schedule] = at
            return
        behind = self.missed.get(schedule)
        if behind is not None:
            self.tell(
                "schedule.caught_up", at, schedule_id=schedule, due_at=behind, late_ms=at - behind
            )
            self.count("scheduler_schedules_caught_up")
            self.missed[schedule] = None
        mode = self.rng.choice(MODES)
        run = _Run(f"run-{self.made}", schedule, mode, at, self.rng.random() < _HANGS)
        self.made += 1
        self.modes.setdefault(mode, 0)
        self.tell("run.created", at, **run.said, trigger="cron")
        self.planning.append(run)

    def plan(self, at: int) -> None:
        """The planner looks at what was created."""
        for run in list(self.planning):
            if self.rng.random() < 0.5:
                continue
            self.planning.remove(run)
            status = self.rng.choices(list(_PLANS), list(_PLANS.values()))[0]
            wait, took = at - run.created - 2_000, self.rng.randint(20, 1_900)
            sizes = [self.rng.randint(1, 40) for _ in range(self.rng.randint(1, 12))]
            if status == "enqueued":
                run.left = {f"{run.name}.{n}": size for n, size in enumerate(sizes)}
                run.total = sum(sizes)
                run.moved = at
                self.active.append(run)
                self.modes[run.mode] += 1
            self.tell(
                "run.planned", at, **run.said, status=status, wait_ms=wait, latency_ms=wait + took,
                images=run.total, segments=len(run.left),
                error_code="index_down" if status == "failed" else "",
            )  # fmt: skip
            self.count("scheduler_planner_runs", run.mode, status)
            self.measure("scheduler_planner_latency_seconds", run.mode, status, ms=wait + took)
            self.measure("scheduler_planner_wait_seconds", ms=wait)
            self.measure("scheduler_planning_seconds", ms=took)
            if status != "enqueued":
                self.end(at + 1, run, "no_work" if status == "no_work" else "error")

    def work(self, at: int) -> None:
        """Workers take segments, and are done with them or not."""
        for run in list(self.active):
            hangs = run.hangs and len(run.left) <= 2
            if self.rng.random() < (_GIVEN_UP if hangs else _CANCELLED):
                self.over(at, run, "cancelled")
            elif hangs:
                continue
            elif self.rng.random() < _FAILS:
                self.tell("segment.finished", at, **run.said, segment_id="?", status="run_missing")
                self.count("scheduler_segments", run.mode, "run_missing")
                self.over(at + 1, run, "error")
            else:
                self.segment(at, run)
                if not run.left:
                    self.over(at + 3, run, "completed")

    def segment(self, at: int, run: _Run) -> None:
        name, images = next(iter(run.left.items()))
        attempt = run.attempts[name] = run.attempts.get(name, 0) + 1
        lease = {"segment_id": name, "attempt": attempt}
        self.tell("segment.leased", at, **run.said, **lease, worker="w1")
        if attempt > 1:
            self.count("scheduler_segment_retries")
        if attempt > 3:
            self.tell(
                "queue.dead_lettered", at + 1, **run.said, queue="runner", attempts=attempt - 1,
                reason="too_many_deliveries",
            )  # fmt: skip
            self.count("scheduler_dead_lettered", "runner")
            self.dead_letters += 1
            run.left.clear()
            self.over(at + 2, run, "error")
        elif self.rng.random() < 0.25:
            self.tell(
                "segment.finished", at + 1, **run.said, **lease, status="persist_failed"
            )  # fmt: skip
            self.count("scheduler_segments", run.mode, "persist_failed")
        else:
            self.completed(at + 1, run, lease, images)

    def completed(self, at: int, run: _Run, lease: dict[str, object], images: int) -> None:
        new = self.rng.randint(0, images)
        found = {
            "new": new, "critical": self.rng.randint(0, new), "high": new // 3, "kev": new // 9,
            "images": images, "images_with_delta": new,
        }  # fmt: skip
        self.tell("segment.finished", at, **run.said, **lease, status="completed", **found)
        del run.left[str(lease["segment_id"])]
        run.moved = at
        self.count("scheduler_segments", run.mode, "completed")
        self.count("scheduler_images", run.mode, "true", value=new)
        self.count("scheduler_images", run.mode, "false", value=images - new)
        self.count("scheduler_findings", run.mode, value=new)
        for what in ("critical", "high", "kev"):
            self.count(f"scheduler_findings_{what}", run.mode, value=found[what])
        if self.rng.random() < 0.2:
            # The queue gives it out again: the same findings, told as another attempt's.
            again = {**lease, "attempt": 9}
            self.tell("segment.finished", at + 1, **run.said, **again, status="completed", **found)
            run.moved = at + 1
        if self.rng.random() < 0.3:
            done = run.total - sum(run.left.values())
            self.tell("run.progress", at + 1, **run.said, processed=done, total=run.total)
            run.moved = at + 1

    def over(self, at: int, run: _Run, result: str) -> None:
        if run in self.active:
            self.active.remove(run)
            self.modes[run.mode] -= 1
            self.end(at, run, result)

    def end(self, at: int, run: _Run, result: str) -> None:
        took = at - run.created
        self.tell("run.finished", at, **run.said, result=result, duration_ms=took)
        self.count("scheduler_runs_finished", result)
        if result != "no_work":
            self.measure("scheduler_run_duration_seconds", run.mode, result, ms=took)

    def sample(self, at: int) -> None:
        """Say how the queues are."""
        waiting = {
            "planner": [run.created for run in self.planning],
            "runner": [run.moved for run in self.active],
        }
        for queue, since in waiting.items():
            letters = self.dead_letters if queue == "runner" else 0
            oldest = min(since, default=None)
            self.tell(
                "queue.depth", at, queue=queue, depth=len(since), in_flight=len(since) // 2,
                oldest_at=oldest, dead_letters=letters,
            )  # fmt: skip
            self.queues[queue] = len(since), oldest, letters

    def levels(self) -> None:
        """How it is at the end; of the queues, what was last said of them."""
        fleet, levels = self.fleet, self.told.levels
        for queue, (depth, since, _) in self.queues.items():
            levels["scheduler_queue_depth", fleet, queue] = depth
            levels["scheduler_queue_in_flight", fleet, queue] = depth // 2
            levels["scheduler_queue_oldest_seconds", fleet, queue] = self.age([since])
        if self.queues:
            letters = sum(letters for _, _, letters in self.queues.values())
            levels["scheduler_queue_dead_letters", fleet] = letters
        if self.missed:
            behind = sum(at is not None for at in self.missed.values())
            levels["scheduler_schedules_behind", fleet] = behind
        if not self.made:
            return
        for mode, number in self.modes.items():
            levels["scheduler_runs_active", fleet, mode] = number
        levels["scheduler_runs_planning", fleet] = len(self.planning)
        left = [(run.mode, sum(run.left.values())) for run in self.active]
        levels["scheduler_backlog", fleet] = sum(images for _, images in left)
        for mode in self.modes:
            most = max((images for of, images in left if of == mode), default=0)
            levels["scheduler_backlog_largest", fleet, mode] = most
        levels["scheduler_runs_not_draining", fleet] = sum(
            self.told.at - run.moved > STUCK_MS for run in self.active
        )
        for state, runs in (("planning", self.planning), ("active", self.active)):
            oldest = self.age([run.created for run in runs])
            levels["scheduler_run_oldest_seconds", fleet, state] = oldest

    def age(self, since: Sequence[int | None]) -> float:
        return max((self.told.at - at for at in since if at is not None), default=0) / 1000


def play(
    fleets: Sequence[str],
    start: int,
    end: int,
    seed: int = 0,
    schedules: int = 4,
    pace: int = 1,
    at: int | None = None,
) -> Told:
    """What the schedulers of some fleets say between two times in ms.

    ``pace``: how many times as often as usual a schedule is due, at most 24; ``at``: of which
    moment the truth is told, the end unless given; before samples are outdated.
    """
    told = Told(at=end if at is None else at)
    every = _DUE // pace
    for fleet in fleets:
        rng = random.Random(f"{seed}|schedulers|{fleet}")
        scheduler = _Scheduler(told, fleet, rng)
        for step, begins in enumerate(range(start, end, STEP_MS)):
            for schedule in range(schedules):
                if step % every == schedule * every // schedules:
                    scheduler.due(begins, f"s{schedule}")
            scheduler.plan(begins + 2_000)
            scheduler.work(begins + 3_000)
            if step % _SAMPLED == 0:
                scheduler.sample(begins + STEP_MS - 1)
        scheduler.levels()
        for run in scheduler.active:
            told.store(sum(run.left.values()), "schedule_backlog", fleet, run.schedule)
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told
