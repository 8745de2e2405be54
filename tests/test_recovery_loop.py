"""Recovery as a whole: events in, a provider asked over HTTP, a command out, its outcome back.

Every scenario is a job of its own, and all of them run at the same time through one worker, one
prober and one executor, each a process, on a real broker. The provider is a real HTTP server that
answers from the truth; the dispatcher is one that checks signatures and does what it is told.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from kafka import KafkaProducer

from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub
from tests.support.brokers import broker
from tests.support.worker import ROOT, WorkerProcess
from topics.apply import apply
from topics.catalogue import LIFECYCLE, WEBHOOKS, catalogue
from topics.keys import job_key

PARTITIONS: Final = 2
SECRET: Final = b"a secret of this test"
TICK_S: Final = 0.5
#: Long enough for several ticks, questions and proposals after all that must happen has happened.
QUIET_S: Final = 6.0

#: Thresholds in seconds, by fleet: quick where a stall is wanted, never where none is.
POLICIES: Final = {
    "*": {
        "stale_claim": 2, "orphan": 2, "displaced": 1, "stale_queue": 3600, "running": 3600,
        "ask": 5, "ask_again": 1, "ask_again_most": 2, "gone": 2, "propose_again": 1,
        "cool_down": 1,
    },
    "young": {"orphan": 3600, "stale_claim": 3600},
    "old": {"stale_queue": 2, "cool_down": 600},
    "long": {"running": 2},
}  # fmt: skip

OPEN: Final = ApiRun("in_progress")
OVER: Final = ApiRun("completed", conclusion="startup_failure")


@dataclass(frozen=True)
class Scenario:
    """One job: its fleet, what is told of it after it was queued, what its provider says."""

    fleet: str
    told: tuple[dict[str, Any], ...]
    job: ApiJob | None
    run: ApiRun | None = OPEN
    #: What must be commanded, for which kind of stall.
    wanted: tuple[tuple[str, str], ...] = ()
    status: str = "queued"
    conclusion: str | None = None
    #: Whether the provider is asked.
    asked: bool = True


def claimed(handle: str = "h1", runner: str = "") -> dict[str, Any]:
    return {"kind": "job.claimed", "claim": handle, "runner": {"name": runner}}


def minted(handle: str = "h1", runner: str = "") -> dict[str, Any]:
    return {"kind": "job.minted", "claim": handle, "runner": {"name": runner}}


def queued_at(run: int) -> ApiJob:
    return ApiJob("queued", run)


STARTING: Final = (claimed(), minted())
SCENARIOS: Final[Mapping[str, Scenario]] = {
    "github_queued": Scenario(
        "quick", STARTING, ApiJob("queued", 0), wanted=(("requeue", "orphan"),)
    ),
    "github_in_progress": Scenario(
        "quick", STARTING, ApiJob("in_progress", 0, runner_name="another"), status="running"
    ),
    "github_completed": Scenario(
        "quick", STARTING, ApiJob("completed", 0, conclusion="failure"),
        wanted=(("release_claim", "orphan"),), status="completed", conclusion="failure",
    ),
    "github_404": Scenario(
        "quick", STARTING, None, None,
        wanted=(("release_claim", "orphan"),), status="completed", conclusion="unknown",
    ),
    "github_404_of_a_live_job": Scenario("quick", STARTING, None, status="starting"),
    "github_says_nothing_usable": Scenario(
        "quick", STARTING, ApiJob("queued", 0, more={"id": 5}), status="starting"
    ),
    "run_already_over": Scenario(
        "quick", STARTING, ApiJob("queued", 0), OVER,
        wanted=(("release_claim", "orphan"),), status="completed", conclusion="startup_failure",
    ),
    "host_gone_and_young": Scenario(
        "young",
        (*STARTING, {"kind": "runner.heartbeat", "job_id": None, "runner_host": "rack"},
         {"kind": "host.gone", "job_id": None, "runner_host": "rack"}),
        ApiJob("queued", 0), wanted=(("requeue", "runner_lost"),),
    ),
    "host_present_and_young": Scenario(
        "young", (*STARTING, {"kind": "runner.heartbeat", "job_id": None, "runner_host": "rock"}),
        ApiJob("queued", 0), status="starting", asked=False,
    ),
    "runner_gone_targeted": Scenario(
        "young", (*STARTING, {"kind": "runner.gone", "job_id": None}),
        ApiJob("queued", 0), wanted=(("requeue", "runner_lost"),),
    ),
    "runner_gone_but_github_knows_better": Scenario(
        "young", (*STARTING, {"kind": "runner.gone", "job_id": None}),
        ApiJob("in_progress", 0, runner_name="another"), status="running",
    ),
    "replacement_runner": Scenario(
        "young",
        (*STARTING, {"kind": "claim.released", "claim": "h1"},
         claimed("h2", "replacement"), minted("h2", "replacement"),
         {"kind": "runner.gone", "job_id": None}),
        ApiJob("queued", 0), status="starting", asked=False,
    ),
    "claim_never_minted": Scenario(
        "quick", (claimed(),), ApiJob("queued", 0),
        wanted=(("release_claim", "stale_claim"),), asked=False,
    ),
    "running_is_never_reaped": Scenario(
        "quick", (*STARTING, {"kind": "job.started"}), ApiJob("in_progress", 0),
        status="running", asked=False,
    ),
    "queued_for_long": Scenario(
        "old", (), ApiJob("queued", 0), wanted=(("requeue", "stale_queue"),)
    ),
    "queued_though_its_run_is_over": Scenario(
        "old", (), ApiJob("queued", 0), OVER, wanted=(("close", "stale_queue"),),
        status="completed", conclusion="startup_failure",
    ),
    "queued_and_github_runs_it": Scenario(
        "old", (), ApiJob("in_progress", 0, runner_name="another"), status="running"
    ),
    "completion_lost": Scenario(
        "long", (*STARTING, {"kind": "job.started"}),
        ApiJob("completed", 0, conclusion="success"),
        status="completed", conclusion="success",
    ),
}  # fmt: skip
NAMES: Final = {name: 7_000 + n for n, name in enumerate(SCENARIOS)}


@dataclass
class Dispatcher:
    """A dispatcher's hook: it keeps what it was told to do, if that is signed."""

    got: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    forged: int = 0

    def __post_init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                wanted = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
                signed = hmac.compare_digest(
                    wanted, self.headers.get("X-Runnerstream-Signature-256", "")
                )
                if signed:
                    command = json.loads(body)
                    outer.got.setdefault(command["job_key"], []).append(command)
                else:
                    outer.forged += 1
                self.send_response(200 if signed else 401)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@dataclass
