"""GitHub's API, asked over HTTP: what it says, and every odd way in which it may say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.providers.api import Detail, Said
from pipeline.providers.budget import LONGEST_WAIT_S, Budget
from pipeline.providers.github_api import GitHubApi, api_base
from pipeline.providers.github_calls import App
from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub, Mood
from topics.models import JobFact, RunFact, RunLink
from topics.recovery import Answer, Fence, Probe, StallKind

T0 = 1_790_000_000_000
JOB, RUN = 4_567, 99
KEY = f"github:github.com:{JOB}"


class Clock:
    """Both clocks of a client and of the API, which go on when they are told to."""

    def __init__(self) -> None:
        self.now = T0 / 1000

    def __call__(self) -> float:
        return self.now


class World:
    """A client, the API it asks, and the truth."""

    def __init__(self, credentials: App | str = "secret", **options: Any) -> None:
        self.clock = Clock()
        self.jobs: dict[int, ApiJob] = {}
        self.runs: dict[tuple[int, int], ApiRun] = {}
        self.api = FakeGitHub(
            self.jobs.get, lambda run, attempt: self.runs.get((run, attempt)),
            token="secret", clock=self.clock, **options,
        )  # fmt: skip
        self.counts: Counter[str] = Counter()
        self.client = self.made(credentials)

    def made(self, credentials: App | str = "secret", **options: Any) -> GitHubApi:
        return GitHubApi(
            "github.com", credentials, base=self.api.url, clock=self.clock, wall=self.clock,
            count=lambda outcome: self.counts.update([outcome.value]), **options,
        )  # fmt: skip

    def ask(self, **differs: Any) -> Said:
        return self.client.ask(probe(**differs))


def probe(**differs: Any) -> Probe:
    told: dict[str, Any] = {
        "id": f"{KEY}:1:1", "source": "runnerstream", "occurred_at": T0, "received_at": T0,
        "key": KEY, "fleet": "linux", "n": 1, "k": 1, "stall": StallKind.ORPHAN, "since": T0,
        "opened_at": T0, "fence": Fence(), "expires_at": T0 + 600_000, "repo": "octo/repo",
        "run_id": RUN, "attempt": 1,
    }  # fmt: skip
    return Probe(**{**told, **differs})


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.jobs[JOB] = ApiJob("queued", RUN, created_at=T0 - 600_000)
    made.runs[RUN, 0] = made.runs[RUN, 1] = ApiRun("in_progress", started_at=T0 - 600_000)
    yield made
    made.client.close()
    made.api.close()


# --- the mapping ----------------------------------------------------------------------------------

GONE = "gone"
ROWS = [
    *((status, ApiRun(run), Answer.QUEUED, "")
      for status in ("queued", "waiting", "pending", "requested")
      for run in ("queued", "in_progress", "waiting")),
    *((status, ApiRun("completed", conclusion=how), Answer.GHOST, "")
      for status in ("queued", "waiting", "pending", "requested")
      for how in ("failure", "startup_failure", "cancelled")),
    ("queued", ApiRun("completed", conclusion="action_required"), Answer.QUEUED, ""),
    ("queued", ApiRun("resting"), Answer.UNKNOWN, Detail.MALFORMED),
    ("queued", None, Answer.UNKNOWN, Detail.CONTRADICTORY),
    ("in_progress", ApiRun("completed"), Answer.IN_PROGRESS, ""),
    ("in_progress", None, Answer.IN_PROGRESS, ""),
    ("completed", ApiRun("in_progress"), Answer.COMPLETED, ""),
    ("completed", None, Answer.COMPLETED, ""),
    (GONE, ApiRun("completed", conclusion="success"), Answer.GONE, ""),
    (GONE, None, Answer.GONE, ""),
    (GONE, ApiRun("in_progress"), Answer.UNKNOWN, Detail.CONTRADICTORY),
    (GONE, ApiRun("queued"), Answer.UNKNOWN, Detail.CONTRADICTORY),
    (GONE, ApiRun("resting"), Answer.UNKNOWN, Detail.MALFORMED),
    ("resting", ApiRun("in_progress"), Answer.UNKNOWN, Detail.MALFORMED),
]  # fmt: skip


@pytest.mark.parametrize(("status", "run", "answer", "detail"), ROWS)
def test_each_row_of_the_mapping(
    world: World, status: str, run: ApiRun | None, answer: Answer, detail: str
) -> None:
    if status == GONE:
        del world.jobs[JOB]
    else:
        ended = "success" if status == "completed" else None
        world.jobs[JOB] = ApiJob(status, RUN, conclusion=ended, created_at=T0 - 9_000)
    world.runs.clear()
    if run is not None:
        world.runs[RUN, 0] = run
    said = world.ask()
    assert (said.answer, said.detail, said.again) == (answer, detail, False)
    if answer in (Answer.UNKNOWN, Answer.GONE):
        assert said.facts == (), "what is not relied on is no fact"


def test_the_facts_are_those_of_job_and_run(world: World) -> None:
    job, link, run = world.ask().facts
    assert isinstance(job, JobFact)
    assert (job.key, job.cause, job.marks) == (KEY, "api.job", ((T0, "queued"),))
    assert job.job is not None
    assert (job.job.run_id, job.job.labels) == (RUN, ("linux",))
    assert isinstance(link, RunLink)
    assert isinstance(run, RunFact)
    assert (run.key, run.run.attempt, run.run.completed_at) == (link.key, 1, None)

    world.runs[RUN, 0] = ApiRun("completed", conclusion="startup_failure", updated_at=T0 - 1_000)
    ended = world.ask(id="again").facts[-1]
    assert isinstance(ended, RunFact)
    assert (ended.run.completed_at, ended.run.conclusion) == (T0 - 1_000, "startup_failure")

    world.jobs[JOB] = ApiJob("completed", RUN, conclusion="success", runner_name="r1",
                             started_at=T0 - 9_000, completed_at=T0 - 5_000)  # fmt: skip
    done = world.ask().facts[0]
    assert isinstance(done, JobFact)
    assert (done.conclusion, done.runner and done.runner.name) == ("success", "r1")


def test_the_same_question_gives_the_same_ids(world: World) -> None:
    first, second = world.ask(), world.ask()
    assert [each.id for each in first.facts] == [each.id for each in second.facts]
    other = world.ask(id="another")
    assert other.facts[0].id != first.facts[0].id


def test_a_run_that_was_run_again_is_asked_for_the_attempt_of_the_job(world: World) -> None:
    world.runs[RUN, 0] = ApiRun("in_progress", attempt=2)
    world.runs[RUN, 1] = ApiRun("completed", attempt=1, conclusion="failure")
    assert world.ask().answer is Answer.GHOST
    assert world.api.asked()[-1].endswith(f"/runs/{RUN}/attempts/1")
    del world.jobs[JOB]
    assert world.ask().answer is Answer.GONE
    # Nobody knows which attempt the job was of.
    assert world.ask(attempt=0).detail == Detail.CONTRADICTORY


@pytest.mark.parametrize(
    "more",
    [{"id": JOB + 1}, {"id": str(JOB)}, {"id": None}, {"id": True}, {"run_id": RUN + 1},
     {"conclusion": "success"}, {"html_url": None, "id": 0}],
    ids=str,
)  # fmt: skip
def test_what_contradicts_the_question_is_never_believed(world: World, more: Any) -> None:
    world.jobs[JOB] = ApiJob("queued", RUN, more=more)
    said = world.ask()
    assert (said.answer, said.detail, said.facts) == (Answer.UNKNOWN, Detail.CONTRADICTORY, ())


def test_a_body_of_another_host_is_not_believed(world: World) -> None:
    world.jobs[JOB] = ApiJob("in_progress", RUN, more={"html_url": "https://ghe.corp/a/b"})
    assert world.ask().detail == Detail.CONTRADICTORY


def test_another_run_is_never_believed(world: World) -> None:
    world.runs[RUN, 0] = ApiRun("completed", conclusion="failure", more={"id": RUN + 1})
    assert world.ask().detail == Detail.CONTRADICTORY
    del world.jobs[JOB]
    assert world.ask().detail == Detail.CONTRADICTORY


def test_nothing_is_gone_in_a_repository_that_is_not_visible(world: World) -> None:
    world.api.mood = Mood.HIDING
    said = world.ask()
    assert (said.answer, said.detail) == (Answer.UNKNOWN, Detail.FORBIDDEN)
    assert world.api.asked()[-1] == "/repos/octo/repo"


def test_410_is_gone_as_well(world: World) -> None:
    world.api.mood = Mood.GONE
    assert world.ask().answer is Answer.GONE


@pytest.mark.parametrize(
    "differs",
    [{"repo": ""}, {"repo": "octo"}, {"repo": "../user"}, {"repo": "octo/.."},
     {"repo": "octo/a/b"}, {"repo": "octo/repo?x"}, {"key": "github:evil.example:1"},
     {"key": "gitea:github.com:1"}, {"key": "github:github.com:1e5"},
     {"key": "github:github.com:١"}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_is_not(world: World, differs: Any) -> None:
    said = world.ask(**differs)
    assert (said.answer, said.detail, said.again) == (Answer.UNKNOWN, Detail.UNSUPPORTED, False)
    assert world.api.requests == []


def test_a_missing_job_without_a_run_is_unknown(world: World) -> None:
    world.jobs.clear()
    assert world.ask(run_id=0).detail == Detail.UNSUPPORTED


def test_where_the_api_is() -> None:
    assert api_base("github.com") == "https://api.github.com"
    assert api_base("Tenant.GHE.com") == "https://api.tenant.ghe.com"
    assert api_base("ghe.corp:8443") == "https://ghe.corp:8443/api/v3"


# --- odd answers ----------------------------------------------------------------------------------

ODD = [
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
    (Mood.HUGE, Detail.MALFORMED, False, "malformed"),
    (Mood.BROKEN, Detail.MALFORMED, True, "malformed"),
    (Mood.UNCHANGED, Detail.MALFORMED, True, "malformed"),
    (Mood.WRONG, Detail.CONTRADICTORY, False, "ok"),
    (Mood.LYING, Detail.CONTRADICTORY, False, "ok"),
]


@pytest.mark.parametrize(("mood", "detail", "again", "outcome"), ODD)
def test_an_odd_answer_is_unknown_and_no_fact(
    world: World, mood: Mood, detail: Detail, again: bool, outcome: str
) -> None:
    world.api.mood = mood
    said = world.ask()
    assert (said.answer, said.detail, said.again) == (Answer.UNKNOWN, detail, again)
    assert said.facts == ()
    assert world.counts[outcome] == 1
    assert sum(world.counts.values()) == len(world.api.requests)
    # And when it is well again, so is the answer.
    world.api.mood = Mood.FINE
    world.clock.now += LONGEST_WAIT_S
    assert world.ask().answer is Answer.QUEUED


@pytest.mark.parametrize("mood", [each[0] for each in ODD if each[0] is not Mood.LYING])
def test_an_odd_answer_about_the_run_is_unknown_as_well(world: World, mood: Mood) -> None:
    del world.jobs[JOB]
    # The first request is the one about the job.
    answer = world.api.answer

    def second(method: str, path: str, headers: Any) -> Any:
        world.api.mood = mood if "/runs/" in path else Mood.FINE
        return answer(method, path, headers)

    world.api.answer = second  # type: ignore[method-assign]
    world.runs[RUN, 0] = ApiRun(
        "completed", more={"id": RUN + 1} if mood is Mood.WRONG else {}, conclusion="success"
    )
    assert world.ask().answer is Answer.UNKNOWN


def test_a_slow_answer_is_a_timeout(world: World) -> None:
    world.client._calls._http.timeout = httpx.Timeout(0.1)
    world.api.mood, world.api.slow_s = Mood.SLOW, 5.0
    assert (said := world.ask()).detail == Detail.TIMEOUT
    assert said.again
    assert world.counts["timeout"] == 1


def test_a_closed_port_is_unreachable(world: World) -> None:
    world.api.close()
    assert world.ask().detail == Detail.UNREACHABLE
    world.clock.now += 3
    assert world.client.trouble() == "the API of github.com fails for 3 s: unreachable"


def test_redirects_are_followed_on_the_same_host_only(world: World) -> None:
    world.api.mood = Mood.MOVED
    assert world.ask().answer is Answer.QUEUED
    assert world.counts == {"redirect": 2, "ok": 2}
    with FakeGitHub(world.jobs.get, lambda run, attempt: None) as elsewhere:
        for there in (f"{elsewhere.url}/repos/octo/repo", "https://[", "file:///etc", ""):
            world.api.redirect = there or world.api.url.replace("http:", "ftp:")
            assert world.ask().detail == Detail.MALFORMED
        assert elsewhere.requests == [], "and the token went nowhere"
    world.api.redirect = f"{world.api.url}/round"
    before = len(world.api.requests)
    assert world.ask().detail == Detail.MALFORMED
    assert len(world.api.requests) == before + 4


def test_what_did_not_change_is_not_sent_again(world: World) -> None:
    first = world.ask()
    again = world.ask()
    assert world.counts == {"ok": 2, "not_modified": 2}
    assert again == first
    world.jobs[JOB] = ApiJob("in_progress", RUN)
    assert world.ask().answer is Answer.IN_PROGRESS


# --- limits ---------------------------------------------------------------------------------------


def test_a_spent_limit_closes_until_it_counts_anew(world: World) -> None:
    world.api.mood, world.api.reset_s = Mood.SPENT, 1_200
    world.ask()
    assert world.client.opens("", 0) == pytest.approx(1_200, abs=2)
    assert world.client.remaining() == 0
    asked = len(world.api.requests)
    assert world.ask().detail == Detail.LIMITED
    assert len(world.api.requests) == asked, "nothing is sent meanwhile"
    world.api.mood = Mood.FINE
    world.clock.now += 1_201
    assert world.client.remaining() is None
    assert world.ask().answer is Answer.QUEUED


@pytest.mark.parametrize(("told", "wait"), [(90, 90), (10**9, LONGEST_WAIT_S)])
def test_a_secondary_limit_closes_for_as_long_as_it_says(
    world: World, told: int, wait: float
) -> None:
    world.api.mood, world.api.reset_s = Mood.SECONDARY, told
    world.ask()
    assert world.client.opens("", 0) == pytest.approx(wait, abs=1)


def test_a_limit_that_is_nearly_spent_is_left_alone(world: World) -> None:
    world.api.limit = 10
    for _ in range(4):
        world.ask(id="a")
        world.jobs[JOB] = ApiJob("queued", RUN, name=f"{len(world.api.requests)}")
    assert world.client.remaining() == 5, "of the eight questions three found nothing new"
    assert world.client.opens("", 0) == 0.0
    assert world.client.opens("", 1) > 3_000


def test_failures_in_a_row_are_answered_with_longer_pauses(world: World) -> None:
    world.api.mood = Mood.ERROR
    pauses = []
    for _ in range(9):
        world.ask()
        pauses.append(world.client.opens("", 0))
        world.clock.now += 61
    assert 0.5 <= pauses[0] <= 1
    assert 30 <= pauses[-1] <= 60
    world.api.mood = Mood.FINE
    world.ask()
    world.api.mood = Mood.ERROR
    world.ask()
    assert world.client.opens("", 0) <= 1


def test_requests_that_fail_together_are_one_failure() -> None:
    clock = Clock()
    budget = Budget(1_000, clock)
    pauses = []
    for _ in range(8):
        for _ in range(8):  # as many are under way at once
            budget.failed()
        pauses.append(budget.opens(0))
        clock.now += pauses[-1]
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses[:6]))
    assert all(30 <= pause <= 60 for pause in pauses[6:])


@given(
    st.integers(3, 12),
    st.lists(st.tuples(st.floats(0, 40), st.integers(0, 3)), max_size=80),
)
def test_no_window_ever_holds_more_than_the_cap(cap: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    clock.now = 0.0
    budget = Budget(cap, clock)
    taken: list[float] = []
    for wait, number in steps:
        clock.now += wait
        for _ in range(number):
            if budget.take():
                taken.append(clock.now)
        opens = budget.opens(0)
        assert all(sum(at <= each < at + 60 for each in taken) <= cap for at in taken)
        if opens > 0:
            # It is not kept shut for nothing.
            clock.now += opens
            assert budget.opens(0) == pytest.approx(0, abs=1e-6)


# --- an App ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


@pytest.fixture
def app(key: rsa.RSAPrivateKey) -> Iterator[World]:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    made = World(App.from_pem("123", pem), app=("123", key.public_key()))
    made.jobs[JOB] = ApiJob("in_progress", RUN)
    yield made
    made.client.close()
    made.api.close()


def test_an_app_gets_a_token_for_the_account_and_renews_it_before_its_end(app: World) -> None:
    assert app.ask().answer is Answer.IN_PROGRESS
    assert app.ask(repo="octo/other").answer is Answer.IN_PROGRESS
    assert len(app.api.asked("installation")) == 2, "one look for it, one token"
    app.clock.now += 3_600 - 301
    app.ask()
    assert len(app.api.asked("access_tokens")) == 1
    app.clock.now += 2
    assert app.ask().answer is Answer.IN_PROGRESS
    assert len(app.api.asked("access_tokens")) == 2
    assert len(app.api.asked("/repos/octo/repo/installation")) == 1
    # Another account has its own.
    assert app.ask(repo="else/where").answer is Answer.IN_PROGRESS
    assert len(app.api.asked("access_tokens")) == 3
    assert app.client.lane(probe()) != app.client.lane(probe(repo="else/where"))


def test_a_token_that_was_taken_back_is_made_anew(app: World) -> None:
    app.ask()
    app.api._doors._made.clear()
    assert app.ask().answer is Answer.IN_PROGRESS
    assert app.counts["forbidden"] == 1


@pytest.mark.parametrize("mood", [Mood.DOWN, Mood.ERROR, Mood.SPENT, Mood.HTML, Mood.ARRAY])
def test_an_app_that_gets_no_token_asks_again_later(app: World, mood: Mood) -> None:
    app.api.mood = mood
    said = app.ask()
    assert (said.answer, said.again) == (Answer.UNKNOWN, True)
    app.api.mood = Mood.FINE
    app.clock.now += LONGEST_WAIT_S
    assert app.ask().answer is Answer.IN_PROGRESS


def test_an_app_that_is_not_installed_or_not_known_is_forbidden(
    app: World, key: rsa.RSAPrivateKey
) -> None:
    app.client = app.made(App("another", key))
    assert app.ask().detail == Detail.FORBIDDEN
    assert app.api.asked("/jobs/") == []


def test_a_key_that_is_none_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(ValueError, match="no RSA private key") as told:
        App.from_pem("1", b"-----BEGIN RSA PRIVATE KEY-----\nsecret\n")
    assert "secret" not in str(told.value)
