"""Asking a provider about a job: the protocol behind which GitHub's API and others stand.

A new provider's API is a class of this shape, and a place where the prober makes its clients. One
question is one job as a probe names it. A client waits for the network and never for its turn: when
its budget is spent it says so, and whoever asks comes back later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipeline.providers.base import Fact
from topics.keys import canonical_host, parse_job_key
from topics.recovery import Answer, Probe


class Detail(StrEnum):
    """Why an answer is unknown. Bounded, because it is stored and shown."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    #: Its limits, or ours.
    LIMITED = "limited"
    #: No JSON, no object, too large, a status that we do not know, a redirect to elsewhere.
    MALFORMED = "malformed"
    #: We may not see it.
    FORBIDDEN = "forbidden"
    #: It cannot be asked: no credentials, no client, not enough known of the job.
    UNSUPPORTED = "unsupported"
    #: The API tells of another job, or says what excludes itself.
    CONTRADICTORY = "contradictory"
    #: A fault of ours; it is in the log.
    UNEXPECTED = "unexpected"


class Outcome(StrEnum):
    """How a request ended: a metric label."""

    OK = "ok"
    NOT_MODIFIED = "not_modified"
    #: 404, 410.
    MISSING = "missing"
    REDIRECT = "redirect"
    FORBIDDEN = "forbidden"
    LIMITED = "limited"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Said:
    """What a provider says about a job.

    Attributes:
        answer: in one word.
        facts: what it told of job and run, for ``runners.jobs``, in the order to post them.
        detail: why the answer is unknown; empty for the others.
        again: whether asking again later may help.
    """

    answer: Answer
    facts: tuple[Fact, ...] = ()
    detail: str = ""
    again: bool = False


def place_of(key: str) -> str:
    """Where the job of a key lives, and whom to ask about it: provider and host, as in the key."""
    provider, host, _ = parse_job_key(key)
    return f"{provider}:{canonical_host(host)}"


class Client(Protocol):
    """Asks the API of one provider at one host. Safe from several threads."""

    @property
    def about(self) -> str:
        """What is asked and as whom, for people; or why nothing is."""
        ...

    def lane(self, probe: Probe) -> str:
        """Whose budget a question takes from. Nothing is asked for it."""
        ...

    def opens(self, lane: str, flights: int) -> float:
        """In how many seconds a further question may be asked while ``flights`` are; 0 is now."""
        ...

    def ask(self, probe: Probe) -> Said:
        """Ask once, and say what came of it. Does not raise for what the provider does."""
        ...

    def remaining(self) -> int | None:
        """Requests that the provider still allows, of the lane with the fewest; None: not known."""
        ...

    def trouble(self) -> str:
        """What the provider fails with, as a sentence; empty while it answers."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Unsupported:
    """Stands for a provider that cannot be asked."""

    def __init__(self, why: str) -> None:
        self.about = why

    def lane(self, probe: Probe) -> str:
        return ""

    def opens(self, lane: str, flights: int) -> float:
        return 0.0

    def ask(self, probe: Probe) -> Said:
        return Said(Answer.UNKNOWN, detail=Detail.UNSUPPORTED)

    def remaining(self) -> int | None:
        return None

    def trouble(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing is held."""