class World:
    """What came of all scenarios."""

    dispatcher: Dispatcher
    worker: WorkerProcess
    api: FakeGitHub

    def job(self, name: str) -> dict[str, Any]:
        status, answer = self.worker.get(f"/jobs/{key_of(name)}")
        return dict(answer) if status == 200 else {}

    def commands(self, name: str) -> list[dict[str, Any]]:
        return self.dispatcher.got.get(key_of(name), [])


def key_of(name: str) -> str:
    return job_key("github", "github.com", NAMES[name])


def post(kafka: str) -> None:
    """All events of all scenarios, each at once."""
    producer = KafkaProducer(bootstrap_servers=kafka)
    now = int(time.time() * 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1000))

    def send(topic: str, key: str, value: dict[str, Any]) -> None:
        said = {"source": "test", "occurred_at": now, "received_at": now, "key": key}
        producer.send(topic, key=key.encode(), value=json.dumps({**said, **value}).encode())

    for name, scenario in SCENARIOS.items():
        number, key = NAMES[name], key_of(name)
        body = {
            "action": "queued",
            "workflow_job": {
                "id": number, "run_id": number * 10, "run_attempt": 1, "status": "queued",
                "created_at": stamp, "labels": [scenario.fleet],
            },
            "repository": {"full_name": "acme/shop"},
        }  # fmt: skip
        send(
            WEBHOOKS, key,
            {"id": f"{name}-queued", "kind": "github.workflow_job", "payload": json.dumps(body)},
        )  # fmt: skip
        for n, event in enumerate(scenario.told):
            runner = {"name": (event.get("runner") or {}).get("name") or f"vm-{number}"}
            told = {"job_id": str(number), "fleet": scenario.fleet, "repo": "acme/shop"}
            when = {"occurred_at": now + n, "received_at": now + n}
            send(LIFECYCLE, key, {"id": f"{name}-{n}", **told, **when, **event, "runner": runner})
    producer.flush()
    producer.close()


