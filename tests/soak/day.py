"""What happens on the day, and what is true: jobs, their runners, a provider and a dispatcher.

The world is played in the time of a fast clock. Whatever is said of it goes to the topics that
producers post to; the provider's API and the dispatcher's hook answer from the same truth, from
threads of their servers.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from pipeline.fleet.policy import FleetPolicy
from pipeline.policies import names
from pipeline.recovery import RecoveryPolicy
from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub, Mood
from tests.support.clock import FastClock
from tests.support.receivers import Answer, Got
from tests.support.stall_world import FAULTS, FLEETS_OF, HOUR, MINUTE, SECOND
from topics.catalogue import LIFECYCLE, WEBHOOKS
from topics.keys import job_key

SECRET: Final = b"the secret of the soak"
REPO: Final = "acme/shop"
#: A runner must not be taken from a job in one of these: it lives.
ALIVE: Final = frozenset({"pending", "running"})
#: How the provider fails for one request.
FAILURES: Final = (
    Mood.ERROR, Mood.DOWN, Mood.LYING, Mood.HTML, Mood.CUT, Mood.SLOW, Mood.WRONG, Mood.HIDING,
)  # fmt: skip
#: Of calls of the dispatcher's hook: answered with 503; done, and the answer lost.
BUSY, MUTE = 0.04, 0.02
#: So long an executor waits for an answer, real seconds.
CALL_S: Final = 10.0
#: Settings that are kept from falling below what real networks and processes need, clock seconds.
FLOORS: Final = {"answer": 60.0, "ask": 60.0, "command_ttl": 100.0, "breaker_open": 60.0}
#: Settings that are no times.
PLAIN: Final[Mapping[str, Any]] = {"per_hour": 100_000, "per_tick": 50}

Post = Callable[[str, str, dict[str, Any], int], None]


@dataclass(frozen=True)
class Pace:
    """How a day is made short.

    Clocks run ``speed`` times as fast: the gates of freshness, which are constants of the product,
    count on them. What the day consists of, and the rules of recovery, are ``squeeze`` times as
    short on these clocks. So an hour of the day takes 3,600 s / speed / squeeze.
    """

    speed: float = 10.0
    squeeze: float = 12.0

    def ms(self, day_ms: float) -> int:
        """Milliseconds of the clock that milliseconds of the day are."""
        return int(day_ms / self.squeeze)

    def policies(self) -> dict[str, dict[str, Any]]:
        """The rules of recovery, as the setting has them."""
        told: dict[str, Any] = {}
        timed = {
            name.removesuffix("_ms")
            for policy in (RecoveryPolicy, FleetPolicy)
            for name in policy.__dataclass_fields__
            if name.endswith("_ms")
        }
        for name, value in names().items():
            if name in timed:
                told[name] = max(value / self.squeeze, FLOORS.get(name, 0.0))
        return {"*": {**told, **PLAIN}}


@dataclass
class Job:
    """What is true of one job. ``state``: queued, claimed, pending (its runner is coming),
    running, stuck (nothing will happen to it by itself), over. Times in ms of the clock."""

    number: int
    fleet: str
    fault: str
    run_ms: int
    queued_at: int
    state: str = "queued"
    claims: int = 0
    stuck_at: int | None = None
    freed_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    #: Its run is over though it never started.
    ghost: bool = False
    conclusion: str = "success"
    #: The product has given it up to a person.
    person: bool = False
    #: What was commanded, and whether the job was alive then.
    hits: list[tuple[str, bool]] = field(default_factory=list)
    #: As the product serves it.
    served: str = ""
    found: bool = False

    @property
    def key(self) -> str:
        """Its key."""
        return job_key("github", "github.com", self.number)

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come of it, and the product knows."""
        if self.person:
            return True
        freed = self.stuck_at is None or self.freed_at is not None
        return self.state == "over" and freed and self.served == "completed"


