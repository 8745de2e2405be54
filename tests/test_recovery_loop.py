"""Recovery as a whole: events in, a provider asked over HTTP, a command out, its outcome back.

Every scenario (:mod:`tests.support.scenarios`) is a job of its own, and all of them run at the same
time through one worker, one prober and one executor, each a process, on a real broker. The provider
is a real HTTP server that answers from the truth, to an App; the dispatcher is one that checks
signatures and does what it is told, unless it knows better.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.local.process import free_port
from pipeline.simulate.api import Answer, ApiJob, ApiRun, FakeGitHub
from tests.support import PATIENCE
from tests.support.brokers import broker
from tests.support.scenarios import NAMES, POLICIES, SCENARIOS, Told
from tests.support.worker import ROOT, WorkerProcess
from topics.apply import apply
from topics.catalogue import COMMANDS, LIFECYCLE, OUTCOMES, WEBHOOKS, catalogue
from topics.keys import job_key
from topics.recovery import OUTCOME, Command, Result

PARTITIONS: Final = 2
SECRET: Final = b"a secret of this test"
APP: Final = "1234"
TICK_S: Final = 0.5
#: Long enough for several ticks, questions and proposals after all that must happen has happened.
QUIET_S: Final = 6.0


def key_of(name: str) -> str:
    return job_key("github", "github.com", NAMES[name])


def repo_of(name: str) -> str:
    scenario = SCENARIOS[name]
    if not scenario.addressed:
        return ""
    return f"{name}/shop" if scenario.troubled else "acme/shop"


class Producer:
    """Posts what is told of the jobs."""

    def __init__(self, kafka: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=kafka)
        self._began = int(time.time() * 1000)

    def post_all(self) -> None:
        """All deliveries and events with which the scenarios begin."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began / 1000))
        for name, scenario in SCENARIOS.items():
            number, repo = NAMES[name], repo_of(name)
            body = {
                "action": "queued",
                "workflow_job": {
                    "id": number, "run_id": number * 10, "run_attempt": 1, "status": "queued",
                    "created_at": stamp, "labels": [scenario.fleet],
                },
                **({"repository": {"full_name": repo}} if repo else {}),
            }  # fmt: skip
            self._send(
                WEBHOOKS, key_of(name), self._began,
                {"id": f"{name}-queued", "kind": "github.workflow_job",
                 "payload": json.dumps(body)},
            )  # fmt: skip
            self.tell(name, scenario.told, self._began)
        self._producer.flush()

    def tell(self, name: str, told: Told, at: int | None = None) -> None:
        """Lifecycle events of a job from a time on (ms), or from now on."""
        begin = int(time.time() * 1000) if at is None else at
        for n, event in enumerate(told):
            said = dict(event)
            when = begin + n + int(1000 * said.pop("after_s", 0))
            runner = said.pop("runner", {})
            if runner is not None:
                runner = {"name": runner.get("name") or f"vm-{NAMES[name]}"}
            about = {"job_id": str(NAMES[name]), "fleet": SCENARIOS[name].fleet}
            about |= {"repo": repo_of(name)} if repo_of(name) else {}
            id_ = {"id": f"{name}-{begin}-{n}", "runner": runner or {}}
            self._send(LIFECYCLE, key_of(name), when, {**id_, **about, **said})
        self._producer.flush()

    def command(self, command: Command) -> None:
        self._producer.send(
            COMMANDS, key=command.key.encode(), value=command.model_dump_json().encode()
        )

    def close(self) -> None:
        self._producer.close()

    def _send(self, topic: str, key: str, at: int, value: dict[str, Any]) -> None:
        said = {"source": "test", "occurred_at": at, "received_at": at, "key": key}
        self._producer.send(topic, key=key.encode(), value=json.dumps({**said, **value}).encode())


