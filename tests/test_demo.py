"""``runnerstream demo`` as people run it: up, checked against the truth, stopped, started again,
killed."""

from __future__ import annotations

import hmac
import inspect
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from pipeline.commands.demo import ALIASES, MEMORY_MIB, USUAL_S, Demo
from pipeline.commands.demo_check import Check, renamed
from pipeline.commands.demo_feed import recorded
from pipeline.commands.demo_gateway import (
    FORGED_EVERY,
    PATH,
    SECRETS,
    Answered,
    Hooks,
    Tally,
    forged_and_refused,
    number_of,
    taken_and_landed,
)
from pipeline.commands.demo_recovery import SECRET_FILE
from pipeline.commands.demo_screen import Snapshot, summary
from pipeline.commands.failure import Failure
from pipeline.local import unavailable
from pipeline.simulate import JobTruth, Truth
from tests.support import PATIENCE
from tests.support.gateways import headers_of, queued
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
            return self.process.wait(PATIENCE * timeout)
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
    # Broker and ClickHouse with a guard each, worker, sink, prober, executor, gateway.
    assert len(family) >= 9
    assert demo.end(240) == 0, demo.output
    assert "all equal" in demo.output
    # Jobs got stuck; a real executor did what recovery commanded, once each, to none that lived.
    # Webhooks went through a gateway, and what others had forged did not.
    for what, least in (
        ("stuck jobs: found and recovered", 2),
        ("how they ended, each once", 1),
        ("webhooks taken: on the topic, byte for byte", 100),
        ("webhooks forged: refused", 3),
    ):
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
    for log in ("worker", "executor", "gateway"):
        assert "Traceback" not in (directory / f"{log}.log").read_text()

    # A second start in the same place, ended by Ctrl-C.
    again = Running(directory, "--seed", "12")
    again.wait_for("ready after")
    family = again.family()
    secrets = [directory / name for name in ("env", SECRET_FILE, SECRETS, f"{SECRETS}/github")]
    for file in secrets:
        assert file.stat().st_mode & 0o077 == 0
    # Anybody who knows the secret may post to its gateway.
    found = re.search(r"webhooks go to http://127\.0\.0\.1:(\d+)/webhooks/github", again.output)
    assert found, again.output
    told = queued()
    for secret, status in ((secrets[-1].read_bytes(), 202), (b"guessed", 403)):
        listens = HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE * 30)
        with closing(listens) as connection:
            connection.request("POST", PATH, told, headers_of(told, secret))
            assert connection.getresponse().status == status
    time.sleep(3)
    again.process.send_signal(signal.SIGINT)
    assert again.end() == 0, again.output
    assert "simulated events" in again.output.splitlines()[-4]
    assert "0 commands hit a job that lived" in again.output.splitlines()[-3]
    assert re.search(r"the gateway took \d+ webhooks and refused", again.output.splitlines()[-2])
    assert "Traceback" not in again.output
    assert not [process for process in family if process.is_running()]
    assert not [file for file in secrets if file.exists()]


def test_a_killed_demo_leaves_nothing_running_and_can_be_started_again(directory: Path) -> None:
    demo = Running(directory, "--seed", "13")
    demo.wait_for("ready after")
    family = demo.family()
    demo.process.kill()
    demo.end()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE * 20)
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


@contextmanager
def answering(*statuses: int) -> Iterator[tuple[int, list[tuple[str, bytes, bool]]]]:
    """A server that gives these answers in turn, the last one for ever: its port, and what was
    posted: the event, the body, and whether the signature fits."""
    posted: list[tuple[str, bytes, bool]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            signed = "sha256=" + hmac.digest(b"secret", body, "sha256").hex()
            right = self.headers["X-Hub-Signature-256"] == signed
            status = statuses[min(len(posted), len(statuses) - 1)]
            posted.append((self.headers["X-GitHub-Event"], body, right))
            self.send_response(status if right else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, posted
        finally:
            server.shutdown()
            thread.join()


def webhook(number: int, body: bytes = b"{}") -> tuple[tuple[tuple[str, bytes], ...], bytes]:
    headers = (
        ("x-github-event", b"workflow_job"),
        ("x-github-delivery", b"%d" % number),
        ("runnerstream-received-at", b"1"),
    )
    return headers, body


def test_a_webhook_that_fails_is_delivered_again() -> None:
    with answering(503, 202) as (port, posted):
        hooks = Hooks(port, b"secret")
        hooks.post(*webhook(1))
        hooks.finish(60)
        hooks.close()
    assert posted == [("workflow_job", b"{}", True)] * 2
    number = number_of("1", b"{}")
    assert hooks.tally.taken == {number: 1}
    # It may have been written both times.
    assert hooks.tally.unsure == {number: 1}
    assert all(0 < ms < 60_000 for ms in hooks.percentiles())


def test_a_webhook_that_is_refused_stops_the_feed() -> None:
    with answering(403) as (port, _):
        hooks = Hooks(port, b"secret")
        hooks.post(*webhook(1))
        with pytest.raises(Failure, match="the gateway answered 403 to a webhook"):
            hooks.finish(60)
        hooks.close()


def test_forged_webhooks_go_beside_good_ones() -> None:
    with answering(202) as (port, posted):
        hooks = Hooks(port, b"secret")
        for number in range(4 * FORGED_EVERY):
            hooks.post(*webhook(number, b'{"action":"queued"}'))
        hooks.finish(60)
        hooks.close()
    forged = [body for _, body, right in posted if not right]
    assert forged == [b'{"action":"completed"}'] * 4
    assert len(posted) == 4 * FORGED_EVERY + 4
    assert sum(hooks.tally.taken.values()) == 4 * FORGED_EVERY
    expected, found = forged_and_refused(hooks.tally)
    assert expected == found
    assert len(found) == 4
    hooks.tally.forged[next(iter(found))] = 202
    assert forged_and_refused(hooks.tally) != (expected, found)


def test_what_was_taken_and_is_not_there_is_a_difference() -> None:
    tally = Tally(Counter(a=1, b=2, c=1), Counter(c=1, d=3), past=1)
    right = Counter(a=1, b=2, c=2)
    expected, found = taken_and_landed(tally, right, 1)
    assert expected == found == {"a": 1, "b": 2, "c": 1, "written past the gateway": 1}
    for wrong in (Counter(a=1, b=1, c=2), Counter(a=2, b=2, c=2), Counter(a=1, b=2, c=2, x=1)):
        assert taken_and_landed(tally, wrong, 1)[1] != expected
    assert taken_and_landed(tally, right, 2)[1] != expected


def test_how_the_gateway_is_doing_fits_on_a_terminal() -> None:
    outcomes = {"accepted": 1_234, "malformed": 5, "duplicate": 12, "unauthenticated": 30}
    snapshot = Snapshot(webhooks=Answered(outcomes, 4.2, 41.0))
    console = Console(width=80, record=True, file=io.StringIO())
    url = "http://127.0.0.1:6080/webhooks/github"
    console.print(summary(snapshot, 1.0, 0, 1.0, "http://x", url, Path("env"), (80, 24)))
    shown = console.export_text()
    assert "gateway     accepted 1,239   duplicate 12   refused 30   p50 4 ms   p99 41 ms" in shown
    assert f"webhooks    {url}" in shown
    assert "unavailable" not in shown
    assert len(shown.splitlines()) <= 24


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
