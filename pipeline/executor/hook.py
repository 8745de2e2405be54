"""``hook``: the command as a signed HTTP call to a program of yours.

``examples/dispatcher_hook.py`` is the other side. What its answer means: 2xx done; 409 refused, the
fence did not match its books; 410 and 422 cannot; 429, 5xx or no answer: again; any other cannot.
A JSON body ``{"result": "refused", "reason": "claim_changed"}`` says it in so many words.
"""

from __future__ import annotations

import json
from typing import Final

from pipeline.executor.calls import Caller, Reply, Unreached
from pipeline.executor.fence import State
from pipeline.executor.via import Again, Verdict
from pipeline.providers.base import sign_sha256
from topics.recovery import Command, Result

SIGNATURE: Final = "X-Runnerstream-Signature-256"
IDEMPOTENCY: Final = "Idempotency-Key"
#: What a body may say. That it expired is for us to say.
_SAYABLE: Final = (Result.DONE, Result.REFUSED, Result.CANNOT, Result.FAILED)


class Hook:
    """Calls one URL. ``secret`` signs each body; the receiver must check it."""

    name: Final = "hook"

    def __init__(self, url: str, secret: bytes, timeout_s: float = 10.0) -> None:
        self._url = url
        self._secret = secret
        self._call = Caller(timeout_s)

    def cannot(self, command: Command) -> str:
        """Only the receiver knows."""
        return ""

    def act(self, command: Command, state: State | None) -> Verdict | Again:
        """Call it. The same command always has the same body and the same key."""
        body = command.model_dump_json().encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "runnerstream",
            SIGNATURE: sign_sha256(body, self._secret),
            # An id may have characters that no header takes.
            IDEMPOTENCY: command.id.encode("unicode_escape").decode("ascii"),
        }
        try:
            return meaning(self._call("POST", self._url, headers, body))
        except Unreached as error:
            return Again(error.reason)


def meaning(reply: Reply) -> Verdict | Again:
    """What an answer says. Pure."""
    said = _said(reply.body)
    if said is not None:
        return said
    word = f"http_{reply.status}"
    if 200 <= reply.status < 300:
        return Verdict(Result.DONE)
    if reply.status == 409:
        return Verdict(Result.REFUSED, word)
    if reply.status == 429 or reply.status >= 500:
        return Again(word, reply.retry_after_s())
    return Verdict(Result.CANNOT, word)


def _said(body: bytes) -> Verdict | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("result") not in _SAYABLE:
        return None
    reason = found.get("reason")
    return Verdict(Result(found["result"]), reason[:256] if isinstance(reason, str) else "")
