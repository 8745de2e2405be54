"""The part of the demo that is about recovery: whom the prober asks, who obeys commands, the
executor between them, and what the product says of stuck jobs.

::

    worker's prober ──▶ GitHub's API  ─┐ (this process, over HTTP,
    executor (child) ─▶ dispatcher    ─┘  from the simulation's truth)

What is shown comes from the product: the table ``stalls`` and ``/recovery``. Only how many jobs got
stuck, and whether a command hit one that lived, is the simulation's to say.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from clickhouse_driver import Client

from pipeline.commands.connections import ask
from pipeline.commands.demo_children import write_private
from pipeline.simulate import LIVE, Asked, Cause, Fleet, Stalls, Stuck, default_fleets
from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub
from pipeline.simulate.asked import Dispatcher
from pipeline.simulate.stuck import FOUND_AS
from pipeline.simulate.wire import HOST
from pipeline.text import duration
from topics.keys import job_key
from topics.recovery import Answer, StallKind

#: A fleet with so many runners that nobody waits for one: who does so is stuck.
ROOMY: Final = Fleet("windows", ("self-hosted", "Windows", "X64"), runners=400, weight=3.0)
#: When a job is suspected, in seconds: fit to watch. Queues of the other fleets are long at times,
#: and rightly so.
POLICIES: Final = {
    "*": {
        "stale_claim": 15, "orphan": 15, "displaced": 15, "stale_queue": 3600, "running": 30,
        "ask": 15, "ask_again": 5, "propose_again": 5, "cool_down": 10, "per_hour": 2000,
    },
    ROOMY.name: {"stale_queue": 15},
}  # fmt: skip
#: Within this each is found and recovered. Most of it is the time until it is suspected. Seconds.
BOUND_S: Final = 60.0
#: What the executor signs with; in the directory of the demo while it runs.
SECRET_FILE: Final = "hook-secret"
#: From one stuck job to the next while one watches, and in a minute that is checked. Seconds.
EVERY_S: Final = 5.0
EVERY_CHECKED_S: Final = 2.5
#: Before the end of a run that is checked nothing more gets stuck. Seconds.
GRACE_S: Final = 25.0
#: Rows that are read, the newest; and lines that are kept.
_ROWS: Final = 1_000
LINES: Final = 12
#: How long after GitHub's answer the job counts as over, at most, in ms, and as what.
_TOLD_MS: Final = 30_000
_CLOSED_AS: Final = ("startup_failure", "stale", "unknown")

_SINCE: Final[dict[str, str]] = {
    StallKind.STALE_CLAIM: "claimed {} s ago, never minted",
    StallKind.ORPHAN: "minted {} s ago",
    StallKind.DISPLACED: "runner swapped",
    StallKind.RUNNER_LOST: "machine gone",
    StallKind.STALE_QUEUE: "queued for {} s",
    StallKind.MISSED_COMPLETION: "running {} s",
}
_SAID: Final = {
    Answer.QUEUED: "GitHub says queued",
    Answer.IN_PROGRESS: "GitHub says it runs",
    Answer.COMPLETED: "GitHub says completed",
    Answer.GHOST: "its run is over",
    Answer.GONE: "GitHub does not know it",
    Answer.UNKNOWN: "GitHub does not tell",
}


def fleets(jobs: int, duration_s: float) -> list[Fleet]:
    """The fleets of the demo."""
    # As many as all jobs of all fleets together would need, at fifteen seconds each, and more.
    roomy = replace(ROOMY, runners=ROOMY.runners + math.ceil(15 * jobs / duration_s))
    return [*default_fleets(jobs, duration_s, LIVE), roomy]


def stalls(lasts_s: float, checked: bool) -> Stalls:
    """What gets stuck in a demo of that length."""
    if not checked:
        return Stalls(EVERY_S, queues=frozenset({ROOMY.name}))
    until = lasts_s - min(GRACE_S, lasts_s / 2)
    return Stalls(EVERY_CHECKED_S, until, frozenset({ROOMY.name}))


class Other:
    """The other side of recovery, in this process: GitHub's API, and the dispatcher."""

    def __init__(self) -> None:
        #: Set as soon as there is something to ask.
        self.asked: Asked | None = None
        self._token = secrets.token_hex(16)
        self._secret = secrets.token_hex(16)
        self.github = FakeGitHub(self._job, self._run, token=self._token, sees=self._sees)
        self.dispatcher = Dispatcher(self._secret.encode())

    def settings(self) -> dict[str, str]:
        """What the worker runs with to ask and to command."""
        return {
            "recovery": "live",
            "recovery_policies": json.dumps(POLICIES),
            "github_token": self._token,
            "github_api_url": self.github.url,
            "probes_per_minute": "1000",
        }

    def command(self, directory: Path) -> list[str]:
        """The executor's command line, after the program's name. Writes the secret."""
        file = directory / SECRET_FILE
        write_private(file, self._secret)
        return [
            "executor", "--via", "hook", "--to", self.dispatcher.url,
            "--secret-file", str(file), "--until-stdin-closes",
        ]  # fmt: skip

    def open(self, asked: Asked) -> None:
        """Answer from this world."""
        self.asked = self.dispatcher.asked = asked

    def close(self) -> None:
        """Stop serving."""
        self.github.close()
        self.dispatcher.close()

    def unsettled(self, now_ms: int) -> int:
        """How many jobs are stuck that may still be recovered in time."""
        return sum(
            each.freed_at is None and now_ms < each.at + BOUND_S * 1000 for each in self.stuck()
        )

    def stuck(self) -> list[Stuck]:
        """All jobs that got stuck so far."""
        if self.asked is None:
            return []
        with self.asked.world.lock:
            return list(self.asked.world.stuck.values())

    def hits(self) -> int:
        """Commands that were done to a job that lived."""
        return 0 if self.asked is None else len(self.asked.world.books.hits)

    def _job(self, job_id: int) -> ApiJob | None:
        return None if self.asked is None else self.asked.job(job_id)

    def _run(self, run_id: int, attempt: int) -> ApiRun | None:
        return None if self.asked is None else self.asked.run(run_id, attempt)

    def _sees(self, repo: str) -> bool:
        return self.asked is not None and self.asked.sees(repo)


