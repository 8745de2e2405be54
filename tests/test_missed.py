"""Which deliveries are missed and when they are asked for: rules one by one, and any history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.providers.api import Detail
from pipeline.providers.calls import Failed
from pipeline.providers.deliveries import Asked, Attempt, Came, Page
from pipeline.providers.github_hooks import attempt, check_hook
from pipeline.redeliver.fill import Filler, Pass, Written
from pipeline.redeliver.missed import Missed, Policy
from topics.missed import MISSED, HookSeen, MissedDelivery, Over

T0 = 1_790_000_000_000
MINUTE = 60_000
DAY = 86_400_000
HOOK = "github:github.com:app"
OURS = ("workflow_job", "workflow_run")
POLICY = Policy(asks=3, pass_calls=40, pass_asks=10)


class Crash(Exception):
    """The process dies."""


@dataclass
class Provider:
    """A list of deliveries in memory, the newest first, in pages; a ``HookLog``."""

    name: str = HOOK
    now: int = T0
    per_page: int = 3
    attempts: list[Attempt] = field(default_factory=list)
    #: How a redelivery ends, by GUID; else as ``otherwise``.
    ends: dict[str, Came] = field(default_factory=dict)
    otherwise: Came = Came.YES
    answer: Asked = Asked.DONE
    #: What was asked for, and when.
    asked: list[tuple[str, int]] = field(default_factory=list)
    #: Of these, what may have been heard: not what limits refused.
    heard: list[tuple[str, int]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    #: When each GUID first succeeded.
    good: dict[str, int] = field(default_factory=dict)
    pages: int = 0
    began: int = 0
    #: Called before each page: what happens meanwhile.
    meanwhile: Callable[[], None] = lambda: None
    refuses: set[str] = field(default_factory=set)

    def put(
        self, guid: str, came: Came, event: str = "workflow_job", again: bool = False, at: int = 0
    ) -> int:
        number = len(self.attempts) + 1
        when = at or self.now
        self.attempts.insert(0, Attempt(number, guid, when, event, again, came))
        if came is Came.YES:
            self.good.setdefault(guid, self.now)
        return number

    def end(self, number: int, came: Came) -> None:
        """What waited has ended."""
        where = next(i for i, each in enumerate(self.attempts) if each.id == number)
        self.attempts[where] = replace(self.attempts[where], came=came)
        if came is Came.YES:
            self.good.setdefault(self.attempts[where].guid, self.now)

    def page(self, cursor: str) -> Page:
        self.pages += 1
        self.meanwhile()
        if cursor in self.refuses:
            raise Failed(Detail.MALFORMED)
        left = [each for each in self.attempts if not cursor or each.id <= int(cursor)]
        shown, rest = left[: self.per_page], left[self.per_page :]
        return Page(shown, str(rest[0].id) if rest else "")

    def redeliver(self, attempt: int) -> Asked:
        guid = next(each.guid for each in self.attempts if each.id == attempt)
        self.asked.append((guid, self.now))
        if self.answer is not Asked.NOT:
            self.heard.append((guid, self.now))
        if self.answer is Asked.DONE:
            self.done.append(guid)
            self.put(guid, self.ends.get(guid, self.otherwise), again=True)
        return self.answer

    def opens(self) -> float:
        return 0.0


class Process:
    """One that makes passes, dies when it is told to, and comes back with what was written."""

    def __init__(self, provider: Provider, policy: Policy = POLICY) -> None:
        self.provider, self.policy = provider, policy
        self.topic: dict[str, bytes] = {}
        #: Records that are still written before it dies; None: it lives.
        self.lives: int | None = None
        self.found: list[str] = []
        self.filled: list[str] = []
        self.given_up: list[tuple[str, Over | None]] = []
        self.restart()

    def restart(self) -> None:
        self.lives = None
        self.missed = Missed(HOOK, OURS, self.policy)
        for value in self.topic.values():
            record = MISSED.validate_json(value)
            assert isinstance(record, MissedDelivery | HookSeen)
            self.missed.load(record)

    def write(self, records: Written) -> None:
        for key, record in records:
            if self.lives is not None:
                if not self.lives:
                    raise Crash
                self.lives -= 1
            if record is None:
                self.topic.pop(key, None)
            else:
                self.topic[key] = record.model_dump_json().encode()

    def run(self, pause: Callable[[float], bool] = lambda seconds: True) -> Pass:
        self.provider.began = self.provider.now
        self.provider.pages = 0
        asked = len(self.provider.asked)
        filler = Filler(self.missed, self.provider, self.write, lambda: self.provider.now, pause)
        done = filler.run()
        assert self.provider.pages + len(self.provider.asked) - asked <= self.policy.pass_calls
        assert len(self.provider.asked) - asked <= self.policy.pass_asks
        self.found += [each.guid for each in done.news.found]
        self.filled += [each.guid for each in done.news.filled]
        self.given_up += [(each.guid, each.over) for each in done.news.given_up]
        return done

    def passes(self, number: int, every: int = 5 * MINUTE) -> None:
        for _ in range(number):
            self.run()
            self.provider.now += every


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def process(provider: Provider) -> Process:
    return Process(provider)


def guids(provider: Provider) -> list[str]:
    return [guid for guid, _ in provider.asked]


# --- each rule ------------------------------------------------------------------------------------


def test_what_never_came_is_asked_for_once_and_comes(provider: Provider, process: Process) -> None:
    provider.put("a", Came.YES)
    provider.put("b", Came.NO)
    process.passes(6)
    assert provider.asked == [("b", T0)]
    assert (process.found, process.filled, process.given_up) == (["b"], ["b"], [])
    assert set(process.topic) == {HOOK}, "nothing is kept of what came"


def test_a_failed_attempt_says_nothing_when_another_came(
    provider: Provider, process: Process
) -> None:
    provider.put("later", Came.NO)
    provider.put("earlier", Came.YES)
    provider.put("earlier", Came.NO, again=True)
    provider.put("later", Came.YES, again=True)
    process.passes(3)
    # The good attempt was read long ago.
    provider.put("earlier", Came.NO, again=True)
    process.passes(3)
    assert provider.asked == []
    assert process.found == []


def test_events_that_are_not_ours_are_left_alone(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO, event="push")
    provider.put("b", Came.NO, event="ping")
    provider.put("c", Came.NO, event="workflow_run")
    process.passes(2)
    assert guids(provider) == ["c"]


def test_it_is_asked_for_with_growing_pauses_and_then_given_up(
    provider: Provider, process: Process
) -> None:
    provider.put("a", Came.NO)
    provider.otherwise = Came.NO
    process.passes(40)
    times = [at - T0 for _, at in provider.asked]
    assert times == [0, 10 * MINUTE, 30 * MINUTE]
    assert process.given_up == [("a", Over.ATTEMPTS)]
    process.passes(3 * 288 + 30)
    assert len(provider.asked) == 3
    assert set(process.topic) == {HOOK}, "it is forgotten when the list has it no more"


def test_what_somebody_else_asks_for_counts(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO)
    for _ in range(3):
        provider.put("a", Came.NO, again=True)
    process.passes(20)
    assert provider.asked == []
    assert process.given_up == [("a", Over.ATTEMPTS)]


def test_what_waits_is_waited_for_and_read_again(provider: Provider, process: Process) -> None:
    first = provider.put("a", Came.WAITS)
    again = provider.put("b", Came.NO)
    provider.otherwise = Came.WAITS
    for number in range(20):
        provider.put(f"c{number}", Came.YES)
        process.passes(1, every=2 * MINUTE)
    assert guids(provider) == ["b"], "a is under way; so is b, now"
    provider.end(first, Came.YES)
    provider.end(next(e.id for e in provider.attempts if e.guid == "b" and e.id != again), Came.NO)
    process.passes(1)
    assert guids(provider) == ["b", "b"]


def test_what_waits_for_ever_counts_as_failed(provider: Provider, process: Process) -> None:
    provider.put("a", Came.WAITS)
    process.passes(12)
    assert provider.asked == []
    process.passes(2)
    assert guids(provider) == ["a"]


def test_a_long_list_is_read_over_several_passes_and_new_ones_come_first(
    provider: Provider, process: Process
) -> None:
    for number in range(300):
        came = Came.NO if number == 7 else Came.YES
        provider.put(f"old{number}", came, at=T0 - (300 - number) * MINUTE)
    process.run()
    assert len(process.missed.gaps) == 1
    provider.now += 5 * MINUTE
    provider.put("new", Came.NO)
    process.run()
    assert guids(provider) == ["new"], "while the old ones are read"
    # It was sent again by hand, and came; the first attempt is in the gap.
    provider.put("old7", Came.YES, again=True)
    process.passes(6)
    assert process.missed.gaps == ()
    assert guids(provider) == ["new"]
    assert process.run().looked <= 2 * provider.per_page, "only what is new is read"


def test_what_is_unread_may_say_that_it_came(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO)
    provider.answer = Asked.NOT
    process.passes(1)
    provider.answer = Asked.DONE
    provider.now += 60 * MINUTE
    provider.put("a", Came.YES, again=True)
    for number in range(150):
        provider.put(f"b{number}", Came.YES, at=provider.now + number * 10_000)
    provider.now += 30 * MINUTE
    process.run()
    assert len(process.missed.gaps) == 1
    process.passes(3)
    assert process.filled == ["a"]
    assert guids(provider) == ["a"], "only at first, in vain"


def test_what_was_tried_counts_also_before_the_first_attempt_is_read(
    provider: Provider, process: Process
) -> None:
    provider.put("a", Came.NO, at=T0 - 300 * MINUTE)
    for number in range(150):
        provider.put(f"b{number}", Came.YES, at=T0 - (200 - number) * MINUTE)
    for _ in range(3):
        provider.put("a", Came.NO, again=True)
    process.passes(10)
    assert provider.asked == []
    assert process.given_up == [("a", Over.ATTEMPTS)]


def test_a_cursor_that_is_no_good_any_more_is_read_around(
    provider: Provider, process: Process
) -> None:
    for number in range(100):
        provider.put(f"a{number}", Came.NO if number == 3 else Came.YES)
    process.policy = replace(POLICY, pass_calls=20)
    process.restart()
    process.run()
    (gap,) = process.missed.gaps
    provider.refuses.add(gap.cursor)
    provider.put("new", Came.YES)
    process.policy = replace(POLICY, pass_calls=100)
    process.restart()
    process.passes(2)
    assert guids(provider) == ["a3"]


def test_limits_end_a_pass_and_nothing_is_lost(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO)
    provider.answer = Asked.NOT
    assert "may not be asked" in process.run().trouble
    provider.answer = Asked.FAILED
    process.run()
    provider.now += MINUTE
    process.run()
    assert len(provider.asked) == 2, "one that failed rests"
    provider.answer = Asked.DONE
    provider.now += 10 * MINUTE
    process.passes(2)
    assert len(provider.asked) == 3
    assert process.filled == ["a"]


def test_what_the_provider_has_no_more_is_given_up(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO)
    provider.answer = Asked.GONE
    process.passes(5)
    assert guids(provider) == ["a"]
    assert process.given_up == [("a", Over.GONE)]


def test_what_the_provider_does_not_want_to_send_counts(
    provider: Provider, process: Process
) -> None:
    provider.put("a", Came.NO)
    provider.answer = Asked.REFUSED
    process.passes(30)
    assert [at - T0 for _, at in provider.asked] == [0, 10 * MINUTE, 30 * MINUTE]
    assert process.given_up == [("a", Over.ATTEMPTS)]


def test_what_is_too_old_is_given_up(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO)
    provider.put("b", Came.NO, at=T0 - 4 * DAY)
    provider.answer = Asked.FAILED
    process.passes(1)
    provider.now += 3 * DAY
    process.passes(2)
    assert process.given_up == [("a", Over.EXPIRED)]
    assert guids(provider) == ["a"]


def test_a_time_that_lies_ahead_hides_nothing(provider: Provider, process: Process) -> None:
    provider.put("a", Came.NO, at=T0 + 400 * DAY)
    provider.put("b", Came.YES, at=T0 + 400 * DAY)
    process.passes(1)
    provider.put("c", Came.NO)
    process.passes(1)
    assert guids(provider) == ["c"]


def test_a_pass_that_is_told_to_end_asks_for_nothing_more(
    provider: Provider, process: Process
) -> None:
    for number in range(5):
        provider.put(f"a{number}", Came.NO)
    turns = iter([True] * 4)
    process.run(lambda seconds: next(turns, False))
    assert len(provider.asked) == 2
    process.restart()
    process.passes(3)
    assert sorted(guids(provider)) == [f"a{n}" for n in range(5)]


# --- any history ----------------------------------------------------------------------------------

MOVES = st.one_of(
    st.tuples(st.just("new"), st.sampled_from(Came), st.sampled_from(["workflow_job", "push"])),
    st.tuples(st.just("again"), st.integers(0, 30), st.sampled_from(Came)),
    st.tuples(st.just("ends"), st.integers(0, 30), st.sampled_from([Came.YES, Came.NO])),
    st.tuples(st.just("later"), st.integers(1, 90)),
    st.tuples(st.just("asked"), st.sampled_from(Asked), st.sampled_from(Came)),
    st.tuples(st.just("pass"), st.one_of(st.none(), st.integers(0, 12)), st.integers(0, 12)),
    st.tuples(st.just("busy"), st.integers(1, 4), st.sampled_from(Came)),
)


class History:
    """Does moves, and looks at each request."""

    def __init__(self, policy: Policy) -> None:
        self.provider = Provider()
        self.process = Process(self.provider, policy)
        self.names = 0
        self.busy = (0, Came.YES)
        self.provider.meanwhile = self.meanwhile

    def new(self, came: Came, event: str = "workflow_job") -> None:
        self.names += 1
        self.provider.put(f"g{self.names}{event[0]}", came, event)

    def meanwhile(self) -> None:
        """New ones push the pages along."""
        number, came = self.busy
        for _ in range(number):
            self.new(came)
        self.busy = (0, came)

    def do(self, move: tuple[object, ...]) -> None:
        provider = self.provider
        match move:
            case ("new", Came() as came, str(event)):
                self.new(came, event)
            case ("again", int(which), Came() as came) if provider.attempts:
                one = provider.attempts[which % len(provider.attempts)]
                provider.put(one.guid, came, one.event, again=True)
            case ("ends", int(which), Came() as came):
                waiting = [each for each in provider.attempts if each.came is Came.WAITS]
                if waiting:
                    provider.end(waiting[which % len(waiting)].id, came)
            case ("later", int(minutes)):
                provider.now += minutes * MINUTE
            case ("asked", Asked() as answer, Came() as came):
                provider.answer, provider.otherwise = answer, came
            case ("busy", int(number), Came() as came):
                self.busy = (number, came)
            case ("pass", lives, int(turns)):
                self.one(lives if isinstance(lives, int) else None, turns)

    def one(self, lives: int | None, turns: int = 1_000) -> None:
        left = iter(range(turns or 1_000))
        before = len(self.provider.asked)
        self.process.lives = lives
        try:
            self.process.run(lambda seconds: next(left, None) is not None)
        except Crash:
            self.process.restart()
        self.process.lives = None
        for guid, at in self.provider.asked[before:]:
            assert guid.endswith("w"), "one that is not ours"
            good = self.provider.good.get(guid)
            assert good is None or good >= self.provider.began, "it had come"
            times = [when for other, when in self.provider.asked if other == guid]
            assert sum(when == at for when in times) == 1, "twice at a time"


@given(st.lists(MOVES, max_size=40), st.integers(16, 40))
def test_no_history_makes_it_ask_wrongly_or_forget(
    moves: list[tuple[object, ...]], calls: int
) -> None:
    # A pass must be able to read the overlap, and something more.
    policy = replace(POLICY, pass_calls=calls, pass_asks=4, overlap=5_000)
    history = History(policy)
    provider = history.provider
    for move in moves:
        history.do(move)
        provider.now += 1_000
    asked: dict[str, list[int]] = {}
    for guid, at in provider.heard:
        asked.setdefault(guid, []).append(at)
    for times in asked.values():
        assert all(later - earlier >= policy.pause for earlier, later in pairwise(times))
    assert all(provider.done.count(guid) <= policy.asks for guid in provider.done), "too often"
    # In the end all is well again: whatever did not come by then comes, or was given up.
    provider.answer, provider.otherwise = Asked.DONE, Came.YES
    for each in [each for each in provider.attempts if each.came is Came.WAITS]:
        provider.end(each.id, Came.NO)
    for _ in range(30):
        history.one(None)
        provider.now += 40 * MINUTE
    came = {each.guid for each in provider.attempts if each.came is Came.YES}
    given_up = {guid for guid, _ in history.process.given_up}
    first = {each.guid for each in provider.attempts if each.event != "push"}
    lost = first - came - given_up
    counted = {guid for guid in lost if _often(provider, guid) < policy.asks}
    assert counted == set()
    assert history.process.missed.gaps == ()


def _often(provider: Provider, guid: str) -> int:
    """How often it was asked for, by anybody; what was given up before a crash is known so."""
    asked = sum(other == guid for other, _ in provider.asked)
    return max(asked, sum(each.guid == guid and each.redelivery for each in provider.attempts))


# --- GitHub's words -------------------------------------------------------------------------------

ENTRY = {
    "id": 12345678901234567, "guid": "4d8ed510-a74d-11f1-8a3f-0242ac120002",
    "delivered_at": "2026-09-03T04:16:57Z", "redelivery": False, "duration": 0.27,
    "status": "OK", "status_code": 200, "event": "workflow_job", "action": "queued",
    "installation_id": 123, "repository_id": 456, "throttled_at": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("differs", "came"),
    [
        ({}, Came.YES),
        ({"status": "Accepted", "status_code": 202}, Came.YES),
        ({"status": "Invalid HTTP Response: 503", "status_code": 503}, Came.NO),
        ({"status": "Invalid HTTP Response: 302", "status_code": 302}, Came.NO),
        ({"status": "failed to connect to host", "status_code": 0}, Came.NO),
        ({"status": "timed out", "status_code": None}, Came.NO),
        ({"status": "pending", "status_code": 0}, Came.WAITS),
        ({"status": "", "status_code": None, "throttled_at": "2026-09-03T04:16:50Z"}, Came.WAITS),
        ({"status": "OK", "throttled_at": "2026-09-03T04:16:50Z"}, Came.YES),
    ],
)
def test_how_github_says_that_it_came(differs: dict[str, object], came: Came) -> None:
    found = attempt({**ENTRY, **differs})
    assert found is not None
    assert found.came is came
    assert (found.id, found.at, found.redelivery) == (12345678901234567, 1_788_409_017_000, False)


@pytest.mark.parametrize(
    "differs",
    [{"id": "7"}, {"id": True}, {"guid": ""}, {"guid": 7}, {"guid": "x" * 129},
     {"delivered_at": None}, {"delivered_at": "soon"}, {"delivered_at": "0001-01-01T00:00:00Z"}],
)  # fmt: skip
def test_what_is_no_entry_is_passed_over(differs: dict[str, object]) -> None:
    assert attempt({**ENTRY, **differs}) is None
    assert attempt([ENTRY]) is None


@pytest.mark.parametrize("hook", ["", "App", "a/b", "a/b:", "a/b:0", "../b:1", "a/..:1", "a b:1"])
def test_a_hook_has_a_name(hook: str) -> None:
    for right in ("app", "octo/hello.world:12", "octo:345"):
        check_hook(right)
    with pytest.raises(ValueError, match="no hook"):
        check_hook(hook)
