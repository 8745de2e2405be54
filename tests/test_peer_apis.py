"""The APIs of all providers, asked over HTTP: one contract, and each one's peculiarities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from pipeline.providers.api import Detail, Said
from pipeline.providers.budget import LONGEST_WAIT_S
from pipeline.providers.gitea_api import GiteaApi
from pipeline.providers.github_api import GitHubApi
from pipeline.providers.gitlab_api import GitLabApi
from pipeline.providers.rest import RestClient
from pipeline.simulate.api import ApiJob, ApiRun, FakeApi, FakeGitHub, Mood
from pipeline.simulate.peer_apis import FakeGitea, FakeGitLab
from topics.models import Clock, Conclusion, JobFact, Milestone, RunFact, RunLink
from topics.recovery import Answer, Fence, Probe, StallKind

T0 = 1_790_000_000_000
JOB, RUN = 4_567, 99


@dataclass
class World:
    """A client, the API it asks, and the truth in the provider's own words."""

    provider: str
    #: Of a job: waiting for a runner, held back, executed, over. Of a run: open, over.
    words: dict[str, str]
    now: float = T0 / 1000
    jobs: dict[int, ApiJob] = field(default_factory=dict)
    runs: dict[int, ApiRun] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        made: Callable[..., FakeApi]
        made = {"github": FakeGitHub, "gitea": FakeGitea, "gitlab": FakeGitLab}[self.provider]
        self.api = made(self.jobs.get, lambda run, attempt: self.runs.get(run),
                        token="s3cret", clock=lambda: self.now)  # fmt: skip
        self.client = self.made("s3cret")
        self.key = f"{self.client.place}:{JOB}"

    def made(self, token: str) -> RestClient:
        options: dict[str, Any] = {
            "clock": lambda: self.now, "wall": lambda: self.now,
            "count": lambda outcome: self.counts.update([outcome.value]),
        }  # fmt: skip
        if self.provider == "github":
            return GitHubApi("github.com", token, base=self.api.url, **options)
        return {"gitea": GiteaApi, "gitlab": GitLabApi}[self.provider](
            self.api.url, token, **options
        )

    def job(self, word: str, **differs: Any) -> None:
        how: str | None = None
        if word == "over" and self.provider != "gitlab":
            how = "failure"
        told = {"conclusion": how, "created_at": T0 - 600_000, **differs}
        self.jobs[JOB] = ApiJob(self.words.get(word, word), RUN, **told)

    def run(self, word: str) -> None:
        self.runs.clear()
        if word != "missing":
            how = "failure" if word == "run over" and self.provider != "gitlab" else None
            self.runs[RUN] = ApiRun(self.words.get(word, word), conclusion=how)

    def ask(self, **differs: Any) -> Said:
        told: dict[str, Any] = {
            "id": f"{self.key}:1:1", "source": "runnerstream", "occurred_at": T0,
            "received_at": T0, "key": self.key, "fleet": "linux", "n": 1, "k": 1,
            "stall": StallKind.ORPHAN, "since": T0, "opened_at": T0, "fence": Fence(),
            "expires_at": T0 + 600_000, "repo": "octo/repo", "run_id": RUN,
        }  # fmt: skip
        return self.client.ask(Probe(**{**told, **differs}))


GITHUB = {"queued": "queued", "held": "waiting", "executed": "in_progress", "over": "completed",
          "run open": "in_progress", "run over": "completed"}  # fmt: skip
GITLAB = {"queued": "pending", "held": "created", "executed": "running", "over": "failed",
          "run open": "running", "run over": "failed"}  # fmt: skip
WORDS = {"github": GITHUB, "gitea": GITHUB, "gitlab": GITLAB}


def world_of(provider: str) -> World:
    made = World(provider, WORDS[provider])
    made.job("queued")
    made.run("run open")
    return made


