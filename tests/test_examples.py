"""The programs of examples/, run as a newcomer runs them: real broker, real worker."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import brokers
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PARTITIONS = 2


def run(name: str, *arguments: str) -> list[str]:
    """The lines that an example prints. It must succeed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False,
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


def test_a_body_from_a_file_is_that_job(worker: tuple[str, WorkerProcess], tmp_path: Path) -> None:
    brokers_, process = worker
    body = tmp_path / "body.json"
    body.write_bytes((ROOT / "tests/data/github/workflow_job.completed.success.json").read_bytes())
    (key,) = run("post_a_webhook.py", brokers_, str(body))
    process.wait(lambda: process.get(f"/jobs/{key}")[0] == 200, 60, f"know {key}")
    assert process.get(f"/jobs/{key}")[1]["conclusion"] == "success"


def test_examples_are_short_and_say_how_they_are_run() -> None:
    assert {path.name for path in EXAMPLES} == {
        "bridge.py", "dispatcher.py", "post_a_webhook.py", "query_api.py",
    }  # fmt: skip
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60, path.name
        said = ast.get_docstring(ast.parse(text)) or ""
        assert f"python examples/{path.name} " in said, path.name
