"""How GitHub and a dispatcher report what happens in the world: records for the topics.

Webhooks are in raw form, as a bridge writes them: the body, and the HTTP headers. A body is a
snapshot of the job in whole seconds, with all the fields GitHub sends (7 to 13 KB, most of them of
no interest); the delivery id is a UUID of version 1 that carries the time of the event in
milliseconds. Everything the quirk list knows about bodies is reproduced: see
:meth:`Wire._job_body`. For each record there is also a :class:`Said`: what it tells, in plain
terms, from which ``truth`` computes what can be known.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from pipeline.simulate.fleet import Event, SimJob, SimRun
from pipeline.simulate.origins import ORGANISATION, SPOTS, Origin, plan, presser_of, repository_of
from topics.bridge import RECEIVED_AT
from topics.catalogue import LIFECYCLE, WEBHOOKS
from topics.models import job_key, run_key

HOST: Final = "github.com"

#: 100 ns intervals between 1582-10-15 and 1970-01-01, as UUID version 1 counts.
_UUID_EPOCH: Final = 0x01B2_1DD2_1381_4000

# GitHub describes accounts and repositories mostly by links: they make up a body's size.
_ACCOUNT_LINKS: Final = (
    *("avatar", "followers", "following", "gists", "starred", "subscriptions", "organizations"),
    *("repos", "events", "received_events", "hooks", "issues", "members", "public_members"),
)
_REPOSITORY_LINKS: Final = (
    *("forks", "keys", "collaborators", "teams", "hooks", "issue_events", "events", "assignees"),
    *("branches", "tags", "blobs", "git_tags", "git_refs", "trees", "statuses", "languages"),
    *("stargazers", "contributors", "subscribers", "subscription", "commits", "git_commits"),
    *("comments", "issue_comment", "contents", "compare", "merges", "archive", "downloads"),
    *("issues", "pulls", "milestones", "notifications", "labels", "releases", "deployments"),
    *("git", "ssh", "clone", "svn"),
)


#: A step as a body tells it: number, name, conclusion (blank: none yet), begun and over in ms.
SaidStep = tuple[int, str, str, int | None, int | None]
Steps = tuple[SaidStep, ...]


class Said(NamedTuple):
    """What one record tells. Times in ms; ``None`` for what it does not tell.

    ``kind``: ``queued``, ``waiting``, ``in_progress``, ``completed`` (webhooks about a job),
    ``run``, or a lifecycle kind. ``created``, ``started``, ``completed``, ``step`` are GitHub's
    own fields as far as they mean what they say: ``started`` only for a job that ran.
    """

    id: str
    kind: str
    key: str
    event_at: int
    received_at: int
    run_key: str = ""
    attempt: int = 0
    created: int | None = None
    started: int | None = None
    completed: int | None = None
    step: int | None = None
    mark: str = ""
    conclusion: str = ""
    runner: str = ""
    labels: str = ""
    group: str = ""
    pool: str = ""
    claim: str = ""
    #: Of a webhook about a run, whole; of one about a job only who caused it.
    origin: Origin = Origin()
    steps: Steps = ()


#: Headers of a record, in order.
Headers = tuple[tuple[str, bytes], ...]


class Message(NamedTuple):
    """A record without its arrival time: :meth:`at` gives the bytes for one arrival."""

    topic: str
    key: bytes
    #: A webhook's body, or a lifecycle event complete but for ``received_at``.
    record: bytes | dict[str, Any]
    #: Of a webhook, the HTTP headers.
    headers: Headers
    said: Said

    def at(self, received_ms: int) -> tuple[bytes, Headers, Said]:
        """Value and headers as they are written when the record arrives at this time.

        A webhook's headers say it, because the record's time is when a simulation is sent.
        """
        record, headers = self.record, self.headers
        said = self.said._replace(received_at=received_ms)
        if isinstance(record, bytes):
            return record, (*headers, (RECEIVED_AT, b"%d" % received_ms)), said
        record["received_at"] = received_ms
        return msgspec.json.encode(record), headers, said


@lru_cache(maxsize=65_536)
def _iso(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=65_536)
def _iso_ms(second: int) -> str:
    # GitHub writes some step times with milliseconds that are always zero (Q1).
    return f"{_iso(second)[:-1]}.000Z"


def iso(ms: int | None) -> str | None:
    """GitHub's form of a time: whole seconds, UTC."""
    return None if ms is None else _iso(ms // 1000)


def guid_at(ms: int, ticks: int, node: int) -> str:
    """A UUID of version 1 for a time; ``ticks`` are the 100 ns intervals within the ms."""
    stamp = ms * 10_000 + ticks + _UUID_EPOCH
    low, mid, high = stamp & 0xFFFFFFFF, (stamp >> 32) & 0xFFFF, (stamp >> 48) & 0x0FFF
    return f"{low:08x}-{mid:04x}-1{high:03x}-{0x8000 | (node & 0x3FFF):04x}-{node:012x}"


class Wire:
    """Turns events into messages. Deterministic by seed."""

    def __init__(self, seed: int, hosts: bool = False) -> None:
        """``hosts``: the dispatcher says on which machine a runner is."""
        self._hosts = hosts
        self._rng = random.Random(f"wire {seed}")
        # GitHub's hosts: the node part of a delivery id tells them apart.
        self._nodes = [self._rng.getrandbits(48) for _ in range(4)]
        self._tails: dict[tuple[int, str], str] = {}
        self._lifecycle = 0

    def message(self, event: Event) -> Message:
        """The one record that reports an event."""
        if event.kind.startswith("run."):
            return self._run(event)
        if event.job is None:
            raise ValueError(f"{event.kind} is about a job")
        if event.kind in ("queued", "waiting", "in_progress", "completed"):
            return self._job(event, event.job)
        return self._report(event, event.job)

    def job_now(self, job: SimJob) -> tuple[dict[str, Any], Said]:
        """A job as the REST API shows it now, and what that tells."""
        over, began = job.completed is not None, job.started is not None
        status = "completed" if over else "in_progress" if began else "queued"
        body, said = self._job_body(status, status, job)
        return msgspec.json.decode(body), said._replace(kind=f"api.{status}", origin=Origin())

    def run_now(self, run: SimRun, attempt: int = 0) -> tuple[dict[str, Any], Said] | None:
        """A run as the REST API shows it now, in an attempt (0: the latest); None: no such."""
        past = (run.started, run.completed, run.conclusion)
        if attempt not in (0, run.attempt):
            if attempt not in run.past:
                return None
            past = run.past[attempt]
        body, said = _run_body(run, attempt or run.attempt, *past)
        return msgspec.json.decode(msgspec.json.encode(body)), said

    # --- GitHub -------------------------------------------------------------------------------

    def _job(self, event: Event, job: SimJob) -> Message:
        action = event.kind
        status = action
        # Some bodies are written when the gate has closed already (octokit's published example
        # ``queued.with-deployment``).
        if action == "queued" and job.gated and event.at == job.created and job.id % 3 == 0:
            status = "waiting"
        body, said = self._job_body(action, status, job)
        payload = (
            f'{{"action":"{action}","workflow_job":{body}'
            f"{_deployment(job) if job.gated and action == 'queued' else ''}"
            f"{self._tail(job.run, job.attempt)}"
        )
        return self._delivery("workflow_job", event, said, payload)

    def _job_body(self, action: str, status: str, job: SimJob) -> tuple[str, Said]:
        ran = job.started is not None
        created = job.created // 1000 * 1000
        started, ended, step = created, None, None
        steps: list[dict[str, Any]] = []
        steps_said: Steps = ()
        if job.started is not None:
            real = job.started // 1000 * 1000
            # Q4: may stay at creation for ever.
            started = created if job.frozen else real
            # Q5: the first step may begin a second before the job.
            step = real - 1000 if job.early_step and real - 1000 >= created else real
            end = None if job.completed is None else job.completed // 1000 * 1000
            steps, steps_said = _steps(job, step, end)
        if job.completed is not None:
            ended = job.completed // 1000 * 1000
            if not ran:
                # Q2, Q6, Q7: GitHub gives a job that never ran start = completion, up to a second
                # before its creation.
                if job.conclusion == "skipped" and job.id % 4 == 0:
                    ended -= 1000
                started = ended
        # Q22: a skipped job may have no labels, and no runner group either.
        bare = job.conclusion == "skipped" and job.id % 2 == 0
        labels = [] if bare else list(job.fleet.labels)
        group = "" if not ran else job.fleet.name if job.fleet.dispatcher else "GitHub Actions"
        repo = repository_of(job.run.repo)
        api = f"https://api.github.com/repos/{repo}"
        body: dict[str, Any] = {
            "id": job.id,
            "run_id": job.run.id,
            "workflow_name": job.run.workflow,
            "head_branch": job.run.branch,
            "run_url": f"{api}/actions/runs/{job.run.id}",
            "run_attempt": job.attempt,
            "node_id": f"CR_kwDO{job.id:x}",
            "head_sha": job.run.sha,
            "url": f"{api}/actions/jobs/{job.id}",
            "html_url": f"https://github.com/{repo}/actions/runs/{job.run.id}/job/{job.id}",
            "status": status,
            "conclusion": job.conclusion,
            "created_at": iso(created),
            "started_at": iso(started),
            "completed_at": iso(ended),
            # Q20: a skipped job may carry its expression.
            "name": "test (${{ matrix.os }})" if bare else job.name,
            "steps": steps,
            "check_run_url": f"{api}/check-runs/{job.id}",
            "labels": labels,
            # Q17: null, 0 and "" all mean that there is no runner.
            "runner_id": job.id % 100_000 + 1 if ran else (None, 0)[job.id % 2],
            "runner_name": job.runner if ran else (None, "")[job.id % 2],
            "runner_group_id": 1 if ran else None,
            "runner_group_name": group or None,
        }
        if job.old:  # Q19
            del body["created_at"]
        said = Said(
            id="",
            kind=action,
            key=job_key("github", HOST, job.id),
            event_at=0,
            received_at=0,
            run_key=run_key("github", HOST, job.run.id),
            attempt=job.attempt,
            created=None if job.old else created,
            started=started if ran else None,
            completed=ended,
            step=step,
            mark="waiting" if status == "waiting" else "queued" if status == "queued" else "",
            conclusion=job.conclusion or "",
            runner=job.runner,
            labels=",".join(sorted({label.lower() for label in labels} - {"self-hosted"})),
            group=group,
            origin=Origin(presser_of(job.run.origin, job.run.id, job.attempt)),
            steps=steps_said,
        )
        return msgspec.json.encode(body).decode(), said

    def _run(self, event: Event) -> Message:
        run = event.run
        over = event.kind == "run.completed"
        ended = event.at if over else None
        body, said = _run_body(run, run.attempt, run.started, ended, event.reason, event.at)
        action = "completed" if over else "requested"
        payload = (
            f'{{"action":"{action}","workflow_run":{msgspec.json.encode(body).decode()}'
            f"{self._tail(run, run.attempt)}"
        )
        return self._delivery("workflow_run", event, said, payload)

    def _delivery(self, event_name: str, event: Event, said: Said, payload: str) -> Message:
        rng = self._rng
        guid = guid_at(event.at, rng.randrange(10_000), rng.choice(self._nodes))
        headers = (
            ("x-github-event", event_name.encode()),
            ("x-github-delivery", guid.encode()),
            ("x-github-hook-id", b"1"),
            ("content-type", b"application/json"),
        )
        said = said._replace(id=guid, event_at=event.at)
        return Message(WEBHOOKS, said.key.encode(), payload.encode(), headers, said)

    def _tail(self, run: SimRun, attempt: int) -> str:
        """The siblings of the job in a body. They are most of its size, and nearly the same."""
        sender = presser_of(run.origin, run.id, attempt)
        tail = self._tails.get((run.repo, sender))
        if tail is None:
            parts = msgspec.json.encode(
                {
                    "repository": _repository(run.repo),
                    "organization": _account(ORGANISATION, 4_000_001, "orgs"),
                    "sender": _encoded_account(sender),
                    "installation": {"id": 7_000_001, "node_id": "MDIzOkludGVncmF0aW9u"},
                }
            ).decode()
            tail = self._tails[run.repo, sender] = f",{parts[1:]}"
        return tail

    # --- the dispatcher -----------------------------------------------------------------------

    def _report(self, event: Event, job: SimJob) -> Message:
        of_host = event.kind == "host.gone"
        key = job.fleet.name if of_host else job_key("github", HOST, job.id)
        self._lifecycle += 1
        record = {
            "id": f"{job.id}/{event.kind}/{self._lifecycle}",
            "kind": event.kind,
            "version": 1,
            "source": "dispatcher",
            "occurred_at": event.at,
            "received_at": 0,
            "key": key,
            "provider": "github",
            "host": HOST,
            "job_id": str(job.id),
            "fleet": job.fleet.name,
            "claim": event.claim,
            "runner": {"name": event.runner},
            "reason": event.reason,
            "repo": repository_of(job.run.repo),
        }
        if self._hosts:
            record["runner_host"] = f"vm-{event.runner}" if event.runner else ""
        if of_host:
            record |= {"job_id": None, "runner": None}
        said = Said(
            id=str(record["id"]),
            kind=event.kind,
            key=key,
            event_at=event.at,
            received_at=0,
            runner=event.runner,
            pool=job.fleet.name,
            claim=event.claim if event.kind != "job.started" else "",
        )
        return Message(LIFECYCLE, key.encode(), record, (), said)


def _run_body(
    run: SimRun, attempt: int, began: int, ended: int | None, verdict: str, at: int = 0
) -> tuple[dict[str, Any], Said]:
    """An attempt of a run as GitHub writes it. ``at``: when it was changed, if it is not over."""
    over = ended is not None
    updated = (at or began if ended is None else ended) // 1000 * 1000
    started = began // 1000 * 1000
    repo = repository_of(run.repo)
    origin = run.origin
    body = {
        "id": run.id,
        "name": run.workflow,
        "node_id": f"WFR_kwLO{run.id:x}",
        "head_branch": run.branch,
        "head_sha": run.sha,
        "run_number": run.id % 10_000,
        "event": origin.trigger,
        "status": "completed" if over else "queued",
        "conclusion": verdict if over else None,
        "workflow_id": 1000 + run.repo,
        "url": f"https://api.github.com/repos/{repo}/actions/runs/{run.id}",
        "html_url": f"https://github.com/{repo}/actions/runs/{run.id}",
        "created_at": iso(run.created),
        "updated_at": iso(updated),
        "run_started_at": iso(started),
        "run_attempt": attempt,
        "actor": _encoded_account(origin.actor),
        "triggering_actor": _encoded_account(presser_of(origin, run.id, attempt)),
        "head_repository": _head_repository(origin.head_repo),
        "pull_requests": _pull_requests(run) if origin.pull_request else [],
    }
    said = Said(
        id="",
        kind="run",
        key=run_key("github", HOST, run.id),
        event_at=0,
        received_at=0,
        attempt=attempt,
        started=started,
        completed=updated if over else None,
        conclusion=verdict if over else "",
        origin=origin,
    )
    return body, said


def _steps(job: SimJob, first: int, end: int | None) -> tuple[list[dict[str, Any]], Steps]:
    """Steps of a running job (the first runs, the others wait) or of one that is over, as GitHub
    writes them and in plain terms. ``first``: when the first one began."""
    steps: list[dict[str, Any]] = []
    said: list[SaidStep] = []
    span = 0 if end is None else end - first
    planned = plan(job.steps, job.conclusion or "", job.id % SPOTS)
    for number, name, conclusion, begins, ends in planned:
        begun = done = None
        if end is not None:
            begun = first + span * begins // 1_000_000 * 1000
            done = first + span * ends // 1_000_000 * 1000
        elif number == 1:
            begun = first
        steps.append(
            {
                "name": name,
                "status": "completed" if done else "in_progress" if begun else "queued",
                "conclusion": conclusion if done else None,
                "number": number,
                "started_at": None if begun is None else _iso_ms(begun // 1000),
                "completed_at": None if done is None else _iso_ms(done // 1000),
            }
        )
        said.append((number, name, conclusion if done else "", begun, done))
    return steps, tuple(said)


def _deployment(job: SimJob) -> str:
    return (
        ","
        + msgspec.json.encode(
            {
                "deployment": {
                    "id": job.id % 1_000_000_000,
                    "task": "deploy",
                    "environment": "production",
                    "created_at": iso(job.created),
                    "updated_at": iso(job.created + 2_000),
                }
            }
        ).decode()[1:-1]
    )


def _account(login: str, number: int, kind: str) -> dict[str, Any]:
    api = f"https://api.github.com/{kind}/{login}"
    return {
        "login": login,
        "id": number,
        "node_id": f"MDQ6VXNlcj{number}",
        "url": api,
        "html_url": f"https://github.com/{login}",
        **{f"{name}_url": f"{api}/{name}" for name in _ACCOUNT_LINKS},
        "type": "Organization" if kind == "orgs" else "Bot" if login.endswith("[bot]") else "User",
        "site_admin": False,
    }


@lru_cache(maxsize=256)
def _encoded_account(login: str) -> msgspec.Raw:
    number = 5_000_000 + crc32(login.encode()) % 1_000_000
    return msgspec.Raw(msgspec.json.encode(_account(login, number, "users")))


@lru_cache(maxsize=4_096)
def _head_repository(full: str) -> msgspec.Raw:
    """A run names the repository of its commit in short form."""
    owner, _, name = full.partition("/")
    fork = owner != ORGANISATION
    return msgspec.Raw(
        msgspec.json.encode(
            {
                "id": 310_000_000 + crc32(full.encode()) % 1_000_000,
                "name": name,
                "full_name": full,
                "private": not fork,
                "owner": _encoded_account(owner),
                "html_url": f"https://github.com/{full}",
                "fork": fork,
                "url": f"https://api.github.com/repos/{full}",
            }
        )
    )


def _pull_requests(run: SimRun) -> list[dict[str, Any]]:
    api = f"https://api.github.com/repos/{repository_of(run.repo)}"
    repo = {"id": 300_000_000 + run.repo, "url": api, "name": f"repo-{run.repo:02d}"}
    number = run.origin.pull_request
    return [
        {
            "url": f"{api}/pulls/{number}",
            "id": 600_000_000 + run.repo * 10_000 + number,
            "number": number,
            "head": {"ref": run.branch, "sha": run.sha, "repo": repo},
            "base": {"ref": "main", "sha": run.sha[::-1], "repo": repo},
        }
    ]


def _repository(number: int) -> dict[str, Any]:
    name = f"repo-{number:02d}"
    full = f"{ORGANISATION}/{name}"
    api = f"https://api.github.com/repos/{full}"
    return {
        "id": 300_000_000 + number,
        "node_id": f"R_kgDO{number:06d}",
        "name": name,
        "full_name": full,
        "private": True,
        "owner": _account(ORGANISATION, 4_000_001, "users"),
        "html_url": f"https://github.com/{full}",
        "description": None,
        "fork": False,
        "url": api,
        **{f"{part}_url": f"{api}/{part}" for part in _REPOSITORY_LINKS},
        "created_at": "2020-03-02T09:11:12Z",
        "size": 4096,
        "stargazers_count": 12,
        "language": "Python",
        "archived": False,
        "visibility": "private",
        "default_branch": "main",
        "topics": ["ci", "runners"],
    }