@pytest.fixture(params=list(WORDS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = world_of(request.param)
    yield made
    made.client.close()
    made.api.close()


@pytest.fixture
def gitea() -> Iterator[World]:
    made = world_of("gitea")
    yield made
    made.client.close()
    made.api.close()


@pytest.fixture
def gitlab() -> Iterator[World]:
    made = world_of("gitlab")
    yield made
    made.client.close()
    made.api.close()


# --- the contract of all three --------------------------------------------------------------------

UNKNOWN = Answer.UNKNOWN


@pytest.mark.parametrize(
    ("job", "run", "answer", "detail"),
    [
        ("queued", "run open", Answer.QUEUED, ""),
        ("held", "run open", Answer.QUEUED, ""),
        ("executed", "run open", Answer.IN_PROGRESS, ""),
        ("executed", "missing", Answer.IN_PROGRESS, ""),
        ("over", "run over", Answer.COMPLETED, ""),
        ("over", "run open", Answer.COMPLETED, ""),
        ("gone", "run over", Answer.GONE, ""),
        ("gone", "missing", Answer.GONE, ""),
        ("gone", "run open", UNKNOWN, Detail.CONTRADICTORY),
        ("gone", "resting", UNKNOWN, Detail.MALFORMED),
        ("resting", "run open", UNKNOWN, Detail.MALFORMED),
    ],
)
def test_what_is_said_is_answered(
    world: World, job: str, run: str, answer: Answer, detail: str
) -> None:
    world.job(job, runner_id=7, runner_name="r7", started_at=T0 - 300_000)
    if job == "gone":
        world.jobs.clear()
    world.run(run)
    said = world.ask()
    assert (said.answer, said.detail, said.again) == (answer, detail, False)
    if answer in (UNKNOWN, Answer.GONE):
        assert said.facts == (), "what is not relied on is no fact"
    else:
        fact, link = said.facts[:2]
        assert isinstance(fact, JobFact)
        assert isinstance(link, RunLink)
        assert (fact.key, fact.cause, link.job_key) == (world.key, "api.job", world.key)
        assert link.key == f"{world.client.place}:run/{RUN}"
        assert fact.job is not None
        assert (fact.job.run_id, fact.job.labels) == (RUN, ("linux",))
        seen = answer is not Answer.QUEUED
        assert (fact.runner is not None and fact.runner.name == "r7") is seen
        assert (Milestone.STARTED in fact.times) is seen
        assert fact.conclusion == (Conclusion.FAILURE if answer is Answer.COMPLETED else None)


@pytest.mark.parametrize(
    ("mood", "detail", "again", "outcome"),
    [
        (Mood.DOWN, Detail.UNREACHABLE, True, "unreachable"),
        (Mood.ERROR, Detail.SERVER_ERROR, True, "server_error"),
        (Mood.SPENT, Detail.LIMITED, True, "limited"),
        (Mood.SECONDARY, Detail.LIMITED, True, "limited"),
        (Mood.TOO_MANY, Detail.LIMITED, True, "limited"),
        (Mood.FORBIDDEN, Detail.FORBIDDEN, False, "forbidden"),
        (Mood.UNAUTHORISED, Detail.FORBIDDEN, False, "forbidden"),
        (Mood.HTML, Detail.MALFORMED, True, "malformed"),
        (Mood.CUT, Detail.MALFORMED, True, "malformed"),
        (Mood.ARRAY, Detail.MALFORMED, True, "malformed"),
        (Mood.BROKEN, Detail.MALFORMED, True, "malformed"),
        (Mood.UNCHANGED, Detail.MALFORMED, True, "malformed"),
        (Mood.WRONG, Detail.CONTRADICTORY, False, "ok"),
        (Mood.LYING, Detail.CONTRADICTORY, False, "ok"),
        (Mood.HIDING, Detail.FORBIDDEN, False, "missing"),
    ],
)
def test_an_odd_answer_is_unknown_and_no_fact(
    world: World, mood: Mood, detail: Detail, again: bool, outcome: str
) -> None:
    world.api.mood = mood
    said = world.ask()
    assert (said.answer, said.detail, said.again, said.facts) == (UNKNOWN, detail, again, ())
    assert world.counts[outcome] >= 1
    assert sum(world.counts.values()) == len(world.api.requests)
    world.api.mood = Mood.FINE
    world.now += LONGEST_WAIT_S
    assert world.ask().answer is Answer.QUEUED, "and when it is well again, so is the answer"


def test_410_is_gone_as_well(world: World) -> None:
    world.api.mood = Mood.GONE
    assert world.ask().answer is Answer.GONE


def test_a_slow_answer_is_a_timeout(world: World) -> None:
    world.client._calls._http.timeout = httpx.Timeout(0.1)
    world.api.mood, world.api.slow_s = Mood.SLOW, 5.0
    said = world.ask()
    assert (said.detail, said.again) == (Detail.TIMEOUT, True)


def test_a_job_of_which_no_run_is_known_is_never_called_gone(world: World) -> None:
    world.jobs.clear()
    world.runs.clear()
    assert world.ask(run_id=0).detail == Detail.UNSUPPORTED


def test_another_run_than_was_asked_for_is_a_contradiction(world: World) -> None:
    said = world.ask(run_id=RUN + 1)
    assert (said.answer, said.detail, said.facts) == (UNKNOWN, Detail.CONTRADICTORY, ())


def test_a_status_that_is_no_word_is_malformed(world: World) -> None:
    world.job("queued", more={"status": ["queued"]})
    assert world.ask().detail == Detail.MALFORMED
    world.jobs.clear()
    world.runs[RUN] = ApiRun("running", more={"status": {}})
    assert world.ask().detail == Detail.MALFORMED


def test_what_cannot_be_asked_is_not(world: World) -> None:
    other = {"github": "gitea", "gitea": "gitlab", "gitlab": "github"}[world.provider]
    for differs in (
        {"repo": ""}, {"repo": "../user"}, {"repo": "octo/.."}, {"repo": "octo/repo?x"},
        {"repo": "octo"}, {"key": f"{world.provider}:evil.example:{JOB}"},
        {"key": f"{other}:{world.client.host}:{JOB}"}, {"key": f"{world.client.place}:1e5"},
    ):  # fmt: skip
        said = world.ask(**differs)
        assert (said.answer, said.detail, said.again) == (UNKNOWN, Detail.UNSUPPORTED, False)
    assert world.api.requests == []


def test_the_token_is_named_as_the_provider_wants_it_and_goes_nowhere_else(world: World) -> None:
    assert world.ask().answer is Answer.QUEUED
    scheme = {"github": "Bearer ", "gitea": "token ", "gitlab": ""}[world.provider]
    assert {each.authorization for each in world.api.requests} == {f"{scheme}s3cret"}
    assert world.client.about.endswith("with a token")
    world.client = world.made("wrong")
    assert world.ask().detail == Detail.FORBIDDEN
    world.client = world.made("s3cret")
    world.api.mood = Mood.MOVED
    assert world.ask().answer is Answer.QUEUED, "moved on the same host"
    with FakeGitHub(world.jobs.get, lambda run, attempt: None) as elsewhere:
        world.api.redirect = f"{elsewhere.url}/repos/octo/repo"
        assert world.ask().detail == Detail.MALFORMED
        assert elsewhere.requests == []


def test_a_limit_closes_for_as_long_as_it_says(world: World) -> None:
    world.api.mood, world.api.reset_s = Mood.SECONDARY, 90
    world.ask()
    asked = len(world.api.requests)
    assert world.client.opens("", 0) == pytest.approx(90, abs=1)
    assert world.ask().detail == Detail.LIMITED
    assert len(world.api.requests) == asked, "nothing is sent meanwhile"


def test_failures_in_a_row_are_answered_with_longer_pauses(world: World) -> None:
    world.api.mood = Mood.ERROR
    pauses = []
    for _ in range(7):
        world.ask()
        pauses.append(world.client.opens("", 0))
        world.now += 61
    assert 0.5 <= pauses[0] <= 1
    assert 30 <= pauses[-1] <= 60
    assert "server_error" in world.client.trouble()


def test_what_did_not_change_is_not_sent_again(world: World) -> None:
    first = world.ask()
    assert world.ask() == first
    assert world.counts["not_modified"] == world.counts["ok"] > 0


# --- Gitea ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "answer"),
    [(word, Answer.QUEUED) for word in ("queued", "waiting", "pending", "requested", "blocked")]
    + [(word, Answer.IN_PROGRESS) for word in ("in_progress", "running", "cancelling")],
)
def test_each_status_of_gitea(gitea: World, status: str, answer: Answer) -> None:
    gitea.job(status)
    assert gitea.ask().answer is answer
    gitea.jobs.clear()
    gitea.run(status)
    assert gitea.ask().detail == Detail.CONTRADICTORY, "a run of that status is open"


@pytest.mark.parametrize("how", ["success", "failure", "cancelled", "skipped"])
def test_each_conclusion_of_gitea(gitea: World, how: str) -> None:
    ran = {"runner_id": 3, "started_at": T0 - 9_000} if how in ("success", "failure") else {}
    gitea.job("completed", conclusion=how, completed_at=T0 - 5_000, **ran)
    said = gitea.ask()
    (job, _) = said.facts
    assert isinstance(job, JobFact)
    assert (said.answer, job.conclusion) == (Answer.COMPLETED, Conclusion(how))
    assert (Milestone.STARTED in job.times) is bool(ran)
    assert job.times[Milestone.COMPLETED][Clock.PROVIDER] == T0 - 5_000


def test_a_gitea_job_that_failed_without_a_runner_never_ran(gitea: World) -> None:
    gitea.job("completed", conclusion="failure", completed_at=T0)
    (job, _) = gitea.ask().facts
    assert isinstance(job, JobFact)
    assert Milestone.STARTED not in job.times


def test_a_gitea_status_of_which_gitea_knows_no_conclusion_is_malformed(gitea: World) -> None:
    gitea.job("completed", conclusion=None)
    assert gitea.ask().detail == Detail.MALFORMED
    gitea.jobs.clear()
    gitea.runs[RUN] = ApiRun("completed")
    assert gitea.ask().detail == Detail.MALFORMED


def test_a_waiting_job_of_a_gitea_run_that_is_over_is_a_ghost(gitea: World) -> None:
    gitea.runs[RUN] = ApiRun("completed", conclusion="cancelled", updated_at=T0 - 2_000)
    said = gitea.ask()
    run = said.facts[-1]
    assert said.answer is Answer.GHOST
    assert isinstance(run, RunFact)
    assert (run.run.completed_at, run.run.conclusion) == (T0 - 2_000, Conclusion.CANCELLED)
    gitea.run("missing")
    assert gitea.ask().detail == Detail.CONTRADICTORY


def test_no_queue_time_is_measured_from_when_a_gitea_run_was_made(gitea: World) -> None:
    gitea.job("executed", started_at=T0 - 1_000, runner_id=3)
    (job, link) = gitea.ask().facts
    assert isinstance(job, JobFact)
    assert isinstance(link, RunLink)
    assert Milestone.QUEUED not in job.times
    assert job.times[Milestone.STARTED][Clock.PROVIDER] == T0 - 1_000
    assert link.attempt == 0


def test_a_gitea_without_such_pages_never_says_that_a_job_is_gone(gitea: World) -> None:
    """Before 1.25, and Forgejo: 404 for the job, for the run, and for the list of runs."""
    said = gitea.api._said
    gitea.api._said = lambda path, mood: (  # type: ignore[method-assign]
        None if "/actions/" in path else said(path, mood)
    )
    assert gitea.ask().detail == Detail.FORBIDDEN


# --- GitLab ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "answer", "mark"),
    [
        ("pending", Answer.QUEUED, "queued"),
        *((word, Answer.QUEUED, "waiting")
          for word in ("created", "waiting_for_resource", "preparing", "waiting_for_callback",
                       "manual", "scheduled")),
        ("running", Answer.IN_PROGRESS, None),
        ("canceling", Answer.IN_PROGRESS, None),
    ],
)  # fmt: skip
def test_each_status_of_gitlab_that_is_no_end(
    gitlab: World, status: str, answer: Answer, mark: str | None
) -> None:
    gitlab.job(status)
    said = gitlab.ask()
    (job, _) = said.facts
    assert isinstance(job, JobFact)
    assert said.answer is answer
    assert [word for _, word in job.marks] == ([mark] if mark else [])
    assert Milestone.QUEUED not in job.times, "made is not queued"
    gitlab.jobs.clear()
    gitlab.run(status)
    assert gitlab.ask().detail == Detail.CONTRADICTORY, "a pipeline of that status is open"


