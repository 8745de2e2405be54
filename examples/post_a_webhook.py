"""Post one webhook delivery of GitHub's, as a receiver of webhooks would.

    python examples/post_a_webhook.py localhost:9092              a job that was queued just now
    python examples/post_a_webhook.py localhost:9092 body.json    a body that GitHub sent

Prints the key of the job. A real receiver checks the signature first, and answers 2xx only after
``flush()``: what is not acknowledged by Kafka, GitHub must send again.
"""

import json
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from topics.models import Delivery, job_key
from topics.producer import Producer


def sample() -> bytes:
    """A body as GitHub sends it when a job is queued."""
    now = datetime.now(UTC)
    job = {
        "id": int(now.timestamp() * 1000),
        "status": "queued",
        "created_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "labels": ["self-hosted", "linux"],
    }
    return json.dumps({"action": "queued", "workflow_job": job}).encode()


def delivery(guid: str, event: str, body: bytes) -> Delivery:
    """What a receiver makes of the headers X-GitHub-Delivery and X-GitHub-Event, and the body."""
    now = int(time.time() * 1000)
    return Delivery(
        id=guid,
        kind=f"github.{event}",
        source="example-receiver",
        occurred_at=now,
        received_at=now,
        key=job_key("github", "github.com", json.loads(body)["workflow_job"]["id"]),
        headers={"x-github-event": event},
        payload=body.decode(),
    )


def main(brokers: str, file: str = "") -> None:
    """Post it, and wait until it is safe."""
    body = Path(file).read_bytes() if file else sample()
    posted = delivery(str(uuid.uuid1()), "workflow_job", body)
    with Producer(brokers) as producer:
        producer.post(posted)
    print(posted.key)


if __name__ == "__main__":
    main(*sys.argv[1:])
