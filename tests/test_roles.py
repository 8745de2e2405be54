"""Roles: declared once, kept running by one supervisor, asked through one health server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from pipeline.roles.supervisor import (
    NOT_STARTED,
    Pauses,
    Standing,
    Supervisor,
    ended,
    restarted,
    trouble,
)
from sinks.http import HealthServer
from tests.support import PATIENCE
from tests.support.house import House
from tests.support.toy_role import MODULE

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Doing:
    ready: bool
    reason: str
    alive: bool
    pots: int = 3


class Counted:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()


class Cook:
    """Something that is no sink."""

    def __init__(self) -> None:
        self.metrics = Counted()
        self.now = Doing(True, "", True)

    def status(self) -> Doing:
        return self.now


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_whatever_tells_how_it_is_has_the_same_health_pages() -> None:
    cook = Cook()
    Counter("meals", "Meals.", registry=cook.metrics.registry).inc(4)
    server = HealthServer(cook, about={"group": "kitchen"}, version="1.2.3")
    url = f"http://127.0.0.1:{server.port}"
    try:
        assert get(f"{url}/healthz")[0] == get(f"{url}/readyz")[0] == 200
        cook.now = Doing(False, "no gas", True)
        code, body = get(f"{url}/readyz")
        assert (code, json.loads(body)) == (
            503,
            {"ready": False, "reason": "no gas", "alive": True, "pots": 3,
             "deployment": {"group": "kitchen"}},
        )  # fmt: skip
        assert get(f"{url}/healthz")[0] == 200
        cook.now = Doing(False, "burnt", False)
        assert get(f"{url}/healthz")[0] == 503
        told = get(f"{url}/metrics")[1]
        assert "meals_total 4.0" in told
        assert 'runnerstream_build_info{version="1.2.3"} 1.0' in told
        for name in ("process_resident_memory_bytes", "python_gc_collections_total",
                     "runnerstream_gc_pause_seconds_count", "runnerstream_threads"):  # fmt: skip
            assert f"\n{name}" in told
    finally:
        server.close()


# -- a role that is declared -----------------------------------------------------------------------


def environment(tmp_path: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if "RUNNERSTREAM" not in name}
    return {
        **known,
        "PYTHONPATH": str(ROOT),
        "TOY_PIDS": str(tmp_path / "pids"),
        "TOY_STANDINGS": str(tmp_path / "standings"),
        "RUNNERSTREAM_KAFKA": "127.0.0.1:1",
        "RUNNERSTREAM_CLICKHOUSE": "",
    }


def until(what: Callable[[], Any]) -> Any:
    """What it gives as soon as that is something. Fails when it never comes."""
    deadline = time.monotonic() + PATIENCE * 60
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet asked how does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def pids(tmp_path: Path, at_least: int) -> list[int]:
    file = tmp_path / "pids"

    def told() -> list[int]:
        found = file.read_text(encoding="utf-8").split() if file.exists() else []
        return [int(each) for each in found] if len(found) >= at_least else []

    found: list[int] = until(told)
    return found


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose roles are two toys: one in it, one beside it."""
    with subprocess.Popen(
        [sys.executable, "-m", MODULE, "worker"], env=environment(tmp_path), cwd=tmp_path
    ) as process:
        try:
            yield process
        finally:
            process.kill()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def test_a_role_that_is_declared_can_be_asked_for(tmp_path: Path) -> None:
    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", MODULE, *arguments],
            env=environment(tmp_path), capture_output=True, text=True, check=False,
            timeout=PATIENCE * 60,
        )  # fmt: skip

    told = said("worker", "--help").stdout
    assert "[all|serve|cook]" in told
    assert "cook: meals for those who wait." in " ".join(told.split())
    assert said("worker", "--role", "sink").returncode == 2