def closed(other: Other, url: str) -> dict[str, tuple[int, str]]:
    """When and as what the views have jobs over that GitHub told to be so.

    That time is the prober's: right is what lies soon after the answer.
    """
    found = {}
    for key, told_at in () if other.asked is None else other.asked.closings():
        page = ask(url, f"/jobs/{quote(key, safe='')}", {}, 30.0)
        at, how = page.get("completed_at"), page.get("conclusion")
        if at is not None and -1_000 <= at - told_at <= _TOLD_MS and how in _CLOSED_AS:
            found[key] = (at, how)
    return found


@dataclass(frozen=True)
class Line:
    """A stall, for people. Times in ms; ``stranded_ms`` None: it still lies there."""

    key: str
    n: int
    at: int
    fleet: str
    cause: str
    evidence: str
    done: str
    stranded_ms: int | None

    @property
    def clock(self) -> str:
        """The time of day at which it was found, UTC."""
        return datetime.fromtimestamp(self.at / 1000, UTC).strftime("%H:%M:%S")

    @property
    def over(self) -> bool:
        """Whether the job is out of it, and what was to be done is done."""
        return self.stranded_ms is not None and not self.done.endswith("…")

    def text(self) -> str:
        """As one line."""
        lay = f"; stranded for {duration(self.stranded_ms)}" if self.stranded_ms else ""
        return (
            f"{self.clock}  {self.cause}  {self.fleet}  {self.key}: {self.evidence}; "
            f"{self.done}{lay}"
        )


