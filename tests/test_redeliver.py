"""What no webhook told comes all the same: over HTTP, a gateway and a broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.local.process import LOOPBACK, free_port
from pipeline.providers.api import Detail
from pipeline.providers.calls import Failed
from pipeline.providers.deliveries import Asked
from pipeline.providers.gitea_api import gitea_calls
from pipeline.providers.gitea_runs import GiteaRuns
from pipeline.providers.github_hooks import GitHubHook
from pipeline.providers.github_runs import GitHubRuns
from pipeline.redeliver.service import Redeliver
from pipeline.roles.redeliver import REDELIVER, redeliver_of
from pipeline.roles.role import RoleFailed
from pipeline.settings import load
from pipeline.simulate.api import ApiJob, ApiRun, Mood, iso
from pipeline.simulate.deliveries import FakeHook, HookedGitHub
from pipeline.simulate.peer_apis import FakeGitea
from tests.support import evidence
from tests.support.brokers import Broker, broker
from tests.support.gateways import SECRET, until
from tests.support.outage import PARTITIONS, again, outage, stood_still
from tests.support.redelivering import APP, NAMED, QUICK, calls, life, redelivering
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import JOBS, MISSED, catalogue
from topics.models import JOBS_RECORD, JobFact, RunFact, RunLink

HOUR = 3_600_000


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@contextmanager
def nowhere() -> Iterator[FakeHook]:
    """A hook whose receiver is not there."""
    with FakeHook(f"http://{LOOPBACK}:{free_port()}/webhooks/github", SECRET) as hook:
        yield hook


def app_hook(api: HookedGitHub) -> GitHubHook:
    return GitHubHook("github.com", "app", calls(api.url))


# --- Kafka away -----------------------------------------------------------------------------------


def test_what_was_refused_while_kafka_stood_still_comes_and_jobs_are_whole(
    kafka: Broker, tmp_path: Path
) -> None:
    def enough(hook: FakeHook) -> None:
        until(lambda: sum(each.code == 503 for each in hook.sent) >= 12)

    seen = outage(kafka, tmp_path, stood_still, enough)
    assert len(seen.refused) >= 12
    assert seen.unwritten == 0, "a 2xx without a record"
    assert seen.missing == 0
    assert seen.found == len(seen.refused)
    assert set(seen.again) == seen.refused, "nothing else was asked for"
    assert seen.jobs > 10
    assert seen.wrong == []


# --- several of them, and restarts ----------------------------------------------------------------


def test_two_share_the_work_ask_once_and_take_over(kafka: Broker) -> None:
    with ExitStack() as stack:
        hooks = {f"/repos/octo/r{n}/hooks/7": stack.enter_context(nowhere()) for n in range(5)}
        for number, hook in enumerate(hooks.values()):
            hook.deliver(life(6_000_000 + number, 1_790_000_000_000)[0])
        api = stack.enter_context(HookedGitHub(hooks, token="s3"))
        rare = QUICK.__class__(pause=HOUR, overlap=5_000)

        def lists() -> list[GitHubHook]:
            names = [f"octo/r{n}:7" for n in range(5)]
            return [GitHubHook("github.com", name, calls(api.url, "s3")) for name in names]

        def looked_after(*services: Redeliver) -> list[str]:
            return sorted(name for each in services for name in each.status().looks_after)

        everything = sorted(each.name for each in lists())
        with redelivering(kafka.bootstrap, lists(), policy=rare, group="two") as one:
            until(lambda: all(again(hook) for hook in hooks.values()))
            with redelivering(kafka.bootstrap, lists(), policy=rare, group="two") as other:
                until(lambda: looked_after(one, other) == everything
                      and one.status().looks_after and other.status().looks_after)  # fmt: skip
                for hook in hooks.values():
                    hook.deliver(life(6_000_100, 1_790_000_000_000)[0])
                until(lambda: all(len(again(hook)) == 2 for hook in hooks.values()))
            until(lambda: looked_after(one) == everything)
        with redelivering(kafka.bootstrap, lists(), policy=rare, group="two") as third:
            until(lambda: set(third.passes) == set(everything))
        assert all(set(again(hook).values()) == {1} for hook in hooks.values())
        # Who does not know what was asked for asks again: the topic is what keeps it.
        keys = {record.key for record in evidence.read_topic(kafka.bootstrap, MISSED)}
        assert {name.encode() for name in everything} <= keys


def test_it_waits_for_limits_and_goes_on(kafka: Broker) -> None:
    with nowhere() as hook, HookedGitHub({"/app/hook": hook}, app=NAMED) as api:
        for job in range(3):
            hook.deliver(life(6_100_000 + job, 1_790_000_000_000)[0])
        api.reset_s = 1
        api.turn(Mood.SECONDARY)
        with redelivering(kafka.bootstrap, [app_hook(api)], group="limits") as service:
            until(lambda: "cannot be read: limited" in service.status().reason)
            api.turn(Mood.FINE)
            until(lambda: len(again(hook)) == 3)
            until(lambda: service.status().ready and service.status().missed == 3)


# --- what the API says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "detail", "asked"),
    [
        (Mood.DOWN, Detail.UNREACHABLE, Asked.FAILED),
        (Mood.ERROR, Detail.SERVER_ERROR, Asked.FAILED),
        (Mood.SPENT, Detail.LIMITED, Asked.NOT),
        (Mood.FORBIDDEN, Detail.FORBIDDEN, Asked.NOT),
        (Mood.UNAUTHORISED, Detail.FORBIDDEN, Asked.NOT),
        (Mood.HTML, Detail.MALFORMED, Asked.DONE),
    ],
)
def test_an_api_that_fails(mood: Mood, detail: Detail, asked: Asked) -> None:
    with nowhere() as hook, HookedGitHub({"/app/hook": hook}, app=NAMED) as api:
        api.mood = mood
        with pytest.raises(Failed) as failed:
            app_hook(api).page("")
        assert failed.value.detail is detail
        assert app_hook(api).redeliver(1) is asked


def test_lists_page_by_the_cursor_of_the_link() -> None:
    with nowhere() as hook, HookedGitHub({"/app/hook": hook}, app=NAMED) as api:
        for job in range(230):
            hook.deliver(life(6_200_000 + job, 1_790_000_000_000)[0])
        log = app_hook(api)
        seen, cursor = [], ""
        while not seen or cursor:
            page = log.page(cursor)
            cursor = page.cursor
            seen.append([each.id for each in page.attempts])
        assert [len(each) for each in seen] == [100, 100, 30]
        assert [each for page in seen for each in page] == list(range(230, 0, -1))
        assert all("status=" not in path for path in api.asked())
        with pytest.raises(Failed, match="malformed"):
            log.page("v2_other")
        assert log.redeliver(999) is Asked.GONE
        assert log.redeliver(5) is Asked.DONE


def test_who_may_see_which_list() -> None:
    with nowhere() as hook:
        places = {"/app/hook": hook, "/repos/octo/repo/hooks/7": hook, "/orgs/octo/hooks/8": hook}
        hook.deliver(life(6_300_000, 1_790_000_000_000)[0])
        with HookedGitHub(places, app=NAMED, token="s3") as api:
            for told in ("app", "octo/repo:7", "octo:8"):
                log = GitHubHook("github.com", told, calls(api.url))
                assert log.page("").attempts[-1].guid == hook.sent[0].guid
                assert log.redeliver(1) is Asked.DONE
            for told in ("octo/repo:7", "octo:8"):
                assert GitHubHook("github.com", told, calls(api.url, "s3")).page("").attempts
            # What is the App's own wants its JWT, and no token will do.
            with pytest.raises(Failed, match="unsupported"):
                GitHubHook("github.com", "app", calls(api.url, "s3")).page("")
            with pytest.raises(Failed, match="forbidden"):
                GitHubHook("github.com", "octo/repo:9", calls(api.url, "s3")).page("")


# --- runs -----------------------------------------------------------------------------------------


class Repo:
    """Runs and jobs of ``octo/repo``, and the API that lists them."""

    def __init__(self, stack: ExitStack) -> None:
        self.runs: dict[int, ApiRun] = {}
        self.jobs: dict[int, ApiJob] = {}
        self.api = stack.enter_context(HookedGitHub(
            {}, self.jobs.get, lambda run, attempt: self.runs.get(run),
            (lambda repo: self.runs if repo == "octo/repo" else (),
             lambda run: [job for job, each in self.jobs.items() if each.run_id == run]),
            token="s3",
        ))  # fmt: skip
        self.log = GitHubRuns("github.com", "octo/repo", calls(self.api.url, "s3"))

    def put(self, run: int, status: str = "completed", attempt: int = 1, minutes: int = 5) -> None:
        now = int(time.time()) * 1000
        created = now - minutes * 60_000
        over = status == "completed"
        self.runs[run] = ApiRun(
            status, attempt, "success" if over else None, started_at=created,
            updated_at=now - 60_000 + attempt * 1_000, more={"created_at": iso(created)},
        )  # fmt: skip
        self.jobs[run * 10 + attempt] = ApiJob(
            status, run, attempt, "success" if over else None, created_at=created + 1_000,
            started_at=created + 5_000, completed_at=created + 65_000 if over else None,
            runner_id=3, runner_name="runner-3", name=f"build-{attempt}",
        )  # fmt: skip


@pytest.fixture
def repo() -> Iterator[Repo]:
    with ExitStack() as stack:
        yield Repo(stack)


def posted(kafka: Broker) -> list[Any]:
    """Facts from the API."""
    records = (
        JOBS_RECORD.validate_json(each.value) for each in evidence.read_topic(kafka.bootstrap, JOBS)
    )
    return [each for each in records if each.source == "api"]


def test_runs_that_nobody_told_of_are_told_once_and_again_when_they_change(
    kafka: Broker, repo: Repo
) -> None:
    repo.put(71)
    repo.put(72, "in_progress")
    repo.put(73, minutes=3 * 24 * 60)
    with redelivering(kafka.bootstrap, repos=[repo.log], group="runs") as service:
        until(lambda: service.metrics.runs._value.get() == 2)
        found = posted(kafka)
        jobs = {each.key: each for each in found if isinstance(each, JobFact)}
        runs = {each.key: each for each in found if isinstance(each, RunFact)}
        links = {(each.key, each.job_key) for each in found if isinstance(each, RunLink)}
        assert set(jobs) == {"github:github.com:711", "github:github.com:721"}
        assert len(runs) == len(links) == 2
        over = jobs["github:github.com:711"]
        assert (over.conclusion, over.runner.name, over.job.repo, over.job.run_id) == (
            "success", "runner-3", "octo/repo", 71
        )  # fmt: skip
        assert jobs["github:github.com:721"].conclusion is None
        ended = {key.rpartition(":")[2]: each.run.conclusion for key, each in runs.items()}
        assert sorted(map(str, ended.values())) == ["None", "success"]
        until(lambda: len(repo.api.asked("actions/runs?")) > 8)
        assert len(repo.api.asked("runs/71/jobs")) == 1, "what is over is asked about once"
        assert len(repo.api.asked("runs/72/jobs")) > 4, "what is open again and again"
        assert len(posted(kafka)) == len(found), "and told once"
        # A job is over, and the run does not show it.
        job = repo.jobs[721]
        repo.jobs[721] = replace(job, status="completed", conclusion="failure")
        until(lambda: service.metrics.runs._value.get() == 3)
        repo.put(72)
        until(lambda: service.metrics.runs._value.get() == 4)
    with redelivering(kafka.bootstrap, repos=[repo.log], group="runs") as service:
        until(lambda: service.passes)
        assert service.metrics.runs._value.get() == 0, "what was told is known after a restart"
    now = [each for each in posted(kafka) if isinstance(each, JobFact)]
    told = [each.conclusion for each in now if each.key == "github:github.com:721"]
    assert told == [None, "failure", "success"]


def test_jobs_that_a_rerun_copied_are_not_told_and_odd_ones_harm_nobody(repo: Repo) -> None:
    repo.put(74)
    first = repo.jobs[741]
    repo.put(74, attempt=2)
    repo.jobs[799] = ApiJob(**{**vars(first), "attempt": 2})
    repo.jobs[700] = ApiJob("completed", 74, more={"id": None})
    (run,), more = repo.log.runs(int(time.time() - 3_600) * 1000, 1)
    assert not more
    facts = repo.log.facts(run, int(time.time() * 1000))
    told = {each.key for each in facts if isinstance(each, JobFact)}
    assert told == {"github:github.com:741", "github:github.com:742"}


def test_long_lists_of_runs_and_jobs_are_read_to_their_end(repo: Repo) -> None:
    for run in range(1_000, 1_130):
        repo.put(run)
    for job in range(250):
        repo.jobs[50_000 + job] = ApiJob("queued", 1_000, name=f"m{job}")
    since = int(time.time() - 3_600) * 1000
    one, more = repo.log.runs(since, 1)
    two, last = repo.log.runs(since, 2)
    assert (len(one), more, len(two), last) == (100, True, 30, False)
    facts = repo.log.facts(two[-1], int(time.time() * 1000))
    assert sum(isinstance(each, JobFact) for each in facts) == 251


def test_one_run_that_cannot_be_read_does_not_keep_the_others_waiting(
    kafka: Broker, repo: Repo
) -> None:
    repo.put(81)
    repo.put(82)
    facts = repo.log.facts

    def some(run: Any, now: int) -> Any:
        if run.id == 81:
            raise Failed(Detail.SERVER_ERROR, again=True)
        return facts(run, now)

    repo.log.facts = some  # type: ignore[method-assign]
    with redelivering(kafka.bootstrap, repos=[repo.log], group="one bad") as service:
        until(lambda: service.metrics.runs._value.get() == 1)
        repo.log.facts = facts  # type: ignore[method-assign]
        until(lambda: service.metrics.runs._value.get() == 2)


def test_giteas_runs_are_read_until_one_is_too_old_and_odd_jobs_are_left_out() -> None:
    now = int(time.time()) * 1000
    runs: dict[int, ApiRun] = {}
    for number in range(1, 121):
        begun = now - (121 - number) * 60_000
        runs[number] = ApiRun("completed", 1, "success", begun, begun + 30_000)
    runs[120] = ApiRun("in_progress", started_at=now - 60_000)
    jobs = {
        7: ApiJob("completed", 120, 1, "success", now, now - 50_000, now - 1_000,
                  runner_id=1, runner_name="r1"),
        8: ApiJob("queued", 120, 1, None, now),
        9: ApiJob("completed", 120),
    }  # fmt: skip
    with FakeGitea(jobs.get, lambda run, attempt: runs.get(run), token="s3") as api:
        api.listed = (lambda: runs, lambda run: jobs if run == 120 else ())
        log = GiteaRuns(api.url, "octo/repo", gitea_calls(api.url, "s3", 1_000, lambda _: None))
        since = now - 90 * 60_000
        one, more = log.runs(since, 1)
        two, last = log.runs(since, 2)
        assert (len(one), more, len(two), last) == (50, True, 40, False)
        assert (one[0].id, one[0].open, one[1].open, two[-1].id) == (120, True, False, 31)
        facts = log.facts(one[0], now)
    place = api.url.removeprefix("http://")
    told = {each.key: each for each in facts if isinstance(each, JobFact)}
    assert set(told) == {f"gitea:{place}:7", f"gitea:{place}:8"}
    assert told[f"gitea:{place}:7"].conclusion == "success"
    assert {each.job.repo for each in told.values() if each.job} == {"octo/repo"}
    assert sum(isinstance(each, RunFact) for each in facts) == 1


# --- as a program ---------------------------------------------------------------------------------


def test_one_pass_by_hand(kafka: Broker, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s

    pem = APP.key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    (tmp_path / "app.pem").write_bytes(pem)
    with nowhere() as hook, HookedGitHub({"/app/hook": hook}, app=NAMED) as api:
        hook.deliver(life(6_400_000, 1_790_000_000_000)[0])
        hook.deliver(b"{}", "push")
        process = WorkerProcess(
            kafka.bootstrap, partitions=PARTITIONS, directory=tmp_path, log=tmp_path / "once.log",
            command=["-m", "pipeline.cli", "redeliver", "--hooks", "app", "--repos",
                     "octo/repo", "--once"],
            github_app_id="4711", github_app_key_file=tmp_path / "app.pem",
            github_api_url=api.url, session_timeout=4,
        )  # fmt: skip
        process.start(wait=False)
        until(lambda: not process.alive())
        assert process.returncode == 0, process.tail()
        assert process.log.read_text().splitlines()[-2:] == [
            "github:github.com:app: 2 attempts looked at; 1 found that never came, 1 asked for, "
            "0 came, 0 given up",
            "github:github.com:runs:octo/repo: 0 runs had something new, 0 facts posted",
        ]
        until(lambda: len(again(hook)) == 1)
    assert REDELIVER.wanted(load(environment=False, redeliver_hooks="app"))
    assert REDELIVER.wanted(load(environment=False, reconcile_repos="octo/repo"))
    assert not REDELIVER.wanted(load(environment=False))


@pytest.mark.crash
def test_it_asks_for_none_twice_when_it_is_killed(kafka: Broker, tmp_path: Path) -> None:
    number = 300
    with nowhere() as hook, HookedGitHub({"/repos/octo/killed/hooks/7": hook}, token="s3") as api:
        for job in range(number):
            hook.deliver(life(6_500_000 + job, 1_790_000_000_000)[0])
        with WorkerProcess(
            kafka.bootstrap, role="redeliver", partitions=PARTITIONS, directory=tmp_path,
            log=tmp_path / "redeliver.log", github_token="s3", github_api_url=api.url,
            redeliver_hooks="octo/killed:7", redeliver_every=1_800, redeliver_per_minute=1_000,
            session_timeout=4,
        ) as process:  # fmt: skip
            process.wait(lambda: len(again(hook)) > number // 4, 60, "ask for some")
            process.kill()
            before = len(again(hook))
            assert before < number, "it was killed in the middle"
            process.start()
            # What was written as asked for, and was not, waits for its pause.
            process.wait(lambda: len(again(hook)) >= number - 20, 60, "ask for the others")
            process.wait_ready()
            process.wait(lambda: process.metric("runnerstream_missed_looked_total"), 60, "end")
            assert process.metric("runnerstream_missed_open") == number
            assert process.metric("runnerstream_missed_found_total") == 0, "that was before"
            assert process.stop() == 0, process.tail()
        assert set(again(hook).values()) == {1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "neither redeliver_hooks nor reconcile_repos is set"),
        ({"redeliver_hooks": "app"}, "github_app_id is not set"),
        ({"redeliver_hooks": "app", "github_token": "x"}, "github_app_id is not set"),
        ({"redeliver_hooks": "a/b", "github_token": "x"}, "names what is no hook"),
        ({"reconcile_repos": "a", "github_token": "x"}, "names what is no repository"),
        ({"reconcile_repos": "a/b"}, "is not set"),
        ({"reconcile_repos": "gitea:a/b"}, "gitea_url is not set"),
    ],
)
def test_settings_that_do_not_do(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RoleFailed, match=told):
        redeliver_of(load(environment=False, **given))
