"""The prober: which question is next, what is posted in which order, and that nothing is lost."""

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
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.prober.desk import Desk, Taken
from pipeline.prober.metrics import ProberMetrics
from pipeline.prober.offsets import Offsets, Partition, Place
from pipeline.prober.prober import Prober, ProberConfig
from pipeline.providers import budget
from pipeline.providers.api import Client, Said, Unsupported
from pipeline.providers.github_api import GitHubApi
from pipeline.roles.prober import clients_of
from pipeline.roles.role import RoleFailed
from pipeline.settings import load
from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub, Mood
from sinks.http import HealthServer
from tests.support.brokers import Broker, broker
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, JOBS, PROBES, catalogue
from topics.models import JOBS_RECORD
from topics.recovery import Answer, Fence, Probe, StallKind

PARTITIONS = 3
APP_ID = "probing"
GROUP = f"{APP_ID}-prober"
T0 = 1_790_000_000_000


def probe(job: int, **differs: Any) -> Probe:
    now = int(time.time() * 1000)
    key = f"github:github.com:{job}"
    told: dict[str, Any] = {
        "id": f"probe|{key}|1|{differs.get('k', 1)}", "source": "runnerstream", "key": key,
        "occurred_at": now, "received_at": now, "fleet": "linux", "n": 1, "k": 1,
        "stall": StallKind.ORPHAN, "since": now - 400_000, "opened_at": now - 1_000,
        "fence": Fence(claim="lease-1", rev=3), "expires_at": now + 600_000,
        "repo": "octo/repo", "run_id": job * 10, "attempt": 1,
    }  # fmt: skip
    return Probe(**{**told, **differs})


def at(offset: int, partition: int = 0) -> Place:
    return Place(Partition(PROBES, partition), offset)


def always(lane: str, flights: int) -> float:
    return 0.0


def asked(desk: Desk) -> list[int]:
    """The jobs in the order in which they are asked, one after the other."""
    found = []
    while (question := desk.next(always)) is not None:
        found.append(int(question.key.rpartition(":")[2]))
        desk.done(question)
    return found


# --- the desk -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), max_size=60))
def test_the_oldest_is_asked_first_and_each_once(ages: list[int]) -> None:
    desk = Desk(lambda probe: "", 1)
    for job, age in enumerate(ages, 1):
        desk.take(probe(job, since=T0 + age), at(job), T0)
    order = asked(desk)
    assert sorted(order) == list(range(1, len(ages) + 1))
    assert [ages[job - 1] for job in order] == sorted(ages)


def test_what_is_asked_twice_is_one_question_and_frees_both_places() -> None:
    desk = Desk(lambda probe: "", 8)
    desk.take(probe(1, since=T0 + 9), at(1), T0)
    desk.take(probe(2, since=T0 + 5), at(2), T0)
    desk.take(probe(1, since=T0, k=2), at(3), T0)
    question = desk.next(always)
    assert question is not None
    assert (question.key, len(question.probes)) == ("github:github.com:1", 2), "by its oldest"
    assert desk.done(question) == [at(1), at(3)]
    assert desk.take(probe(1, k=2), at(4), T0) is Taken.KNOWN
    assert asked(desk) == [2]


def test_what_is_asked_while_it_is_in_flight_waits_for_its_own_flight() -> None:
    desk = Desk(lambda probe: "", 8)
    desk.take(probe(1), at(1), T0)
    first = desk.next(always)
    assert first is not None
    desk.take(probe(1, k=2), at(2), T0)
    desk.take(probe(1), at(3), T0)  # the same again, read a second time
    assert desk.next(always) is None
    assert desk.done(first) == [at(1), at(3)]
    second = desk.next(always)
    assert second is not None
    assert [each.k for each in second.probes.values()] == [2]


def test_what_was_asked_in_vain_is_asked_again_with_what_came_meanwhile() -> None:
    desk = Desk(lambda probe: "", 8)
    desk.take(probe(1), at(1), T0)
    question = desk.next(always)
    assert question is not None
    desk.take(probe(1, k=2), at(2), T0)
    desk.again(question)
    again = desk.next(always)
    assert again is not None
    assert (again.tries, len(again.probes)) == (1, 2)
    assert desk.next(always) is None
    assert desk.done(again) == [at(1), at(2)]


