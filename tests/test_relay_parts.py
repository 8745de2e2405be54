"""The parts of a relay that need no server: what passes, in which order, and how a target fares."""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.providers.base import Provider
from pipeline.providers.registry import PROVIDERS
from pipeline.relay.order import MAX_NOTE, Commit, Item, Order
from pipeline.relay.pace import IN_A_ROW, MOST_RETRY_AFTER_S, Answer, Pace, judge
from pipeline.relay.screen import Filters, Screen, Sending, Skip
from sinks.writer import Backoff
from topics.bridge import RELAY, RELAYED_BY
from topics.catalogue import WEBHOOKS
from topics.dead_letters import dead_letter, relay_letter, relay_of
from topics.models import Reason, Unreadable

SECRET = b"swordfish"
T0 = 1_790_000_000_000

# --- order ----------------------------------------------------------------------------------------


@dataclass
class World:
    """A log of two partitions, a relay that reads it, and a target that keeps what it took."""

    keys: list[list[int]]
    order: Order[int, tuple[int, int]] = field(default_factory=Order)
    committed: dict[int, Commit] = field(default_factory=dict)
    flying: list[Item[int, tuple[int, int]]] = field(default_factory=list)
    #: What the target took, in order.
    took: list[tuple[int, int]] = field(default_factory=list)
    now: float = 0.0
    #: What was ever done; what of it is known since the latest start, and was at the latest commit.
    done: set[tuple[int, int]] = field(default_factory=set)
    known: set[tuple[int, int]] = field(default_factory=set)
    safe: set[tuple[int, int]] = field(default_factory=set)

    def start(self) -> None:
        self.order, self.flying, self.known = Order(), [], set(self.safe)
        for where in range(len(self.keys)):
            self.order.begin(where, self.committed.get(where, Commit(0)))

    def read(self, where: int, number: int) -> None:
        for _ in range(number):
            offset = self.order.position(where)
            assert offset is not None
            if offset >= len(self.keys[where]):
                return
            if self.order.was_done(where, offset):
                # What a note says was done: else it would be lost.
                assert (where, offset) in self.done
                self.order.reach(where, offset + 1)
            elif self.keys[where][offset] < 0:
                self.order.reach(where, offset + 1)
                self.done.add((where, offset))
                self.known.add((where, offset))
            else:
                key = b"%d" % self.keys[where][offset]
                self.order.take(where, offset, key, (where, offset))

    def send(self) -> None:
        item = self.order.next(self.now)
        if item is not None:
            # Never two of one job at a time.
            assert (item.where, item.key) not in {(f.where, f.key) for f in self.flying}
            # Nor what was committed as done.
            assert item.what not in self.safe
            self.flying.append(item)

    def land(self, which: int, well: bool) -> None:
        if not self.flying:
            return
        item = self.flying.pop(which % len(self.flying))
        if well:
            self.took.append(item.what)
            self.done.add(item.what)
            self.known.add(item.what)
            self.order.done(item)
        else:
            self.order.again(item, self.now + 1)

    def commit(self) -> None:
        due = self.order.due()
        for where, commit in due.items():
            missing = [o for o in range(commit.offset) if (where, o) not in self.done]
            assert missing == []
            self.committed[where] = commit
        self.order.committed(due)
        self.safe = set(self.known)

    def finish(self) -> None:
        while True:
            for where in range(len(self.keys)):
                self.read(where, 1_000)
            self.now += 2
            self.send()
            if not self.flying:
                return
            self.land(0, True)


keys = st.lists(st.integers(-1, 2), max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(1, 6)),
        st.tuples(st.just("send")),
        st.tuples(st.just("land"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("commit")),
        st.tuples(st.just("crash")),
        st.tuples(st.just("wait")),
    ),
    max_size=60,
)


@given(st.tuples(keys, keys), steps)
def test_whatever_happens_each_is_sent_and_those_of_a_job_in_order(
    keys: tuple[list[int], list[int]], steps: list[tuple[Any, ...]]
) -> None:
    world = World(list(keys))
    world.start()
    for name, *more in steps:
        if name == "read":
            world.read(*more)
        elif name == "send":
            world.send()
        elif name == "land":
            world.land(*more)
        elif name == "commit":
            world.commit()
        elif name == "crash":
            world.start()
        else:
            world.now += 1
    world.finish()
    by_job = defaultdict(list)
    for where, offset in world.took:
        by_job[where, world.keys[where][offset]].append(offset)
    for where, told in enumerate(world.keys):
        for job in set(told) - {-1}:
            wanted = [offset for offset, key in enumerate(told) if key == job]
            got = by_job[where, job]
            # The first time of each, and the last time of each, come in the order of the log.
            assert list(dict.fromkeys(got)) == wanted
            assert list(dict.fromkeys(reversed(got))) == wanted[::-1]
    world.commit()
    left = {w: len(told) - world.committed.get(w, Commit(0)).offset
            for w, told in enumerate(world.keys)}  # fmt: skip
    assert not any(left.values())


