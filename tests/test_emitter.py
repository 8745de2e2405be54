"""The batching producer of hosts: it never gets in their way, and real brokers get everything."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from kafka import KafkaConsumer, TopicPartition
from kafka.producer.sender import Sender

from pipeline.agents.normalise import lifecycle_facts
from pipeline.cli import main
from tests.support import PATIENCE, brokers
from topics import emitter as module
from topics.apply import apply
from topics.attempts import Attempts
from topics.batching import Batching, Drop, Parcel, Trigger
from topics.catalogue import LIFECYCLE, catalogue
from topics.emitter import Emitter
from topics.models import LifecycleEvent, LifecycleKind, RunnerRef, Unreadable
from topics.producer import Producer

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "127.0.0.1:1"
PARTITIONS = 2
#: How long something may take that has to happen. Seconds.
LONG = 15 * PATIENCE
#: Goes only when asked, and comes back quickly.
ASKED = Batching(
    interval_s=900, max_latency_s=900, urgent_s=900, batch_records=100_000, backoff_s=0.05,
    backoff_max_s=0.2,
)  # fmt: skip


def until(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)


def waiting(emitter: Emitter) -> list[LifecycleEvent]:
    """What it holds, as it would be sent."""
    queues: Any = emitter._batcher._waiting
    return [
        LifecycleEvent.model_validate_json(parcel.value)
        for parcel in sorted((*queues[True], *queues[False]), key=lambda each: each.seq)
    ]


@pytest.fixture
def idle() -> Iterator[Emitter]:
    """An emitter whose Kafka is nowhere."""
    emitter = Emitter(
        NOWHERE, source="host-1", fleet="linux", attempt_s=0.2, batching=ASKED,
        secrets=["hunter2 and more"], sasl_plain_password="pass-word", close_s=0,
    )  # fmt: skip
    yield emitter
    emitter.close()


# --- without a broker -----------------------------------------------------------------------------


def test_an_event_needs_no_more_than_what_is_known(idle: Emitter) -> None:
    assert idle.emit("job.claimed", job_id=4711, claim="lease-1", runner="vm-1", repo="acme/shop")
    assert idle.emit(
        LifecycleKind.RUNNER_IDLE, runner=RunnerRef(id=7, name="vm-2"), fleet="big",
        source="another", occurred_at=1_790_000_000_000,
    )  # fmt: skip
    assert idle.emit("host.gone", runner_host="rack-7")
    claimed, waits, gone = waiting(idle)
    assert (claimed.key, claimed.job_id, claimed.source) == (
        "github:github.com:4711", "4711", "host-1",
    )  # fmt: skip
    assert (claimed.fleet, claimed.runner.name, claimed.repo) == ("linux", "vm-1", "acme/shop")
    assert claimed.id == f"job.claimed/github:github.com:4711/lease-1/{claimed.occurred_at}"
    assert (waits.key, waits.fleet, waits.runner.id, waits.source) == ("vm-2", "big", 7, "another")
    assert waits.occurred_at == 1_790_000_000_000 < waits.received_at
    assert gone.key == "rack-7"


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("job.nonsense", {"job_id": 1}),
        ("job.started", {}),
        ("job.started", {"job_id": "a:b"}),
        ("job.started", {"job_id": None}),
        ("job.started", {"job_id": 1, "host": 7}),
        ("job.started", {"job_id": 1, "runner": 7}),
        ("job.started", {"jobid": 1}),
        ("job.started", {"job_id": Odd()}),
        ("job.started", {"job_id": 1, "runner": Odd()}),
        ("job.started", {"job_id": 1, "runner": "\ud800"}),
        ("job.started", {"job_id": 1, "runner": "x" * 300}),
        ("job.started", {"job_id": 1, "occurred_at": 1_790_000_000}),
        ("job.started", {"job_id": 1, "host": "h" * 400}),
        ("job.completed", {"job_id": 1, "conclusion": "nearly"}),
        (Odd(), {}),
    ],
)
def test_what_makes_no_event_is_counted_and_no_exception(
    idle: Emitter, kind: Any, said: dict[str, Any]
) -> None:
    assert idle.emit(kind, **said) is False
    assert idle.post(None) is False  # type: ignore[arg-type]
    assert idle.stats().dropped[Drop.INVALID] == idle.stats().offered == 2
    with pytest.raises((ValueError, RuntimeError)):
        idle.event(kind, **said)


def test_what_is_taken_is_what_the_pipeline_understands(idle: Emitter) -> None:
    fields = {"job_id": "1", "claim": "c", "fleet": "f", "runner": "vm", "runner_host": "h"}
    taken = 0
    for kind, given in itertools.product(LifecycleKind, itertools.product((0, 1), repeat=5)):
        said = {name: fields[name] if has else "" for name, has in zip(fields, given, strict=True)}
        value = {
            **said, "id": "x", "kind": kind, "source": "s", "key": "k", "runner": {"name": "vm"},
            "occurred_at": 1_790_000_000_000, "received_at": 1_790_000_000_000,
        }  # fmt: skip
        value["runner"] = {"name": said["runner"]}
        try:
            lifecycle_facts(json.dumps(value).encode())
            understood = True
        except Unreadable:
            understood = False
        assert idle.emit(kind, **said) is understood, (kind, said)  # type: ignore[arg-type]
        taken += understood
    assert taken == idle.stats().waiting > 90


def test_secrets_are_masked_or_the_event_is_not_told(idle: Emitter) -> None:
    idle.mask("told later")
    said = "aHVudGVyMiBhbmQgbW9yZQ== and told+later, pass%2Dword"
    assert idle.emit("claim.released", job_id=1, claim="c", reason=said)
    (event,) = waiting(idle)
    assert event.reason == "*** and ***, ***"
    # Two runners called *** would be one.
    assert idle.emit("job.started", job_id=1, runner="vm hunter2 and more") is False
    assert idle.post(event.model_copy(update={"id": "hunter2 and more"})) is False
    assert idle.stats().dropped[Drop.SECRET] == 2


def test_nothing_but_options_that_exist_and_may_be_set() -> None:
    for wrong in ({"linger_ms": 1}, {"retries": 3}, {"nonsense": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Emitter(NOWHERE, source="s", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attempt_s"):
        Emitter(NOWHERE, source="s", attempt_s=0)
    with pytest.raises(ValueError, match="'nowhere:' is not the address"):
        Emitter("nowhere:", source="s")


def test_an_outage_is_told_once_and_losses_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TELL_EVERY_S", 0.5)
    small = Batching(
        max_records=3, max_latency_s=0.01, backoff_s=0.01, backoff_max_s=0.02, urgent_s=0
    )
    with caplog.at_level(logging.WARNING, logger="topics.emitter"):
        emitter = Emitter(NOWHERE, source="s", fleet="f", batching=small, close_s=0)
        emitter.keep_alive("vm-1")
        until(lambda: emitter.stats().failed_requests > 5, "failures")
        for number in range(9):
            emitter.emit("job.started", job_id=number)
        emitter.emit("job.started")
        until(lambda: "invalid" in caplog.text, "the losses to be told")
        emitter.close()
        until(lambda: "unsent" in caplog.text, "the end to be told")
    assert "refused" in emitter.trouble
    told = [record.message for record in caplog.records]
    assert sum("events are not delivered" in each for each in told) == 1
    assert len(told) <= 5
    stats = emitter.stats()
    assert stats.dropped[Drop.OVERFLOW] == 7
    assert stats.dropped[Drop.UNSENT] == 3


def test_a_long_outage_costs_no_open_files() -> None:
    attempts = Attempts(NOWHERE, 1, 1_000, lambda: None, {})
    parcel = Parcel(1, 0.0, LIFECYCLE, b"k", b"v", False, None)
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(30):
        failed, refused, why = attempts.send([parcel], None)
        assert (failed, refused) == ([parcel], [])
        assert isinstance(why, OSError)
    assert process.num_fds() <= before


def test_after_the_end_nothing_is_taken() -> None:
    never = Emitter(NOWHERE, source="s")
    assert never.close() == never.close(5)
    assert never.emit("job.started", job_id=1) is False
    never.keep_alive("vm")
    assert never.flush()
    assert never.stats().dropped[Drop.CLOSED] == 1
    assert never._thread is None


# --- with one -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    with brokers.broker(tmp_path_factory.mktemp("broker")) as running:
        make_topics(running)
        # A new partition has no leader for some milliseconds, and counted are requests.
        ready = Emitter(NOWHERE, source="ready").event("job.queued", job_id=1)
        with Producer(running.bootstrap) as producer:
            for partition in range(PARTITIONS):
                value = ready.model_dump_json(exclude_defaults=True).encode()
                producer.send(LIFECYCLE, None, value, partition=partition)
        yield running


def make_topics(running: brokers.Broker) -> None:
    apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=PARTITIONS))


def told(running: brokers.Broker, source: str) -> list[LifecycleEvent]:
    """What is on the topic of one source."""
    where = [TopicPartition(LIFECYCLE, p) for p in range(PARTITIONS)]
    # Whole batches: the embedded broker's end may lie within the last.
    consumer = KafkaConsumer(
        bootstrap_servers=running.bootstrap, auto_offset_reset="earliest", max_poll_records=100_000
    )
    try:
        consumer.assign(where)
        ends = consumer.end_offsets(where)
        found = []
        while any(consumer.position(tp) < ends[tp] for tp in where):
            for records in consumer.poll(timeout_ms=500).values():
                found += [LifecycleEvent.model_validate_json(each.value) for each in records]
    finally:
        consumer.close()
    return [event for event in found if event.source == source]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many produce requests kafka-python makes."""
    counted: Counter[str] = Counter()
    real = Sender._create_produce_requests

    def counting(self: Sender, collated: Any) -> Any:
        made = real(self, collated)
        counted["produce"] += len(made)
        return made

    monkeypatch.setattr(Sender, "_create_produce_requests", counting)
    return counted


