"""The part of the demo that is webhooks by HTTP: a gateway, who posts to it as GitHub does, and
what became of what was posted.

::

    feeder ──▶ Hooks ──HTTP, signed──▶ gateway (child) ──▶ runners.webhooks ──▶ Landed

What is shown comes from the gateway's own metrics. Only how long an answer took is for the sender
to say, and what was answered, of which :class:`Landed` looks whether it is on the topic.
"""

from __future__ import annotations

import http.client
import queue
import secrets
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import xxhash
from prometheus_client.parser import text_string_to_metric_families

from pipeline.commands.connections import ask
from pipeline.commands.demo_children import write_private
from pipeline.commands.failure import Failure, short
from pipeline.local.process import LOOPBACK
from pipeline.providers.registry import PROVIDERS
from pipeline.simulate.wire import guid_at
from sinks.consumer import make_consumer
from topics.bridge import form_of
from topics.catalogue import WEBHOOKS

GITHUB: Final = PROVIDERS["github"]
#: Where the demo's webhooks are taken unless another program has the port.
PORT: Final = 6080
PATH: Final = f"/webhooks/{GITHUB.name}"
#: Files of secrets, in the directory of the demo while it runs; see docs/gateway.md.
SECRETS: Final = "webhook-secrets"
#: One forged webhook comes after so many good ones.
FORGED_EVERY: Final = 40
#: Connections, and webhooks that wait for one.
_CONNECTIONS: Final = 8
_WAITING: Final = 64
#: How long GitHub waits for an answer. Seconds.
_ANSWER_S: Final = 10.0
#: What failed is delivered again after so long, as somebody would who looks through GitHub's list;
#: and for how long before the demo gives up. Seconds.
_AGAIN_S: Final = 0.5
_GIVE_UP_S: Final = 60.0
#: Answers of which percentiles are made.
_LATEST: Final = 2_000
_TAKEN: Final = 202
_WELL: Final = (200, _TAKEN)
_BUSY: Final = 503
_REFUSED: Final = (401, 403)
#: Marks headers of a record that no HTTP request had.
_OURS: Final = "runnerstream-"


def secret_in(directory: Path) -> bytes:
    """A new secret for GitHub's webhooks, in a file that only we can read, in this directory."""
    secret = secrets.token_hex(32)
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
    write_private(directory / GITHUB.name, secret)
    return secret.encode()


def forget_secrets(directory: Path) -> None:
    """Take them away."""
    (directory / GITHUB.name).unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()


def number_of(webhook: str, body: bytes) -> str:
    """What tells one webhook from others: its delivery id, and every byte of its body."""
    return f"{webhook} {xxhash.xxh3_64_hexdigest(body)}"


class _Post(NamedTuple):
    number: str
    headers: Mapping[str, str]
    body: bytes
    forged: bool


@dataclass
class Tally:
    """How webhooks were answered."""

    #: Answered 202: how often, by :func:`number_of`.
    taken: Counter[str] = field(default_factory=Counter)
    #: Answered otherwise, or not at all, when it may be written all the same.
    unsure: Counter[str] = field(default_factory=Counter)
    #: What forged ones were answered, by :func:`number_of`.
    forged: dict[str, int] = field(default_factory=dict)
    #: Records that no gateway would make: somebody writes them to the topic himself.
    past: int = 0
    #: Seconds that the latest answers took.
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))