def test_a_delivery_that_is_stuck_makes_nobody_repeat_the_others() -> None:
    order: Order[str, int] = Order()
    order.begin("p", Commit(10))
    for offset in range(10, 20):
        order.take("p", offset, b"stuck" if offset in (12, 17) else b"%d" % offset, offset)
    for _ in range(9):
        item = order.next(0)
        assert item is not None
        if item.what != 12:
            order.done(item)
    assert order.next(0) is None
    commit = order.due()["p"]
    assert commit.offset == 12
    again: Order[str, int] = Order()
    again.begin("p", commit)
    assert [offset for offset in range(12, 22) if not again.was_done("p", offset)] == [
        12, 17, 20, 21,
    ]  # fmt: skip
    # Before anything is read again the same is due, and it survives another crash.
    assert again.due()["p"] == commit


def test_a_note_that_would_grow_too_long_says_less() -> None:
    order: Order[str, int] = Order()
    order.begin("p", Commit(0))
    for offset in range(5_000):
        order.take("p", offset, b"%d" % offset, offset)
    for _ in range(5_000):
        item = order.next(0)
        assert item is not None
        if item.what % 2:
            order.done(item)
    commit = order.due()["p"]
    assert len(commit.note) <= MAX_NOTE + 30
    again: Order[str, int] = Order()
    again.begin("p", commit)
    done = [offset for offset in range(5_000) if again.was_done("p", offset)]
    assert done == list(range(1, done[-1] + 1, 2))
    assert len(done) > 500


@pytest.mark.parametrize("note", ["", "x", "2;5;", "1;5", "1;;", "1;5;a", "1;5;1,", '{"a": 1}'])
def test_a_note_of_somebody_else_says_nothing(note: str) -> None:
    order: Order[str, int] = Order()
    order.begin("p", Commit(5, note))
    assert not any(order.was_done("p", offset) for offset in range(5, 20))


def test_those_that_wait_and_those_that_nobody_has_tried_take_turns() -> None:
    order: Order[str, int] = Order()
    order.begin("p", Commit(0))
    for offset in range(4):
        order.take("p", offset, b"%d" % offset, offset)
    for _ in range(2):
        item = order.next(0)
        assert item is not None
        order.again(item, 1)
    assert order.next_due() == 1
    sent = [order.next(2) for _ in range(4)]
    assert [item.what for item in sent if item] in ([0, 2, 1, 3], [2, 0, 3, 1])


# --- pace -----------------------------------------------------------------------------------------


def pace() -> Pace:
    return Pace(4, Backoff(1.0, 2.0, 60.0))


def test_one_delivery_that_fails_again_and_again_pauses_nothing() -> None:
    made = pace()
    for at in range(20):
        assert not made.failed(at, at, "a", Answer.FAILING, None)
    assert made.room(20, 1, 0) == 3


def test_several_that_fail_in_a_row_pause_until_one_is_taken() -> None:
    made = pace()
    told = [made.failed(1, 0, which, Answer.FAILING, None) for which in range(IN_A_ROW)]
    assert told == [False] * (IN_A_ROW - 1) + [True]
    assert made.room(1, 0, 0) == 0
    assert made.room(3, 2, 0) == 1
    assert made.room(3, 1, 1) == 0
    assert made.answers()
    assert made.room(3, 1, 0) == 3
    assert not made.answers()


def test_a_target_that_cannot_be_reached_is_tried_less_and_less() -> None:
    made, now, distances = pace(), 0.0, []
    for _ in range(12):
        made.failed(now, now, "a", Answer.UNREACHABLE, None)
        distances.append(made.probe_at - now)
        now = made.probe_at
    for number, distance in enumerate(distances):
        assert 0.5 * min(60, 2**number) <= distance <= min(60, 2**number)


