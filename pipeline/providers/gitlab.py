"""GitLab: the body of a job hook or a pipeline hook becomes facts.

Its words become GitHub's. From its documentation (webhook events, jobs API) and its source:

| GitLab | here |
| --- | --- |
| ``pending`` | queued |
| ``created``, ``waiting_for_resource``, ``preparing``, ``waiting_for_callback``, ``manual``, \
``scheduled`` | waiting: no runner may take it yet |
| ``running``, ``canceling`` | in progress |
| ``success``, ``failed``, ``canceled``, ``skipped`` | completed |

* **When it was queued** is its start less ``queued_duration``. ``created_at`` is when its pipeline
  was made, also of a job of a late stage; until it is pending, it waits since then. Until it has
  started it was queued when the hook that says ``pending`` arrived. The duration of a job that has
  not started counts on to the hook's own time, which is not told, so it says nothing.
* **The body is written after the event**, from the job as it is by then. So there is no action,
  only a status, and a status may come twice or not at all.
* **Labels.** A hook does not tell the job's tags. It tells those of the runner, once there is one:
  they stand for a runner group, which names the fleet until something tells the job's own.
* **A pipeline's end is no proof.** It is over and open again whenever somebody starts a manual job
  of it or retries one. So it ends no job; its hook says of each of its jobs what and where it is,
  as an answer of the API would.
* **A retry** has an id of its own.
* **Times** are ``2026-09-21 14:13:20 UTC`` or ISO 8601, by version and field.

**Signatures.** ``X-Gitlab-Token`` is the secret itself. A hook with a signing token (``whsec_`` and
the key, base64) has instead, or as well, the headers of Standard Webhooks: ``webhook-signature``
holds HMACs of ``webhook-id.webhook-timestamp.body``. A signing token is never taken as plain one.
How old the signed time may be is for whoever receives it to say: a log is read again years later.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b, sha256
from typing import Any, Final
from urllib.parse import urlsplit

from pipeline.providers.base import AHEAD_MS, Facts, Receiving, not_signed
from pipeline.providers.github import ODD_FIELDS
from pipeline.providers.github_bodies import canonical_labels, labels_of, time_of
from pipeline.providers.words import Odd, object_of, told, within
from topics.models import Delivery, JobFact, Reason, Unreadable

HELD: Final = frozenset(
    {"created", "waiting_for_resource", "preparing", "waiting_for_callback", "manual", "scheduled"}
)
STARTED: Final = frozenset({"running", "canceling"})
CONCLUSIONS: Final = {
    "success": "success", "failed": "failure", "canceled": "cancelled", "skipped": "skipped",
}  # fmt: skip
#: Why a job failed, where that has a conclusion of its own.
_FAILURES: Final = {"job_execution_timeout": "timed_out"}

TOKEN: Final = "x-gitlab-token"
#: Names the hook, whatever it sends.
_HOOK: Final = "x-gitlab-webhook-uuid"
_ID, _TIME, _SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
#: What a signing token begins with, and each signature made with it.
_SIGNING, _VERSION = b"whsec_", b"v1,"
#: While tokens are rotated there are two.
_MOST_SIGNATURES: Final = 16

_UTC: Final = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?) (UTC|[+-]\d\d:?\d\d)")


class GitLab(Receiving):
    """GitLab.com and self-managed GitLab behind the protocol of all providers."""

    name: Final = "gitlab"
    events: Final = ("job", "pipeline")
    other_events: Final = frozenset(
        (
            "confidential_issue", "confidential_note", "deployment", "emoji", "feature_flag",
            "issue", "member", "merge_request", "milestone", "note", "project", "push", "release",
            "resource_access_token", "subgroup", "system", "tag_push", "vulnerability",
            "wiki_page", "work_item",
        )
    )  # fmt: skip
    odd_fields: Final = ODD_FIELDS
    actions = tuple(sorted({*HELD, *STARTED, *CONCLUSIONS, "pending"}))
    kept_headers = ("x-gitlab-", "webhook-")
    signatures = (TOKEN, _SIGNATURE, _ID, _TIME)

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
        """Check ``webhook-signature`` where it is there and a signing token is known, else
        ``X-Gitlab-Token``."""
        keys = [secret for secret in secrets if secret.startswith(_SIGNING)]
        given = headers.get(_SIGNATURE)
        if given and keys:
            signed = [
                each.encode("utf-8", "replace") for each in given.split(maxsplit=_MOST_SIGNATURES)
            ]
            right = False
            for key in keys:
                wanted = _signature(headers.get(_ID, ""), headers.get(_TIME, ""), body, key)
                for each in signed[:_MOST_SIGNATURES]:
                    right |= wanted is not None and hmac.compare_digest(wanted, each)
            if not right:
                raise not_signed(_SIGNATURE, secrets)
            return
        shown = headers.get(TOKEN)
        if not shown:
            raise Unreadable(Reason.BAD_SIGNATURE, f"no {TOKEN}, and a secret is set")
        right = False
        for secret in secrets:
            # As long as each other, so that the time tells nothing of the secret's length either.
            same = hmac.compare_digest(_digest(secret), _digest(shown.encode("utf-8", "replace")))
            right |= same and not secret.startswith(_SIGNING)
        if not right:
            raise Unreadable(Reason.BAD_SIGNATURE, f"{TOKEN} is no secret that is set "
                                                   f"({len(secrets)})")  # fmt: skip

    def sign(self, body: bytes, secret: bytes) -> Mapping[str, str]:
        """``X-Gitlab-Token``; of a signing token the headers of Standard Webhooks, with a time of
        0 because there is no clock here."""
        if not secret.startswith(_SIGNING):
            return {TOKEN: secret.decode("utf-8", "replace")}
        name = blake2b(body, digest_size=16).hexdigest()
        made = _signature(name, "0", body, secret) or b""
        return {_ID: name, _TIME: "0", _SIGNATURE: made.decode()}

    def signed(self, headers: Mapping[str, str]) -> bool:
        """Whether there is a token or a signature: id and time alone are none."""
        return any(headers.get(name, "").strip() for name in (TOKEN, _SIGNATURE))

    def signed_at(self, headers: Mapping[str, str]) -> int | None:
        """``webhook-timestamp``, which is in seconds, beside a signature."""
        if not headers.get(_SIGNATURE):
            return None
        told = headers.get(_TIME, "")
        return int(told) * 1000 if re.fullmatch(r"[0-9]{1,12}", told) else 0

    def senders(self, headers: Mapping[str, str], body: bytes) -> Sequence[str]:
        """The hook, by ``X-Gitlab-Webhook-UUID``."""
        return [headers[_HOOK]] if _HOOK in headers else []

    def labels(self, event: str, payload: bytes) -> Sequence[str] | None:
        """The tags of a job's runner, once there is one: a hook does not tell the job's own."""
        try:
            body = object_of(payload.decode("utf-8", "replace")) if event == "job" else {}
        except Unreadable:
            return None
        tags = within(body, "runner").get("tags")
        return labels_of(tags, Counter()) if isinstance(tags, list) else None

    def facts(self, delivery: Delivery) -> Facts:
        """A job hook gives the facts of its job; a pipeline hook what the pipeline says of its
        jobs, then the facts of each of them."""
        event = delivery.kind.partition(".")[2]
        if event in self.other_events:
            return Facts(ignored="other")
        if event not in self.events:
            raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {delivery.kind!r} delivery")
        body = object_of(delivery.payload)
        return _of_job(delivery, body) if event == "job" else _of_pipeline(delivery, body)


def job_words(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """A job, as its API has it, in GitHub's words; None for a status that GitLab does not have.

    What it belongs to (``run_id``, ``head_sha``) is for the caller to say.
    """
    status, started = job.get("status"), moment(job.get("started_at"))
    runner = within(job, "runner")
    found: dict[str, Any] = {
        "id": job.get("id"),
        "conclusion": None,
        "created_at": _queued_at(started, job.get("queued_duration")),
        "started_at": started,
        "completed_at": moment(job.get("finished_at")),
        "name": job.get("name"),
        "head_branch": job.get("ref"),
        "html_url": job.get("web_url"),
        "labels": job.get("tag_list") or [],
        "runner_id": runner.get("id"),
        "runner_name": runner.get("description") or runner.get("name"),
    }
    if started is None:
        found["steps"] = []  # with nobody to run it that says: it never ran
    if not isinstance(status, str):
        return None
    if status == "pending":
        found["status"] = "queued"
    elif status in HELD:
        found["status"] = "waiting"
    elif status in STARTED:
        found["status"] = "in_progress"
    elif status in CONCLUSIONS:
        found["status"] = "completed"
        found["conclusion"] = CONCLUSIONS[status]
        if status == "failed":
            why = job.get("failure_reason")
            found["conclusion"] = _FAILURES.get(why if isinstance(why, str) else "", "failure")
    else:
        return None
    return found


def moment(value: Any) -> Any:
    """A time as ISO 8601 has it; what is none of GitLab's times stays as it is."""
    match = _UTC.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    return match[1] + ("+00:00" if match[2] == "UTC" else match[2])


