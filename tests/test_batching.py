"""When a batch goes and what is in it: the table of triggers, as properties over any history."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topics.batching import OVERHEAD, Batcher, Batching, Drop, Parcel, Request, Stats, Trigger

#: Times are multiples of an eighth of a second, which floats hold exactly.
EIGHTH = 0.125
PLAIN = Batching(
    urgent_s=EIGHTH, batch_records=6, request_records=4, request_bytes=2_000,
    max_records=40, max_bytes=20_000,
)  # fmt: skip


@dataclass
class Sent:
    """A request as it went."""

    at: float
    trigger: Trigger
    parcels: tuple[Parcel, ...]
    #: What waited when it was taken, itself included.
    before: tuple[Parcel, ...]


Answer = Callable[[Request], tuple[Sequence[Parcel], Sequence[Parcel]]]


def taken(_: Request) -> tuple[Sequence[Parcel], Sequence[Parcel]]:
    return (), ()


def lost(request: Request) -> tuple[Sequence[Parcel], Sequence[Parcel]]:
    return request.parcels, ()


@dataclass
class Host:
    """A thread around a batcher, in a time of its own: it sends what is due when it is due."""

    batching: Batching = PLAIN
    start: float = 100.0
    answer: Answer = taken
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.start
        self.batcher = Batcher(self.batching, self.start)
        self.number = 0

    def put(self, urgent: bool = False, size: int = 10, slot: str = "") -> Drop | None:
        self.number += 1
        value = str(self.number).encode().ljust(size)
        return self.batcher.put(self.now, "t", b"k", value, urgent=urgent, slot=slot or None)

    def waits(self) -> tuple[Parcel, ...]:
        queues: Any = self.batcher._waiting
        return tuple(sorted((*queues[True], *queues[False]), key=lambda each: each.seq))

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass, and send."""
        end = self.now + seconds
        while (due := self.batcher.due(self.now)) is not None and due[0] <= end:
            self.now = max(self.now, due[0])
            before = self.waits()
            request = self.batcher.take(self.now)
            assert request is not None
            self.sent.append(Sent(self.now, request.trigger, request.parcels, before))
            failed, refused = self.answer(request)
            self.batcher.settle(self.now, failed, refused)
        self.now = end

    @property
    def stats(self) -> Stats:
        return self.batcher.stats(self.now)

    def triggers(self) -> list[Trigger]:
        return [each.trigger for each in self.sent]


# --- the table, a row each ------------------------------------------------------------------------


def test_whatever_waits_goes_at_the_beat_of_the_interval() -> None:
    host = Host()
    host.run(4)
    host.put()
    host.run(60)
    # A second after it came, long before it would be late.
    assert [(each.at, each.trigger) for each in host.sent] == [(105, Trigger.INTERVAL)]


def test_a_lone_record_goes_when_it_has_waited_long_enough() -> None:
    host = Host()
    host.put()
    host.run(60)
    assert [(each.at, each.trigger) for each in host.sent] == [(103, Trigger.LATENCY)]
    # Sent means that nothing waits: the next one begins anew, at the beat or after its own time.
    host.put()
    host.run(60)
    assert [each.at for each in host.sent] == [103, 163]


def test_as_much_as_a_batch_goes_at_once() -> None:
    host = Host()
    for _ in range(PLAIN.batch_records - 1):
        host.put()
    host.run()
    assert not host.sent
    host.put()
    host.run()
    # Two requests, for one holds four; and the tail does not wait for anything.
    assert host.triggers() == [Trigger.SIZE] * 2
    assert [len(each.parcels) for each in host.sent] == [4, 2]
    many = Host()
    many.put(size=1_000)
    many.put(size=1_000)
    many.run()
    assert many.triggers() == [Trigger.SIZE] * 2


def test_what_is_urgent_goes_with_all_that_came_before_it() -> None:
    host = Host()
    host.put()
    host.put(urgent=True)
    host.put(urgent=True)
    host.run(60)
    ((at, trigger, sent),) = ((each.at, each.trigger, each.parcels) for each in host.sent)
    assert (at, trigger, len(sent)) == (100 + EIGHTH, Trigger.URGENT, 3)