@pytest.mark.parametrize(
    ("status", "why", "conclusion"),
    [("success", None, "success"), ("failed", "script_failure", "failure"),
     ("failed", [], "failure"), ("failed", "job_execution_timeout", "timed_out"),
     ("canceled", None, "cancelled"), ("skipped", None, "skipped")],
)  # fmt: skip
def test_each_end_of_gitlab(gitlab: World, status: str, why: Any, conclusion: str) -> None:
    ran = status in ("success", "failed")
    gitlab.job(
        status, completed_at=T0 - 5_000, more={"failure_reason": why, "queued_duration": 2.5},
        **({"runner_id": 3, "runner_name": "r", "started_at": T0 - 9_000} if ran else {}),
    )  # fmt: skip
    said = gitlab.ask()
    (job, _) = said.facts
    assert isinstance(job, JobFact)
    assert (said.answer, job.conclusion) == (Answer.COMPLETED, Conclusion(conclusion))
    assert (Milestone.STARTED in job.times) is ran
    queued = job.times.get(Milestone.QUEUED, {}).get(Clock.PROVIDER)
    assert queued == (T0 - 11_500 if ran else None), "its start less what it waited"
    gitlab.jobs.clear()
    gitlab.run(status)
    assert gitlab.ask().answer is Answer.GONE, "a pipeline of that status is over"