def test_what_is_told_arrives_in_one_request(
    broker: brokers.Broker, requests: Counter[str]
) -> None:
    with Emitter(broker.bootstrap, source="one", fleet="f", batching=ASKED) as emitter:
        for number in range(200):
            assert emitter.emit("job.started", job_id=number)
    assert requests["produce"] == 1
    stats = emitter.stats()
    assert (stats.delivered, stats.requests[Trigger.CLOSE]) == (200, 1)
    assert sorted(int(event.job_id) for event in told(broker, "one")) == list(range(200))


def test_more_than_a_request_holds_goes_in_several(
    broker: brokers.Broker, requests: Counter[str]
) -> None:
    small = Batching(request_records=30, batch_records=10_000, request_bytes=8_000)
    with Emitter(broker.bootstrap, source="several", fleet="f", batching=small) as emitter:
        for number in range(100):
            emitter.emit("job.started", job_id=number, urgent=False)
        assert emitter.flush(LONG)
        assert len(told(broker, "several")) == 100
    assert sum(emitter.stats().requests.values()) == requests["produce"] > 3


def test_heartbeats_go_on_and_end(broker: brokers.Broker) -> None:
    lively = Batching(heartbeat_s=0.05)
    with Emitter(broker.bootstrap, source="alive", fleet="f", batching=lively) as emitter:
        emitter.keep_alive("vm-1", runner_host="rack-1")
        emitter.keep_alive("vm-2", fleet="g")
        until(lambda: emitter.stats().requests[Trigger.HEARTBEAT] > 4, "heartbeats")
        emitter.let_go("vm-1")
        emitter.emit("runner.gone", runner="vm-1")
        so_far = emitter.stats().requests[Trigger.HEARTBEAT]
        until(lambda: emitter.stats().requests[Trigger.HEARTBEAT] > so_far + 2, "more of them")
    events = told(broker, "alive")
    mine = [event.kind.value for event in events if event.runner.name == "vm-1"]
    assert len(mine) > 3
    assert mine == ["runner.heartbeat"] * (len(mine) - 1) + ["runner.gone"]
    others = [event for event in events if event.runner.name == "vm-2"]
    assert {(event.fleet, event.kind.value) for event in others} == {("g", "runner.heartbeat")}
    assert len(others) > len(mine) - 1


