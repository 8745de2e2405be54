"""The role ``redeliver`` in a thread, and a hook whose deliveries are about jobs of their own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.providers.deliveries import HookLog
from pipeline.providers.github_calls import App, GitHubCalls
from pipeline.providers.runs import RunLog
from pipeline.redeliver.metrics import RedeliverMetrics
from pipeline.redeliver.missed import Policy
from pipeline.redeliver.service import Redeliver, RedeliverConfig
from pipeline.redeliver.store import StoreConfig
from pipeline.simulate.api import iso
from pipeline.simulate.deliveries import FakeHook

GROUP: Final = "finding-redeliver"
OURS: Final = ("workflow_job", "workflow_run")
#: Pauses of seconds, so that a test sees several.
QUICK: Final = Policy(pause=4_000, longest=8_000, overlap=5_000, pass_calls=2_000)
KEY: Final = rsa.generate_private_key(65_537, 2_048)
APP: Final = App("4711", KEY)
NAMED: Final = ("4711", KEY.public_key())


def calls(url: str, credentials: App | str = APP, per_minute: int = 100_000) -> GitHubCalls:
    return GitHubCalls(url, credentials, per_minute, lambda outcome: None)


@contextmanager
def redelivering(
    bootstrap: str,
    hooks: Sequence[HookLog] = (),
    repos: Sequence[RunLog] = (),
    policy: Policy = QUICK,
    every_s: float = 0.5,
    group: str = GROUP,
) -> Iterator[Redeliver]:
    """The process, in a thread, ended in order; what it raises, raises here."""
    kafka = {
        "bootstrap_servers": bootstrap,
        "session_timeout_ms": 4_000,
        "heartbeat_interval_ms": 400,
        "max_poll_interval_ms": 6_000,
    }
    config = RedeliverConfig(StoreConfig(kafka, group), OURS, policy, every_s=every_s)
    made = Redeliver(config, hooks, repos, RedeliverMetrics())
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            made.run(stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert errors == []


def life(job: int, begun: int) -> list[bytes]:
    """The deliveries of a job that waits 7 s and runs 30 s. ``begun``: ms, of whole seconds."""
    told: dict[str, Any] = {
        "id": job, "run_id": job * 10, "run_attempt": 1, "name": "build", "labels": ["linux"],
        "html_url": f"https://github.com/octo/repo/actions/runs/{job * 10}/job/{job}",
        "created_at": iso(begun), "started_at": iso(begun), "completed_at": None,
        "conclusion": None, "runner_id": None, "runner_name": None, "steps": [],
    }  # fmt: skip
    runs = {"started_at": iso(begun + 7_000), "runner_id": job, "runner_name": f"runner-{job}"}
    ends = {**runs, "completed_at": iso(begun + 37_000), "conclusion": "success"}
    moments = (("queued", {}), ("in_progress", runs), ("completed", ends))
    return [
        json.dumps({
            "action": action,
            "workflow_job": {**told, **differs, "status": action},
            "repository": {"full_name": "octo/repo", "html_url": "https://github.com/octo/repo"},
            "padding": "x" * 1_000,
        }).encode()
        for action, differs in moments
    ]  # fmt: skip


class Load:
    """Delivers jobs' lives, in order within each job, several jobs at a time, until told to end."""

    def __init__(self, hook: FakeHook, senders: int = 4, per_second: float = 1_000.0) -> None:
        self._hook = hook
        self._senders = senders
        self._every_s = senders / per_second
        self._ending = threading.Event()
        self._lock = threading.Lock()
        #: By the job's id: when it was made, in ms. Of jobs that were told to their end.
        self.jobs: dict[int, int] = {}
        self._next = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(self._senders) as pool:
            futures = [pool.submit(self._send) for _ in range(self._senders)]
            try:
                yield
            finally:
                self._ending.set()
            for each in futures:
                each.result(120)

    def _send(self) -> None:
        while not self._ending.is_set():
            begun = int(time.time() - 60) * 1000
            with self._lock:
                self._next += 1
                job = 5_000_000 + self._next
            for body in life(job, begun):
                began = time.monotonic()
                self._hook.deliver(body)
                self._ending.wait(max(0.0, began + self._every_s - time.monotonic()))
            self.jobs[job] = begun