class Day:
    """``jobs`` jobs in ``hours`` hours of the day; ``faulty`` is the share of each fault."""

    def __init__(
        self,
        seed: int,
        jobs: int,
        hours: float,
        clock: FastClock,
        pace: Pace,
        post: Post,
        faulty: float = 0.05,
    ) -> None:
        self.clock = clock
        self.pace = pace
        self.count: Counter[str] = Counter()
        self.jobs: dict[int, Job] = {}
        #: Commands by id: whether we have acknowledged that they are done.
        self.effects: dict[str, bool] = {}
        #: What must not be, in words.
        self.wrong: list[str] = []
        self.api = FakeGitHub(self._api_job, self._api_run, token="t0ken", clock=clock.time)
        self._chance = Random(seed)
        self._post = post
        self._lock = threading.RLock()
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._n = 0
        self.now = self.began = self.arrived_at = clock.ms()
        self._seeds = (jobs, int(hours * HOUR), faulty)
        self._deaf: list[tuple[int, int]] = []

    def begin(self) -> None:
        """The day begins now."""
        jobs, span, faulty = self._seeds
        self.now = self.began = self.clock.ms()
        self.arrived_at = self.began + self.pace.ms(span)
        for number in range(1, jobs + 1):
            fault = "healthy"
            if self._chance.random() < faulty * len(FAULTS):
                fault = self._chance.choice(FAULTS)
            self._sometime(span, lambda n=number, f=fault: self._arrive(n, f))  # type: ignore[misc]
        self._deaf += [self._window(span, 10 * MINUTE) for _ in range(span // (8 * HOUR) + 1)]
        for start, end in (self._window(span, 20 * MINUTE) for _ in range(span // (4 * HOUR) + 1)):
            self._at(start, lambda end=end: self._outage(end))  # type: ignore[misc]
        for _ in range(int(jobs * faulty * len(FAULTS) * 0.15)):
            self._sometime(span, self._trouble)

    # -- the machinery -------------------------------------------------------------------------

    def turn(self) -> None:
        """Let everything happen that is due."""
        with self._lock:
            until = self.clock.ms()
            while self._agenda and self._agenda[0][0] <= until:
                self.now, _, what = heapq.heappop(self._agenda)
                what()
            self.now = until

    def unsettled(self) -> list[Job]:
        """Jobs of which something is still to come, those that have not arrived left out."""
        with self._lock:
            return [job for job in self.jobs.values() if not job.settled]

    def serve(self, key: str, status: str, conclusion: str, found: bool) -> None:
        """The product says how a job is, and whether it ever found it stuck."""
        with self._lock:
            job = self.jobs.get(int(key.rpartition(":")[2]))
            if job is None:
                return
            job.served = status
            job.found |= found
            if job.fault == "lost_completed" and status == "completed":
                self._free(job)
            if job.ghost and status == "completed" and conclusion == "unknown":
                # Its run is over, and the API did not know the job three times: nothing is left
                # to be commanded.
                job.state = "over"
                self._free(job)

    def _at(self, when: int, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._agenda, (when, self._n, what))

    def _sometime(self, span: int, what: Callable[[], None]) -> None:
        self._at(self.began + self.pace.ms(self._chance.randrange(span)), what)

    def _soon(self, low_s: float, high_s: float, what: Callable[[], None]) -> None:
        """In so many seconds of the day."""
        self._at(self.now + self.pace.ms(self._chance.uniform(low_s, high_s) * SECOND), what)

    def _window(self, span: int, most: int) -> tuple[int, int]:
        start = self.began + self.pace.ms(self._chance.randrange(span))
        return start, start + self.pace.ms(self._chance.randrange(most))

    def _webhook(self, job: Job, action: str) -> None:
        self._n += 1
        body: dict[str, Any] = {
            "id": job.number, "run_id": job.number * 10, "run_attempt": 1, "status": action,
            "name": "build", "labels": [job.fleet], "created_at": _iso(job.queued_at),
        }  # fmt: skip
        if job.started_at is not None and action != "queued":
            body["started_at"] = _iso(job.started_at)
            body["runner_name"] = self._runner(job)
        if action == "completed":
            body |= {"completed_at": _iso(job.ended_at), "conclusion": job.conclusion}
        said = {"action": action, "workflow_job": body, "repository": {"full_name": REPO}}
        self._send(
            WEBHOOKS, job.key,
            {"id": f"{action}-{job.number}-{self._n}", "kind": "github.workflow_job",
             "payload": json.dumps(said)},
        )  # fmt: skip

    def _event(self, job: Job, kind: str, runner: str, **more: Any) -> None:
        self._n += 1
        about = {"id": f"{kind}-{self._n}", "kind": kind, "runner": {"name": runner},
                 "fleet": job.fleet}  # fmt: skip
        if not kind.startswith("runner."):
            about |= {"job_id": str(job.number), "repo": REPO}
        self._send(LIFECYCLE, job.key, {**about, **more})

    def _send(self, topic: str, key: str, said: dict[str, Any]) -> None:
        at = self.now
        common = {"source": "soak", "occurred_at": at, "received_at": at, "key": key}
        self._post(topic, key, {**common, **said}, at)

    # -- the life of a job ---------------------------------------------------------------------

    def _arrive(self, number: int, fault: str) -> None:
        run_ms = self.pace.ms(self._chance.randrange(50 * MINUTE))
        job = Job(number, self._chance.choice(FLEETS_OF), fault, run_ms, self.now)
        self.jobs[number] = job
        self.count[fault] += 1
        if fault != "lost_queued":
            self._webhook(job, "queued")
        if fault == "missed_by_autoscaler":
            self._stuck(job)
        elif fault == "ghost":
            job.ghost = True
            self._stuck(job)
        else:
            self._soon(1, 30, lambda: self._claim(job))

    def _stuck(self, job: Job) -> None:
        job.state, job.stuck_at = "stuck", self.now

    def _free(self, job: Job) -> None:
        if job.stuck_at is not None and job.freed_at is None:
            job.freed_at = self.now

    @staticmethod
    def _runner(job: Job) -> str:
        return f"vm-{job.number}-{job.claims}"

    def _claim(self, job: Job) -> None:
        if job.state != "queued":
            return
        job.claims += 1
        first, handle, runner = job.claims == 1, f"h{job.claims}", self._runner(job)
        job.state = "claimed"
        self._event(job, "job.claimed", runner, claim=handle)
        if job.fault == "stale_claim" and first:
            self._stuck(job)
            return
        self._event(job, "job.minted", runner, claim=handle)
        if first and job.fault in ("orphan", "host_gone", "displaced"):
            self._stuck(job)
            if job.fault == "host_gone":
                self._soon(20, 60, lambda: self._event(job, "runner.gone", runner))
            if job.fault == "displaced":
                self._soon(2, 10, lambda: self._displace(job, runner))
            return
        job.state = "pending"
        self._soon(5, 60, lambda: self._start(job, runner))

    def _displace(self, job: Job, runner: str) -> None:
        """The runner of the job executes another one, which nobody was told of before."""
        other = Job(job.number + 10_000_000, job.fleet, "other", job.run_ms, self.now)
        self.jobs[other.number] = other
        other.state, other.started_at = "running", self.now
        self._event(other, "job.started", runner)
        self._at(self.now + other.run_ms, lambda: self._complete(other))

    def _start(self, job: Job, runner: str) -> None:
        if job.state != "pending":
            return
        job.state, job.started_at = "running", self.now
        if job.fault != "lost_in_progress":
            self._webhook(job, "in_progress")
        if job.fault == "runner_dies":
            self._soon(10, 60, lambda: self._event(job, "runner.gone", runner))
            # GitHub notices after some ten minutes.
            job.conclusion = "failure"
            self._soon(600, 900, lambda: self._complete(job))
        else:
            self._at(self.now + job.run_ms, lambda: self._complete(job))

    def _complete(self, job: Job) -> None:
        job.state, job.ended_at = "over", self.now
        if job.fault == "lost_completed":
            job.stuck_at = self.now
        else:
            self._webhook(job, "completed")

    # -- the provider --------------------------------------------------------------------------

    def _outage(self, end: int) -> None:
        self.api.turn(Mood.DOWN)
        self.count["outages"] += 1
        self._at(end, self._mend)

    def _mend(self) -> None:
        self.api.turn(Mood.FINE)

    def _trouble(self) -> None:
        if self.api.mood is Mood.FINE:
            self.api.turn(self._chance.choice(FAILURES), 1)
            self.count["api failures"] += 1

    def _api_job(self, number: int) -> ApiJob | None:
        with self._lock:
            job = self.jobs.get(number)
            if job is None:
                return None
            told: dict[str, Any] = {"created_at": job.queued_at, "labels": (job.fleet,)}
            if job.state == "over" and not job.ghost:
                told |= {"status": "completed", "conclusion": job.conclusion,
                         "completed_at": job.ended_at}  # fmt: skip
            else:
                told["status"] = "in_progress" if job.state == "running" else "queued"
            if told["status"] != "queued":
                told |= {"started_at": job.started_at, "runner_name": self._runner(job)}
            return ApiJob(run_id=number * 10, **told)

    def _api_run(self, run: int, attempt: int) -> ApiRun | None:
        with self._lock:
            job = self.jobs.get(run // 10)
            if job is None:
                return None
            if job.ghost:
                return ApiRun("completed", conclusion="startup_failure")
            over = job.state == "over"
            return ApiRun("completed" if over else "in_progress",
                          conclusion=job.conclusion if over else None)  # fmt: skip

    # -- the dispatcher ------------------------------------------------------------------------

    def hook(self, got: Got) -> Answer:
        """A signed command, as ``executor --via hook`` posts it."""
        wanted = "sha256=" + hmac.new(SECRET, got.body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(wanted, got.headers.get("x-runnerstream-signature-256", "")):
            self.wrong.append("a command that nobody signed")
            return 401, b"", {}
        command = json.loads(got.body)
        with self._lock:
            self.now = self.clock.ms()
            name = command["id"]
            if name in self.effects:
                if self.effects[name]:
                    self.wrong.append(f"{name} came again after it was acknowledged")
                self.count["repeated"] += 1
                self.effects[name] = True
                return 200, b"", {}
            deaf = any(start <= self.now < end for start, end in self._deaf)
            if deaf or self._chance.random() < BUSY:
                self.count["busy"] += 1
                return 503, b"", {}
            self._hit(command)
            self.effects[name] = self._chance.random() >= MUTE
            if not self.effects[name]:
                self.count["mute"] += 1
                return None
            return 200, b"", {}

    def _hit(self, command: dict[str, Any]) -> None:
        """The dispatcher does what it is told."""
        kind = command["command"]
        self.count[kind] += 1
        # A call that was made in time may be under way for as long as it is waited for.
        late_ms = self.now - command["expires_at"] - CALL_S * 1000 * self.pace.speed
        if command["dry_run"] or late_ms > 0:
            self.wrong.append(f"{command['id']} is dry, or too late, and was executed")
        job = self.jobs[int(command["job_key"].rpartition(":")[2])]
        job.hits.append((kind, job.state in ALIVE))
        if job.state in ALIVE:
            self.wrong.append(f"{command['id']} hit a job that is {job.state} ({job.fault})")
        if kind == "quarantine":
            job.person = True
            return
        self._free(job)
        if kind == "close" or job.ghost:
            job.state = "over"
        elif job.state == "stuck":
            job.state = "queued"
            self._soon(1, 30, lambda: self._claim(job))


def _iso(ms: int | None) -> str:
    assert ms is not None
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