def test_kafka_that_is_away_at_the_start_and_goes_away_later(tmp_path: Path) -> None:
    with brokers.broker(tmp_path) as doomed:
        doomed.kill()
        emitter = Emitter(
            doomed.bootstrap, source="patient", fleet="f", batching=ASKED, attempt_s=2
        )
        threads = threading.active_count()
        for number in range(300):
            assert emitter.emit("job.started", job_id=number)
        assert not emitter.flush(0.5)
        assert emitter.trouble
        doomed.start()
        make_topics(doomed)
        assert emitter.flush(LONG)
        assert {int(event.job_id) for event in told(doomed, "patient")} == set(range(300))
        assert not emitter.trouble
        doomed.kill()
        for number in range(300, 600):
            assert emitter.emit("job.started", job_id=number)
        assert not emitter.flush(0.5)
        doomed.start()
        make_topics(doomed)
        assert emitter.flush(LONG)
        assert {int(event.job_id) for event in told(doomed, "patient")} >= set(range(300, 600))
        # The thread, and one of the client that works; none of those that were given up.
        assert threading.active_count() <= threads + 2
        stats = emitter.close()
    assert stats.delivered == stats.offered == 600


@pytest.fixture
def stopped(broker: brokers.Broker) -> Iterator[Callable[[], None]]:
    """Lets the broker stand still, as one does that is overloaded; ends with the test."""

    def stop() -> None:
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)

    yield stop
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGCONT)


