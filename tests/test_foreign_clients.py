"""Webhooks in raw form from clients of others, over a real broker to a worker that checks them."""

from __future__ import annotations

import hmac
import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from pipeline.local.process import LOOPBACK, accepts_connections, free_port
from tests.support import clients, evidence
from tests.support.brokers import Broker, broker, kind
from tests.support.clients import Webhook
from tests.support.load import until
from tests.support.worker import ROOT, WorkerProcess
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, JOBS, WEBHOOKS, catalogue
from topics.models import DEAD_LETTER, JOBS_RECORD, JobFact, Reason
from topics.reading import read

PARTITIONS = 2
SECRET = "It's a Secret to Everybody"
FORGED = Reason.BAD_SIGNATURE
NAME = 'caf\u00e9 \\ "x" \U0001f680'
DATA = Path(__file__).parent / "data" / "github"

Post = Callable[[list[Webhook]], None]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@pytest.fixture(scope="module")
def worker(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(
        kafka.bootstrap,
        partitions=PARTITIONS,
        log=tmp_path_factory.mktemp("worker") / "worker.log",
        github_secrets=json.dumps([SECRET]),
    ) as made:
        made.wait_ready()
        yield made


@pytest.fixture(params=["kcat", "kafkajs", "bridge"])
def post(request: pytest.FixtureRequest, kafka: Broker, tmp_path: Path) -> Iterator[Post]:
    """How each client posts webhooks."""
    if request.param == "kcat" and kind() != "kafka":
        pytest.skip("librdkafka cannot read the versions that the embedded broker says it has")
    with ExitStack() as stack:
        try:
            if request.param == "kcat":
                clients.kcat()
                made: Post = partial(clients.post_with_kcat, kafka.bootstrap, WEBHOOKS, tmp_path)
            elif request.param == "kafkajs":
                clients.kafkajs()
                made = partial(clients.post_with_kafkajs, kafka.bootstrap, WEBHOOKS)
            else:
                made = partial(over_http, stack.enter_context(bridge(kafka)))
        except clients.ClientUnavailable as absent:
            pytest.skip(str(absent))
        yield made


@contextmanager
def bridge(kafka: Broker) -> Iterator[str]:
    """examples/bridge.py in a process of its own; its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, ROOT / "examples/bridge.py", kafka.bootstrap, str(port)]
    )
    try:
        until(lambda: accepts_connections(port), 30, "the bridge to listen")
        yield f"http://{LOOPBACK}:{port}/hooks/github"
    finally:
        process.terminate()
        process.wait(20)


def over_http(url: str, webhooks: Sequence[Webhook]) -> None:
    for headers, body in webhooks:
        request = urllib.request.Request(url, body, {**headers, "Authorization": "Bearer x"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 204


def webhook(name: str, job: int, secret: str = SECRET) -> Webhook:
    """A body of GitHub's about this job, in a form that nobody would write it in again."""
    told = json.loads((DATA / f"workflow_job.{name}.json").read_bytes())
    told["workflow_job"] |= {"id": job, "name": NAME}
    body = json.dumps(told, indent=3, ensure_ascii=False).encode() + b" \r\n"
    signature = hmac.new(secret.encode(), body, "sha256").hexdigest()
    return {
        "Content-Type": "application/json",
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": str(uuid.uuid1()),
        "X-GitHub-Hook-ID": "42",
        "X-Hub-Signature-256": f"sha256={signature}",
    }, body


def test_what_a_client_posts_is_believed_when_it_is_signed(
    post: Post, kafka: Broker, worker: WorkerProcess
) -> None:
    job, other = (uuid.uuid4().int % 10**12 for _ in range(2))
    hooks = [webhook("queued", job), webhook("completed.success", job)]
    forged = [webhook("queued", other, "guessed"), webhook("queued", other)]
    # Signed, and changed on the way.
    forged[1] = (forged[1][0], forged[1][1].replace(b"queued", b"waiting"))
    post([hooks[0], forged[0], hooks[1], forged[1]])

    def completed() -> bool:
        code, state = worker.get(f"/jobs/github:github.com:{job}")
        return code == 200 and (state["status"], state["conclusion"]) == ("completed", "success")

    def refused() -> list[bytes]:
        found = evidence.read_topic(kafka.bootstrap, DEAD_LETTERS)
        letters = [read(DEAD_LETTER, each.value) for each in found]
        values = [each.record_value or b"" for each in letters if each.reason is FORGED]
        return sorted(value for value in values if b"%d" % other in value)

    worker.wait(completed, 60, f"know {job} as completed")
    bodies = sorted(body for _, body in forged)
    worker.wait(lambda: refused() == bodies, 30, "bury what was forged")
    assert worker.get(f"/jobs/github:github.com:{other}")[0] == 404
    # Byte for byte on the topic, and each delivery is one fact.
    stored = {each.value for each in evidence.read_topic(kafka.bootstrap, WEBHOOKS)}
    assert {body for _, body in hooks} < stored
    facts = [
        fact
        for each in evidence.read_topic(kafka.bootstrap, JOBS)
        if isinstance(fact := read(JOBS_RECORD, each.value), JobFact)
        and fact.key == f"github:github.com:{job}"
    ]
    assert {fact.job.name for fact in facts if fact.job} == {NAME}
    told = [(fact.id.rpartition("-")[0], fact.cause) for fact in facts]
    causes = ("workflow_job.queued", "workflow_job.completed")
    assert sorted(told) == sorted(
        (headers["X-GitHub-Delivery"], cause)
        for (headers, _), cause in zip(hooks, causes, strict=True)
    )


def test_no_credentials_pass_the_bridge(kafka: Broker) -> None:
    with bridge(kafka) as url:
        over_http(url, [webhook("queued", 1)])
    for record in evidence.read_topic(kafka.bootstrap, WEBHOOKS):
        assert "authorization" not in {name.lower() for name, _ in record.headers}