class Hooks:
    """Posts webhooks as GitHub does: each signed, several at a time, on connections that are kept.

    What is not answered 2xx is delivered again until it is. Every now and then a forged one is
    posted beside them, which says that the job of the one before is over.

    Args:
        port: of the gateway, on this machine.
    """

    def __init__(self, port: int, secret: bytes) -> None:
        self._port = port
        self._secret = secret
        self._queue: queue.Queue[_Post] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._error: Failure | None = None
        self._posted = 0
        self._forgeries = count()
        self.tally = Tally()
        for number in range(_CONNECTIONS):
            threading.Thread(target=self._run, name=f"hook-{number}", daemon=True).start()

    def post(self, headers: Iterable[tuple[str, bytes]], body: bytes) -> None:
        """Post a webhook of which a record in raw form has these headers. Waits while many wait.

        Raises :class:`Failure` when one before could not be delivered.
        """
        told = _as_sent(headers)
        form = form_of(told)
        delivery = "" if form is None else form[0].delivery_in(told, form[1])
        signed = {**told, **GITHUB.sign(body, self._secret)}
        self._put(_Post(number_of(delivery, body), signed, body, False))
        self._posted += 1
        if self._posted % FORGED_EVERY == 0:
            self._put(self._forged(body, int(time.time() * 1000)))

    def finish(self, patience_s: float) -> None:
        """Wait until everything posted is answered.

        Raises :class:`Failure` when one could not be delivered, or not in time.
        """
        deadline = time.monotonic() + patience_s
        while self._queue.unfinished_tasks and self._error is None:
            if time.monotonic() > deadline:
                raise Failure(f"the gateway has not answered everything after {patience_s:g} s")
            time.sleep(0.01)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Post no more, whatever waits."""
        self._over.set()

    def percentiles(self) -> tuple[float, float]:
        """Milliseconds that half of the latest answers took, and 99 % of them. 0: there is none."""
        with self._lock:
            took = sorted(self.tally.took)
        if not took:
            return 0.0, 0.0
        return took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000

    def _put(self, post: _Post) -> None:
        while True:
            if self._error is not None:
                raise self._error
            with suppress(queue.Full):
                return self._queue.put(post, timeout=0.5)

    def _forged(self, before: bytes, at_ms: int) -> _Post:
        """A webhook of somebody who does not know the secret."""
        number = next(self._forgeries)
        body = before.replace(b'"action":"queued"', b'"action":"completed"', 1)
        body = body.replace(b'"status":"queued"', b'"status":"completed"', 1)
        delivery = guid_at(at_ms, number % 10_000, 0xBAD)
        headers = _as_sent((("x-github-event", b"workflow_job"),
                            ("x-github-delivery", delivery.encode())))  # fmt: skip
        right = GITHUB.sign(before + b" ", self._secret)
        headers |= (GITHUB.sign(body, b"guessed"), right, {}, {"x-hub-signature": "sha1=0"})[
            number % 4
        ]
        return _Post(number_of(delivery, body), headers, body, True)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=_ANSWER_S)
        while not self._over.is_set():
            try:
                post = self._queue.get(timeout=0.5)
            except queue.Empty:
                continue
            try:
                self._deliver(connection, post)
            except Exception as error:
                self._error = Failure(f"a webhook cannot be posted: {short(error)}")
            finally:
                self._queue.task_done()
        connection.close()

    def _deliver(self, connection: http.client.HTTPConnection, post: _Post) -> None:
        began, status = time.monotonic(), 0
        while not self._over.is_set():
            tried, status = time.monotonic(), 0
            try:
                connection.request("POST", PATH, post.body, dict(post.headers))
                reply = connection.getresponse()
                reply.read()
                status = reply.status
            except ConnectionRefusedError:
                connection.close()
            except (OSError, http.client.HTTPException):
                connection.close()
                status = -1
            if self._noted(post, status, time.monotonic() - tried):
                return
            if (status > 0 and status != _BUSY) or time.monotonic() - began > _GIVE_UP_S:
                said = f"answered {status}" if status > 0 else "did not answer"
                self._error = Failure(f"the gateway {said} to a webhook")
                return
            self._over.wait(_AGAIN_S)

    def _noted(self, post: _Post, status: int, took: float) -> bool:
        """Count an answer (0: nobody was there, -1: it broke off); whether it is the last one."""
        tally = self.tally
        with self._lock:
            if status > 0:
                tally.took.append(took)
            if post.forged:
                if status > 0 and status != _BUSY:
                    tally.forged[post.number] = status
                return post.number in tally.forged
            if status == _TAKEN:
                tally.taken[post.number] += 1
            elif status not in (0, *_WELL):
                tally.unsure[post.number] += 1
            return status in _WELL


def _as_sent(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """The HTTP headers of GitHub's request of which a record has these."""
    told = {
        "accept": "*/*",
        "user-agent": "GitHub-Hookshot/044aadd",
        "content-type": "application/json",
        "x-github-hook-id": "1",
        "x-github-hook-installation-target-type": "integration",
        "x-github-hook-installation-target-id": "7000001",
    }
    given = {name.lower(): value.decode("utf-8", "replace") for name, value in headers}
    return told | {name: value for name, value in given.items() if not name.startswith(_OURS)}