def wait(until: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("loop")
    secret = folder / "secret"
    secret.write_bytes(SECRET)

    def job(number: int) -> ApiJob | None:
        name = next(name for name, known in NAMES.items() if known == number)
        found = SCENARIOS[name].job
        now = int(time.time() * 1000)
        times: dict[str, Any] = {"created_at": now - 60_000}
        if found is None:
            return None
        if found.status != "queued":
            times["started_at"] = now - 5_000
        if found.status == "completed":
            times["completed_at"] = now - 1_000
        return ApiJob(
            found.status, number * 10, conclusion=found.conclusion, labels=(SCENARIOS[name].fleet,),
            runner_name=found.runner_name, more=found.more, **times,
        )  # fmt: skip

    def run(number: int, attempt: int) -> ApiRun | None:
        name = next(name for name, known in NAMES.items() if known * 10 == number)
        return SCENARIOS[name].run

    dispatcher = Dispatcher()
    with broker(folder) as kafka, FakeGitHub(job, run, token="t0ken") as api:
        apply({"bootstrap_servers": kafka.bootstrap}, catalogue(partitions=PARTITIONS))
        common = {
            "partitions": PARTITIONS, "tick_interval": TICK_S,
            "github_token": "t0ken", "github_api_url": api.url,
        }  # fmt: skip
        policies = json.dumps(POLICIES)
        prober = WorkerProcess(kafka.bootstrap, role="prober", **common)
        with WorkerProcess(
            kafka.bootstrap, recovery="live", recovery_policies=policies, **common
        ) as worker:
            prober.start(wait=False)
            command = [
                sys.executable, "-m", "pipeline.cli", "executor", "--via", "hook", "--to",
                dispatcher.url, "--secret-file", str(secret), "--check", worker.url,
            ]  # fmt: skip
            with (folder / "executor.log").open("wb") as log:
                executor = subprocess.Popen(
                    command, env=worker.env(), cwd=ROOT, stdout=log, stderr=log
                )
            try:
                worker.wait_ready(60)
                post(kafka.bootstrap)
                found = World(dispatcher, worker, api)

                def told() -> str:
                    return "\n".join(
                        [*open_scenarios(found), (folder / "executor.log").read_text()[-3000:],
                         prober.log.read_text()[-3000:]]
                    )  # fmt: skip

                wait(lambda: not open_scenarios(found), 90, told)
                time.sleep(QUIET_S)
                yield found
            finally:
                executor.terminate()
                executor.wait(20)
                prober.stop()
    dispatcher.server.shutdown()


def open_scenarios(world: World) -> list[str]:
    """What is not yet as it must become."""
    found = []
    for name, scenario in SCENARIOS.items():
        job = world.job(name)
        got = [each["command"] for each in world.commands(name)]
        ended = all(
            command["ended"] for stall in job.get("recovery", ()) for command in stall["commands"]
        )
        if len(got) < len(scenario.wanted) or not ended or job.get("status") != scenario.status:
            found.append(f"{name}: {job.get('status')} {got} {job.get('explanation')}")
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_stall_is_proven_and_answered(world: World, name: str) -> None:
    scenario, job = SCENARIOS[name], world.job(name)
    got = world.commands(name)
    assert [(each["command"], each["reason"]) for each in got] == list(scenario.wanted)
    assert (job["status"], job["conclusion"]) == (scenario.status, scenario.conclusion)
    assert bool(world.api.asked(f"/jobs/{NAMES[name]}")) is scenario.asked
    for command in got:
        assert command["evidence"]
        assert command["expires_at"] > command["occurred_at"]
        assert not command["dry_run"]
    results = [
        command["ended"]["result"] for stall in job["recovery"] for command in stall["commands"]
    ]
    # One that a new fact overtook was refused, had no effect, and was made anew.
    assert [each for each in results if each != "refused"] == ["done"] * len(scenario.wanted)
    if any(each["command"] == "requeue" and each["fence"]["claim"] for each in got):
        assert [claim["reason"] for claim in job["claims"]] == ["recovery"]


def test_nobody_else_could_have_told_the_dispatcher(world: World) -> None:
    assert not world.dispatcher.forged
