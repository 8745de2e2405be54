"""Every answer of the gateway, declared once: status, outcome, what it says and when it is given.

Server and OpenAPI document are made from it. No answer holds a part of what was sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """How a request ended. Each is a metric label."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    UNAUTHENTICATED = "unauthenticated"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        status: of HTTP.
        outcome: what it counts as.
        says: a sentence for whoever sent the request.
        retry_after_s: when to come again; 0: nothing is said about it.
        closes: whether the connection ends with it.
    """

    status: int
    outcome: Outcome
    says: str
    retry_after_s: int = 0
    closes: bool = False


ACCEPTED: Final = Answer(202, Outcome.ACCEPTED, "written to Kafka")
DUPLICATE: Final = Answer(202, Outcome.DUPLICATE, "written to Kafka, once more")
ODD: Final = Answer(
    202, Outcome.MALFORMED, "authentic, but nothing can be read in it: it will be a dead letter"
)
IGNORED: Final = Answer(200, Outcome.IGNORED, "authentic; this event says nothing about jobs")

BAD_FRAMING: Final = Answer(400, Outcome.MALFORMED, "this is no proper HTTP request", closes=True)
NO_EVENT: Final = Answer(400, Outcome.MALFORMED, "a header is missing that names the event, or a "
                         "header of the provider's stands there twice")  # fmt: skip
UNSIGNED: Final = Answer(401, Outcome.UNAUTHENTICATED, "there is no signature: set a secret in "
                         "the webhook's settings at the provider")  # fmt: skip
WRONG: Final = Answer(403, Outcome.UNAUTHENTICATED, "the signature was not made of this body "
                      "with a secret that is known here")  # fmt: skip
STALE: Final = Answer(403, Outcome.UNAUTHENTICATED, "the time that it was signed at is more than "
                      "5 minutes from ours")  # fmt: skip
NOT_FOUND: Final = Answer(404, Outcome.MALFORMED, "nothing is here")
NOT_ALLOWED: Final = Answer(405, Outcome.MALFORMED, "another method is wanted")
SLOW: Final = Answer(408, Outcome.TIMEOUT, "the body took too long to come", closes=True)
NO_LENGTH: Final = Answer(411, Outcome.MALFORMED, "there is no body, or nothing says how long")
TOO_LARGE: Final = Answer(413, Outcome.TOO_LARGE, "the body is larger than 25 MiB", closes=True)
BAD_TYPE: Final = Answer(415, Outcome.MALFORMED, "the provider does not send this content "
                         "type, or the body is compressed")  # fmt: skip
UNAVAILABLE: Final = Answer(503, Outcome.UNAVAILABLE, "Kafka did not acknowledge it in time: "
                            "deliver it again", retry_after_s=30)  # fmt: skip
BUSY: Final = Answer(503, Outcome.UNAVAILABLE, "too many deliveries wait for Kafka: deliver it "
                     "again", retry_after_s=30)  # fmt: skip

FAULT: Final = Answer(500, Outcome.UNAVAILABLE, "a fault of the gateway's, which is in its log")

#: What a webhook may be answered.
HOOK_ANSWERS: Final = (
    IGNORED, ACCEPTED, DUPLICATE, ODD, BAD_FRAMING, NO_EVENT, UNSIGNED, WRONG, STALE, SLOW,
    NO_LENGTH, TOO_LARGE, BAD_TYPE, FAULT, UNAVAILABLE, BUSY,
)  # fmt: skip
