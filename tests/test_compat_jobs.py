"""From what is posted of jobs to Tuist's names: each of its series rises, and no other with it.

Their worlds, in which each is as much as what happened, are in ``tests/test_compat.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from faust.types import TP

from pipeline.agents.normalise import Normalise
from pipeline.agents.unrouted import Unrouted
from pipeline.compat.systems import SYSTEMS
from pipeline.faust_safe import Batch
from pipeline.ledger import Ledger
from pipeline.recovery import Policies, RecoveryPolicy
from pipeline.routes import Routes
from tests.support.compat_truth import THERE
from tests.support.compat_world import CountedLoop
from tests.support.stall_loop import POLICY, TICK
from tests.test_compat import both, text_of
from tests.test_compat_families import Series, Shown, its
from tests.test_sink_rows import FakeRecord
from topics.catalogue import JOBS, LIFECYCLE, WEBHOOKS
from topics.models import JOBS_RECORD, ClaimFact
from topics.recovery import Answer, Result

FIRST_MS: Final = 1_790_000_000_000
#: What is there of jobs.
OF_JOBS: Final = frozenset(each.name for each in SYSTEMS["tuist"].metrics).difference(THERE)


class LiveJobs:
    """What is posted about jobs, normalised and folded, with an exporter and the page beside it."""

    def __init__(self) -> None:
        self._page, self._exporter = both("tuist")
        routes = {"accounts": {"acme": "a", "b": "b"}, "fleets": [{"repo": "acme/*", "fleet": "x"}]}
        self._normalise = Normalise(self._exporter.note, unrouted=Unrouted(Routes(routes)))
        self._ledger = Ledger(0, lambda key: None)
        self._offset = 0

    def tell(self, record: FakeRecord) -> dict[Series, float]:
        """What rose by this record."""
        before = self.counts()
        effects = asyncio.run(self._normalise.fold(Batch(TP(record.topic, 0), [record])))
        self._normalise.visible(0, effects, {})
        for output in effects.outputs:
            if output.topic == JOBS and output.value is not None:
                self._ledger.apply(self._offset, JOBS_RECORD.validate_json(output.value))
                self._offset += 1
        self._exporter.note(self._ledger.flush().notes)
        return {key: n - before.get(key, 0) for key, n in self.counts().items()
                if n != before.get(key, 0)}  # fmt: skip

    def counts(self) -> dict[Series, float]:
        return Shown(text_of(self._page, self._exporter)).counts(OF_JOBS.__contains__)


def hook(action: str, job: int, at: int, repo: str = "acme/shop", **said: Any) -> FakeRecord:
    """A delivery of GitHub about a job, ``at`` seconds after the first."""
    told = {"id": job, "status": action, "labels": ["linux"], "created_at": _iso(0), **said}
    body = {"action": action, "workflow_job": told, "repository": {"full_name": repo}}
    about = "workflow_job" if action != "push" else action
    return FakeRecord(
        WEBHOOKS, json.dumps(body).encode(), timestamp=FIRST_MS + 1_000 * at,
        headers=[("X-GitHub-Event", about.encode())],
    )  # fmt: skip


def lifecycle(kind: str, job: int, at: int, **said: Any) -> FakeRecord:
    """What a dispatcher says of a job."""
    ms = FIRST_MS + 1_000 * at
    told = {"id": f"{kind}|{job}", "source": "d", "kind": kind, "job_id": str(job), "claim": "c",
            "key": "x", "occurred_at": ms, "received_at": ms, **said}  # fmt: skip
    return FakeRecord(LIFECYCLE, json.dumps(told).encode(), timestamp=ms)


def _iso(at: int) -> str:
    return datetime.fromtimestamp(FIRST_MS / 1000 + at, UTC).isoformat()


def posts() -> Iterator[tuple[FakeRecord, dict[Series, float]]]:
    job, webhooks = "tuist_runners_job", "tuist_runners_webhook_count"
    enqueued = its(f"{job}_enqueued_count", fleet="linux")
    queued = enqueued | its(webhooks, action="queued", outcome="queued")
    claimed = its(f"{job}_claim_count", fleet="linux", outcome="ok") | its(
        f"{job}_queue_time_milliseconds_count", fleet="linux"
    )
    ran = {"started_at": _iso(5), "runner_name": "vm", "runner_id": 3}
    running = its(f"{job}_running_count", fleet="linux") | its(
        f"{job}_queue_to_running_time_milliseconds_count", fleet="linux"
    )
    conclusions = (
        "success", "failure", "cancelled", "skipped", "neutral", "timed_out", "action_required",
        "stale", "startup_failure", "unknown",
    )  # fmt: skip
    for number, conclusion in enumerate(conclusions, 1):
        yield hook("queued", number, 0), queued
        yield hook("in_progress", number, 5, **ran), running
        completed = its(webhooks, action="completed", outcome="completed")
        for what in ("run_time", "total_time"):
            completed |= its(f"{job}_{what}_milliseconds_count", fleet="linux")
        completed |= its(f"{job}_completed_count", fleet="linux", conclusion=conclusion)
        done = {"completed_at": _iso(9), "conclusion": conclusion, **ran}
        yield hook("completed", number, 9, **done), completed
    yield hook("queued", 21, 0), queued
    yield lifecycle("job.claimed", 21, 2), claimed
    yield lifecycle("job.minted", 21, 3, runner={"name": "vm"}), {}
    started = its(f"{job}_claim_to_running_time_milliseconds_count", fleet="linux")
    yield hook("in_progress", 21, 5, **ran), running | started
    yield hook("queued", 22, 0), queued
    yield lifecycle("job.claimed", 22, 2), claimed
    yield lifecycle("claim.released", 22, 4), its(f"{job}_requeued_count", fleet="linux")
    yield hook("waiting", 23, 0), enqueued | its(webhooks, action="waiting", outcome="queued")
    yield hook("queued", 0, 0), its(webhooks, action="other", outcome="unknown")
    yield hook("push", 24, 0), its(webhooks, action="other", outcome="ignored")
    yield hook("requested_anew", 22, 1), {}
    # Each says of a job that is known what was known, and misses the routes.
    for repo, outcome in (("other/x", "no_account"), ("b/x", "no_matching_pool")):
        for action in ("queued", "waiting", "in_progress", "completed", "requested_anew"):
            what = "other" if action == "requested_anew" else action
            status = {"status": "completed", "completed_at": _iso(9), "conclusion": "success"}
            told = hook(action, 1, 10, repo, **(ran | status))
            yield told, its(webhooks, action=what, outcome=outcome)


def recoveries() -> Iterator[tuple[str, Callable[[CountedLoop], None]]]:
    """As what a job counts that is freed, and how it gets stuck until that is proposed."""

    def stale(loop: CountedLoop) -> None:
        loop.claimed(minted=False)
        loop.wait(POLICY.stale_claim_ms + 2 * TICK)

    def requeued(ms: int, **claim: int) -> Callable[[CountedLoop], None]:
        def orphan(loop: CountedLoop) -> None:
            loop.claimed()
            if claim:
                loop.say(claim=ClaimFact(handle="h1", **dict.fromkeys(claim, loop.now)))
            loop.wait(ms + 2 * TICK)
            loop.answer(loop.probes[0], Answer.QUEUED)
            loop.tick()

        return orphan

    def over(loop: CountedLoop) -> None:
        loop.wait(POLICY.orphan_ms + TICK if loop.status != "queued" else POLICY.stale_queue_ms)
        loop.tick()
        loop.completed()
        loop.answer(loop.probes[0], Answer.COMPLETED)
        loop.wait(16 * TICK)

    def orphan_over(loop: CountedLoop) -> None:
        loop.claimed()
        over(loop)

    def hopeless(loop: CountedLoop) -> None:
        loop.policies = Policies(RecoveryPolicy(hopeless_ms=POLICY.stale_queue_ms))
        loop.open()
        loop.wait(POLICY.stale_queue_ms + TICK)
        loop.answer(loop.probes[0], Answer.UNKNOWN)
        loop.wait(16 * TICK)

    yield "stale_claim", stale
    yield "orphan_requeued", requeued(POLICY.orphan_ms)
    yield "orphan_requeued", requeued(POLICY.displaced_ms, displaced_at=1)
    yield "pod_missing_claim", requeued(0, lost_at=1)
    yield "orphan_completed", orphan_over
    yield "queued_completed", over
    yield "queued_reaped", hopeless


def test_every_series_of_jobs_rises_by_what_is_posted_or_recovered() -> None:
    live = LiveJobs()
    risen: set[Series] = set()
    for number, (record, wanted) in enumerate(posts()):
        rose = live.tell(record)
        assert rose == wanted, (number, record.value)
        risen |= rose.keys()
    name = "tuist_runners_recovery"
    for kind, stuck in recoveries():
        page, exporter = both("tuist")
        loop = CountedLoop(exporter)
        loop.queued()
        before = Shown(text_of(page, exporter)).counts(OF_JOBS.__contains__)
        stuck(loop)
        for proposal in loop.proposals[-1:]:
            loop.decide(proposal)
            for _ in range(2):
                loop.end(proposal, Result.DONE)
        after = Shown(text_of(page, exporter)).counts(OF_JOBS.__contains__)
        rose = {key: n - before.get(key, 0) for key, n in after.items() if key[0].startswith(name)}
        freed = its(f"{name}_stranded_time_milliseconds_count", fleet="linux")
        freed |= its(f"{name}_count", kind=kind)
        assert {key: n for key, n in rose.items() if n} == freed
        risen |= freed.keys()
    assert risen == live.counts().keys()


def test_levels_of_jobs_are_those_that_have_a_world() -> None:
    """Of them ``tests/test_compat.py`` shows that they are what happened."""
    served = {each.name for each in SYSTEMS["tuist"].metrics if each.kind == "gauge"
              and each.follows and each.name in OF_JOBS}  # fmt: skip
    names = ("queue_length", "queue_oldest_age_seconds", "claims_count")
    assert served == {f"tuist_runners_{name}" for name in names}
