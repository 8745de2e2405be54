"""Post one webhook delivery of GitHub's, as a receiver of webhooks would.

    python examples/post_a_webhook.py localhost:9092              a job that was queued just now
    python examples/post_a_webhook.py localhost:9092 body.json    a body that GitHub sent

Prints the key of the job. A real receiver passes all headers on, and answers 2xx only after
``flush()``: what is not acknowledged by Kafka, GitHub must send again.
"""

import hmac
import json
import os
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

from topics.models import job_key
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


def main(brokers: str, file: str = "") -> None:
    """Post headers and body as they came over HTTP, and wait until they are safe."""
    body = Path(file).read_bytes() if file else sample()
    headers = {"X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": str(uuid.uuid1())}
    secret = os.environ.get("RUNNERSTREAM_GITHUB_SECRETS", "").partition(",")[0].strip()
    if secret:
        # As GitHub signs, with the first secret: workers that know it believe nothing else.
        made = hmac.new(secret.encode(), body, "sha256").hexdigest()
        headers["X-Hub-Signature-256"] = f"sha256={made}"
    with Producer(brokers) as producer:
        producer.webhook(headers, body)
    print(job_key("github", "github.com", json.loads(body)["workflow_job"]["id"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
