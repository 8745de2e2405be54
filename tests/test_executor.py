"""Executors on a real broker and against real HTTP: each command once, or not at all."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.executor import Hook, Redeliver
from pipeline.executor.deliveries import Deliveries
from pipeline.executor.outcomes import started
from tests.support import PATIENCE
from tests.support.brokers import Broker, broker, kind
from tests.support.executors import PARTITIONS, Bed, command, eventually, metric, now
from tests.support.receivers import Answer, FakeWorker, Got, Receiver, answer
from tests.support.worker import WorkerProcess, free_port
from topics.apply import apply
from topics.catalogue import COMMANDS, DEAD_LETTERS, OUTCOMES, catalogue
from topics.models import DEAD_LETTER, Delivery
from topics.producer import Producer
from topics.reading import read
from topics.recovery import CommandKind, Seen

ROOT = Path(__file__).resolve().parents[1]
SECRET = b"s3cret"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with FakeWorker() as made:
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Says 204 unless a test says otherwise."""
    with Receiver(lambda got: answer(204)) as made:
        yield made


@pytest.fixture
def bed(running: Broker) -> Bed:
    return Bed(running.bootstrap)


# --- once, or not at all ----------------------------------------------------------------------


def test_what_may_not_be_done_has_no_effect(
    bed: Bed, worker: FakeWorker, receiver: Receiver
) -> None:
    good, late = command(), command(expires_at=now() - 1)
    changed, moved, over = command(), command(), command()
    dry, other = command(dry_run=True), command(CommandKind.CLOSE)
    fleet = command(CommandKind.WAKE_FLEET, job_key="")
    for each in (good, late, dry, other):
        worker.know(each.key)
    worker.know(changed.key, claim="c2", facts=5)
    worker.know(moved.key, facts=4)
    worker.know(over.key, status="completed")
    long = command(job_key="")
    only = frozenset(CommandKind) - {CommandKind.CLOSE}
    with bed.executing(Hook(receiver.url, SECRET), worker, only=only) as executor:
        bed.post(late, changed, moved, over, dry, other, b"{", long.model_copy(
            update={"id": "x" * 505}), good, good, fleet)  # fmt: skip
        eventually(lambda: metric(executor, "in_hand") == 0 and bed.committed())
        assert metric(executor, "commands_total", command="requeue", result="refused") == 3
        assert metric(executor, "commands_total", command="requeue", result="expired") == 1
        assert metric(executor, "commands_total", command="requeue", result="done") == 1
        assert metric(executor, "commands_total", command="close", result="not_ours") == 1
        assert metric(executor, "duplicates_total") == 1
        assert metric(executor, "dry_run_total") == 1
        assert metric(executor, "dead_letters_total", reason="not_json") == 1
        assert metric(executor, "dead_letters_total", reason="bad_envelope") == 1
        assert metric(executor, "last_command_age_seconds") > 0
        eventually(lambda: executor.status().ready and executor.status().lag == 0)
    assert bed.said(good) == ["started", "done"]
    assert bed.said(late) == ["expired"]
    assert bed.said(changed) == ["refused claim_changed"]
    assert bed.said(moved) == ["refused moved_on"]
    assert bed.said(over) == ["refused completed"]
    assert bed.said(fleet) == ["started", "done"]
    assert not bed.said(dry)
    assert not bed.said(other)
    assert {got.headers["idempotency-key"] for got in receiver.got} == {good.id, fleet.id}
    assert len(receiver.got) == 2
    first, last = (each for each in bed.outcomes() if each.command_id == good.id)
    assert [(each.kind, each.id) for each in (first, last)] == [
        ("command.started", f"{good.id}:started"),
        ("command.ended", f"{good.id}:ended"),
    ]
    for each in (first, last):
        assert (each.key, each.via, each.fence, each.stall) == (
            good.key, "hook", good.fence, good.reason,
        )  # fmt: skip
    keys = {record.key for record in bed.read(OUTCOMES) if good.id.encode() in record.value}
    assert keys == {good.key.encode()}
    letters = [read(DEAD_LETTER, record.value) for record in bed.read(DEAD_LETTERS)]
    assert sorted((each.stage, each.topic) for each in letters) == [("executor", COMMANDS)] * 2


