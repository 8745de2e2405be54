"""The prober: which question is next, how far it may commit, what a budget allows. No broker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.prober.desk import Desk, Taken
from pipeline.prober.offsets import Offsets, Partition, Place
from pipeline.providers.github_api import GitHubApi
from pipeline.simulate.api import ApiJob, FakeGitHub
from tests.support.probes import probe
from topics.catalogue import PROBES
from topics.recovery import Answer

T0 = 1_790_000_000_000


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
    due = offsets.due()
    offsets.committed(due)
    assert offsets.keep([where]) == set()
    assert offsets.due() == due, "what is unfinished is so after a rebalance"
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
