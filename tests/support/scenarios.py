"""The scenarios of recovery over the whole loop: what is told of a job, and what must come of it.

They are those of the system that recovery was modelled on; by its workers:

* **Stale claims.** A claim never minted is released, one that was minted is none of these; a claim
  that outlives its job holds nothing. A release whose claim has moved meanwhile is refused. Their
  order (first the queue, then the claim) is here the decision before the command, and outputs
  before state: ``tests/test_stall_world.py`` kills owners between them.
* **Orphaned runners.** The provider says queued, running, completed, 404, 410, 5xx, 429, 403, no
  installation, a word nobody knows, nothing that can be read, or contradicts itself; the run is
  over, or waits for an approval. The host is gone or there, and the job young. Targeted: the runner
  is gone, also of another claim, or nobody says which. A displaced job, a swap, and who executes.
* **Stale queue.** Queued, running, completed, forgotten, its run over; closed after a day, also
  when the API is down or nobody knows where to ask.
* **Missing runners.** One of several falls silent; all of them do, so it is we who are blind; one
  is seen again; at most so many commands a tick.
* **Unstarted executions.** The runner of another job says that it executes this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.simulate.api import ApiJob, ApiRun

#: Thresholds in seconds, by fleet: quick where a stall is wanted, never where none is.
POLICIES: Final = {
    "*": {
        "stale_claim": 2, "orphan": 2, "displaced": 1, "stale_queue": 3600, "running": 3600,
        "ask": 5, "ask_again": 1, "ask_again_most": 2, "gone": 2, "propose_again": 1,
        "cool_down": 1,
    },
    "young": {"orphan": 3600, "stale_claim": 3600},
    "claims": {"orphan": 3600},
    "silent": {"orphan": 3600, "stale_claim": 3600, "silent_after": 600},
    "blind": {"orphan": 3600, "stale_claim": 3600, "silent_after": 600},
    "crowd": {"orphan": 3600, "per_tick": 1},
    "old": {"stale_queue": 2, "cool_down": 600},
    "patient": {"stale_queue": 2, "requeue_queued": False},
    "ancient": {"stale_queue": 2, "hopeless": 4, "ask": 60},
    "long": {"running": 2},
}  # fmt: skip

OPEN: Final = ApiRun("in_progress")
OVER: Final = ApiRun("completed", conclusion="startup_failure")

#: A lifecycle event without what all of a job's have. ``after_s``: when, from the queueing on.
Told = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Scenario:
    """One job: its fleet, what is told of it after it was queued, what its provider says."""

    fleet: str
    told: Told
    job: ApiJob | None
    run: ApiRun | None = OPEN
    #: What must be commanded, for which kind of stall.
    wanted: tuple[tuple[str, str], ...] = ()
    status: str = "queued"
    conclusion: str | None = None
    #: Whether the provider is asked.
    asked: bool = True
    #: What the API answers to whatever is asked of this job and its run: a status and a body.
    fails: tuple[int, bytes] | None = None
    #: Whether the API hides the job's repository; whether our App is installed there.
    hidden: bool = False
    installed: bool = True
    #: Whether it stops failing once it was asked.
    mends: bool = False
    #: What is told once the provider was asked.
    later: Told = ()
    #: What the dispatcher has done when the command comes, which it therefore refuses.
    meanwhile: Told = ()
    #: Whether its deliveries name a repository.
    addressed: bool = True

    @property
    def troubled(self) -> bool:
        """Whether the API misbehaves: then its repository is of an account of its own."""
        return self.fails is not None or self.hidden or not self.installed


def claimed(handle: str = "h1", runner: str = "", **more: Any) -> dict[str, Any]:
    return {"kind": "job.claimed", "claim": handle, "runner": {"name": runner}, **more}


def minted(handle: str = "h1", runner: str = "", **more: Any) -> dict[str, Any]:
    return {"kind": "job.minted", "claim": handle, "runner": {"name": runner}, **more}


def of_runner(kind: str, **more: Any) -> dict[str, Any]:
    """What is said of the job's runner, and not of the job."""
    return {"kind": kind, "job_id": None, **more}


def executed_by(runner: str, after_s: float = 0.5) -> dict[str, Any]:
    return {"kind": "job.started", "runner": {"name": runner}, "after_s": after_s}


STARTING: Final = (claimed(), minted())
#: Long ago, and heard of since.
LONG_AGO: Final = (
    claimed(after_s=-902), minted(after_s=-901), of_runner("runner.heartbeat", after_s=-900)
)  # fmt: skip
QUEUED: Final = ApiJob("queued", 0)
REQUEUED: Final = (("requeue", "orphan"),)
RELEASED: Final = (("release_claim", "orphan"),)


def crowded(number: int) -> dict[str, Scenario]:
    """So many claims that are all stale at once."""
    each = Scenario(
        "crowd", (claimed(),), QUEUED, wanted=(("release_claim", "stale_claim"),), asked=False
    )
    return {f"one_of_many_in_a_tick_{n}": each for n in range(1, number + 1)}