def test_two_executors_do_each_command_once(
    running: Broker, worker: FakeWorker, receiver: Receiver
) -> None:
    """In groups of their own, so that both read every command."""
    first, second = Bed(running.bootstrap), Bed(running.bootstrap)
    many = [command() for _ in range(25)]
    for each in many:
        worker.know(each.key)
    hook = Hook(receiver.url, SECRET)
    with first.executing(hook, worker) as one, second.executing(hook, worker) as other:
        eventually(lambda: one.status().ready and other.status().ready)
        first.post(*many)
        eventually(lambda: len(receiver.got) >= len(many) and first.committed())
        eventually(second.committed)
        done = [metric(each, "commands_total", command="requeue", result="done")
                for each in (one, other)]  # fmt: skip
        assert sum(done) == len(many)
        assert metric(one, "duplicates_total") + metric(other, "duplicates_total") == len(many)
    keys = sorted(got.headers["idempotency-key"] for got in receiver.got)
    assert keys == sorted(each.id for each in many)


def test_what_waits_while_partitions_move_is_done_once(
    bed: Bed, worker: FakeWorker, receiver: Receiver
) -> None:
    """Another joins the group and leaves it, while commands wait for their jobs' states."""
    many = [command() for _ in range(20)]
    hook = Hook(receiver.url, SECRET)
    with bed.executing(hook, worker) as one:
        bed.post(*many)
        eventually(lambda: one.status().in_hand == len(many))
        with bed.executing(hook, worker) as other:
            eventually(lambda: one.status().in_hand + other.status().in_hand == len(many)
                       and other.status().in_hand)  # fmt: skip
        eventually(lambda: one.status().in_hand == len(many))
        for each in many:
            worker.know(each.key)
        eventually(bed.committed)
    keys = sorted(got.headers["idempotency-key"] for got in receiver.got)
    assert keys == sorted(each.id for each in many)


def test_what_somebody_began_and_left_is_not_done_again(
    bed: Bed, worker: FakeWorker, receiver: Receiver
) -> None:
    left, alone, old = command(), command(), command(occurred_at=now() - 7_200_000)
    for each in (left, alone, old):
        worker.know(each.key)
    bed.post(started(left, "hook", now()), topic=OUTCOMES)
    bed.post(started(old, "hook", now() - 7_100_000), topic=OUTCOMES)
    with bed.executing(Hook(receiver.url, SECRET), worker, lease_s=0.5):
        bed.post(left, old, alone)
        eventually(lambda: bed.said(left)[1:] and bed.said(old)[1:] and bed.said(alone)[1:])
    assert bed.said(left) == ["started", "failed interrupted"]
    assert bed.said(old) == ["started", "failed interrupted"]
    assert [got.headers["idempotency-key"] for got in receiver.got] == [alone.id]


# --- what is not known, and what does not work at once ----------------------------------------


def test_nothing_is_done_without_the_state(bed: Bed, receiver: Receiver) -> None:
    soon = command()
    with FakeWorker() as worker:
        # The worker is behind: it knows fewer facts than the command was judged by.
        worker.know(soon.key, facts=2)
        with bed.executing(Hook(receiver.url, SECRET), worker) as executor:
            bed.post(soon)
            eventually(lambda: metric(executor, "retries_total") > 4)
            assert not receiver.got
            assert not bed.said(soon)
            worker.know(soon.key)
            eventually(lambda: bed.said(soon)[1:])
    assert bed.said(soon) == ["started", "done"]
    assert len(receiver.got) == 1


def test_a_hook_is_tried_again_until_it_answers(bed: Bed, worker: FakeWorker) -> None:
    asked = command()
    replies: list[Answer] = [answer(503), None, answer(429, Retry_After="0"), answer(200)]

    def reply(got: Got) -> Answer:
        made = hmac.new(SECRET, got.body, hashlib.sha256).hexdigest()
        assert got.headers["x-runnerstream-signature-256"] == f"sha256={made}"
        return replies.pop(0)

    worker.know(asked.key)
    with Receiver(reply) as receiver, bed.executing(Hook(receiver.url, SECRET), worker):
        bed.post(asked)
        eventually(lambda: bed.said(asked)[1:])
    assert bed.said(asked) == ["started", "done"]
    assert [got.headers["idempotency-key"] for got in receiver.got] == [asked.id] * 4
    assert len({got.body for got in receiver.got}) == 1
    assert json.loads(receiver.got[0].body)["fence"] == {"claim": "c1", "rev": 3}