@needs_proc
def test_a_killed_process_is_started_again_and_counted(
    toys: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.kill(pids(tmp_path, 1)[0], signal.SIGKILL)
    assert runs(pids(tmp_path, 2)[1])
    standings = tmp_path / "standings"
    until(lambda: json.loads(standings.read_text(encoding="utf-8")) == {"cook": [True, 1]})


@needs_proc
def test_ctrl_c_ends_all(toys: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (child,) = pids(tmp_path, 1)
    toys.send_signal(signal.SIGINT)
    assert toys.wait(60) == 0
    assert not runs(child)


@needs_proc
def test_nothing_outlives_a_worker_that_is_killed(
    toys: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (child,) = pids(tmp_path, 1)
    toys.kill()
    until(lambda: not runs(child))


# -- how it stands ---------------------------------------------------------------------------------

QUICK = Pauses(first=1, longest=4, healthy=60)


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_healthy_life() -> None:
    now, standing, found = 0.0, Standing("cook", True, 0.0), []
    for lived in (0.1, 0.1, 0.1, 0.1, 61, 0.1):
        now += lived
        standing = ended(standing, -9, now, QUICK)
        found.append(standing.pause)
        now += standing.pause
        standing = restarted(standing, now)
    assert found == [1, 2, 4, 4, 1, 2]
    assert (standing.restarts, standing.code) == (6, -9)


def test_what_does_not_stay_up_is_a_trouble_and_one_restart_is_none() -> None:
    standing = Standing("cook", True, 0.0)
    assert trouble(standing, 1e6) is None
    standing = ended(standing, 1, 10.0, QUICK)
    assert trouble(standing, 10.5) is None, "it is about to be started again"
    assert "code 1" in str(trouble(standing, 12.1))
    standing = restarted(standing, 11.0)
    assert trouble(standing, 11.9) is None
    assert trouble(standing, 12.1) is None, "it has outlived the pause"
    standing = ended(standing, 1, 11.5, QUICK)
    standing = restarted(standing, 13.5)
    assert "has not stayed up for 4 s" in str(trouble(standing, 14.0))
    assert trouble(standing, 15.6) is None


class Kitchen:
    """What runs beside a worker, as a test says."""

    def __init__(self) -> None:
        self.now, self.wrong = (True, 0), list[str]()

    def restarts(self) -> dict[str, tuple[bool, int]]:
        return {"cook": self.now}

    def troubles(self) -> list[str]:
        return self.wrong


def test_a_process_that_does_not_stay_up_makes_its_worker_unready_and_not_the_fold() -> None:
    kitchen = Kitchen()
    house = House({})
    house.worker.beside = kitchen
    with house:
        text = house.get("/metrics")[1]
        assert 'runnerstream_role_up{role="cook"} 1.0' in text
        assert 'runnerstream_role_restarts_total{role="cook"} 0.0' in text
        kitchen.now, kitchen.wrong = (False, 3), ["the cook does not stay up"]
        for _ in range(2):
            text = house.get("/metrics")[1]
            assert 'runnerstream_role_up{role="cook"} 0.0' in text
            assert 'runnerstream_role_restarts_total{role="cook"} 3.0' in text
        reason = {"code": "process", "text": "the cook does not stay up"}
        assert reason in house.get("/readyz")[1]["reasons"]
        assert reason not in house.get("/readyz?part=fold")[1]["reasons"]
        assert house.get("/healthz")[0] == 200


FAST = Pauses(first=0.01, longest=0.01, healthy=60, grace=0.2)


def test_a_process_that_does_not_hear_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
    )
    command = [sys.executable, "-c", deaf, str(tmp_path / "pids")]
    supervisor = Supervisor({"cook": command}, FAST)
    supervisor.start()
    (pid,) = pids(tmp_path, 1)
    supervisor.stop()
    assert not runs(pid)


def test_a_process_that_cannot_be_started_is_told_and_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "cook"
    supervisor = Supervisor({"cook": [str(program)]}, FAST)
    supervisor.start()
    try:
        standing = until(lambda: (s := supervisor.standings()["cook"]).failures > 2 and s)
        assert standing.code == NOT_STARTED
        assert "cook" in "".join(supervisor.troubles())
        program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pids\nexec sleep 600\n")
        program.chmod(0o755)
        (pid,) = pids(tmp_path, 1)
        assert runs(pid)
    finally:
        supervisor.stop()
    assert not runs(pid)