def test_what_was_under_way_at_the_pause_does_not_make_it_longer() -> None:
    made = pace()
    made.failed(5, 1, "a", Answer.UNREACHABLE, None)
    at = made.probe_at
    for which in range(20):
        made.failed(5.5, 1, which, Answer.UNREACHABLE, None)
    assert made.probe_at == at


def test_retry_after_is_honoured_and_capped() -> None:
    made = pace()
    assert made.failed(0, 0, "a", Answer.FAILING, 30)
    assert made.probe_at == 30
    made.failed(30, 30, "a", Answer.LIMITED, 1e6)
    assert made.probe_at == 30 + MOST_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, "taken"), (204, "taken"), (202, "taken"), (302, "redirected"), (400, "refused"),
     (422, "refused"), (401, "denied"), (404, "denied"), (408, "failing"), (425, "failing"),
     (429, "limited"), (500, "failing"), (503, "failing"), (101, "redirected")],
)  # fmt: skip
def test_what_a_status_means(status: int, answer: str) -> None:
    assert judge(status, {400, 413, 415, 422}) == answer


# --- screen ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    topic: str = WEBHOOKS
    partition: int = 3
    offset: int = 1802
    timestamp: int = T0
    key: bytes | None = b"github:github.com:1"


class Ring:
    def __init__(self, **secrets: bytes) -> None:
        self._secrets = secrets

    def of(self, provider: Provider, headers: Mapping[str, str], body: bytes) -> tuple[bytes, ...]:
        found = self._secrets.get(provider.name)
        return () if found is None else (found,)


def record(
    event: str = "workflow_job", secret: bytes | None = SECRET, body: bytes = b"", **told: Any
) -> Record:
    """A delivery of GitHub's as the gateway writes it; ``told`` is of the job."""
    job = {"id": 7, "labels": ["self-hosted", "Linux"], **told}
    body = body or json.dumps({"action": "queued", event: job}).encode()
    headers: list[tuple[str, bytes | None]] = [
        ("content-type", b"application/json"),
        ("user-agent", b"GitHub-Hookshot/abc"),
        ("x-github-event", event.encode()),
        ("x-github-delivery", b"17eb5d5e-b5f4-11f1-8a3f-0242ac120002"),
    ]
    if secret is not None:
        signature = "sha256=" + hmac.digest(secret, body, "sha256").hex()
        headers.append(("x-hub-signature-256", signature.encode()))
    return Record(body, headers)


RING = Ring(github=SECRET)


def look(
    record: Record, keys: Ring | None = RING, mark: str = "me", **filters: Any
) -> Sending | Skip:
    wanted = {name: frozenset(each) for name, each in filters.items()}
    return Screen(keys, Filters(**wanted), "a-relay", mark).look(record)


def test_what_is_signed_goes_on_as_it_came() -> None:
    came = record()
    found = look(came)
    assert isinstance(found, Sending)
    assert found.body == came.value
    sent = [(name, value.encode()) for name, value in found.headers]
    assert sent == [*came.headers, (RELAYED_BY, b"me")]


def test_what_no_provider_signed_stays() -> None:
    signed = record()
    assert signed.value is not None
    changed = Record(signed.value + b" ", signed.headers)
    cases: list[tuple[Sending | Skip, Skip]] = [
        (look(changed), Skip.BAD_SIGNATURE),
        (look(record(secret=b"other")), Skip.BAD_SIGNATURE),
        (look(record(secret=None)), Skip.UNSIGNED),
        (look(record(), Ring(gitlab=SECRET)), Skip.NO_SECRET),
        (look(Record(b'{"kind": "github.workflow_job"}', [])), Skip.NOT_RAW),
        (look(Record(None, signed.headers)), Skip.NOT_RAW),
    ]
    for got, wanted in cases:
        assert got is wanted
    assert isinstance(look(record(secret=None), keys=None), Sending)


def test_headers_of_a_bridge_do_not_go_on() -> None:
    came = record()
    came.headers.extend([("host", b"gateway"), ("content-length", b"7"), ("cookie", b"a=b"),
                         ("authorization", b"secret"), ("connection", b"close")])  # fmt: skip
    found = look(came)
    assert isinstance(found, Sending)
    assert {name for name, _ in found.headers}.isdisjoint(
        {"host", "content-length", "cookie", "authorization", "connection"}
    )