def test_the_fence_is_checked_before_every_attempt(bed: Bed, worker: FakeWorker) -> None:
    asked = command()
    worker.know(asked.key)

    def reply(got: Got) -> Answer:
        worker.know(asked.key, facts=4, claim="c2")
        return answer(503)

    with Receiver(reply) as receiver, bed.executing(Hook(receiver.url, SECRET), worker):
        bed.post(asked)
        eventually(lambda: bed.said(asked)[1:])
    assert bed.said(asked) == ["started", "refused claim_changed"]
    assert len(receiver.got) == 1


def test_stopping_ends_what_was_begun(bed: Bed, worker: FakeWorker) -> None:
    waiting, under_way = command(), command()
    for each in (waiting, under_way):
        worker.know(each.key)
    go = threading.Event()

    def reply(got: Got) -> Answer:
        if got.headers["idempotency-key"] == waiting.id:
            return answer(503, Retry_After="600")
        go.wait(5)
        return answer(200)

    with Receiver(reply) as receiver:
        with bed.executing(Hook(receiver.url, SECRET), worker, lease_s=900.0):
            bed.post(waiting, under_way)
            eventually(lambda: len(receiver.got) == 2)
            threading.Timer(0.5, go.set).start()
        # Ended, told and committed by now.
        assert bed.said(waiting) == ["started", "failed stopped"]
        assert bed.said(under_way) == ["started", "done"]
        assert bed.committed()


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.skipif(kind() != "kafka", reason="the embedded broker forgets everything")
def test_a_broker_that_goes_away_is_waited_for(
    running: Broker, bed: Bed, worker: FakeWorker
) -> None:
    """It dies while a command is done: that it ended is told when the broker is back."""
    asked, following = command(), command()

    def reply(got: Got) -> Answer:
        if got.headers["idempotency-key"] == asked.id:
            running.kill()
        return answer(200)

    for each in (asked, following):
        worker.know(each.key)
    with Receiver(reply) as receiver, bed.executing(Hook(receiver.url, SECRET), worker) as executor:
        bed.post(asked)
        eventually(lambda: not executor.status().ready)
        running.start()
        bed.post(following)
        eventually(lambda: len(receiver.got) == 2)
        eventually(lambda: bed.committed() and executor.status().ready)
        assert executor.status().alive
    assert bed.said(asked) == bed.said(following) == ["started", "done"]
    assert len(receiver.got) == 2


# --- as a process -----------------------------------------------------------------------------


@contextmanager
def process(bed: Bed, *options: str, worker: str = "http://127.0.0.1:1") -> Iterator[Any]:
    """``runnerstream executor``; killed at the end if it still runs."""
    env = {name: said for name, said in os.environ.items() if not name.startswith("RUNNERSTREAM_")}
    env |= {
        "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "RUNNERSTREAM_KAFKA": bed.bootstrap,
        "RUNNERSTREAM_SESSION_TIMEOUT": "2", "RUNNERSTREAM_REBALANCE_TIMEOUT": "2",
    }  # fmt: skip
    made = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "executor", "--group", bed.group,
         "--check", worker, *options],
        env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.kill()
        made.communicate()