def test_the_host_may_ask_and_the_end_does() -> None:
    host = Host()
    asked = host.batcher.flush()
    assert host.batcher.is_settled(asked)
    host.put()
    asked = host.batcher.flush()
    assert not host.batcher.is_settled(asked)
    host.put()
    host.run()
    assert host.batcher.is_settled(asked)
    host.put()
    host.batcher.close()
    assert host.put() is Drop.CLOSED
    host.run()
    assert host.triggers() == [Trigger.ASKED, Trigger.CLOSE]
    # Nothing to tell is nothing to send.
    assert host.batcher.due(host.now) is None


def test_heartbeats_go_by_themselves_and_only_the_newest_is_kept() -> None:
    host = Host(answer=lost)
    for beat in range(20):
        host.put(slot="vm-1")
        host.put(slot="vm-2")
        host.batcher.flush(Trigger.HEARTBEAT)
        host.run(30)
        assert host.stats.waiting == 2, beat
    assert host.sent[0].trigger is Trigger.HEARTBEAT
    assert host.stats.oldest_s == 600
    host.answer = taken
    host.run(60)
    assert [each.value.split() for each in host.sent[-1].parcels] == [[b"39"], [b"40"]]
    stats = host.stats
    assert (stats.delivered, stats.coalesced, stats.waiting) == (2, 38, 0)


def test_a_beat_that_fails_gives_way_to_the_next() -> None:
    host = Host()
    host.put(slot="vm-1")
    host.batcher.flush(Trigger.HEARTBEAT)
    request = host.batcher.take(host.now)
    assert request is not None
    host.now += 30
    host.put(slot="vm-1")
    host.batcher.settle(host.now, request.parcels)
    assert [each.value.split() for each in host.waits()] == [[b"2"]]
    # Nothing of this runner has been told for as long as the first one waits.
    assert (host.stats.coalesced, host.stats.oldest_s) == (1, 30)


def test_a_request_on_its_way_is_the_only_one() -> None:
    host = Host()
    host.put(urgent=True)
    host.now += 1
    request = host.batcher.take(host.now)
    assert request is not None
    for _ in range(20):
        host.put(urgent=True)
    assert host.batcher.due(host.now) is None
    assert host.batcher.take(host.now) is None
    assert not host.batcher.is_settled(1)
    # What changed meanwhile is not forgotten.
    host.batcher.settle(host.now)
    host.run()
    assert host.stats.delivered == 21