def test_kafka_that_is_slow(broker: brokers.Broker, stopped: Callable[[], None]) -> None:
    emitter = Emitter(broker.bootstrap, source="slow", fleet="f", batching=ASKED, attempt_s=0.5)
    emitter.emit("job.started", job_id=0)
    assert emitter.flush(LONG)
    stopped()
    asked = threading.Thread(target=emitter.flush, args=(LONG,))
    emitter.emit("job.started", job_id=1)
    asked.start()
    # A thread of the emitter's is held up; the host is not.
    for number in range(2, 1_000):
        assert emitter.emit("job.started", job_id=number)
    until(lambda: emitter.stats().failures >= 2, "attempts that fail")
    assert emitter.stats().oldest_s > 0
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGCONT)
    assert emitter.flush(LONG)
    asked.join(LONG)
    emitter.close()
    assert {int(event.job_id) for event in told(broker, "slow")} == set(range(1_000))


def test_the_end_has_a_limit(broker: brokers.Broker, stopped: Callable[[], None]) -> None:
    emitter = Emitter(broker.bootstrap, source="limit", fleet="f", batching=ASKED, attempt_s=600)
    emitter.emit("job.started", job_id=0)
    assert emitter.flush(LONG)
    stopped()
    for number in range(1, 4):
        emitter.emit("job.started", job_id=number)
    # One attempt would take ten minutes, and this one is under way.
    assert not emitter.flush(0.1)
    until(lambda: emitter.stats().requests[Trigger.ASKED] == 2, "the attempt")
    stats = emitter.close(0.2)
    assert (stats.delivered, stats.dropped[Drop.UNSENT], stats.waiting) == (1, 3, 0)


