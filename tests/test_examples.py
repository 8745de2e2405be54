"""The programs of examples/, run as a newcomer runs them: real broker, real worker."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.executor import Executor, ExecutorConfig, Hook, States
from pipeline.executor.via import Verdict
from tests.support import PATIENCE, brokers
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import COMMANDS, catalogue
from topics.models import LifecycleEvent, LifecycleKind, job_key
from topics.producer import Producer
from topics.recovery import Command, CommandKind, Fence, Result, StallKind, command_id

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PARTITIONS = 2


def run(name: str, *arguments: str) -> list[str]:
    """The lines that an example prints. It must succeed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE * 60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, WorkerProcess]]:
    """A broker's address, and a worker that reads it."""
    with brokers.broker(tmp_path_factory.mktemp("broker")) as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=PARTITIONS))
        with WorkerProcess(running.bootstrap, partitions=PARTITIONS) as process:
            process.wait_ready(90)
            yield running.bootstrap, process


def test_what_is_posted_is_found(worker: tuple[str, WorkerProcess]) -> None:
    brokers_, process = worker
    (hooked,) = run("post_a_webhook.py", brokers_)
    (dispatched,) = run("dispatcher.py", brokers_, "4711")
    assert dispatched == "github:github.com:4711"
    for key, status in ((hooked, "queued"), (dispatched, "completed")):

        def reached(key: str = key, status: str = status) -> bool:
            code, answer = process.get(f"/jobs/{key}")
            return code == 200 and answer["status"] == status

        process.wait(reached, 60, f"show {key} {status}")

    live = [line.split() for line in run("query_api.py", process.url)]
    assert [(status, fleet, key) for _, status, fleet, key in live] == [("queued", "linux", hooked)]
    every = run("query_api.py", process.url + "/", "state=any", "limit=1")
    assert [line.split()[1:] for line in every] == [
        ["queued", "linux", hooked],
        ["completed", "linux-small", dispatched],
    ]


def test_a_runner_host_tells_all(worker: tuple[str, WorkerProcess]) -> None:
    brokers_, process = worker
    *keys, last = run("runner_host.py", brokers_, "2")
    assert len(keys) == 2
    assert last.startswith("11 of 11 events delivered, in ")
    for key in keys:

        def completed(key: str = key) -> bool:
            code, answer = process.get(f"/jobs/{key}")
            return code == 200 and answer["status"] == "completed" and answer["runner"] == "vm-21"

        process.wait(completed, 60, f"show {key} completed")


@contextmanager
def hook(directory: Path, claims: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """examples/dispatcher_hook.py in a process of its own; its URL, and its books."""
    secret, books = directory / "secret", directory / "books.json"
    secret.write_text("s3cret\n")
    books.write_text(json.dumps({"claims": claims}))
    process = subprocess.Popen(
        [sys.executable, ROOT / "examples/dispatcher_hook.py", "0", secret, books],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), books
    finally:
        process.terminate()
        process.communicate()


def command(key: str, claim: str, rev: int) -> Command:
    now = int(time.time() * 1000)
    return Command(
        id=command_id(CommandKind.REQUEUE, key, 1), source="test", occurred_at=now,
        received_at=now, key=key, command=CommandKind.REQUEUE, fleet="linux-small", job_key=key,
        attempt=1, n=1, reason=StallKind.ORPHAN, fence=Fence(claim=claim, rev=rev),
        expires_at=now + 60_000, since=now - 400_000, opened_at=now,
    )  # fmt: skip


def test_a_command_reaches_the_books(worker: tuple[str, WorkerProcess], tmp_path: Path) -> None:
    """A job of a real worker, an executor, and the receiver that integrators copy."""
    brokers_, process = worker
    key, at = job_key("github", "github.com", "4712"), int(time.time() * 1000)
    with Producer(brokers_) as producer:
        for kind in (LifecycleKind.JOB_QUEUED, LifecycleKind.JOB_CLAIMED):
            producer.post(
                LifecycleEvent(
                    id=f"{kind}/4712", kind=kind, source="test", occurred_at=at, received_at=at,
                    key=key, job_id="4712", claim="lease-1", fleet="linux-small",
                )
            )  # fmt: skip
    process.wait(lambda: process.get(f"/jobs/{key}")[1].get("claims"), 60, f"show {key} claimed")
    state = process.get(f"/jobs/{key}")[1]
    stop = threading.Event()
    with hook(tmp_path, {key: "lease-1", "other": "lease-2"}) as (url, books):
        executor = Executor(
            ExecutorConfig({"bootstrap_servers": brokers_}, "test-example"), stop,
            Hook(url, b"s3cret"), States(process.url),
        )  # fmt: skip
        thread = threading.Thread(target=executor.run)
        thread.start()
        with Producer(brokers_) as producer:
            asked = command(key, "lease-1", state["facts"])
            producer.send(COMMANDS, key.encode(), asked.model_dump_json().encode())
        try:
            process.wait(lambda: "wanted" in json.loads(books.read_text()), 60, "be commanded")
        finally:
            stop.set()
            thread.join(30)
        # The same again, by who knows nothing of the first time; and what changed hands.
        again = Hook(url, b"s3cret")
        assert again.act(asked, None) == Verdict(Result.DONE)
        changed = asked.model_copy(update={"id": "another", "job_key": "other"})
        assert again.act(changed, None) == Verdict(Result.REFUSED, "claim_changed")
        late = asked.model_copy(update={"id": "late", "expires_at": at})
        assert again.act(late, None) == Verdict(Result.REFUSED, "expired")
        quarantine = asked.model_copy(update={"id": "q", "command": "quarantine", "job_key": "x"})
        told = quarantine.model_copy(update={"fence": Fence()})
        assert again.act(told, None) == Verdict(Result.CANNOT, "no_quarantine")
        assert Hook(url, b"guessed").act(asked, None) == Verdict(Result.CANNOT, "http_401")
    found = json.loads(books.read_text())
    assert found["claims"] == {"other": "lease-2"}
    assert found["wanted"] == [key]


def test_a_body_from_a_file_is_that_job(worker: tuple[str, WorkerProcess], tmp_path: Path) -> None:
    brokers_, process = worker
    body = tmp_path / "body.json"
    body.write_bytes((ROOT / "tests/data/github/workflow_job.completed.success.json").read_bytes())
    (key,) = run("post_a_webhook.py", brokers_, str(body))
    process.wait(lambda: process.get(f"/jobs/{key}")[0] == 200, 60, f"know {key}")
    assert process.get(f"/jobs/{key}")[1]["conclusion"] == "success"


def test_examples_are_short_and_say_how_they_are_run() -> None:
    assert {path.name for path in EXAMPLES} == {
        "bridge.py", "dispatcher.py", "dispatcher_hook.py", "post_a_webhook.py", "query_api.py",
        "runner_host.py",
    }  # fmt: skip
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        # The other side of an executor checks more than the others.
        most = 200 if path.name == "dispatcher_hook.py" else 60
        assert len(text.splitlines()) < most, path.name
        said = ast.get_docstring(ast.parse(text)) or ""
        assert f"python examples/{path.name} " in said, path.name