def test_killed_between_begun_and_ended_it_is_not_sent_again(
    bed: Bed, worker: FakeWorker, tmp_path: Path
) -> None:
    asked, following = command(), command()
    victims: list[int] = []

    def reply(got: Got) -> Answer:
        if victims:
            os.kill(victims.pop(), signal.SIGKILL)
            return None
        return answer(200)

    for each in (asked, following):
        worker.know(each.key)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    with Receiver(reply) as receiver:
        options = ("--via", "hook", "--to", receiver.url, "--secret-file", str(secret),
                   "--lease", "1s")  # fmt: skip
        with process(bed, *options, worker=worker.url) as first:
            victims.append(first.pid)
            bed.post(asked)
            assert first.wait(60) == -signal.SIGKILL
        assert bed.said(asked) == ["started"]
        with process(bed, *options, worker=worker.url) as second:
            bed.post(following)
            eventually(lambda: bed.said(asked)[1:] and bed.said(following)[1:])
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 0
    assert bed.said(asked) == ["started", "failed interrupted"]
    assert bed.said(following) == ["started", "done"]
    assert [got.headers["idempotency-key"] for got in receiver.got] == [asked.id, following.id]


def test_print_shows_and_does_nothing(bed: Bed) -> None:
    late, dry = command(expires_at=now() - 1), command(CommandKind.CLOSE, dry_run=True)
    odd = command(evidence=(Seen(what="a\x1b[2Jb", at=None, clock=""),))
    bed.post(late, dry, odd, b"no command")
    with process(bed, "--via", "print", "--port", "0") as shown:
        lines = [shown.stdout.readline() for _ in range(3)]
        told = {word: line for line in lines for word in line.split() if word.startswith("github:")}
        port = next(
            found[1] for line in shown.stderr if (found := re.search(r"health on port (\d+)", line))
        )
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE * 10
        ) as page:
            metrics = page.read().decode()
        shown.send_signal(signal.SIGINT)
        rest, errors = shown.communicate(timeout=PATIENCE * 30)
        assert shown.returncode == 0
    assert rest == ""
    assert "Traceback" not in errors
    assert told.keys() == {late.key, dry.key, odd.key}
    assert told[late.key].endswith("expired\n")
    assert "requeue" in told[late.key]
    assert "minted, never started" in told[late.key]
    assert "claim c1, rev 3" in told[late.key]
    assert told[dry.key].endswith("dry run\n")
    assert "a\\x1b[2Jb" in told[odd.key]
    assert 'executor_commands_total{command="requeue",result="shown"} 2.0' in metrics
    assert not bed.outcomes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--via", "hook"), "--via hook needs --to and --secret-file"),
        (("--via", "hook", "--to", "ftp://x", "--secret-file", __file__), "--to is no address"),
        (("--via", "hook", "--to", "http://x", "--secret-file", os.devnull), "is empty: anybody"),
        (("--via", "github", "--allow", "all"), "--allow names all"),
        (("--via", "github", "--allow", "rerun_job"), "there is no token for GitHub"),
    ],
)
def test_wrong_usage_is_told(options: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(main, ["executor", *options], env={"GITHUB_TOKEN": None})
    assert result.exit_code == 2
    assert says in result.output


# --- redeliver --------------------------------------------------------------------------------


def queued(job_key: str, action: str = "queued", padding: str = "é") -> bytes:
    job = {"id": int(job_key.rpartition(":")[2]), "run_id": 99, "status": action, "name": padding}
    # Bytes that no encoder of ours would write.
    return json.dumps(
        {"action": action, "workflow_job": job}, indent=3, ensure_ascii=False
    ).encode()


def headers_of(body: bytes, delivery: str, secret: bytes = b"provider") -> dict[str, str]:
    return {
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": delivery,
        "X-GitHub-Hook-ID": "7",
        "Content-Type": "application/json; charset=utf-8",
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest(),
    }


def test_the_first_delivery_is_sent_once_more_byte_for_byte(bed: Bed, worker: FakeWorker) -> None:
    at = now()
    raw, envelope, none, release = (
        command(first_seen=at), command(first_seen=at), command(first_seen=at),
        command(CommandKind.RELEASE_CLAIM, first_seen=at),
    )  # fmt: skip
    for each in (raw, envelope, none, release):
        worker.know(each.key)
    enveloped = queued(envelope.key)
    with Producer(bed.bootstrap) as producer:
        forged = queued(raw.key, padding="forged")
        producer.webhook(headers_of(forged, "f-1", b"guessed"), forged)
        early = queued(raw.key, "waiting")
        producer.webhook(headers_of(early, "w-1"), early)
        # Another job's that names this one's id.
        other = queued("github:github.com:1", padding=raw.key.rpartition(":")[2])
        producer.webhook(headers_of(other, "o-1"), other)
        body = queued(raw.key)
        producer.webhook(headers_of(body, "d-1") | {"Authorization": "x"}, body)
        producer.post(
            Delivery(
                id="d-2",
                kind="github.workflow_job",
                source="github",
                occurred_at=at,
                received_at=at,
                key=envelope.key,
                headers=headers_of(enveloped, "d-2"),
                payload=enveloped.decode(),
            )
        )  # fmt: skip
        producer.webhook(headers_of(queued(none.key), "d-3", b"guessed"), queued(none.key))

    def autoscaler(got: Got) -> Answer:
        """What checks as GitHub says: HMAC of the raw body."""
        made = "sha256=" + hmac.new(SECRET, got.body, hashlib.sha256).hexdigest()
        right = hmac.compare_digest(made, got.headers.get("x-hub-signature-256", ""))
        return answer(200 if right and got.headers["x-github-event"] == "workflow_job" else 401)

    options = {"bootstrap_servers": bed.bootstrap}
    found = Deliveries(options, "test-search", {"github": (b"provider",)})
    with (
        Receiver(autoscaler) as receiver,
        bed.executing(Redeliver(receiver.url, SECRET, found), worker),
    ):
        bed.post(raw, envelope, none, release)
        eventually(lambda: all(bed.said(each) for each in (raw, envelope, none, release)))
        eventually(bed.committed)
    assert bed.said(raw) == ["started", "done"]
    assert bed.said(envelope) == ["started", "done"]
    assert bed.said(none) == ["started", "cannot no_delivery"]
    assert bed.said(release) == ["cannot not_for_redeliver"]
    got = {each.headers["x-github-delivery"]: each for each in receiver.got}
    assert {name: each.body for name, each in got.items()} == {"d-1": body, "d-2": enveloped}
    assert len(receiver.got) == 2
    for each in got.values():
        assert each.headers["x-github-hook-id"] == "7"
        assert each.headers["content-type"] == "application/json; charset=utf-8"
        assert each.headers["user-agent"] == "GitHub-Hookshot/runnerstream"
        assert "authorization" not in each.headers


# --- as a role of a worker ------------------------------------------------------------------


def test_beside_another_role_it_executes_once_and_says_how_it_does(
    running: Broker, tmp_path: Path
) -> None:
    bed = Bed(running.bootstrap, "doing-executor-hook")
    asked = command()
    port, secret = free_port(), tmp_path / "secret"
    secret.write_bytes(SECRET)
    with FakeWorker() as fold, Receiver(lambda got: answer(204)) as receiver:
        fold.know(asked.key)
        worker = WorkerProcess(
            running.bootstrap, app_id="doing", executor_via="hook", executor_to=receiver.url,
            executor_secret_file=secret, executor_port=port, partitions=PARTITIONS,
            # Whom its fence asks is known from this option only.
            command=["-m", "pipeline.cli", "worker", "--role", "executor,prober",
                     "--web-port", fold.url.rpartition(":")[2]],
        )  # fmt: skip
        worker._given["prober_port"] = str(worker.port)
        child = WorkerProcess(running.bootstrap)
        child.port = port
        with worker:

            def ready() -> bool:
                try:
                    return bool(child.get("/readyz")[1]["ready"])
                except OSError:
                    return False

            eventually(ready)
            bed.post(asked)
            eventually(lambda: bed.said(asked)[1:])
            status = child.get("/readyz")[1]
            assert status["deployment"]["group"] == bed.group
            assert (status["via"], status["lag"] in (0, 1, None)) == ("hook", True)
            told = child.get("/metrics", accept="text/plain")[1]
            assert 'executor_commands_total{command="requeue",result="done"} 1.0' in told
            assert worker.stop() == 0
        with pytest.raises(OSError, match="refused"):
            child.get("/healthz")
    assert bed.said(asked) == ["started", "done"]
    assert [got.headers["idempotency-key"] for got in receiver.got] == [asked.id]