@pytest.mark.parametrize(
    "odd",
    [("x-github-event", b"workflow_job"), ("x-github-a", b"a\r\nb: c"), ("x-github-a", b"\xff"),
     ("x-github-a b", b"c"), ("X-GitHub-Event", b"push")],
)  # fmt: skip
def test_headers_that_the_target_might_see_otherwise_go_nowhere(odd: tuple[str, bytes]) -> None:
    came = record()
    came.headers.append(odd)
    assert look(came) is Skip.ODD_HEADERS


def test_filters() -> None:
    assert look(record(), events=["workflow_run"]) is Skip.FILTERED
    assert isinstance(look(record(), events=["workflow_job", "push"]), Sending)
    assert look(record(), actions=["completed"]) is Skip.FILTERED
    assert isinstance(look(record(), actions=["queued"]), Sending)
    assert isinstance(look(record(), labels=["linux"]), Sending)
    assert isinstance(look(record(), labels=["gpu", "self-hosted"]), Sending)
    assert look(record(), labels=["gpu"]) is Skip.FILTERED
    assert look(record(labels=[]), labels=["gpu"]) is Skip.FILTERED
    # What has no labels is not judged by them, but by its event.
    assert isinstance(look(record("workflow_run"), labels=["gpu"]), Sending)
    assert isinstance(look(record(labels=None), labels=["gpu"]), Sending)
    odd = record(body=b"no json")
    assert isinstance(look(odd), Sending)
    assert look(odd, actions=["queued"]) is Skip.FILTERED


def test_a_form_is_looked_into_and_goes_on_as_a_form() -> None:
    payload = json.dumps({"action": "queued", "workflow_job": {"id": 7, "labels": ["gpu"]}})
    came = record(body=b"payload=" + quote_plus(payload).encode())
    came.headers[0] = ("content-type", b"application/x-www-form-urlencoded")
    found = look(came, labels=["gpu"], actions=["queued"])
    assert isinstance(found, Sending)
    assert found.body == came.value


def test_what_came_through_this_relay_is_not_sent_again() -> None:
    came = record()
    came.headers.append((RELAYED_BY, b"other,me"))
    assert look(came) is Skip.LOOP
    found = look(came, mark="third")
    assert isinstance(found, Sending)
    assert dict(found.headers)[RELAYED_BY] == "other,me,third"


def test_what_is_replayed_for_a_relay_is_for_no_other() -> None:
    came = record()
    came.headers.append((RELAY, b"a-relay"))
    found = look(came)
    assert isinstance(found, Sending)
    assert RELAY not in dict(found.headers)
    came.headers[-1] = (RELAY, b"b-relay")
    assert look(came) is Skip.NOT_OURS


def test_a_letter_is_told_apart_from_that_of_others() -> None:
    letter = relay_letter(record(), "a-relay", "refused by the target: http_400", T0)
    assert letter.id == letter.key == f"{WEBHOOKS}:3:1802:a-relay"
    assert (letter.stage, letter.reason) == ("relay", "undelivered")
    assert relay_of(letter) == "a-relay"
    assert relay_of(dead_letter("sink", record(), Unreadable(Reason.TOO_LARGE, ""), T0)) == ""


@pytest.mark.parametrize(
    ("provider", "event", "body", "labels"),
    [
        ("github", "workflow_job", {"workflow_job": {"labels": ["Linux", 7]}}, ["Linux"]),
        ("github", "workflow_job", {"workflow_job": {"labels": []}}, []),
        ("github", "workflow_job", {"workflow_job": {"labels": "x"}}, None),
        ("github", "workflow_job", {"workflow_job": None}, None),
        ("github", "workflow_run", {"workflow_run": {"labels": ["x"]}}, None),
        ("gitea", "workflow_job", {"workflow_job": {"labels": ["ubuntu"]}}, ["ubuntu"]),
        ("gitlab", "job", {"runner": {"tags": ["docker", None]}}, ["docker"]),
        ("gitlab", "job", {"runner": None}, None),
        ("gitlab", "pipeline", {"runner": {"tags": ["docker"]}}, None),
    ],
)
def test_the_labels_of_a_job(provider: str, event: str, body: Any, labels: Any) -> None:
    assert PROVIDERS[provider].labels(event, json.dumps(body).encode()) == labels


@given(st.sampled_from(sorted(PROVIDERS)), st.binary(max_size=30))
def test_no_body_is_too_odd_for_its_labels(provider: str, body: bytes) -> None:
    for event in PROVIDERS[provider].events:
        assert PROVIDERS[provider].labels(event, body) in (None, [])