async def test_what_is_cancelled_is_told_all_the_same(broker: brokers.Broker) -> None:
    entered = asyncio.Event()

    async def host() -> None:
        async with Emitter(broker.bootstrap, source="async", fleet="f", batching=ASKED) as emitter:
            emitter.emit("job.started", job_id=1)
            assert await emitter.aflush(LONG)
            emitter.emit("job.completed", job_id=1, conclusion="cancelled")
            entered.set()
            await asyncio.sleep(LONG)

    task = asyncio.create_task(host())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [event.kind.value for event in told(broker, "async")] == ["job.started", "job.completed"]
    # Whoever waits for the end may go, too.
    emitter = Emitter(broker.bootstrap, source="async-2", fleet="f", batching=ASKED)
    emitter.emit("job.started", job_id=2)
    closing = asyncio.create_task(emitter.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (await emitter.aclose()).delivered == 1


ENDS = {
    "in order": "",
    "by an exception": "raise ZeroDivisionError",
    "and its child": """
import os
child = os.fork()
if not child:
    assert not emitter.stats().offered
    emitter.emit("job.completed", job_id=2)
    emitter.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_program_that_ends_without_closing_tells_the_rest(
    broker: brokers.Broker, how: str
) -> None:
    program = f"""
from topics.emitter import Emitter
emitter = Emitter({broker.bootstrap!r}, source={how!r}, fleet="f")
emitter.emit("job.started", job_id=1)
assert emitter.flush(30)
emitter.emit("job.claimed", job_id=1, claim="c")
{ENDS[how]}
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=LONG, check=False,
    )  # fmt: skip
    assert ("ZeroDivisionError" in result.stderr) is (result.returncode != 0), result.stderr
    kinds = Counter(event.kind.value for event in told(broker, how))
    expected = ["job.started", "job.claimed"]
    # Each once: what waited at the fork is the parent's.
    assert kinds == Counter(expected + ["job.completed"] * (how == "and its child"))


def test_many_hosts_make_few_requests(broker: brokers.Broker, requests: Counter[str]) -> None:
    """Hosts with three jobs each: a life of a job is seven events, which come as they come."""
    hosts = 200
    lives = [
        ("job.claimed", {"claim": "c"}), ("job.minted", {"claim": "c"}), ("job.started", {}),
        ("runner.heartbeat", {}), ("runner.heartbeat", {}), ("job.completed", {}),
        ("claim.released", {"claim": "c"}),
    ]  # fmt: skip
    emitters = [
        Emitter(broker.bootstrap, source="fleet", fleet="f", close_s=LONG) for _ in range(hosts)
    ]
    for kind, said in lives:
        for host, emitter in enumerate(emitters):
            for job in range(3):
                more: dict[str, Any] = (
                    {} if kind.startswith("runner") else {"job_id": host * 3 + job}
                )
                assert emitter.emit(kind, runner=f"vm-{host}-{job}", **more, **said)
    for emitter in emitters:
        emitter._begin_close(None)
    events = sum(emitter.close().delivered for emitter in emitters)
    assert events == hosts * 3 * len(lives) == len(told(broker, "fleet"))
    assert requests["produce"] == sum(
        sum(emitter.stats().requests.values()) for emitter in emitters
    )
    assert requests["produce"] * 4 <= events


# --- from a shell ---------------------------------------------------------------------------------


def emit(broker: str, *arguments: str, stdin: str | None = None, **env: str) -> Result:
    settings: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    return CliRunner().invoke(
        main, ["emit", "--source", "shell", *arguments], input=stdin,
        env={**settings, "RUNNERSTREAM_KAFKA": broker, **env},
    )  # fmt: skip


def test_emit(broker: brokers.Broker) -> None:
    result = emit(
        broker.bootstrap, "claim.released", "--job", "0", "--claim", "c", "--reason", "by hunter2!",
        "--mask-env", "SECRET", "--mask-env", "NONE", "--at", "1790000000000", SECRET="hunter2!",
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "1 event told\n"), result.output
    (event,) = told(broker, "shell")
    assert (event.job_id, event.claim, event.reason) == ("0", "c", "by ***")
    assert event.occurred_at == 1_790_000_000_000
    lines = [
        {"kind": "runner.idle", "runner": {"name": "vm-1", "id": 7}, "fleet": "mine"},
        {"kind": "job.started", "job_id": 5, "runner": "vm-1", "source": "shell"},
        "nothing", [], {"job_id": 1}, {"kind": "job.nonsense"}, {"kind": "job.started", "job": 1},
        {"kind": "job.completed", "job_id": 5, "conclusion": "nearly"},
        {"kind": "job.completed", "job_id": 5, "conclusion": "success"},
    ]  # fmt: skip
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    result = emit(broker.bootstrap, "--fleet", "f", stdin=f"{text}\n\n")
    assert result.exit_code == 1
    assert result.stdout == "3 events told\n"
    said = re.findall(r"error: line (\d): (.*)", result.stderr)
    assert [int(number) for number, _ in said] == [3, 4, 5, 6, 7, 8]
    assert said[0][1] == "not JSON"
    assert said[4][1].startswith("job.started has no job; it has job_id, ")
    assert "error: 6 lines made no event" in result.stderr
    assert {(event.kind.value, event.fleet) for event in told(broker, "shell")} == {
        ("claim.released", ""), ("job.completed", "f"), ("job.started", "f"),
        ("runner.idle", "mine"),
    }  # fmt: skip


def test_emit_says_what_is_wrong(broker: brokers.Broker) -> None:
    for arguments, code, says in (
        (["job.nonsense"], 2, "job.nonsense"),
        (["job.claimed", "--job", "1"], 2, "job.claimed needs a claim"),
        (["runner.idle", "--runner", "vm"], 2, "runner.idle needs a fleet and a runner"),
        (["job.started", "--job", "1", "--timeout", "0.2s"], 3, "1 not delivered within 0.2 s"),
    ):
        result = emit(NOWHERE, *arguments)
        assert (result.exit_code, says in result.output) == (code, True), result.output
    secret = ["job.started", "--job", "1", "--runner", "hunter2!", "--mask-env", "SECRET"]
    result = emit(broker.bootstrap, *secret, SECRET="hunter2!")
    assert result.exit_code == 1
    assert "error: 1 secret" in result.stderr


def test_emit_that_is_ended_ends_in_order(broker: brokers.Broker) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "emit", "--source", "ended"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RUNNERSTREAM_KAFKA": broker.bootstrap},
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdin is not None
    command.stdin.write('{"kind": "job.started", "job_id": 9}\n')
    command.stdin.flush()
    # Each line goes by itself, whether or not the next one comes.
    until(lambda: told(broker, "ended"), "the first line")
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=LONG)
    assert (command.returncode, errors) == (143, "")