@pytest.mark.parametrize("waited", [None, True, "3", -1, float("nan"), 1e300])
def test_a_wait_that_cannot_be_is_none(gitlab: World, waited: Any) -> None:
    gitlab.job("executed", started_at=T0, more={"queued_duration": waited})
    (job, _) = gitlab.ask().facts
    assert isinstance(job, JobFact)
    assert Milestone.QUEUED not in job.times


def test_the_end_of_a_pipeline_ends_no_job_of_gitlab(gitlab: World) -> None:
    gitlab.run("run over")
    gitlab.job("manual")
    said = gitlab.ask()
    assert said.answer is Answer.QUEUED, "somebody may start it still"
    assert not any(isinstance(each, RunFact) for each in said.facts)
    gitlab.job("queued")
    assert gitlab.ask().detail == Detail.CONTRADICTORY, "it was retried, and its pipeline lags"


def test_a_project_is_named_by_its_whole_path_or_its_number(gitlab: World) -> None:
    assert gitlab.ask(repo="group/sub.group/the-project").answer is Answer.QUEUED
    assert gitlab.ask(repo="278964").answer is Answer.QUEUED
    assert gitlab.api.asked() == [
        f"/api/v4/projects/group%2Fsub.group%2Fthe-project/jobs/{JOB}",
        f"/api/v4/projects/278964/jobs/{JOB}",
    ]
    for repo in ("group/../x", "group//x", "/group/x", "0", "group/x/", "g/" + "x" * 600):
        assert gitlab.ask(repo=repo).detail == Detail.UNSUPPORTED


def test_a_job_without_a_pipeline_is_malformed(gitlab: World) -> None:
    gitlab.job("queued", more={"pipeline": None})
    assert gitlab.ask().detail == Detail.MALFORMED


def test_gitlab_says_what_is_left_until_it_counts_anew(gitlab: World) -> None:
    gitlab.api.limit = 10
    gitlab.ask()
    assert gitlab.client.remaining() == 9
    gitlab.api.mood, gitlab.api.reset_s = Mood.SPENT, 1_200
    gitlab.ask(id="again")
    assert gitlab.client.remaining() == 0
    assert gitlab.client.opens("", 0) > 1_000


def test_gitea_has_no_limits_to_tell(gitea: World) -> None:
    gitea.api.limit = 10
    gitea.ask()
    assert gitea.client.remaining() is None, "unknown is not zero"