SCENARIOS: Final[Mapping[str, Scenario]] = {
    # Stale claims.
    "claim_never_minted": Scenario(
        "quick", (claimed(),), QUEUED, wanted=(("release_claim", "stale_claim"),), asked=False
    ),
    "minted_is_no_stale_claim": Scenario(
        "claims", STARTING, QUEUED, status="starting", asked=False
    ),
    "running_is_never_reaped": Scenario(
        "quick", (*STARTING, {"kind": "job.started"}), ApiJob("in_progress", 0),
        status="running", asked=False,
    ),
    "claim_outlives_its_job": Scenario(
        "quick", (claimed(), {"kind": "job.completed", "conclusion": "cancelled"}), QUEUED,
        status="completed", conclusion="cancelled", asked=False,
    ),
    "claim_moved_meanwhile": Scenario(
        "claims", (claimed(),), QUEUED, wanted=(("release_claim", "stale_claim"),),
        meanwhile=({"kind": "claim.released", "claim": "h1"},
                   claimed("h2", "another-vm"), minted("h2", "another-vm")),
        status="starting", asked=False,
    ),
    # Orphaned runners: what the provider says.
    "github_queued": Scenario("quick", STARTING, QUEUED, wanted=REQUEUED),
    "github_in_progress": Scenario(
        "quick", STARTING, ApiJob("in_progress", 0, runner_name="another"), status="running"
    ),
    "github_completed": Scenario(
        "quick", STARTING, ApiJob("completed", 0, conclusion="failure"),
        wanted=RELEASED, status="completed", conclusion="failure",
    ),
    "github_404": Scenario(
        "quick", STARTING, None, None,
        wanted=RELEASED, status="completed", conclusion="unknown",
    ),
    "github_410": Scenario(
        "quick", STARTING, None, None, fails=(410, b"{}"),
        wanted=RELEASED, status="completed", conclusion="unknown",
    ),
    "github_404_and_its_run_is_over": Scenario(
        "quick", STARTING, None, OVER,
        wanted=RELEASED, status="completed", conclusion="unknown",
    ),
    "github_404_of_a_live_job": Scenario("quick", STARTING, None, status="starting"),
    "github_hides_it": Scenario(
        "quick", STARTING, QUEUED, hidden=True, status="starting"
    ),
    "installation_gone": Scenario(
        "quick", STARTING, QUEUED, installed=False, status="starting", asked=False
    ),
    "github_403": Scenario("quick", STARTING, QUEUED, fails=(403, b"{}"), status="starting"),
    "github_429": Scenario("quick", STARTING, QUEUED, fails=(429, b"{}"), status="starting"),
    "github_502": Scenario("quick", STARTING, QUEUED, fails=(502, b"oh"), status="starting"),
    "github_502_then_queued": Scenario(
        "quick", STARTING, QUEUED, fails=(502, b"oh"), mends=True, wanted=REQUEUED
    ),
    "github_says_a_word_nobody_knows": Scenario(
        "quick", STARTING, ApiJob("asleep", 0), status="starting"
    ),
    "github_answers_with_a_page": Scenario(
        "quick", STARTING, QUEUED, fails=(200, b"<html>Sign in</html>"), status="starting"
    ),
    "github_answers_half": Scenario(
        "quick", STARTING, QUEUED, fails=(200, b'{"id": 7, "status": "que'), status="starting"
    ),
    "github_tells_of_another_job": Scenario(
        "quick", STARTING, ApiJob("queued", 0, more={"id": 5}), status="starting"
    ),
    "github_tells_of_another_run": Scenario(
        "quick", STARTING, ApiJob("queued", 0, more={"run_id": 5}), status="starting"
    ),
    "github_contradicts_itself": Scenario(
        "quick", STARTING, ApiJob("queued", 0, conclusion="success"), status="starting"
    ),
    "github_does_not_know_its_run": Scenario("quick", STARTING, QUEUED, None, status="starting"),
    "run_already_over": Scenario(
        "quick", STARTING, QUEUED, OVER,
        wanted=RELEASED, status="completed", conclusion="startup_failure",
    ),
    "run_waits_for_an_approval": Scenario(
        "quick", STARTING, QUEUED, ApiRun("completed", conclusion="action_required"),
        wanted=REQUEUED,
    ),
    "completed_meanwhile": Scenario(
        "quick", STARTING, QUEUED, wanted=REQUEUED,
        meanwhile=({"kind": "job.completed", "conclusion": "success"},),
        status="completed", conclusion="success",
    ),
    # Orphaned runners: what their hosts say.
    "host_gone_and_young": Scenario(
        "young",
        (*STARTING, of_runner("runner.heartbeat", runner_host="rack"),
         of_runner("host.gone", runner_host="rack")),
        QUEUED, wanted=(("requeue", "runner_lost"),),
    ),
    "host_present_and_young": Scenario(
        "young", (*STARTING, of_runner("runner.heartbeat", runner_host="rock")),
        QUEUED, status="starting", asked=False,
    ),
    "another_host_gone": Scenario(
        "young",
        (*STARTING, of_runner("runner.heartbeat", runner_host="here"),
         of_runner("host.gone", runner_host="elsewhere")),
        QUEUED, status="starting", asked=False,
    ),
    "runner_gone_targeted": Scenario(
        "young", (*STARTING, of_runner("runner.gone")),
        QUEUED, wanted=(("requeue", "runner_lost"),),
    ),
    "runner_gone_but_github_knows_better": Scenario(
        "young", (*STARTING, of_runner("runner.gone")),
        ApiJob("in_progress", 0, runner_name="another"), status="running",
    ),
    "runner_gone_and_its_run_is_over": Scenario(
        "young", (*STARTING, of_runner("runner.gone")), QUEUED, OVER,
        wanted=(("release_claim", "runner_lost"),),
        status="completed", conclusion="startup_failure",
    ),
    "runner_gone_nobody_says_which": Scenario(
        "young", (*STARTING, of_runner("runner.gone", runner=None)),
        QUEUED, status="starting", asked=False,
    ),
    "replacement_runner": Scenario(
        "young",
        (*STARTING, {"kind": "claim.released", "claim": "h1"},
         claimed("h2", "replacement"), minted("h2", "replacement"), of_runner("runner.gone")),
        QUEUED, status="starting", asked=False,
    ),
    # Who executes what.
    "displaced": Scenario(
        "quick", (claimed("h1", "wanderer"), minted("h1", "wanderer")),
        QUEUED, wanted=(("requeue", "displaced"),),
    ),
    "executed_by_the_runner_of_another": Scenario(
        "quick", (executed_by("wanderer"),),
        ApiJob("in_progress", 0), status="running", asked=False,
    ),
    "displaced_and_its_run_is_over": Scenario(
        "quick", (claimed("h1", "vagrant"), minted("h1", "vagrant")), QUEUED, OVER,
        wanted=(("release_claim", "displaced"),),
        status="completed", conclusion="startup_failure",
    ),
    "executed_by_the_runner_of_one_that_is_over": Scenario(
        "quick", (executed_by("vagrant"),),
        ApiJob("in_progress", 0), status="running", asked=False,
    ),
    "swapped_this": Scenario(
        "quick", (claimed("h1", "left"), minted("h1", "left"), executed_by("right")),
        ApiJob("in_progress", 0), status="running", asked=False,
    ),
    "swapped_that": Scenario(
        "quick", (claimed("h1", "right"), minted("h1", "right"), executed_by("left")),
        ApiJob("in_progress", 0), status="running", asked=False,
    ),
    # Stale queue.
    "queued_for_long": Scenario("old", (), QUEUED, wanted=(("requeue", "stale_queue"),)),
    "queued_and_left_in_peace": Scenario("patient", (), QUEUED),
    "queued_though_its_run_is_over": Scenario(
        "old", (), QUEUED, OVER, wanted=(("close", "stale_queue"),),
        status="completed", conclusion="startup_failure",
    ),
    "queued_and_github_runs_it": Scenario(
        "old", (), ApiJob("in_progress", 0, runner_name="another"), status="running"
    ),
    "queued_and_github_completed_it": Scenario(
        "old", (), ApiJob("completed", 0, conclusion="success"),
        status="completed", conclusion="success",
    ),
    "queued_and_github_forgot_it": Scenario(
        "old", (), None, None, status="completed", conclusion="unknown"
    ),
    "hopeless_and_the_api_is_down": Scenario(
        "ancient", (), QUEUED, fails=(502, b"oh"), wanted=(("close", "stale_queue"),),
        status="completed", conclusion="stale",
    ),
    "hopeless_and_nobody_knows_where_to_ask": Scenario(
        "ancient", (), QUEUED, addressed=False, wanted=(("close", "stale_queue"),),
        status="completed", conclusion="stale", asked=False,
    ),
    "completion_lost": Scenario(
        "long", (*STARTING, {"kind": "job.started"}),
        ApiJob("completed", 0, conclusion="success"),
        status="completed", conclusion="success",
    ),
    # Missing runners.
    "runner_silent_among_others": Scenario(
        "silent", LONG_AGO, QUEUED, wanted=(("requeue", "runner_lost"),)
    ),
    "another_runner_that_is_heard_of": Scenario(
        "silent", (*STARTING, of_runner("runner.heartbeat")), QUEUED,
        status="starting", asked=False,
    ),
    "all_silent_so_we_are_blind": Scenario(
        "blind", LONG_AGO, QUEUED, status="starting", asked=False
    ),
    "runner_seen_again": Scenario(
        "silent", LONG_AGO, QUEUED, fails=(502, b"oh"), mends=True,
        later=(of_runner("runner.heartbeat"),), status="starting",
    ),
    **crowded(6),
}  # fmt: skip
NAMES: Final = {name: 7_000 + n for n, name in enumerate(SCENARIOS)}