def _of_job(delivery: Delivery, body: Mapping[str, Any]) -> Facts:
    job = {
        "id": body.get("build_id"),
        "status": body.get("build_status"),
        "name": body.get("build_name"),
        "ref": body.get("ref"),
        "queued_duration": body.get("build_queued_duration"),
        "failure_reason": body.get("build_failure_reason"),
        "tag_list": body.get("tag_list"),
        "runner": body.get("runner"),
    }
    for name in ("created_at", "started_at", "finished_at"):
        job[name] = body.get(f"build_{name}") or body.get(f"build_{name}_iso")
    commit = within(body, "commit")
    # What is called the commit's id is the pipeline's.
    run = {"id": body.get("pipeline_id") or commit.get("id"), "sha": body.get("sha"),
           "name": commit.get("name")}  # fmt: skip
    return _job(delivery, body, job, run, hook=True)


def _of_pipeline(delivery: Delivery, body: Mapping[str, Any]) -> Facts:
    about = within(body, "object_attributes")
    url, repo = _project(body)
    run = {
        "id": about.get("id"),
        "actor": {"login": within(body, "user").get("username")},
        "event": about.get("source"),
        "pull_requests": [{"number": merge}] if (merge := _iid(body)) is not None else [],
    }
    odd: Odd = Counter()
    said = told(
        delivery,
        "workflow_run",
        {"workflow_run": run, "repository": {"full_name": repo}},
        urls=(url,),
    )
    builds = body.get("builds")
    for build in builds if isinstance(builds, list) else ():
        if not isinstance(build, dict):
            odd["status", "wrong_type"] += 1
            continue
        job = {**build, "ref": about.get("ref")}
        try:
            facts = _job(delivery, body, job, about, hook=False)
        except Unreadable:  # one without an id costs the others nothing
            odd["status", "unusable"] += 1
            continue
        said += facts
        said.odd.update(facts.odd)
    said.odd.update(odd)
    return said