class Api(FakeGitHub):
    """The provider's API, which misbehaves towards some accounts."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        super().__init__(_job, _run, app=(APP, key))
        #: The scenarios whose troubles are over.
        self.mended: set[str] = set()

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        found = super().answer(method, path, headers)
        scenario = SCENARIOS.get(path.split("/")[2]) if path.startswith("/repos/") else None
        if scenario is None or path.split("/")[2] in self.mended:
            return found
        is_installation = path.endswith("/installation")
        if (scenario.hidden and not is_installation) or (
            is_installation and not scenario.installed
        ):
            return 404, b"{}", {}
        if scenario.fails is not None and "/actions/" in path:
            return *scenario.fails, {}
        return found


def _job(number: int) -> ApiJob | None:
    name = next(name for name, known in NAMES.items() if known == number)
    found = SCENARIOS[name].job
    now = int(time.time() * 1000)
    times: dict[str, Any] = {"created_at": now - 60_000}
    if found is None:
        return None
    if found.status in ("in_progress", "completed"):
        times["started_at"] = now - 5_000
    if found.status == "completed":
        times["completed_at"] = now - 1_000
    return ApiJob(
        found.status, number * 10, conclusion=found.conclusion, labels=(SCENARIOS[name].fleet,),
        runner_name=found.runner_name, more=found.more, **times,
    )  # fmt: skip


def _run(number: int, attempt: int) -> ApiRun | None:
    name = next(name for name, known in NAMES.items() if known * 10 == number)
    return SCENARIOS[name].run


@dataclass
class Dispatcher:
    """A dispatcher's hook: it keeps what it was told to do, if that is signed.

    Of some jobs it knows better: it has done something else when the command comes, and refuses.
    """

    producer: Producer
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
                status = outer.told(json.loads(body)) if signed else 401
                outer.forged += not signed
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self, command: dict[str, Any]) -> int:
        """The status that answers a command."""
        got = self.got.setdefault(command["job_key"], [])
        got.append(command)
        name = next(name for name in NAMES if key_of(name) == command["job_key"])
        if len(got) > 1 or not SCENARIOS[name].meanwhile:
            return 200
        self.producer.tell(name, SCENARIOS[name].meanwhile)
        return 409

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@dataclass
class World:
    """What came of all scenarios. ``jobs``: as each was in the end."""

    kafka: str
    producer: Producer
    dispatcher: Dispatcher
    worker: WorkerProcess
    api: Api
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    windows: list[dict[str, Any]] = field(default_factory=list)
    metrics: str = ""

    def job(self, name: str) -> dict[str, Any]:
        status, answer = self.worker.get(f"/jobs/{key_of(name)}")
        return dict(answer) if status == 200 else {}

    def asked(self, name: str) -> bool:
        return bool(self.api.asked(f"/jobs/{NAMES[name]}"))

    def commands(self, name: str) -> list[dict[str, Any]]:
        return self.dispatcher.got.get(key_of(name), [])

    def metric(self, series: str) -> float:
        (line,) = (each for each in self.metrics.splitlines() if each.startswith(f"{series} "))
        return float(line.split()[-1])

    def go_on(self) -> None:
        """What happens once a job was asked about."""
        for name, scenario in SCENARIOS.items():
            if name not in self.api.mended and self.asked(name):
                if scenario.later:
                    self.producer.tell(name, scenario.later)
                if scenario.mends or scenario.later:
                    self.api.mended.add(name)

    def open_scenarios(self) -> list[str]:
        """What is not yet as it must become."""
        self.go_on()
        found = []
        for name, scenario in SCENARIOS.items():
            job = self.job(name)
            got = [each["command"] for each in self.commands(name)]
            ended = all(
                command["ended"]
                for stall in job.get("recovery", ())
                for command in stall["commands"]
            )
            if (
                len(got) < len(scenario.wanted)
                or not ended
                or job.get("status") != scenario.status
                or self.asked(name) is not scenario.asked
            ):
                found.append(f"{name}: {job.get('status')} {got} {job.get('explanation')}")
        return found


def wait(until: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE * seconds
    while not until():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("loop")
    secret, pem = folder / "secret", folder / "app.pem"
    secret.write_bytes(SECRET)
    key = rsa.generate_private_key(65_537, 2_048)
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with broker(folder) as kafka, Api(key.public_key()) as api:
        apply({"bootstrap_servers": kafka.bootstrap}, catalogue(partitions=PARTITIONS))
        common = {
            "partitions": PARTITIONS, "tick_interval": TICK_S, "probes_per_minute": 600,
            "github_app_id": APP, "github_app_key_file": pem, "github_api_url": api.url,
        }  # fmt: skip
        producer = Producer(kafka.bootstrap)
        dispatcher = Dispatcher(producer)
        port = free_port()
        prober = WorkerProcess(kafka.bootstrap, role="prober", prober_port=port, **common)
        prober.port = port
        with WorkerProcess(
            kafka.bootstrap, recovery="live", recovery_policies=json.dumps(POLICIES), **common
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
                prober.wait_ready(60)
                producer.post_all()
                found = World(kafka.bootstrap, producer, dispatcher, worker, api)

                def told() -> str:
                    return "\n".join(
                        [*found.open_scenarios(), (folder / "executor.log").read_text()[-3000:],
                         prober.log.read_text()[-3000:]]
                    )  # fmt: skip

                wait(lambda: not found.open_scenarios(), 90, told)
                time.sleep(QUIET_S)
                found.jobs = {name: found.job(name) for name in SCENARIOS}
                found.windows = worker.get("/windows?size=3600")[1]["windows"]
                found.metrics = str(worker.get("/metrics")[1])
                yield found
            finally:
                executor.terminate()
                executor.wait(20)
                prober.stop()
                producer.close()
    dispatcher.server.shutdown()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_stall_is_proven_and_answered(world: World, name: str) -> None:
    scenario, job = SCENARIOS[name], world.jobs[name]
    got = world.commands(name)
    assert [(each["command"], each["reason"]) for each in got] == list(scenario.wanted)
    assert (job["status"], job["conclusion"]) == (scenario.status, scenario.conclusion)
    assert world.asked(name) is scenario.asked
    for command in got:
        assert command["evidence"]
        assert command["fleet"] == scenario.fleet
        assert command["since"] <= command["opened_at"] <= command["occurred_at"]
        assert command["expires_at"] > command["occurred_at"]
        assert not command["dry_run"]
    ended = [command["ended"] for stall in job["recovery"] for command in stall["commands"]]
    # One that a new fact overtook was refused by us, had no effect, and was made anew.
    results = [each["result"] for each in ended if each["reason"] != "moved_on"]
    assert results == ["refused" if scenario.meanwhile else "done"] * len(scenario.wanted)
    if any(each["command"] == "requeue" and each["fence"]["claim"] for each in got):
        reason = "" if scenario.meanwhile else "recovery"
        assert [claim["reason"] for claim in job["claims"]] == [reason]


def test_nobody_else_could_have_told_the_dispatcher(world: World) -> None:
    assert not world.dispatcher.forged


def test_how_long_each_was_stuck_is_in_its_window_and_in_the_metric(world: World) -> None:
    windows: Counter[str] = Counter()
    for one in world.windows:
        for kind, found in one["stranded"].items():
            windows[kind] += found["count"]
            assert 0 <= found["p50_ms"] <= 1.01 * found["max_ms"] + 1
    freed = Counter(
        kind
        for scenario in SCENARIOS.values()
        for command, kind in scenario.wanted
        # Who is queued goes on being queued until somebody claims it.
        if (command, kind) != ("requeue", "stale_queue")
    )
    for kind, least in freed.items():
        # And those of which the provider knew better.
        assert windows[kind] >= least, kind
        count = world.metric(f'runnerstream_stranded_seconds_count{{stall="{kind}"}}')
        assert count >= windows[kind], kind
    assert "missed_completion" not in windows


def test_of_many_that_are_stuck_at_once_one_a_tick_is_released(world: World) -> None:
    many = [name for name in SCENARIOS if SCENARIOS[name].fleet == "crowd"]
    assert len(many) > 2 * PARTITIONS
    # Each at a tick of its own. Some waited for it, and were told why.
    assert len({world.commands(name)[0]["occurred_at"] for name in many}) == len(many)
    told = [stall["withheld"] for name in many for stall in world.jobs[name]["recovery"]]
    assert "budget_tick" in {each["why"] for each in told if each is not None}
    assert world.metric('runnerstream_recovery_withheld_total{reason="budget_tick"}') > 0


def test_a_command_that_comes_twice_or_after_the_claim_changed_has_no_effect(world: World) -> None:
    before = {key: list(got) for key, got in world.dispatcher.got.items()}
    late = {}
    for got in before.values():
        command = Command.model_validate(got[0])
        world.producer.command(command)
        if not command.fence.claim:
            continue  # nothing held the job, and nothing does
        more = {"id": f"{command.id}:late", "attempt": command.attempt + 7}
        world.producer.command(command.model_copy(update=more))
        late[more["id"]] = command
    consumer = KafkaConsumer(bootstrap_servers=world.kafka, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(OUTCOMES, n) for n in range(PARTITIONS)])
    ends: dict[str, Result | None] = {}

    def all_ended() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                outcome = OUTCOME.validate_json(record.value)
                if outcome.command_id in late and outcome.result is not None:
                    ends[outcome.command_id] = outcome.result
        return ends.keys() == late.keys()

    wait(all_ended, 30, lambda: f"no outcome of {sorted(late.keys() - ends.keys())}")
    consumer.close()
    assert set(ends.values()) == {Result.REFUSED}
    assert world.dispatcher.got == before