def test_pauses_grow_vary_and_end() -> None:
    host = Host(answer=lost)
    host.put(urgent=True)
    host.run(300)
    gaps = [b.at - a.at for a, b in zip(host.sent, host.sent[1:], strict=False)]
    assert gaps[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert set(host.triggers()[1:]) == {Trigger.RETRY}
    box = Batcher(PLAIN, 0)
    for chance, least in ((0.0, 0.4), (1.0, 0.6)):
        box.put(0, "t", b"", b"", urgent=True)
        request = box.take(math.inf)
        assert request is not None
        assert box.settle(0, request.parcels, chance=chance) == pytest.approx(least)
        request = box.take(math.inf)
        box.settle(0)
    # The end does not wait for them, and has shorter ones of its own.
    host.batcher.close()
    host.sent.clear()
    host.run(5)
    gaps = [b.at - a.at for a, b in zip(host.sent, host.sent[1:], strict=False)]
    assert gaps[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
    assert host.batcher.abandon() == 1
    assert host.stats.dropped[Drop.UNSENT] == 1


def test_what_makes_room_is_worth_least() -> None:
    host = Host(Batching(max_records=4, batch_records=100))
    assert host.put(urgent=True) is host.put() is host.put() is host.put(urgent=True) is None
    values = lambda: [int(each.value) for each in host.waits()]  # noqa: E731
    host.put()
    assert values() == [1, 3, 4, 5]
    host.put(urgent=True)
    host.put(urgent=True)
    assert values() == [1, 4, 6, 7]
    # Nothing but urgent ones: a heartbeat has no place, and one of them takes that of the oldest.
    assert host.put() is Drop.OVERFLOW
    assert host.put(urgent=True) is None
    assert values() == [4, 6, 7, 9]
    assert host.stats.dropped[Drop.OVERFLOW] == 5
    assert host.batcher.lost == 5


def test_what_is_on_its_way_is_not_driven_out() -> None:
    host = Host(Batching(max_records=2))
    host.put()
    host.put()
    host.batcher.flush()
    request = host.batcher.take(host.now)
    assert request is not None
    assert host.put(urgent=True) is Drop.OVERFLOW
    host.batcher.settle(host.now, request.parcels)
    assert host.stats.waiting == 2


def test_every_reason_is_there_from_the_beginning() -> None:
    stats = Host().stats
    assert stats.dropped == dict.fromkeys(Drop, 0)
    assert stats.requests == dict.fromkeys(Trigger, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"interval_s": 0}, {"max_latency_s": -1}, {"batch_records": 0}, {"backoff_s": math.nan},
     {"urgent_s": -0.1}, {"request_bytes": 10_000_000}],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Batching(**wrong)  # type: ignore[arg-type]


# --- any history ----------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.booleans(), st.integers(1, 600)),
        st.tuples(st.just("wait"), st.integers(0, 64)),
        st.tuples(st.just("beat"), st.sampled_from(["a", "b"])),
        st.just(("ask",)),
    ),
    max_size=60,
)
answers = st.lists(st.sampled_from(["taken", "lost", "half", "refused"]), max_size=30)


def follow(host: Host, history: Sequence[Any]) -> None:
    for step in history:
        if step[0] == "put":
            host.put(urgent=step[1], size=step[2])
        elif step[0] == "beat":
            host.put(slot=step[1], size=50)
            host.batcher.flush(Trigger.HEARTBEAT)
        elif step[0] == "ask":
            host.batcher.flush()
        host.run(step[1] * EIGHTH if step[0] == "wait" else 0)
        consistent(host)


def consistent(host: Host) -> None:
    stats, waits = host.stats, host.waits()
    dropped = sum(stats.dropped.values())
    assert stats.offered == stats.delivered + stats.coalesced + dropped + stats.waiting
    assert host.batcher.lost == dropped
    assert stats.waiting == len(waits) <= host.batching.max_records
    assert stats.waiting_bytes == sum(each.size for each in waits) <= host.batching.max_bytes
    assert stats.oldest_s == host.now - min((each.since for each in waits), default=host.now)
    assert sum(stats.requests.values()) == len(host.sent)


@given(steps)
def test_nothing_goes_too_late_too_early_or_out_of_order(history: list[Any]) -> None:
    host = Host()
    follow(host, history)
    host.run(60)
    limits = host.batching
    assert host.stats.waiting == 0
    flush_to, reason = 0, Trigger.INTERVAL
    for sent in host.sent:
        seqs = [each.seq for each in sent.parcels]
        assert seqs == sorted(seqs) == [each.seq for each in sent.before][: len(seqs)]
        assert 0 < len(seqs) <= limits.request_records
        size = sum(each.size for each in sent.parcels)
        assert size <= limits.request_bytes or len(seqs) == 1
        for each in sent.parcels:
            waited = sent.at - each.since
            assert waited <= limits.max_latency_s
            assert not each.urgent or waited <= limits.urgent_s
            beat = (each.since - host.start) // limits.interval_s + 1
            assert sent.at <= host.start + beat * limits.interval_s
        # Each has its reason, and the parts of one flush have one.
        if seqs[0] <= flush_to and sent.trigger is reason:
            continue
        flush_to, reason = sent.before[-1].seq, sent.trigger
        oldest = sent.at - sent.before[0].since
        weight = sum(each.size for each in sent.before)
        assert {
            Trigger.LATENCY: oldest == limits.max_latency_s,
            Trigger.INTERVAL: (sent.at - host.start) % limits.interval_s == 0,
            Trigger.SIZE: len(sent.before) >= limits.batch_records
            or weight >= limits.request_bytes,
            Trigger.URGENT: any(
                each.urgent and sent.at - each.since == limits.urgent_s for each in sent.before
            ),
            Trigger.ASKED: ("ask",) in history,
            Trigger.HEARTBEAT: any(step[0] == "beat" for step in history),
        }[sent.trigger]


