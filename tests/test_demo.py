"""``runnerstream demo`` as people run it: up, checked against the truth, stopped, started again,
killed."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.commands.demo import ALIASES, MEMORY_MIB, USUAL_S, Demo
from pipeline.commands.demo_check import Check, renamed
from pipeline.commands.demo_feed import recorded
from pipeline.commands.demo_recovery import SECRET_FILE
from pipeline.local import unavailable
from pipeline.simulate import JobTruth, Truth
from tests.support import PATIENCE
from tests.support.worker import ROOT

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.slow,
]


class Running:
    """A demo in a process of its own, its output in a file."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.log = directory.with_suffix(f".{time.monotonic_ns()}.log")
        # Settings of whoever runs the tests must not matter; this one would break it.
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RUNNERSTREAM_KAFKA": "127.0.0.1:1"}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "demo", "--dir", str(directory), *arguments],
                stdout=output, stderr=output, env=env, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout: float = 60) -> None:
        deadline = time.monotonic() + PATIENCE * timeout
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        """All processes of the demo but the first."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, timeout: float = 60) -> int:
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "demo"


def test_it_is_right_and_stops_and_starts_again(directory: Path) -> None:
    demo = Running(directory, "--duration", "15", "--check", "--seed", "11")
    demo.wait_for("ready after")
    family = demo.family()
    # Broker and ClickHouse with a guard each, worker, sink, prober, executor.
    assert len(family) >= 8
    assert demo.end(240) == 0, demo.output
    assert "all equal" in demo.output
    # Jobs got stuck; a real executor did what recovery commanded, once each, to none that lived.
    for what, least in (("stuck jobs: found and recovered", 2), ("how they ended, each once", 1)):
        compared = re.search(rf"{what} +(\d+) +\1 +0$", demo.output, re.MULTILINE)
        assert compared, demo.output
        assert int(compared[1]) >= least
    assert re.search(r"against living jobs +0 +0 +0$", demo.output, re.MULTILINE)
    assert re.search(r"minted \d+ s ago, GitHub says queued; requeue → done; stranded", demo.output)
    for what in ("actor, trigger, pull request, head repository", "steps of some", "steps  "):
        assert what in demo.output
    assert "rows of jobs in ClickHouse" in demo.output
    assert "13 recorded deliveries" in demo.output
    assert not [process for process in family if process.is_running()]
    for log in ("worker", "executor"):
        assert "Traceback" not in (directory / f"{log}.log").read_text()

    # A second start in the same place, ended by Ctrl-C.
    again = Running(directory, "--seed", "12")
    again.wait_for("ready after")
    family = again.family()
    secrets = [directory / name for name in ("env", SECRET_FILE)]
    for file in secrets:
        assert file.stat().st_mode & 0o077 == 0
    time.sleep(3)
    again.process.send_signal(signal.SIGINT)
    assert again.end() == 0, again.output
    assert "simulated events" in again.output.splitlines()[-3]
    assert "0 commands hit a job that lived" in again.output.splitlines()[-2]
    assert "Traceback" not in again.output
    assert not [process for process in family if process.is_running()]
    assert not [file for file in secrets if file.exists()]


def test_a_killed_demo_leaves_nothing_running_and_can_be_started_again(directory: Path) -> None:
    demo = Running(directory, "--seed", "13")
    demo.wait_for("ready after")
    family = demo.family()
    demo.process.kill()
    demo.end()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    # Ports that others have meanwhile are said and avoided.
    with socket.socket() as web:
        web.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            web.bind(("127.0.0.1", 6066))
            web.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        again = Running(directory, "--seed", "13", "--duration", "3")
        assert again.end(90) == 0, again.output
    assert "port 6066 (views) is taken: picking another" in again.output
    assert "was killed: taking over" in again.output


def test_a_second_demo_in_the_same_place_is_refused(directory: Path) -> None:
    demo = Running(directory, "--seed", "14")
    demo.wait_for("ready after")
    other = Running(directory)
    assert other.end() == 1
    assert "runs in" in other.output
    assert demo.process.poll() is None
    # While it starts, too, Ctrl-C ends it.
    demo.process.send_signal(signal.SIGTERM)
    assert demo.end() == 0, demo.output
    third = Running(directory)
    third.wait_for("starting the broker")
    third.process.send_signal(signal.SIGINT)
    assert third.end() == 0, third.output


def test_a_demo_that_is_left_alone_ends_before_it_takes_the_memory(directory: Path) -> None:
    """The embedded broker forgets nothing, so the demo has an end: by time, and by memory."""
    demo = Running(directory, "--rate", "20000", "--memory", "64", "--seed", "15")
    demo.wait_for("ready after")
    family = demo.family()
    # No time is given: it is the memory that ends it.
    assert demo.end(240) == 0, demo.output
    assert "because the embedded broker holds" in demo.output
    assert "--memory lets it hold more" in demo.output
    assert not [process for process in family if process.is_running()]
    usual = inspect.signature(Demo).parameters["memory_mib"].default
    assert usual == MEMORY_MIB <= 2048
    assert USUAL_S <= 3600


def test_the_time_of_a_demo_ends_it_with_a_word(directory: Path) -> None:
    demo = Running(directory, "--duration", "2s", "--seed", "16")
    assert demo.end(120) == 0, demo.output
    assert "ended after 2.0 s, as it was to" in demo.output
    assert "--duration makes it longer" in demo.output
    assert Running(directory, "--duration", "0").end(60) == 2


# -- parts -----------------------------------------------------------------------------------------


def test_recorded_deliveries_are_told_as_of_hours_ago() -> None:
    deliveries = list(recorded())
    assert len(deliveries) == 13
    # The program carries copies of the published payloads that the tests read.
    theirs = {file.name: file.read_bytes() for file in (ROOT / "tests/data/github").glob("*.json")}
    ours = ROOT / "pipeline/simulate/data"
    assert theirs == {file.name: file.read_bytes() for file in ours.glob("*.json")}
    now = time.time() * 1000
    for delivery in deliveries:
        assert delivery.occurred_at <= now
        assert "2021-" not in delivery.payload.partition('"repository"')[0]


def truth(fleet: str = "gpu,linux") -> Truth:
    job = JobTruth(
        key="k", status="completed", fleet=fleet, conclusion="success", queued_at=1, started_at=2,
        completed_at=3, claimed_at=None, gated_ms=0, abandoned_ms=None, copied=False, runner="r",
        timings={"queue": 1},
    )  # fmt: skip
    return Truth(
        jobs={"k": job},
        windows={(fleet, "queue", 60, 0): (1, 5), ("gpu", "queue", 60, 0): (2, 7)},
        conclusions={(fleet, "success", 60, 0): 1},
    )


def test_aliases_are_those_of_the_fleets() -> None:
    assert ALIASES["gpu,linux"] == "gpu"
    told = renamed(truth(), ALIASES)
    assert told.jobs["k"].fleet == "gpu"
    assert told.windows == {("gpu", "queue", 60, 0): (3, 12)}
    assert told.conclusions == {("gpu", "success", 60, 0): 1}


def test_a_difference_is_found_and_named() -> None:
    check = Check()
    assert not check.equal  # nothing was compared
    check.of("views", "things", {"a": (1, None), "b": 2}, {"a": (1, None), "b": 2})
    assert check.equal
    check.of("views", "others", {"a": (1, None), "b": 2}, {"a": (1, 5), "c": 3})
    assert not check.equal
    assert check.counts["views", "others"] == [2, 2, 3]
    assert check.differences[0] == "views, others, a: expected 1 –, found 1 5"
    assert "b: expected 2, found nothing" in check.differences[1]