def _job(
    delivery: Delivery,
    body: Mapping[str, Any],
    job: Mapping[str, Any],
    run: Mapping[str, Any],
    *,
    hook: bool,
) -> Facts:
    """The facts of a job in a hook, as its API has it; ``hook`` False: of one of a pipeline's."""
    odd: Odd = Counter()
    url, repo = _project(body)
    status, number = job.get("status"), job.get("id")
    words = job_words({"web_url": f"{url}/-/jobs/{number}" if url else None, **job})
    if words is None:
        # Who it is, is known; where it is, is not.
        words = job_words({**job, "status": "created"}) or {}
        words["status"] = None
        if status is not None:
            odd["status", "unusable"] += 1
    at = None
    if words["status"] == "waiting":
        latest = delivery.received_at + AHEAD_MS
        at = time_of(moment(job.get("created_at")), "created_at", latest, odd)
    words |= {"run_id": run.get("id"), "head_sha": run.get("sha"), "workflow_name": run.get("name")}
    tags = canonical_labels(labels_of(within(job, "runner").get("tags"), odd))
    words["runner_group_name"] = ",".join(tags) or None
    repository = {"full_name": repo}
    if hook:
        sender = {"login": within(body, "user").get("username")}
        wrapped = {"action": words["status"], "workflow_job": words, "repository": repository,
                   "sender": sender}  # fmt: skip
        said = told(delivery, "workflow_job", wrapped, urls=(url,), occurred_at=at, odd=odd)
    else:
        said = told(delivery, "api_job", words, urls=(url,), occurred_at=at, odd=odd)
    cause = f"build.{status}" if words["status"] else "build.other"
    for place, fact in enumerate(said):
        if isinstance(fact, JobFact):
            assert fact.job is not None
            about = fact.job if fact.job.repo else fact.job.model_copy(update={"repo": repo[:1024]})
            said[place] = fact.model_copy(update={"cause": cause, "job": about})
    return said


def _project(body: Mapping[str, Any]) -> tuple[str, str]:
    """The project's URL and path, blank where it is not told."""
    project = within(body, "project")
    url = project.get("web_url") or within(body, "repository").get("homepage")
    url = url if isinstance(url, str) else ""
    path = project.get("path_with_namespace")
    if isinstance(path, str) and path:
        return url, path
    try:
        return url, urlsplit(url).path.strip("/")
    except ValueError:
        return "", ""


def _iid(body: Mapping[str, Any]) -> Any:
    return within(body, "merge_request").get("iid")


def _queued_at(started: Any, waited: Any) -> str | None:
    """When the job was queued, from its start and the seconds that it waited for a runner."""
    if isinstance(waited, bool) or not isinstance(waited, (int, float)) or not waited >= 0:
        return None
    try:
        return (datetime.fromisoformat(started) - timedelta(seconds=waited)).isoformat()
    except (TypeError, ValueError, OverflowError):
        return None


def _signature(name: str, time: str, body: bytes, secret: bytes) -> bytes | None:
    """``v1,<base64>``; None for a signing token that is none."""
    try:
        key = b64decode(secret.removeprefix(_SIGNING), validate=True)
    except (binascii.Error, ValueError):
        return None
    if not key:
        return None
    signed = f"{name}.{time}.".encode("utf-8", "replace") + body
    return _VERSION + b64encode(hmac.digest(key, signed, sha256))


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()