@given(steps, answers)
def test_an_outage_loses_nothing_that_has_room_and_ends(
    history: list[Any], outcomes: list[str]
) -> None:
    scripted = iter(outcomes)
    arrived: list[int] = []
    refused = 0

    def answer(request: Request) -> tuple[Sequence[Parcel], Sequence[Parcel]]:
        nonlocal refused
        outcome = next(scripted, "taken")
        parcels = request.parcels
        bad = parcels if outcome in ("lost", "refused") else parcels[::2] * (outcome == "half")
        arrived.extend(int(each.value) for each in parcels if each not in bad)
        if outcome != "refused":
            return bad, ()
        refused += len(bad)
        return (), bad

    host = Host(answer=answer)
    follow(host, history)
    host.run(len(outcomes) * 31 + 60)
    consistent(host)
    stats = host.stats
    assert stats.waiting == stats.failures == 0
    assert stats.dropped[Drop.REFUSED] == refused
    assert len(arrived) == len(set(arrived)) == stats.delivered
    assert stats.failed_requests <= len(outcomes)


@given(steps, st.lists(st.booleans(), max_size=8))
def test_the_end_delivers_all_or_says_what_it_left(
    history: list[Any], outcomes: list[bool]
) -> None:
    host = Host(answer=lost)
    follow(host, history)
    host.sent.clear()
    scripted = iter(outcomes)
    host.answer = lambda request: ((() if next(scripted, False) else request.parcels), ())
    host.batcher.close()
    left = host.stats
    host.run(10)
    after = host.stats
    given_up = host.batcher.abandon()
    end = host.stats
    assert given_up == after.waiting
    assert (
        end.delivered - left.delivered + given_up + end.coalesced - left.coalesced == left.waiting
    )
    assert end.waiting == end.waiting_bytes == 0
    if left.waiting:
        assert host.sent[0].at == host.now - 10
        assert {each.trigger for each in host.sent} <= {Trigger.CLOSE, Trigger.RETRY}


# --- how much it saves ----------------------------------------------------------------------------


def requests_of(producers: int, jobs: int, seconds: int) -> tuple[int, int, Stats]:
    """Records, and requests, of hosts whose jobs say a line 0.7 times and change something 0.042
    times a second each; and the counts of one host."""
    records = requests = 0
    host = Host(Batching())
    for producer in range(producers):
        # Their beats do not coincide.
        host = Host(Batching(), start=1_000 + producer * 0.025)
        moments = sorted(
            (1_000 + (n + (job * 37 + producer * 11) % 100 / 100) / rate, urgent)
            for job in range(jobs)
            for rate, urgent in ((0.7, False), (0.042, True))
            for n in range(int(seconds * rate))
        )
        for at, urgent in moments:
            host.run(max(0.0, at - host.now))
            host.put(urgent)
        host.run(60)
        assert host.stats.delivered == len(moments)
        records += len(moments)
        requests += len(host.sent)
    return records, requests, host.stats


def test_two_hundred_hosts_with_three_jobs_each_make_a_fifth_of_the_requests() -> None:
    """The load that act_runner's reporter was made for, in a minute: 420 log requests a second
    became 84, and those of states 25."""
    records, requests, stats = requests_of(200, 3, 60)
    assert records == 200 * 3 * (42 + 2)
    assert requests * 4 < records
    assert requests <= (84 + 25) * 60
    assert stats.requests[Trigger.URGENT] > 0 < stats.requests[Trigger.LATENCY]


def test_a_size_that_counts() -> None:
    assert Parcel(1, 0.0, "t", b"key", b"value", False, None).size == 8 + OVERHEAD
