"""Gitea and Forgejo: a webhook's body becomes facts.

Gitea speaks GitHub's language with an accent (``services/convert`` and ``modules/structs`` of its
source); Forgejo signs and names its deliveries in the same way. What is peculiar:

* **Queued and waiting.** A job that waits for a runner is ``queued``. One that waits for other
  jobs, its turn or an approval is ``waiting`` or ``pending``, by version, and it has been so
  since ``created_at``, which is when its run was made. That is no queue time: nothing is measured
  with it. A job was queued when the ``queued`` delivery arrived.
* **Nobody** is a runner id of 0, a name of "", or neither. **Never** is the year 1 or 1970.
* **Completed without a conclusion** is a status that Gitea itself does not know: it ends nothing.
* **Steps** count from 0, and so are told one higher.
* **Attempts** are counted when a runner takes the job, so they are left out. Older versions run a
  job again under its old id: to us it has ended then, and what follows fills blanks.
* **A run's end ends no job.** It is run again under its own id, and each job tells its own end.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from pipeline.providers.base import AHEAD_MS, Facts, Receiving, verify_hex
from pipeline.providers.github import ODD_FIELDS
from pipeline.providers.github_bodies import time_of
from pipeline.providers.github_glance import labels
from pipeline.providers.words import Odd, object_of, told, within
from topics.models import Delivery, Reason, Unreadable

#: Its words that are not GitHub's, for the same.
STATUSES: Final = {"blocked": "waiting", "running": "in_progress", "cancelling": "in_progress"}
_HELD: Final = frozenset({"waiting", "pending"})
#: Of one delivery all are made of the same bytes with the same secret.
_SIGNATURES: Final = ("x-forgejo-signature", "x-gitea-signature")
_HUB: Final = "x-hub-signature-256"


class _Repository(msgspec.Struct, gc=False):
    id: Any = None


class _Sender(msgspec.Struct, gc=False):
    repository: _Repository | None = None


_SENDER: Final = msgspec.json.Decoder(_Sender)


class Gitea(Receiving):
    """Gitea and Forgejo behind the protocol of all providers."""

    name: Final = "gitea"
    events: Final = ("workflow_job", "workflow_run")
    #: Forgejo's ``action_run_*`` and ``workflow_job_*`` are among them.
    other_events: Final = frozenset(
        (
            "action_run_failure", "action_run_recover", "action_run_success", "create", "delete",
            "fork", "issue_assign", "issue_comment", "issue_label", "issue_milestone", "issues",
            "package", "ping", "pull_request", "pull_request_approved", "pull_request_assign",
            "pull_request_comment", "pull_request_label", "pull_request_milestone",
            "pull_request_rejected", "pull_request_review_approved",
            "pull_request_review_comment", "pull_request_review_rejected",
            "pull_request_review_request", "pull_request_sync", "push", "release", "repository",
            "schedule", "status", "wiki", "workflow_dispatch", "workflow_job_blocked",
            "workflow_job_cancelled", "workflow_job_failure", "workflow_job_running",
            "workflow_job_skipped", "workflow_job_success", "workflow_job_waiting",
        )
    )  # fmt: skip
    odd_fields: Final = ODD_FIELDS
    actions = ("completed", "in_progress", "queued", "requested", "waiting")
    kept_headers = ("x-gitea-", "x-forgejo-", "x-gogs-", "x-github-", "x-hub-signature")
    signatures = (*_SIGNATURES, _HUB)

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
        """Check ``X-Forgejo-Signature`` or ``X-Gitea-Signature``, hex alone, else
        ``X-Hub-Signature-256``. The first that is there decides; SHA-1 alone is not enough."""
        for name in _SIGNATURES:
            if headers.get(name):
                verify_hex(headers[name], name, body, secrets)
                return
        given = headers.get(_HUB)
        verify_hex(given, _HUB if given else _SIGNATURES[1], body, secrets, "sha256=")

    def sign(self, body: bytes, secret: bytes) -> Mapping[str, str]:
        """``X-Gitea-Signature``."""
        return {_SIGNATURES[1]: hmac.digest(secret, body, sha256).hex()}

    def senders(self, headers: Mapping[str, str], body: bytes) -> Sequence[str]:
        """The repository, by the number that the API has for it. No header names the hook."""
        try:
            sender = _SENDER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ()
        number = None if sender.repository is None else sender.repository.id
        return [str(number)] if isinstance(number, int) and 0 < number < 2**63 else ()

    def labels(self, event: str, payload: bytes) -> Sequence[str] | None:
        """Where GitHub has them."""
        return labels(event, payload)

    def facts(self, delivery: Delivery) -> Facts:
        """A ``workflow_job`` gives the facts of the job, a ``workflow_run`` what its run says."""
        event = delivery.kind.partition(".")[2]
        if event in self.other_events:
            return Facts(ignored="other")
        if event not in self.events:
            raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {delivery.kind!r} delivery")
        body = object_of(delivery.payload)
        odd: Odd = Counter()
        part = body.get(event)
        urls = (within(body, event).get("html_url"), within(body, "repository").get("html_url"))
        passed = {name: body.get(name) for name in ("repository", "sender")}
        if not isinstance(part, dict):
            return told(delivery, event, passed | {event: part}, urls=urls)
        at = None
        passed["action"] = _word(body.get("action"))
        if event == "workflow_run":
            part = run_words(part)
        else:
            status = _word(part.get("status"))
            if isinstance(status, str) and status in _HELD:
                latest = delivery.received_at + AHEAD_MS
                at = time_of(part.get("created_at"), "created_at", latest, odd)
            part = job_words(part)
            if part["status"] == "completed" and part["conclusion"] is None:
                part["status"] = passed["action"] = None
                odd["conclusion", "unusable"] += 1
        return told(delivery, event, passed | {event: part}, urls=urls, occurred_at=at, odd=odd)


def job_words(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in GitHub's words. What is left out is nobody, and nothing."""
    found = {**job, "status": _word(job.get("status")), "conclusion": job.get("conclusion") or None}
    for name in ("created_at", "run_attempt"):
        found.pop(name, None)
    found["runner_id"] = job.get("runner_id") or None
    found["runner_name"] = job.get("runner_name") or None
    steps = job.get("steps") or []
    found["steps"] = [_step(step) for step in steps] if isinstance(steps, list) else steps
    return found


def run_words(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run in GitHub's words, without its end."""
    found = {**run, "status": None, "conclusion": None, "run_started_at": run.get("started_at")}
    found.pop("run_attempt", None)
    return found


def _step(step: Any) -> Any:
    number = step.get("number") if isinstance(step, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        return step
    return {**step, "number": number + 1}


def _word(value: Any) -> Any:
    return STATUSES.get(value, value) if isinstance(value, str) else value
