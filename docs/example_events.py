"""The examples of the producers' page: one record of each kind, as a command that posts it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from topics import models
from topics.envelope import Record

#: The moment of reading, in the records as they are made here; as text it becomes `$now` of the
#: shell. A record of a fixed time would be too old for every window, table and page by the time
#: somebody posts it.
AT: Final = 1_790_000_000_000
#: The same in a webhook's body.
AT_ISO: Final = "2026-09-21T14:13:20Z"
JOB: Final = 41_000_000_001


def examples() -> dict[str, Record]:
    """One record of each kind that a user may post, by title."""
    key = models.job_key("github", "github.com", JOB)
    # Of another job: a provider's clock would win over those of the events below.
    hooked = models.job_key("github", "github.com", JOB + 1)
    body = {
        "action": "queued",
        "workflow_job": {
            "id": JOB + 1,
            "run_id": 7001,
            "run_attempt": 1,
            "status": "queued",
            "created_at": AT_ISO,
            "labels": ["self-hosted", "Linux", "X64"],
        },
        "repository": {"full_name": "acme/shop"},
    }
    event: dict[str, Any] = {
        "source": "dispatcher-1",
        "key": key,
        "job_id": str(JOB),
        "fleet": "linux-small",
    }

    def lifecycle(kind: str, before_s: int, **more: Any) -> models.LifecycleEvent:
        at = AT - before_s * 1000
        of = more.get("key", JOB)
        known = {"id": f"{kind}/{of}/{at}", "kind": kind, "occurred_at": at, "received_at": at}
        return models.LifecycleEvent.model_validate({**known, **event, **more})

    def of_runner(kind: str, before_s: int, **more: Any) -> models.LifecycleEvent:
        machine = {"key": "vm-18", "job_id": None, "runner": {"name": "vm-18"}}
        return lifecycle(kind, before_s, runner_host="rack-7", **machine, **more)

    vm = {"name": "vm-17"}
    return {
        "A webhook delivery on `runners.webhooks`": models.Delivery(
            id="5d2a3b80-b5f4-11f1-8a3f-0242ac120002",
            kind="github.workflow_job",
            source="hook-receiver",
            occurred_at=AT - 350,
            received_at=AT,
            key=hooked,
            headers={"x-github-event": "workflow_job"},
            payload=json.dumps(body),
        ),
        "Your scheduler queued a job (for fleets without webhooks)": lifecycle(
            "job.queued", 96, repo="acme/shop"
        ),
        "A dispatcher claimed it": lifecycle("job.claimed", 94, claim="lease-93", runner=vm),
        "The runner's configuration was minted": lifecycle(
            "job.minted", 92, claim="lease-93", runner=vm
        ),
        "The runner began to execute it": lifecycle("job.started", 85, runner=vm),
        "It ended": lifecycle("job.completed", 1, runner=vm, conclusion="success"),
        "The claim was given back": lifecycle(
            "claim.released", 0, claim="lease-93", reason="finished"
        ),
        "A runner has reached the provider": of_runner("runner.registered", 90, boot_ms=41_000),
        "It waits for a job": of_runner("runner.idle", 60),
        "It lives, and its machine is there": of_runner("runner.heartbeat", 30),
        "It takes no further job": of_runner("runner.drained", 20),
        "It is gone": of_runner("runner.gone", 10),
        "A machine is gone, and every runner on it": lifecycle(
            "host.gone", 5, key="rack-7", job_id=None, runner_host="rack-7"
        ),
    }


def commands() -> str:
    """Each example as a command that posts it with the time of the reading."""
    out = []
    for title, record in examples().items():
        value = json.loads(record.model_dump_json(exclude_defaults=True))
        # The envelope's order, kind included.
        shown = {name: value[name] for name in type(record).model_fields if name in value}
        text = json.dumps(shown, indent=2)
        text = re.sub(r'"(\w+_at)": (\d+)', lambda m: f'"{m[1]}": {_moment(int(m[2]))}', text)
        text = re.sub(r'("id": ".*/)(\d{13})"', lambda m: f'{m[1]}{_moment(int(m[2]))}"', text)
        text = text.replace(AT_ISO, "$(date -u +%Y-%m-%dT%H:%M:%SZ)")
        command = f"now=$(date +%s)000\nrunnerstream post <<END\n{text}\nEND"
        out.append(f"**{title}**, key `{record.key}`:\n\n```sh\n{command}\n```\n")
    return "\n".join(out)


def _moment(at: int) -> str:
    """A time as the shell reckons it from now."""
    before = AT - at
    return f"$((now - {before}))" if before else "$now"
