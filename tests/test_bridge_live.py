"""Webhooks on their way: over HTTP into a bridge, over a broker to a worker that checks them."""

from __future__ import annotations

import hmac
import json
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from kafka import KafkaProducer

from tests.support import evidence
from tests.support.brokers import Broker, broker
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, WEBHOOKS, catalogue
from topics.models import DEAD_LETTER, DeadLetter, Reason
from topics.producer import Producer
from topics.reading import read

PARTITIONS = 2
SECRET = "It's a Secret to Everybody"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@pytest.fixture
def bridge(kafka: Broker) -> Iterator[str]:
    """The whole of an HTTP-to-Kafka bridge; its URL."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")

    class Bridge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = [(name, value.encode()) for name, value in self.headers.items()]
            producer.send(WEBHOOKS, value=body, headers=headers).get(timeout=30)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Bridge) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
    producer.close()


@cache
def body(job: int) -> bytes:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps(
        {
            "action": "queued",
            "workflow_job": {
                "id": job, "run_id": 9, "status": "queued", "created_at": at,
                "name": "caf\u00e9 \\ \"x\"", "labels": ["self-hosted", "linux"],
            },
            "repository": {"full_name": "acme/shop"},
        },
        ensure_ascii=False,
    ).encode()  # fmt: skip


def signed(content: bytes, secret: str = SECRET) -> dict[str, str]:
    return {
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": f"{sha256(content).hexdigest()[:8]}-b5f4-41f1-8a3f-0242ac120002",
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), content, sha256).hexdigest(),
        "Content-Type": "application/json",
    }


def letters(kafka: Broker) -> list[DeadLetter]:
    found = evidence.read_topic(kafka.bootstrap, DEAD_LETTERS)
    return [read(DEAD_LETTER, record.value) for record in found]


def test_over_http_through_a_bridge_to_a_worker(kafka: Broker, bridge: str, tmp_path: Path) -> None:
    def post(content: bytes, headers: dict[str, str]) -> None:
        request = urllib.request.Request(bridge, content, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 204

    post(body(1), signed(body(1)))
    post(body(2), signed(body(2), "guessed"))
    post(body(3), {k: v for k, v in signed(body(3)).items() if "Signature" not in k})
    # Not signed by what is in the envelope either, and no header tells whose it is.
    now = int(time.time() * 1000)
    smuggled = {
        "id": "d", "kind": "github.workflow_job", "source": "github", "occurred_at": now,
        "received_at": now, "key": "k", "payload": body(4).decode(),
    }  # fmt: skip
    post(json.dumps(smuggled).encode(), {"Content-Type": "application/json"})
    with Producer(kafka.bootstrap) as producer:
        producer.webhook(signed(body(5)) | {"Authorization": "Bearer x"}, body(5))
    with WorkerProcess(
        kafka.bootstrap,
        partitions=PARTITIONS,
        log=tmp_path / "worker.log",
        github_secrets=json.dumps(["another", SECRET]),
    ) as worker:

        def knows(job: int) -> bool:
            return worker.get(f"/jobs/github:github.com:{job}")[0] == 200

        worker.wait(lambda: knows(1) and knows(5), 60, "know jobs 1 and 5")
        state = worker.get("/jobs/github:github.com:1")[1]
        assert "caf\u00e9" in json.dumps(state, ensure_ascii=False)
        worker.wait(lambda: len(letters(kafka)) == 3, 30, "bury three")
        assert not [job for job in (2, 3, 4) if knows(job)]
        assert SECRET not in worker.tail(10_000)
    assert {letter.reason for letter in letters(kafka)} == {Reason.BAD_SIGNATURE}
    values = {letter.record_value for letter in letters(kafka)}
    assert values == {body(2), body(3), json.dumps(smuggled).encode()}
    stored = evidence.read_topic(kafka.bootstrap, WEBHOOKS)
    assert not [r for r in stored if "authorization" in dict(r.headers)]