@dataclass(frozen=True)
class Gateway:
    """The gateway of a demo: where it takes webhooks, where it tells how it is, its secret."""

    port: int
    health_port: int
    secret: bytes = field(repr=False)

    @property
    def url(self) -> str:
        """Where webhooks go."""
        return f"http://{LOOPBACK}:{self.port}{PATH}"

    def settings(self) -> dict[str, str]:
        """What it runs with beside the settings of the worker."""
        return {
            "RUNNERSTREAM_GATEWAY_LISTEN": f"{LOOPBACK}:{self.port}",
            "RUNNERSTREAM_GATEWAY_PORT": str(self.health_port),
        }

    def ready(self) -> bool:
        """Whether it takes webhooks."""
        with suppress(Failure):
            return bool(ask(self._health, "/readyz", timeout=2.0).get("ready"))
        return False

    def outcomes(self) -> Counter[str]:
        """Webhooks by what became of them, as it counts them. Raises OSError."""
        with urllib.request.urlopen(f"{self._health}/metrics", timeout=3.0) as reply:
            text = reply.read().decode()
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            if family.name == "runnerstream_gateway_requests":
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        found[sample.labels["outcome"]] += int(sample.value)
        return found

    @property
    def _health(self) -> str:
        return f"http://{LOOPBACK}:{self.health_port}"


@dataclass(frozen=True)
class Answered:
    """What the gateway has answered so far: webhooks by outcome; ms that the latest took."""

    outcomes: Mapping[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p99_ms: float = 0.0

    @property
    def taken(self) -> int:
        """How many are on the topic, those that came again and those that nobody can read too."""
        return sum(self.outcomes.get(each, 0) for each in ("accepted", "duplicate", "malformed"))

    @property
    def refused(self) -> int:
        """How many were forged."""
        return self.outcomes.get("unauthenticated", 0)


class Landed:
    """What is on ``runners.webhooks``, read while it grows. Raises kafka.errors.KafkaError."""

    def __init__(self, kafka: str) -> None:
        self._consumer = make_consumer(
            {"bootstrap_servers": kafka, "group_id": None, "enable_auto_commit": False,
             "auto_offset_reset": "earliest", "allow_auto_create_topics": False}
        )  # fmt: skip
        self._consumer.subscribe([WEBHOOKS])
        #: How often, by :func:`number_of`; and those that are no webhooks in raw form.
        self.webhooks: Counter[str] = Counter()
        self.others = 0

    def read(self) -> None:
        """Read on until nothing more comes."""
        while found := self._consumer.poll(timeout_ms=1_000):
            for records in found.values():
                for record in records:
                    self._note(record)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _note(self, record: Any) -> None:
        headers = {name.lower(): value.decode("utf-8", "replace") for name, value in record.headers}
        form = form_of(headers)
        if form is None:
            self.others += 1
        else:
            delivery = form[0].delivery_in(headers, form[1])
            self.webhooks[number_of(delivery, record.value)] += 1


def taken_and_landed(
    tally: Tally, webhooks: Mapping[str, int], others: int
) -> tuple[dict[str, int], dict[str, int]]:
    """How often each webhook was answered 202, and how often it is on the topic: the same, but that
    one whose answer did not come may be there once more. Of what is on the topic ``webhooks`` are
    by :func:`number_of`, and ``others`` are none."""
    taken = dict(tally.taken)
    found = {
        number: min(times, taken.get(number, 0))
        if times <= taken.get(number, 0) + tally.unsure[number]
        else times
        for number, times in webhooks.items()
    }
    past = {"written past the gateway": tally.past} if tally.past else {}
    wrote = {"written past the gateway": others} if others else {}
    return taken | past, {number: times for number, times in found.items() if times} | wrote


def forged_and_refused(tally: Tally) -> tuple[dict[str, str], dict[str, str]]:
    """What must become of forged webhooks, and what did."""
    said = dict(tally.forged)
    found = {
        number: "refused" if status in _REFUSED else f"answered {status}"
        for number, status in said.items()
    }
    return dict.fromkeys(said, "refused"), found
