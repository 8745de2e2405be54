"""The prober over a broker: what is posted in which order, and that nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

from pipeline.prober.metrics import ProberMetrics
from pipeline.prober.prober import Prober, ProberConfig
from pipeline.providers import budget
from pipeline.providers.api import Client, Said, Unsupported
from pipeline.providers.github_api import GitHubApi
from pipeline.roles.prober import clients_of, unasked
from pipeline.roles.role import RoleFailed
from pipeline.settings import load
from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub, Mood
from pipeline.simulate.peer_apis import FakeGitea, FakeGitLab
from sinks.http import HealthServer
from tests.support import PATIENCE
from tests.support.brokers import Broker, broker
from tests.support.probes import probe
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, JOBS, PROBES, catalogue
from topics.models import JOBS_RECORD
from topics.recovery import Answer, Probe

PARTITIONS = 3
APP_ID = "probing"
GROUP = f"{APP_ID}-prober"
T0 = 1_790_000_000_000


# --- over a broker --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(Path(tmp_path_factory.mktemp("broker"))) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


class Truth:
    """What the API knows, and the topics on both sides of the prober."""

    def __init__(self, kafka: Broker) -> None:
        self.kafka = kafka
        self.jobs: dict[int, ApiJob] = {}
        self.runs: dict[int, ApiRun] = {}
        self.api = FakeGitHub(self.jobs.get, lambda run, attempt: self.runs.get(run), token="s3")
        self.producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")

    def knows(self, job: int, status: str = "queued", run: str = "in_progress") -> int:
        self.jobs[job] = ApiJob(status, job * 10, created_at=T0)
        self.runs[job * 10] = ApiRun(run)
        return job

    def post(self, *probes: Probe) -> None:
        for each in probes:
            self.producer.send(PROBES, key=each.key.encode(), value=each.model_dump_json().encode())
        self.producer.flush()

    def client(self) -> GitHubApi:
        return GitHubApi("github.com", "s3", base=self.api.url)

    def records(self, topic: str) -> list[Any]:
        """All records of a topic. The embedded broker tells an end that is too early, so it is
        read on for a moment."""
        consumer = KafkaConsumer(bootstrap_servers=self.kafka.bootstrap)
        try:
            parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            ends = consumer.end_offsets(parts)
            found: list[Any] = []
            deadline = time.monotonic() + PATIENCE * 20
            while True:
                assert time.monotonic() < deadline
                there = all(consumer.position(each) >= ends[each] for each in parts)
                more = [each for some in consumer.poll(timeout_ms=200).values() for each in some]
                found += more
                if there and not more:
                    return found
        finally:
            consumer.close()

    def facts(self, *jobs: int) -> list[Any]:
        """What is on runners.jobs about some jobs, in order for each."""
        keys = {f"github:github.com:{job}" for job in jobs}
        records = [JOBS_RECORD.validate_json(each.value) for each in self.records(JOBS)]
        return [each for each in records if each.key in keys]

    def answers(self, *probes: Probe) -> list[Any]:
        """The answers to probes, once there is one for each; those that came twice as well."""
        wanted = {f"{each.id}:answered" for each in probes}

        def there() -> list[Any]:
            records = [JOBS_RECORD.validate_json(each.value) for each in self.records(JOBS)]
            found = [each for each in records if each.id in wanted]
            return found if {each.id for each in found} == wanted else []

        found: list[Any] = until(there)
        return found


def until(what: Callable[[], Any]) -> Any:
    """What it gives as soon as that is something. Fails when it never comes."""
    deadline = time.monotonic() + PATIENCE * 60
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found


@pytest.fixture
def truth(kafka: Broker) -> Iterator[Truth]:
    made = Truth(kafka)
    yield made
    made.producer.close(timeout=5)
    made.api.close()


@contextmanager
def probing(
    truth: Truth, clients: dict[str, Client] | None = None, **config: Any
) -> Iterator[Prober]:
    """A prober that runs in this process. All are of one group, one after the other."""
    options = {"bootstrap_servers": truth.kafka.bootstrap, "session_timeout_ms": 6_000,
               "heartbeat_interval_ms": 500, "max_poll_interval_ms": 3_000}  # fmt: skip
    found = {"github:github.com": truth.client()} if clients is None else clients
    prober = Prober(ProberConfig(options, GROUP, **config), found, Unsupported("asks nobody"))
    stop, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            prober.run(stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield prober
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert errors == []


def uncommitted(truth: Truth) -> int:
    """How many offsets of the topic the group has not committed."""
    ends = {(PROBES, each.partition): each.offset + 1 for each in truth.records(PROBES)}
    consumer = KafkaConsumer(bootstrap_servers=truth.kafka.bootstrap, group_id=GROUP)
    try:
        return sum(
            end - (consumer.committed(TopicPartition(*where)) or 0) for where, end in ends.items()
        )
    finally:
        consumer.close()


def test_each_question_has_its_evidence_and_then_its_answer(truth: Truth) -> None:
    probes = [probe(truth.knows(101)), probe(truth.knows(102, "in_progress")),
              probe(truth.knows(103, run="completed")), probe(104, run_id=0),
              probe(truth.knows(105, "completed"))]  # fmt: skip
    truth.post(*probes, probes[0])
    with probing(truth) as prober:
        found = {each.key[-3:]: each for each in truth.answers(*probes)}
        until(lambda: uncommitted(truth) == 0)
        assert prober.status().ready
        text = HealthServer.answer(_served(prober), "/metrics")[2].decode()
    assert {job: each.stall.answered.answer.value for job, each in found.items()} == {
        "101": "queued", "102": "in_progress", "103": "ghost", "104": "unknown",
        "105": "completed",
    }  # fmt: skip
    one, asked = found["101"], probes[0]
    assert (one.source, one.cause, one.key) == ("runnerstream", "recovery.answered", asked.key)
    assert one.occurred_at == one.received_at == one.stall.answered.at
    assert (one.stall.n, one.stall.kind, one.stall.fence) == (asked.n, asked.stall, asked.fence)
    assert (one.stall.since, one.stall.opened_at) == (asked.since, asked.opened_at)
    assert found["104"].stall.answered.detail == "unsupported"
    told = truth.facts(101)
    assert [each.cause for each in told] == ["api.job", "recovery.answered"]
    run = [each for each in of_runs(truth) if each.key.endswith("run/1030")]
    assert [each.kind for each in run] == ["run.link", "run.fact"]
    assert 'runnerstream_probes_total{answer="queued"} 1.0' in text
    assert 'runnerstream_probes_total{answer="gone"} 0.0' in text
    assert "\nrunnerstream_api_budget_remaining" not in text, "unknown is not zero"


def of_runs(truth: Truth) -> list[Any]:
    records = [JOBS_RECORD.validate_json(each.value) for each in truth.records(JOBS)]
    return [each for each in records if each.kind in ("run.fact", "run.link")]


def _served(prober: Prober) -> Any:
    served = object.__new__(HealthServer)
    served._probed, served._about, served._process = prober, {}, CollectorRegistry()
    return served


def test_one_request_answers_all_who_ask_the_same(truth: Truth) -> None:
    first, second = probe(truth.knows(201)), probe(201, k=2)
    truth.api.mood, truth.api.slow_s = Mood.SLOW, 0.3
    # Other questions first, so that both wait.
    others = [probe(truth.knows(job, "in_progress"), since=T0 - 10**9) for job in range(202, 212)]
    truth.post(*others, first, second)
    with probing(truth):
        answers = truth.answers(first, second)
    assert sorted(each.stall.answered.k for each in answers) == [1, 2]
    assert len(truth.api.asked("/jobs/201")) == 1


def test_what_is_no_probe_is_a_dead_letter_and_what_is_late_is_dropped(truth: Truth) -> None:
    now = int(time.time() * 1000)
    late, good = probe(truth.knows(301), expires_at=now - 1), probe(truth.knows(302))
    beyond = probe(303, n=2_000_000)
    bad = [b"\xff not json", b"[]", b"{}", beyond.model_dump_json().encode(), None]
    before = len(truth.records(DEAD_LETTERS))
    for value in bad:
        truth.producer.send(PROBES, key=b"bad", value=value)
    truth.post(late, good)
    with probing(truth) as prober:
        truth.answers(good)
        until(lambda: uncommitted(truth) == 0)
        expired = prober.metrics.registry.get_sample_value("runnerstream_probes_expired_total")
    letters = [json.loads(each.value) for each in truth.records(DEAD_LETTERS)][before:]
    assert len(letters) == len(bad)
    assert {(each["stage"], each["topic"]) for each in letters} == {("prober", PROBES)}
    assert expired == 1
    assert truth.api.asked("/jobs/301") == []


def test_an_api_that_is_down_is_asked_again_and_then_the_answer_is_unknown(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FIRST_PAUSE_S", 0.01)
    truth.api.mood = Mood.DOWN
    hopeless = probe(truth.knows(401))
    with probing(truth) as prober:
        truth.post(hopeless)
        (answer,) = truth.answers(hopeless)
        assert (answer.stall.answered.answer, answer.stall.answered.detail) == (
            Answer.UNKNOWN, "unreachable",
        )  # fmt: skip
        assert len(truth.api.asked("/jobs/401")) == 3
        assert "unreachable" in prober.status().reason
        assert prober.status().alive
        # It comes back between two tries.
        truth.api.mood, truth.api.moody = Mood.ERROR, 2
        hopeful = probe(truth.knows(402, "in_progress"))
        truth.post(hopeful)
        (answer,) = truth.answers(hopeful)
        assert answer.stall.answered.answer is Answer.IN_PROGRESS
        assert prober.status().ready
    assert [each.cause for each in truth.facts(401)] == ["recovery.answered"], "no evidence"


def test_three_providers_are_asked_at_once_and_none_holds_up_another(truth: Truth) -> None:
    jobs = {"gitea": ApiJob("in_progress", 11, started_at=T0), "gitlab": ApiJob("running", 12)}
    hangs = threading.Event()
    with (
        FakeGitea(lambda job: jobs["gitea"], lambda run, attempt: None, token="s3") as gitea,
        FakeGitLab(
            lambda job: (hangs.wait(20) and jobs["gitlab"]) or None,
            lambda run, attempt: None,
            token="s3",
        ) as gitlab,
    ):
        settings = load(
            environment=False, github_token="s3", github_api_url=truth.api.url,
            gitea_url=gitea.url, gitea_token="s3", gitlab_url=gitlab.url, gitlab_token="s3",
        )  # fmt: skip
        metrics = ProberMetrics()
        clients = clients_of(settings, metrics)
        places = [place for place in clients if not place.startswith("github")]
        assert [place.partition(":")[0] for place in places] == ["gitea", "gitlab"]
        # The oldest questions are GitHub's, which closes for an hour, and GitLab's, which hangs.
        truth.api.mood, truth.api.reset_s = Mood.SPENT, 3_600
        closed = [probe(truth.knows(job), since=T0 - job) for job in (551, 552)]
        old = {place: T0 if "gitlab" in place else T0 + 1_000 for place in places}
        others = [probe(0, key=f"{place}:{job}", run_id=0, repo="a/b", since=since)
                  for place, since in old.items() for job in (1, 2, 3)]  # fmt: skip
        elsewhere = probe(0, key="gitlab:lab.example:9")
        truth.post(*closed, *others, elsewhere)
        with probing(truth, clients, flights=2) as prober:
            truth.answers(*(each for each in others if each.key.startswith("gitea")), elsewhere)
            until(lambda: prober.status().flights == 2)
            hangs.set()
            answers = truth.answers(*others, elsewhere)
            assert prober.status().asks.count("asks http://") == 3
            truth.api.mood = Mood.FINE
            assert prober.status().waiting == len(closed), "they wait for GitHub and nobody else"
        told = {each.key: each.stall.answered for each in answers}
        assert {told.pop(elsewhere.key).detail} == {"unsupported"}
        assert {each.answer for each in told.values()} == {Answer.IN_PROGRESS}
        evidence = [JOBS_RECORD.validate_json(each.value) for each in truth.records(JOBS)]
        evidence = [each for each in evidence if each.key in told and each.cause == "api.job"]
        assert {each.key for each in evidence} == told.keys()
        assert len(gitea.requests) == len(gitlab.requests) == 3
    with probing(truth):
        assert len(truth.answers(*closed)) == len(closed), "nothing is left to those that follow"


def test_a_fault_of_ours_is_an_unknown_answer(truth: Truth) -> None:
    class Faulty(Unsupported):
        def ask(self, probe: Probe) -> Said:
            raise ZeroDivisionError

    mine, other = probe(501), probe(502, key="gitea:code.example:502")
    truth.post(mine, other)
    with probing(truth, {"github:github.com": Faulty("fails")}):
        (answer,) = truth.answers(mine)
        until(lambda: uncommitted(truth) == 0)
    assert answer.stall.answered.detail == "unexpected"
    told = [JOBS_RECORD.validate_json(each.value) for each in truth.records(JOBS)]
    (answer,) = [each for each in told if each.key == other.key]
    assert answer.stall.answered.detail == "unsupported"


def test_what_waits_is_bounded_and_nothing_is_left_out(truth: Truth) -> None:
    probes = [probe(truth.knows(job, "in_progress")) for job in range(5_001, 5_021)]
    truth.post(*probes)
    truth.api.mood, truth.api.slow_s = Mood.SLOW, 0.02
    with probing(truth, flights=1, most_waiting=4, max_records=3) as prober:
        most = 0
        until(lambda: prober.status().paused)
        while len(truth.api.asked("/jobs/50")) < len(probes):
            most = max(most, prober.status().waiting)
            time.sleep(0.002)
        assert 4 <= most <= 4 + 3
        assert len(truth.answers(*probes)) == len(probes)
        until(lambda: not prober.status().paused)


def test_a_broker_that_hangs_loses_no_answer(truth: Truth) -> None:
    probes = [probe(truth.knows(job, "in_progress")) for job in range(601, 611)]
    truth.post(*probes)
    truth.api.mood, truth.api.slow_s = Mood.SLOW, 0.2
    with probing(truth):
        until(lambda: truth.api.asked("/jobs/60"))
        pid = truth.kafka.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        truth.answers(*probes)
        until(lambda: uncommitted(truth) == 0)


def test_what_waits_survives_a_rebalance_that_takes_nothing_away(truth: Truth) -> None:
    """All partitions are revoked for a moment, and the client reads on behind what it had read."""
    probes = [probe(truth.knows(job, "in_progress")) for job in range(651, 681)]
    gate = threading.Event()

    class Gated(GitHubApi):
        def opens(self, lane: str, flights: int) -> float:
            return super().opens(lane, flights) if gate.is_set() else 1.0

    def gated() -> dict[str, Client]:
        return {"github:github.com": Gated("github.com", "s3", base=truth.api.url)}

    truth.post(*probes)
    with probing(truth, gated()) as first:
        until(lambda: first.status().waiting == len(probes))
        # A member that does not call holds up the others' joining.
        idle = KafkaConsumer(bootstrap_servers=truth.kafka.bootstrap, group_id=GROUP,
                             max_poll_interval_ms=3_000, session_timeout_ms=6_000,
                             enable_auto_commit=False)  # fmt: skip
        idle.subscribe([PROBES])
        until(lambda: idle.poll(timeout_ms=100) or idle.assignment())
        until(lambda: 0 < first.status().partitions < PARTITIONS)
        with probing(truth, gated()) as second:
            until(lambda: first.status().partitions == 0)
            until(lambda: first.status().partitions + second.status().partitions == PARTITIONS)
        idle.close(autocommit=False)
        until(lambda: first.status().partitions == PARTITIONS)
        gate.set()
        assert len(truth.answers(*probes)) == len(probes)
        until(lambda: uncommitted(truth) == 0)
    assert len(truth.api.asked("/jobs/6")) == len(probes), "and each was asked once"


# --- as a process ---------------------------------------------------------------------------------


class ProberProcess(WorkerProcess):
    """``runnerstream worker --role prober``."""

    def __init__(self, truth: Truth, **env: object) -> None:
        super().__init__(
            truth.kafka.bootstrap, role="prober", app_id=APP_ID, github_token="s3",
            github_api_url=truth.api.url, session_timeout="2", rebalance_timeout="2", **env,
        )  # fmt: skip
        self._given["prober_port"] = str(self.port)


def test_what_was_asked_when_it_was_killed_is_asked_again(truth: Truth) -> None:
    probes = [probe(truth.knows(job, "in_progress")) for job in range(701, 706)]
    truth.api.mood, truth.api.slow_s = Mood.SLOW, 30.0
    with ProberProcess(truth) as prober:
        truth.post(*probes)
        until(lambda: prober.get("/readyz")[1]["flights"] == 5)
        prober.kill()
        assert truth.facts(*range(701, 706)) == []
        truth.api.mood = Mood.FINE
        prober.start()
        answers = truth.answers(*probes)
        assert prober.get("/readyz")[1]["asks"].endswith("with a token")
        # The answers that were posted last are committed by the time it has ended.
        assert prober.stop() == 0
    assert uncommitted(truth) == 0
    told = truth.facts(*range(701, 706))
    assert len({each.id for each in told}) == len(told) == 2 * len(answers) == 10


def test_sigterm_finishes_what_is_asked(truth: Truth) -> None:
    asked = probe(truth.knows(801, "in_progress"))
    truth.api.mood, truth.api.slow_s = Mood.SLOW, 1.5
    with ProberProcess(truth) as prober:
        truth.post(asked)
        until(lambda: prober.get("/readyz")[1]["flights"] == 1)
        assert prober.stop() == 0
    assert len(truth.answers(asked)) == 1
    assert uncommitted(truth) == 0


# --- settings -------------------------------------------------------------------------------------


def test_without_credentials_nobody_is_asked_and_that_is_said() -> None:
    assert clients_of(load(environment=False), ProberMetrics()) == {}
    (client,) = clients_of(
        load(environment=False, github_token="x", github_host="ghe.corp"), ProberMetrics()
    ).values()
    assert client.about == "asks https://ghe.corp/api/v3 about jobs of ghe.corp with a token"


def test_what_is_asked_and_what_is_not_is_said() -> None:
    assert unasked(load(environment=False)) == (
        "does not ask about jobs of GitHub (github_token, or github_app_id), Gitea (gitea_url), "
        "GitLab (gitlab_url)"
    )
    settings = load(environment=False, github_token="x", gitlab_token="hush",
                    gitlab_url="https://Lab.example:8443/sub/")  # fmt: skip
    clients = clients_of(settings, ProberMetrics())
    assert list(clients) == ["github:github.com", "gitlab:lab.example:8443"]
    assert clients["gitlab:lab.example:8443"].about == (
        "asks https://Lab.example:8443/sub/api/v4 about jobs of GitLab at lab.example:8443 with a "
        "token"
    )
    assert unasked(settings) == "does not ask about jobs of Gitea (gitea_url), other hosts"
    assert "hush" not in repr(settings)


def test_a_key_of_an_app_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    settings = load(environment=False, github_app_id="1", github_app_key_file=str(file))
    with pytest.raises(RoleFailed, match="No such file"):
        clients_of(settings, ProberMetrics())
    file.write_text("no key")
    with pytest.raises(RoleFailed, match="RUNNERSTREAM_GITHUB_APP_KEY_FILE"):
        clients_of(settings, ProberMetrics())


@pytest.mark.parametrize(
    "wrong",
    [{"github_app_id": "1"}, {"github_app_key_file": "x"}, {"github_token": "a b"},
     {"github_token": "x", "github_app_id": "1", "github_app_key_file": "x"},
     {"github_api_url": "ftp://x"}, {"github_api_url": "http://u:p@x/"},
     {"github_host": "https://x"}, {"probes_per_minute": "2"}, {"gitea_url": "https://x"},
     {"gitlab_token": "x"}, {"gitea_url": "x", "gitea_token": "x"},
     {"gitlab_url": "https://x/api/v4", "gitlab_token": "x"},
     {"gitlab_url": "https://x", "gitlab_token": "x y"}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"git(hub|ea|lab)_|probes_per_minute"):
        load(environment=False, **wrong)
