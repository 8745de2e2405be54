"""The fence: whether a job still is what was judged when the command was made.

A worker is asked for the job as it knows it. What it does not say is not known, and then nothing is
done (law L6): an unreachable worker, a job that it has never heard of, or one of which it knows
less than the command does, are all reasons to wait.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline.executor.calls import Caller, Unreached
from topics.models import Status
from topics.recovery import MOVED_ON, Command, CommandKind

#: Most bytes of a worker's answer about one job.
_ANSWER_BYTES = 8 << 20
#: What may be done about a job that is over.
_EVEN_WHEN_OVER = frozenset({CommandKind.RELEASE_CLAIM, CommandKind.CLOSE})


@dataclass(frozen=True, slots=True)
class State:
    """What a worker says of a job, as far as fences and executors ask.

    Attributes:
        facts: how many facts about the job are known; those about its recovery do not count.
        live: handles of the claims that are not released.
        runner: name of the runner observed to execute it; empty when nobody was.
    """

    status: str
    facts: int
    live: frozenset[str] = frozenset()
    runner: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the fence says. Neither refused nor unknown: it matches."""

    state: State | None = None
    #: Why the command must not be done; empty when it may.
    refused: str = ""
    #: Why nobody can tell; empty when it is known.
    unknown: str = ""


def judge(command: Command, state: State) -> Ruling:
    """Whether the command may hit the job in this state. Pure."""
    fence = command.fence
    if state.facts < fence.rev:
        # It has not read up to where the command was made.
        return Ruling(unknown="worker_behind")
    if state.status == Status.COMPLETED and command.command not in _EVEN_WHEN_OVER:
        return Ruling(refused="completed")
    if fence.claim and fence.claim not in state.live:
        return Ruling(refused="claim_changed")
    if state.facts != fence.rev:
        return Ruling(refused=MOVED_ON)
    return Ruling(state)


def state_of(answer: Any, key: str) -> State | None:
    """The state in a worker's answer; None for what is none of this job's."""
    if not isinstance(answer, dict) or answer.get("key") != key:
        return None
    status, facts, claims = answer.get("status"), answer.get("facts"), answer.get("claims")
    if isinstance(facts, list):
        facts = len(facts)
    if isinstance(claims, dict):
        claims = [{"handle": handle, **claim} for handle, claim in claims.items()]
    if not isinstance(status, str) or not isinstance(facts, int) or not isinstance(claims, list):
        return None
    runner = answer.get("runner")
    if isinstance(runner, dict):
        runner = runner.get("name")
    try:
        live = frozenset(each["handle"] for each in claims if each.get("released_at") is None)
    except (AttributeError, KeyError, TypeError):
        return None
    return State(status, facts, live, runner if isinstance(runner, str) else "")


class States:
    """Asks a worker. Safe from any thread."""

    def __init__(self, worker_url: str, timeout_s: float = 5.0) -> None:
        self._url = worker_url.rstrip("/")
        self._call = Caller(timeout_s, most_bytes=_ANSWER_BYTES)

    def check(self, command: Command) -> Ruling:
        """What the fence says now. A fleet's command has no fence. Never raises."""
        key = command.job_key
        if not key:
            return Ruling()
        url = f"{self._url}/jobs/{quote(key, safe=':')}"
        try:
            reply = self._call("GET", url, {"accept": "application/json"})
            if reply.status != 200:
                return Ruling(unknown=f"worker_{reply.status}")
            found = state_of(json.loads(reply.body), key)
        except Unreached as error:
            return Ruling(unknown=f"worker_{error.reason}")
        except (ValueError, RecursionError):
            found = None
        return Ruling(unknown="worker_malformed") if found is None else judge(command, found)