@dataclass
class Seen:
    """What is known of recovery: counts and the newest stalls, the newest last."""

    injected: int = 0
    found: int = 0
    recovered: int = 0
    hits: int = 0
    lines: list[Line] = field(default_factory=list)
    #: Open stalls by kind, as ``/recovery`` counts them.
    open: dict[str, int] = field(default_factory=dict)


class Row(NamedTuple):
    """A row of the table ``stalls``, times in ms; of its commands the last."""

    key: str
    n: int
    fleet: str
    kind: str
    since: int
    opened_at: int
    left_at: int | None
    stranded_ms: int | None
    asks: int
    answer: str
    withheld: str
    command: str
    result: str


#: Asks for such rows.
QUERY: Final = """
SELECT key, n, fleet, kind, toUnixTimestamp64Milli(since), toUnixTimestamp64Milli(opened_at),
  toUnixTimestamp64Milli(left_at), stranded_ms, asks, answer, withheld,
  arrayLast(c -> 1, commands).command, arrayLast(c -> 1, commands).result
FROM stalls FINAL
WHERE since >= fromUnixTimestamp64Milli(%(start)s)
ORDER BY opened_at DESC, key LIMIT %(rows)s
"""


def look(other: Other, url: str, client: Client, start_ms: int) -> Seen:
    """What is known now. Raises what asking raises."""
    rows = read(client, start_ms, _ROWS)
    stuck = other.stuck()
    kinds = ask(url, "/recovery", {"limit": 1}, 3.0).get("kinds", {})
    states = progress(stuck, rows)
    lines = [line for row in rows if (line := line_of(row)) is not None]
    return Seen(
        injected=len(stuck),
        found=sum(state != "" for state in states.values()),
        recovered=sum(state == "recovered" for state in states.values()),
        hits=other.hits(),
        lines=lines[:LINES][::-1],
        open={kind: each["jobs"] for kind, each in kinds.items() if each["jobs"]},
    )


def read(client: Client, start_ms: int, most: int) -> list[Row]:
    """The stalls of jobs that got stuck since then, the newest first."""
    return [Row(*row) for row in client.execute(QUERY, {"start": start_ms, "rows": most})]


def progress(stuck: Iterable[Stuck], rows: Iterable[Row]) -> dict[str, str]:
    """By key of each stuck job: blank while it is not found, what it was found as, or
    ``recovered``."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    states = {}
    for each in stuck:
        key = job_key("github", HOST, each.job_id)
        fitting = [row for row in found.get(key, ()) if row.kind in FOUND_AS[each.cause]]
        if each.cause is Cause.LOST_COMPLETED:
            # It may have been asked about before, when it was running.
            fitting = [row for row in fitting if row.answer == Answer.COMPLETED]
        states[key] = fitting[0].kind if fitting else ""
        if any(row.left_at is not None for row in fitting):
            states[key] = "recovered"
    return states


def line_of(row: Row) -> Line | None:
    """A stall for people; None for a job that runs for long and was only asked about."""
    checked = row.kind == StallKind.MISSED_COMPLETION
    if checked and row.answer != Answer.COMPLETED:
        return None
    proof = _SINCE.get(row.kind, "").format(max(0, row.opened_at - row.since) // 1000)
    if row.answer or row.asks:
        proof += f", {_SAID[Answer(row.answer)] if row.answer else 'GitHub is asked'}"
    if row.command or row.result:
        done = f"{row.command} → {row.result or '…'}"
    elif row.answer == Answer.GHOST:
        done = "recorded as over …"  # whoever has it is told next
    elif row.answer in (Answer.COMPLETED, Answer.IN_PROGRESS):
        done = "recorded"
    elif row.left_at is not None:
        done = "it moved on"
    else:
        done = f"withheld: {row.withheld} …" if row.withheld else "…"
    # How long one ran whose end was missed is no time in a wrong state.
    lay = 0 if checked and row.left_at is not None else row.stranded_ms
    return Line(row.key, row.n, row.opened_at, row.fleet, row.kind, proof, done, lay)
