"""What the pipeline says against what is true: job by job, window by window, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

from clickhouse_driver import Client

from pipeline.commands import demo_recovery
from pipeline.commands.connections import ask
from pipeline.commands.demo_gateway import Landed, Tally, forged_and_refused, taken_and_landed
from pipeline.simulate import JobTruth, Stuck, Truth
from pipeline.simulate.origins import Origin
from pipeline.simulate.stuck import Books
from pipeline.simulate.wire import HOST
from topics.keys import job_key

FAMILIES: Final = ("queue", "claim_to_start", "run", "total")
_HOUR_MS: Final = 3_600_000
_NAMED: Final = 200
ORIGIN: Final = "actor, trigger, pull request, head repository"
STEP: Final = ("number", "name", "conclusion", "started_at", "completed_at")
_PAGES: Final = 200


@dataclass
class Check:
    """The result. ``lines`` for a table, ``differences`` as sentences."""

    #: (what, of what) -> [expected, found, different].
    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """No difference, and something was compared at all."""
        return not self.differences and any(n[0] for n in self.counts.values())

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """What was compared, for a table."""
        return [
            (where, what, f"{n[0]:,}", f"{n[1]:,}", f"{n[2]:,}")
            for (where, what), n in self.counts.items()
        ]

    def of(self, where: str, what: str, expected: dict[Any, Any], found: dict[Any, Any]) -> None:
        """Compare two mappings."""
        wrong = [k for k in sorted(expected.keys() | found.keys(), key=str)
                 if expected.get(k) != found.get(k)]  # fmt: skip
        self.counts[(where, what)] = [len(expected), len(found), len(wrong)]
        for key in wrong[:_NAMED]:
            self.differences.append(
                f"{where}, {what}, {_told(key)}: expected {_told(expected.get(key, 'nothing'))}, "
                f"found {_told(found.get(key, 'nothing'))}"
            )


def compare(truth: Truth, url: str, client: Client, start_ms: int) -> Check:
    """Compare all there is. ``start_ms``: when the simulation began.

    Windows are compared from the hour of the start on: what else was posted (recorded payloads)
    lies before. Jobs are compared by key.
    """
    check = Check()
    first = start_ms // _HOUR_MS * _HOUR_MS
    _jobs(check, truth, url)
    _windows(check, truth, url, first)
    _stored(check, truth, client, first)
    return check


def compare_gateway(check: Check, tally: Tally, landed: Landed) -> None:
    """Compare what the gateway answered with what is on the topic."""
    check.of(
        "gateway",
        "webhooks taken: on the topic, byte for byte",
        *taken_and_landed(tally, landed.webhooks, landed.others),
    )
    check.of("gateway", "webhooks forged: refused", *forged_and_refused(tally))


def compare_recovery(
    check: Check, other: demo_recovery.Other, client: Client, start_ms: int, ended_ms: int
) -> None:
    """Compare what got stuck, and what its dispatcher was told, with what the product knows.

    ``ended_ms``: when the simulated world stood still. What got stuck too shortly before it need
    not be recovered.
    """
    assert other.asked is not None
    rows = demo_recovery.read(client, start_ms, 1_000_000)
    told = client.execute(
        "SELECT command_id, result FROM outcomes FINAL WHERE kind = 'command.ended'"
    )
    due = [
        each
        for each in other.stuck()
        if each.freed_at is not None or each.at + demo_recovery.BOUND_S * 1000 <= ended_ms
    ]
    with other.asked.world.lock:
        recovery(check, due, rows, other.asked.world.books, told)


def recovery(
    check: Check,
    due: Iterable[Stuck],
    rows: Iterable[demo_recovery.Row],
    books: Books,
    told: Iterable[tuple[str, str]],
) -> None:
    """Compare. ``due``: what must be recovered by now; ``rows``: of ``stalls``; ``told``: command
    id and result of each outcome."""
    stuck = list(due)
    causes = {job_key("github", HOST, each.job_id): each.cause.value for each in stuck}
    found = demo_recovery.progress(stuck, rows)
    check.of(
        "recovery",
        "stuck jobs: found and recovered",
        {key: f"{cause} recovered" for key, cause in causes.items()},
        {key: f"{causes[key]} {found[key] or 'not found'}" for key in causes},
    )
    answers = {key: result.value for key, (result, _) in books.answers.items()}
    check.of(
        "recovery",
        "commands: how they ended, each once",
        _listed(answers.items()),
        _listed((key, result) for key, result in told if key in answers),
    )
    check.of(
        "recovery",
        "commands: brought to the dispatcher once",
        dict.fromkeys(answers, 1),
        dict(books.calls),
    )
    check.of(
        "recovery",
        "commands against living jobs",
        {},
        {hit.job_id: f"{hit.command} at {hit.at}" for hit in books.hits},
    )


def _listed(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """All that is said of each key."""
    found: dict[str, tuple[str, ...]] = {}
    for key, said in pairs:
        found[key] = (*found.get(key, ()), said)
    return found


def renamed(truth: Truth, aliases: Mapping[str, str]) -> Truth:
    """The same truth with fleets called by their aliases."""

    def name(fleet: str) -> str:
        return aliases.get(fleet, fleet)

    windows: dict[Any, tuple[int, int]] = {}
    for (fleet, *rest), (count, total) in truth.windows.items():
        before = windows.get((name(fleet), *rest), (0, 0))
        windows[(name(fleet), *rest)] = (before[0] + count, before[1] + total)
    conclusions: Counter[Any] = Counter()
    for (fleet, *rest), number in truth.conclusions.items():
        conclusions[(name(fleet), *rest)] += number
    return replace(
        truth,
        jobs={key: replace(job, fleet=name(job.fleet)) for key, job in truth.jobs.items()},
        windows=windows,
        conclusions=dict(conclusions),
    )


def _jobs(check: Check, truth: Truth, url: str) -> None:
    rows: dict[str, dict[str, Any]] = {}
    cursor: str | None = None
    while True:
        page = ask(url, "/jobs", {"state": "any", "limit": 1_000, "cursor": cursor}, 30.0)
        for gap in page.get("incomplete", ()):
            check.differences.append(f"views, jobs: incomplete: {gap['reason']}")
        rows |= {row["key"]: row for row in page.get("jobs", ()) if row["key"] in truth.jobs}
        cursor = page.get("next")
        if cursor is None:
            break
    check.of(
        "views",
        "state, fleet, conclusion, runner",
        {key: _identity(job) for key, job in truth.jobs.items()},
        {k: (r["status"], r["fleet"], r["conclusion"], r["runner"]) for k, r in rows.items()},
    )
    check.of(
        "views",
        "when queued, started, completed",
        {k: (j.queued_at, j.started_at, j.completed_at) for k, j in truth.jobs.items()},
        {k: (r["queued_at"], r["started_at"], r["completed_at"]) for k, r in rows.items()},
    )
    check.of(
        "views",
        "timings, or why there is none",
        {k: tuple(j.timings[f] for f in FAMILIES) for k, j in truth.jobs.items()},
        {k: tuple(r["timings"][f] for f in FAMILIES) for k, r in rows.items()},
    )
    check.of(
        "views",
        ORIGIN,
        {k: tuple(j.origin) for k, j in truth.jobs.items()},
        {k: tuple(r[name] for name in Origin._fields) for k, r in rows.items()},
    )
    _steps(check, truth, url)


def _steps(check: Check, truth: Truth, url: str) -> None:
    """Steps stand on a job's own page, so a part of the jobs is asked for, from all over."""
    stepped = [key for key, job in sorted(truth.jobs.items()) if job.steps]
    asked = stepped[:: max(1, len(stepped) // _PAGES)]
    found = {key: ask(url, f"/jobs/{quote(key, safe='')}", {}, 30.0) for key in asked}
    check.of(
        "views",
        "steps of some of the jobs",
        {key: truth.jobs[key].steps for key in asked},
        {
            key: tuple(tuple(map(step.get, STEP)) for step in page.get("steps", ()))
            for key, page in found.items()
        },
    )


def _windows(check: Check, truth: Truth, url: str, first: int) -> None:
    samples: dict[Any, Any] = {}
    conclusions: dict[Any, Any] = {}
    for size_s in (60, 300, 3600):
        for window in _all_windows(url, size_s, first):
            for family, found in window["families"].items():
                where = (window["fleet"], family, size_s, window["start"])
                samples[where] = (found["count"], found["sum_ms"])
            for conclusion, n in window["conclusions"].items():
                conclusions[window["fleet"], conclusion, size_s, window["start"]] = n
    check.of("views", "windows: samples and sums", truth.windows, samples)
    check.of("views", "windows: conclusions", truth.conclusions, conclusions)


def _all_windows(url: str, size_s: int, first: int) -> Iterator[Any]:
    query = {"size": size_s, "from": first, "to": 1 << 52, "limit": 1_000}
    while True:
        page = ask(url, "/windows", query, 30.0)
        yield from page.get("windows", ())
        if not page.get("next"):
            return
        query["cursor"] = page["next"]


def _stored(check: Check, truth: Truth, client: Client, first: int) -> None:
    keys = truth.jobs.keys()
    rows = client.execute(
        "SELECT key, status, fleet, conclusion, runner_name, toUnixTimestamp64Milli(queued_at),"
        " toUnixTimestamp64Milli(started_at), toUnixTimestamp64Milli(completed_at),"
        " actor, trigger, pull_request, head_repo FROM jobs_latest"
    )
    stored = {row[0]: row for row in rows if row[0] in keys}
    check.of(
        "ClickHouse",
        "state, fleet, conclusion, runner",
        {key: _identity(job) for key, job in truth.jobs.items()},
        {key: (row[1], row[2], row[3] or None, row[4]) for key, row in stored.items()},
    )
    check.of(
        "ClickHouse",
        "when queued, started, completed",
        {k: (j.queued_at, j.started_at, j.completed_at) for k, j in truth.jobs.items()},
        {key: row[5:8] for key, row in stored.items()},
    )
    check.of(
        "ClickHouse",
        ORIGIN,
        {k: tuple(j.origin) for k, j in truth.jobs.items()},
        {key: row[8:] for key, row in stored.items()},
    )
    _stored_steps(check, truth, client)
    rows = client.execute(
        "SELECT key, queue_ms, queue_missing, claim_to_start_ms, claim_to_start_missing,"
        " run_ms, run_missing, total_ms, total_missing FROM job_timings FINAL"
    )
    check.of(
        "ClickHouse",
        "timings of completed jobs",
        {
            k: tuple(j.timings[f] for f in FAMILIES)
            for k, j in truth.jobs.items()
            if j.status == "completed"
        },
        {
            row[0]: tuple(row[i] if row[i] is not None else row[i + 1] for i in (1, 3, 5, 7))
            for row in rows
            if row[0] in keys
        },
    )
    since = "start >= fromUnixTimestamp64Milli(%(first)s)"
    rows = client.execute(
        "SELECT fleet, family, size_s, toUnixTimestamp64Milli(start), count, sum_ms"
        # The truth is about jobs; what recovery makes of them is another's.
        f" FROM windows_merged WHERE {since} AND count > 0 AND family NOT LIKE 'stranded.%%'",
        {"first": first},
    )
    check.of(
        "ClickHouse",
        "windows: samples and sums",
        truth.windows,
        {row[:4]: row[4:6] for row in rows},
    )
    rows = client.execute(
        "SELECT fleet, conclusion, size_s, toUnixTimestamp64Milli(start), jobs"
        f" FROM window_conclusions_merged WHERE {since} AND jobs > 0",
        {"first": first},
    )
    check.of("ClickHouse", "windows: conclusions", truth.conclusions, {r[:4]: r[4] for r in rows})
    rows = client.execute(
        "SELECT reason, uniqExact(topic, partition, offset) FROM dead_letters GROUP BY reason"
    )
    check.of("ClickHouse", "dead letters by reason", dict(truth.dead_letters), dict(rows))


def _stored_steps(check: Check, truth: Truth, client: Client) -> None:
    # A copy's steps are not written, unless it was not known yet to be a copy.
    keys = {key for key, job in truth.jobs.items() if not job.copied}
    rows = client.execute(
        "SELECT key, number, name, conclusion, toUnixTimestamp64Milli(started_at),"
        " toUnixTimestamp64Milli(completed_at) FROM job_steps FINAL"
    )
    check.of(
        "ClickHouse",
        "steps",
        {(key, step[0]): step[1:] for key in keys for step in truth.jobs[key].steps},
        {row[:2]: (row[2], row[3] or None, *row[4:]) for row in rows if row[0] in keys},
    )


def _identity(job: JobTruth) -> tuple[str, str, str | None, str]:
    return job.status, job.fleet, job.conclusion, job.runner


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join("–" if each is None else str(each) for each in value)
    return str(value)