def test_a_lane_that_is_closed_does_not_hold_up_the_others() -> None:
    desk = Desk(lambda probe: probe.repo.partition("/")[0], 8)
    for job, repo in ((1, "shut/a"), (2, "open/a"), (3, "shut/b"), (4, "open/b")):
        desk.take(probe(job, repo=repo, since=T0 + job), at(job), T0)
    opens = {"shut": 60.0, "open": 0.0}
    order = [desk.next(lambda lane, flights: opens[lane]) for _ in range(3)]
    assert [each and each.key[-1] for each in order] == ["2", "4", None]
    # Flights of a lane are told to whoever decides.
    assert desk.next(lambda lane, flights: 0.0 if flights == 0 else 1.0) is not None
    assert desk.next(lambda lane, flights: 0.0 if flights == 0 else 1.0) is None


def test_what_is_late_is_dropped_and_what_others_read_is_forgotten() -> None:
    desk = Desk(lambda probe: "", 8)
    assert desk.take(probe(1, expires_at=T0), at(1), T0) is Taken.EXPIRED
    desk.take(probe(2, expires_at=T0 + 10), at(2), T0)
    desk.take(probe(2, expires_at=T0 + 20, k=2), at(3), T0)
    assert desk.expire(T0 + 10) == (1, [at(2)])
    desk.take(probe(3, expires_at=T0 + 99), at(4, partition=1), T0)
    desk.forget([Partition(PROBES, 0)])
    assert asked(desk) == [3]
    assert (desk.questions, desk.probes(), desk.oldest()) == (0, 0, None)


@given(st.permutations(range(8)), st.integers(0, 8), st.integers(0, 3))
def test_what_is_committed_never_passes_what_is_unfinished(
    order: list[int], finished: int, markers: int
) -> None:
    offsets, where = Offsets(), Partition(PROBES, 0)
    for offset in range(8):
        offsets.begin(Place(where, offset))
    offsets.read(where, 8 + markers)
    for offset in order[:finished]:
        offsets.finish(Place(where, offset))
    left = order[finished:]
    assert offsets.due() == {where: min(left) if left else 8 + markers}
    offsets.committed(offsets.due())
    assert offsets.due() == {}
    offsets.forget_commits()
    assert offsets.due()
    assert offsets.keep([]) == {where}
    offsets.finish(Place(where, 0))
    assert offsets.due() == {}


# --- the budget -----------------------------------------------------------------------------------


def test_a_thousand_suspects_stay_within_the_budget_oldest_first() -> None:
    """Everything but Kafka: desk, client and budget, over HTTP; only the clock is made up."""
    now = [T0 / 1000]
    jobs = {job: ApiJob("in_progress", job * 10) for job in range(1, 1_001)}
    with FakeGitHub(jobs.get, lambda run, attempt: None, clock=lambda: now[0]) as api:
        client = GitHubApi("github.com", "x", base=api.url, per_minute=100,
                           clock=lambda: now[0], wall=lambda: now[0])  # fmt: skip
        desk = Desk(client.lane, 8)
        order = sorted(jobs, key=lambda job: job * 7_919 % 1_000)
        for place, job in enumerate(jobs):
            since = T0 - 9_000_000 + order.index(job)
            desk.take(probe(job, since=since, expires_at=T0 + 10**9), at(place), T0)
        told = []
        while desk.questions:
            question = desk.next(client.opens)
            if question is None:
                now[0] += max(client.opens("", 0), 0.001)
                continue
            said = client.ask(question.oldest)
            assert said.answer is Answer.IN_PROGRESS
            told.append(int(question.key.rpartition(":")[2]))
            desk.done(question)
            now[0] += 0.05
        client.close()
        assert told == order, "the oldest first"
        assert [int(path.rpartition("/")[2]) for path in api.asked()] == told, "each was asked"
        times = [each.at for each in api.requests]
        most = max(sum(at <= other < at + 60 for other in times) for at in times)
        assert 95 <= most <= 100
        assert now[0] - T0 / 1000 < 11 * 60


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
            deadline = time.monotonic() + 20
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
            found = self.facts(*(int(each.key.rpartition(":")[2]) for each in probes))
            found = [each for each in found if each.id in wanted]
            return found if {each.id for each in found} == wanted else []

        found: list[Any] = until(there)
        return found


def until(what: Callable[[], Any]) -> Any:
    """What it gives as soon as that is something. Fails when it never comes."""
    deadline = time.monotonic() + 60
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
    found = {"github": truth.client()} if clients is None else clients
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
    served._probed, served._about = prober, {}
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


def test_a_fault_of_ours_is_an_unknown_answer(truth: Truth) -> None:
    class Faulty(Unsupported):
        def ask(self, probe: Probe) -> Said:
            raise ZeroDivisionError

    mine, other = probe(501), probe(502, key="gitea:code.example:502")
    truth.post(mine, other)
    with probing(truth, {"github": Faulty("fails")}):
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
     {"github_host": "https://x"}, {"probes_per_minute": "2"}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"github_|probes_per_minute"):
        load(environment=False, **wrong)
