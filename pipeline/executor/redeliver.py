"""``redeliver``: the job's first webhook once more, to the autoscaler that missed it.

For fleets without a dispatcher: whatever starts runners on ``workflow_job.queued`` starts another.
The body is the provider's, byte for byte; the signature is made with the secret that the receiver
knows.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from pipeline.executor.calls import Caller, Unreached
from pipeline.executor.deliveries import LogUnread, Original
from pipeline.executor.fence import State
from pipeline.executor.via import Again, Verdict
from pipeline.providers.base import sign_sha256
from topics.bridge import FORMS
from topics.recovery import Command, CommandKind, Result

log = logging.getLogger(__name__)

_FORM: Final = FORMS["github"]
_SIGNATURE: Final = "X-Hub-Signature-256"
#: Headers that go on as they came, beside those that are named below.
_KEPT: Final = "x-github-"


class Finder(Protocol):
    """Who has the deliveries."""

    def find(self, job_key: str, first_seen: int) -> Original | None:
        """The job's first delivery. Raises :class:`LogUnread`."""
        ...


class Redeliver:
    """Posts to one URL, as GitHub would with ``secret``."""

    name: Final = "redeliver"

    def __init__(
        self, url: str, secret: bytes, deliveries: Finder, timeout_s: float = 10.0
    ) -> None:
        self._url = url
        self._secret = secret
        self._deliveries = deliveries
        self._call = Caller(timeout_s)

    def cannot(self, command: Command) -> str:
        """Only a job that is to be executed again has a delivery to send again."""
        if command.command is not CommandKind.REQUEUE:
            return "not_for_redeliver"
        if not command.job_key.startswith("github:") or command.first_seen is None:
            return "no_delivery"
        return ""

    def act(self, command: Command, state: State | None) -> Verdict | Again:
        """Find it, and post it.

        What may have arrived is not sent again: a webhook has no key that receivers must honour.
        """
        assert command.first_seen is not None
        try:
            found = self._deliveries.find(command.job_key, command.first_seen)
        except LogUnread as error:
            log.warning("%s: %s", command.id, error)
            return Again("log_unread")
        if found is None:
            return Verdict(Result.CANNOT, "no_delivery")
        try:
            reply = self._call("POST", self._url, self._headers(found), found.body)
        except Unreached as error:
            return Verdict(Result.FAILED, error.reason) if error.sent else Again(error.reason)
        word = f"http_{reply.status}"
        if 200 <= reply.status < 300:
            return Verdict(Result.DONE)
        if reply.status == 429 or reply.status >= 500:
            return Again(word, reply.retry_after_s())
        return Verdict(Result.CANNOT, word)

    def _headers(self, found: Original) -> list[tuple[str, str]]:
        told = {
            name: value
            for name, value in found.headers.items()
            if name.startswith(_KEPT) and name not in (_FORM.event, _FORM.delivery)
        }
        kind = found.headers.get("content-type", "")
        # What was in a form is no form any more when only its payload was kept.
        if not kind or found.body.startswith(b"{"):
            kind = kind if "json" in kind else "application/json"
        sent = {
            "X-GitHub-Event": found.headers.get(_FORM.event, "workflow_job"),
            "X-GitHub-Delivery": found.id,
            "Content-Type": kind,
            "User-Agent": "GitHub-Hookshot/runnerstream",
            _SIGNATURE: sign_sha256(found.body, self._secret),
        }
        # Header values must be such; what is not was no header of GitHub's.
        return [(name, value) for name, value in (*told.items(), *sent.items()) if _sendable(value)]


def _sendable(value: str) -> bool:
    return value.isascii() and value.isprintable()
