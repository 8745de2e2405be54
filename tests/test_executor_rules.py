"""What executors decide, without a broker: fences, answers, what GitHub is asked, what is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.executor import doer
from pipeline.executor.calls import Caller, Reply, Unreached
from pipeline.executor.doer import Later, Left, Task
from pipeline.executor.fence import Ruling, State, judge, state_of
from pipeline.executor.github import ACTIONS, GitHub, api_of
from pipeline.executor.hand import InHand, Place
from pipeline.executor.hook import Hook, meaning
from pipeline.executor.outcomes import Deeds, ended, started
from pipeline.executor.redeliver import Redeliver
from pipeline.executor.via import Again, Verdict
from sinks.writer import Backoff
from tests.support.receivers import Answer, Receiver, answer
from topics.recovery import Command, CommandKind, Fence, Result, StallKind

NOW = 1_760_000_000_000
KEY = "github:github.com:4711"


def command(kind: CommandKind = CommandKind.REQUEUE, **more: Any) -> Command:
    given_: dict[str, Any] = {
        "id": f"{kind}|{KEY}|1", "source": "runnerstream", "occurred_at": NOW, "received_at": NOW,
        "key": KEY, "command": kind, "fleet": "linux", "job_key": KEY, "attempt": 1, "n": 1,
        "reason": StallKind.ORPHAN, "fence": Fence(claim="c1", rev=3), "expires_at": NOW + 60_000,
        "since": NOW, "opened_at": NOW, "repo": "acme/shop", "run_id": 99, "first_seen": NOW,
    }  # fmt: skip
    return Command(**{**given_, **more})


# --- the fence --------------------------------------------------------------------------------

MATCHING = State("claimed", 3, frozenset({"c1"}))


@pytest.mark.parametrize(
    ("asked", "state", "refused", "unknown"),
    [
        (command(), MATCHING, "", ""),
        (command(), State("claimed", 4, frozenset({"c1"})), "moved_on", ""),
        (command(), State("claimed", 4, frozenset({"c2"})), "claim_changed", ""),
        (command(), State("queued", 4), "claim_changed", ""),
        (command(), State("claimed", 2, frozenset({"c1"})), "", "worker_behind"),
        (command(), State("completed", 3, frozenset({"c1"})), "completed", ""),
        (command(CommandKind.CLOSE), State("completed", 3, frozenset({"c1"})), "", ""),
        (command(CommandKind.RELEASE_CLAIM), State("completed", 3, frozenset({"c1"})), "", ""),
        (command(fence=Fence(rev=3)), State("queued", 3), "", ""),
        # It has been claimed since.
        (command(fence=Fence(rev=3)), MATCHING, "", ""),
        (command(fence=Fence(rev=2)), MATCHING, "moved_on", ""),
    ],
)
def test_the_fence(asked: Command, state: State, refused: str, unknown: str) -> None:
    ruling = judge(asked, state)
    assert (ruling.refused, ruling.unknown) == (refused, unknown)
    assert (ruling.state is None) == bool(refused or unknown)


@given(
    st.integers(0, 5), st.integers(0, 5), st.sampled_from(["", "c1", "c2"]),
    st.frozensets(st.sampled_from(["c1", "c2"])),
    st.sampled_from(["queued", "claimed", "running", "completed"]), st.sampled_from(CommandKind),
)  # fmt: skip
def test_only_what_was_judged_is_hit(
    rev: int, facts: int, claim: str, live: frozenset[str], status: str, kind: CommandKind
) -> None:
    ruling = judge(command(kind, fence=Fence(claim=claim, rev=rev)), State(status, facts, live))
    if not ruling.refused and not ruling.unknown:
        assert facts == rev
        assert not claim or claim in live
        assert status != "completed" or kind in (CommandKind.CLOSE, CommandKind.RELEASE_CLAIM)


@pytest.mark.parametrize(
    "told",
    [
        [], None, {}, {"key": KEY}, {"key": KEY, "status": "queued", "facts": "3", "claims": []},
        {"key": KEY, "status": "queued", "facts": 3}, {"key": KEY, "status": 1, "facts": 3},
        {"key": KEY, "status": "queued", "facts": 3, "claims": [{}]},
        {"key": KEY, "status": "queued", "facts": 3, "claims": ["c1"]},
        {"key": "github:github.com:1", "status": "queued", "facts": 3, "claims": []},
    ],
)  # fmt: skip
def test_what_is_no_state_is_unknown(told: Any) -> None:
    assert state_of(told, KEY) is None


def test_a_state_is_understood_from_a_view_and_from_a_record() -> None:
    claims = [{"handle": "c0", "released_at": 5}, {"handle": "c1", "released_at": None}]
    view = {"key": KEY, "status": "claimed", "facts": 3, "claims": claims, "runner": "vm-1"}
    record = {
        "key": KEY, "status": "claimed", "facts": [7, 8, 9], "runner": {"name": "vm-1"},
        "claims": {"c0": {"released_at": 5}, "c1": {}},
    }  # fmt: skip
    wanted = State("claimed", 3, frozenset({"c1"}), "vm-1")
    assert state_of(view, KEY) == state_of(record, KEY) == wanted


# --- what the log says of a command -----------------------------------------------------------


def test_the_first_in_the_log_holds_a_command() -> None:
    deeds, asked = Deeds(), command()
    first = started(asked, "hook", NOW)
    deeds.add(first, "one", 10.0)
    deeds.add(first, "other", 20.0)
    deed = deeds.get(asked.id)
    assert deed is not None
    assert (deed.holder, deed.heard, deed.ended) == ("one", 10.0, False)
    assert not deed.lapsed(45.0, 50.0, NOW)
    assert deed.lapsed(45.0, 55.0, NOW)
    # Its holder is still at it.
    deeds.add(first, "one", 30.0)
    assert not deed.lapsed(45.0, 55.0, NOW)
    # What was said long ago need not be waited for.
    assert deed.lapsed(45.0, 30.0, NOW + 600_000)
    deeds.add(ended(asked, "hook", NOW, Result.DONE), "one", 31.0)
    assert deed.ended
    deeds.forget(NOW)
    assert len(deeds) == 1
    deeds.forget(NOW + 1)
    assert deeds.get(asked.id) is None


@given(st.permutations(range(8)), st.integers(0, 8))
def test_offsets_are_committed_up_to_the_first_that_is_open(order: list[int], ends: int) -> None:
    hand: InHand[str] = InHand()
    places = [Place("p", offset * 2) for offset in range(8)]
    for place in places:
        hand.take(place)
    hand.reach("p", 17)
    for number in order[:ends]:
        hand.done(places[number])
    still = [number for number in range(8) if number not in order[:ends]]
    due = hand.due()
    assert due == {"p": min(still) * 2 if still else 17}
    hand.committed(due)
    assert hand.due() == {}
    hand.forget_commits()
    assert hand.due() == due
    # Handed out anew: nothing is said about a partition until it is known where it is read.
    hand.moved(places[number] for number in still)
    assert hand.due() == ({"p": min(still) * 2} if still else {})
    for number in still:
        hand.done(places[number])
    assert hand.due() == {}
    hand.reach("p", 20)
    assert hand.due() == {"p": 20}


# --- one attempt ------------------------------------------------------------------------------


class Bench:
    """A doer whose log is a list, whose clock is ours, and whose via and fence say what they are
    told to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.deeds, self.written = Deeds(), list[str]()
        self.ruling = Ruling(MATCHING)
        self.says: list[Verdict | Again | Exception] = [Verdict(Result.DONE)]
        self.acted = 0
        self.name = "test"
        self.never = ""
        self.loses = False
        monkeypatch.setattr(doer, "now_ms", lambda: self.now)
        monkeypatch.setattr(doer, "monotonic", lambda: self.now / 1000)
        self.stopping = threading.Event()
        self.doer = doer.Doer(
            self,
            self,
            self,
            self,
            "me",
            45.0,
            Backoff(1.0, 2.0, 60.0),
            self.stopping,  # type: ignore[arg-type]
        )

    def attempt(self, task: Task) -> Any:
        return self.doer.attempt(task)

    # The via, and the fence.
    def cannot(self, command: Command) -> str:
        if self.never == "fault":
            raise ZeroDivisionError
        return self.never

    def act(self, command: Command, state: State | None) -> Verdict | Again:
        assert state == self.ruling.state
        self.acted += 1
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def check(self, command: Command) -> Ruling:
        return self.ruling

    # The log, and what writes it.
    def get(self, command_id: str) -> Any:
        return self.deeds.get(command_id)

    def holder(self, command_id: str, timeout_s: float) -> str:
        deed = self.deeds.get(command_id)
        assert deed is not None
        return deed.holder

    def outcome(self, outcome: Any, give_up: Callable[[], bool]) -> bool:
        if self.loses and outcome.result is None:
            self.deeds.add(outcome, "faster", self.now / 1000)
        self.deeds.add(outcome, "me", self.now / 1000)
        self.written.append("started" if outcome.result is None else
                            f"{outcome.result} {outcome.reason}".strip())  # fmt: skip
        return True


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_what_never_works_fails_when_it_expires(bench: Bench) -> None:
    task = Task(command())
    bench.says = [Again("http_500"), Again("http_503", 600.0), Again("timeout")] + [
        Again("http_500")] * 20  # fmt: skip
    found = bench.attempt(task)
    pauses = []
    while isinstance(found, Later):
        pauses.append(found.after_s)
        bench.now += int(found.after_s * 1000) + 1
        found = bench.attempt(task)
    assert found == Result.FAILED
    assert bench.written[-1] == "failed http_500"
    # It never is silent for so long that others would take it for dead.
    assert max(pauses) <= 15
    assert bench.written.count("started") >= 3
    assert bench.now >= NOW + 60_000
    assert bench.attempt(task) == "duplicate"


def test_without_a_state_it_fails_and_was_never_begun(bench: Bench) -> None:
    task = Task(command())
    bench.ruling = Ruling(unknown="worker_refused")
    found = bench.attempt(task)
    assert isinstance(found, Later)
    assert found.why == "worker_refused"
    bench.now += 60_000
    assert bench.attempt(task) == Result.FAILED
    assert bench.written == ["failed no_state"]
    assert bench.acted == 0


def test_what_expires_unseen_has_expired(bench: Bench) -> None:
    bench.now += 60_000
    assert bench.attempt(Task(command())) == Result.EXPIRED
    assert bench.written == ["expired"]


def test_who_was_not_the_first_leaves_it(bench: Bench) -> None:
    task = Task(command())
    bench.loses = True
    assert bench.attempt(task) == Later(0.5, "held")
    assert bench.attempt(task) == Later(0.5, "held")
    assert (bench.acted, bench.written) == (0, ["started"])
    # The other is dead: nobody does it, and that is told.
    bench.now += 46_000
    assert bench.attempt(task) == Result.FAILED
    assert (bench.acted, bench.written[-1]) == (0, "failed interrupted")


def test_a_fault_of_ours_ends_the_command_and_nothing_else(bench: Bench) -> None:
    bench.says = [ZeroDivisionError("x")]
    assert bench.attempt(Task(command())) == Result.FAILED
    assert bench.written == ["started", "failed unexpected: ZeroDivisionError"]
    bench.never = "fault"
    assert bench.attempt(Task(command(id="another"))) == Result.CANNOT
    assert bench.written[2:] == ["cannot unexpected: ZeroDivisionError"]


def test_what_can_never_be_done_is_not_begun(bench: Bench) -> None:
    bench.never = "not_for_test"
    bench.ruling = Ruling(unknown="worker_refused")
    assert bench.attempt(Task(command())) == Result.CANNOT
    assert bench.written == ["cannot not_for_test"]


def test_nothing_is_begun_while_stopping(bench: Bench) -> None:
    bench.stopping.set()
    assert bench.attempt(Task(command())) == Left()
    assert (bench.acted, bench.written) == (0, [])


# --- hook -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (200, b"", Verdict(Result.DONE)),
        (204, b"", Verdict(Result.DONE)),
        (200, b"ok", Verdict(Result.DONE)),
        (200, b"[1]", Verdict(Result.DONE)),
        (409, b"", Verdict(Result.REFUSED, "http_409")),
        (410, b"", Verdict(Result.CANNOT, "http_410")),
        (422, b"{}", Verdict(Result.CANNOT, "http_422")),
        (404, b"", Verdict(Result.CANNOT, "http_404")),
        (302, b"", Verdict(Result.CANNOT, "http_302")),
        (429, b"", Again("http_429")),
        (500, b"", Again("http_500")),
        (503, b"<html>", Again("http_503")),
        (200, b'{"result": "refused", "reason": "gone"}', Verdict(Result.REFUSED, "gone")),
        (500, b'{"result": "failed"}', Verdict(Result.FAILED)),
        (200, b'{"result": "expired"}', Verdict(Result.DONE)),
        (409, b'{"result": ["done"]}', Verdict(Result.REFUSED, "http_409")),
        (200, b"[" * 10_000, Verdict(Result.DONE)),
    ],
)
def test_what_a_hook_answers(status: int, body: bytes, wanted: Verdict | Again) -> None:
    assert meaning(Reply(status, body)) == wanted


def test_an_id_of_any_characters_is_a_header() -> None:
    odd = command().model_copy(update={"id": "requeue|a\r\nb é|1"})
    with Receiver(lambda got: answer(200)) as receiver:
        assert Hook(receiver.url, b"s").act(odd, MATCHING) == Verdict(Result.DONE)
        assert receiver.got[0].headers["idempotency-key"] == "requeue|a\\r\\nb \\xe9|1"


def test_where_github_has_its_api() -> None:
    assert api_of("github.com") == "https://api.github.com"
    assert api_of("acme.ghe.com") == "https://api.acme.ghe.com"
    assert api_of("ghe.corp:8443") == "https://ghe.corp:8443/api/v3"


def test_a_redirect_is_not_followed() -> None:
    with Receiver(lambda got: answer(302, Location="/elsewhere")) as receiver:
        said = Hook(receiver.url, b"s").act(command(), MATCHING)
        assert said == Verdict(Result.CANNOT, "http_302")
        assert [got.path for got in receiver.got] == ["/"]


def test_no_answer_says_whether_it_may_have_arrived() -> None:
    call = Caller(0.2, most_bytes=100)

    def how(url: str) -> tuple[str, bool]:
        with pytest.raises(Unreached) as caught:
            call("POST", url, {}, b"x")
        return caught.value.reason, caught.value.sent

    assert how("http://127.0.0.1:1/") == ("refused", False)
    assert how("127.0.0.1") == ("broken", True)
    replies: list[Callable[[], Answer]] = [lambda: None, lambda: (200, b"x" * 1_000, {})]
    with Receiver(lambda got: replies.pop(0)()) as receiver:
        assert how(receiver.url) == ("broken", True)
        assert how(receiver.url) == ("broken", True)


# --- redeliver --------------------------------------------------------------------------------


class Nothing:
    """A log without deliveries; asking it is wrong."""

    def find(self, job_key: str, first_seen: int) -> None:
        raise AssertionError


@pytest.mark.parametrize("kind", CommandKind)
def test_only_a_requeue_is_redelivered(kind: CommandKind) -> None:
    via = Redeliver("http://127.0.0.1:1", b"s", Nothing())
    wanted = "" if kind is CommandKind.REQUEUE else "not_for_redeliver"
    assert via.cannot(command(kind)) == wanted
    assert via.cannot(command(first_seen=None)) == "no_delivery"
    assert via.cannot(command(job_key="gitlab:gitlab.com:1")) == "no_delivery"


# --- github -----------------------------------------------------------------------------------

CANCEL = "POST /repos/acme/shop/actions/runs/99/cancel"
FORCE = "POST /repos/acme/shop/actions/runs/99/force-cancel"
RERUN = "POST /repos/acme/shop/actions/jobs/4711/rerun"
LIST = "GET /repos/acme/shop/actions/runners?name=vm-1"
DELETE = "DELETE /repos/acme/shop/actions/runners/5"
CLOSE = CommandKind.CLOSE
OFFLINE = {"runners": [{"id": 5, "name": "vm-1", "status": "offline", "busy": False}]}
ONLINE = {"runners": [{"id": 5, "name": "vm-1", "status": "online", "busy": False}]}
BUSY = {"runners": [{"id": 5, "name": "vm-1", "status": "offline", "busy": True}]}
LOST = {"reason": StallKind.RUNNER_LOST}
DONE = Verdict(Result.DONE)


@pytest.mark.parametrize(
    ("asked", "allow", "replies", "calls", "wanted"),
    [
        (command(CLOSE), ACTIONS, [answer(202)], [CANCEL], DONE),
        (command(CLOSE), ACTIONS, [answer(409), answer(202)], [CANCEL, FORCE], DONE),
        (command(CLOSE, attempt=2), ACTIONS, [answer(202), answer(202)], [CANCEL, FORCE], DONE),
        (command(CLOSE), ["cancel_run"], [answer(409)], [CANCEL],
         Verdict(Result.CANNOT, "conflict")),
        (command(CLOSE), ["force_cancel_run"], [answer(202)], [FORCE], DONE),
        (command(CLOSE), ACTIONS, [answer(404)], [CANCEL], Verdict(Result.CANNOT, "gone")),
        (command(CLOSE), ACTIONS, [answer(502)], [CANCEL], Again("http_502")),
        (command(), ACTIONS, [answer(201)], [RERUN], DONE),
        (command(), ACTIONS, [answer(403)], [RERUN], Verdict(Result.CANNOT, "forbidden")),
        (command(), ACTIONS, [answer(403, Retry_After="7")], [RERUN], Again("limited", 7.0)),
        (command(), ACTIONS, [answer(403, X_RateLimit_Remaining="0")], [RERUN], Again("limited")),
        (command(), ACTIONS, [answer(301, Location="/x")], [RERUN],
         Verdict(Result.CANNOT, "http_301")),
        (command(), ACTIONS, [answer(401)], [RERUN], Verdict(Result.CANNOT, "unauthorised")),
        (command(), ACTIONS, [None], [RERUN], Verdict(Result.FAILED, "broken")),
        (command(**LOST), ACTIONS, [answer(200, OFFLINE), answer(204), answer(201)],
         [LIST, DELETE, RERUN], DONE),
        (command(**LOST), ["delete_runner"], [answer(200, OFFLINE), answer(204)], [LIST, DELETE],
         DONE),
        (command(**LOST), ACTIONS, [answer(200, ONLINE)], [LIST],
         Verdict(Result.REFUSED, "runner_online")),
        (command(**LOST), ACTIONS, [answer(200, BUSY)], [LIST],
         Verdict(Result.REFUSED, "runner_online")),
        (command(**LOST), ["delete_runner"], [answer(200, {"runners": []})], [LIST],
         Verdict(Result.CANNOT, "runner_unknown")),
        (command(**LOST), ["delete_runner"], [answer(200, [])], [LIST],
         Verdict(Result.CANNOT, "runner_unknown")),
    ],
)  # fmt: skip
def test_what_github_is_asked(
    asked: Command, allow: list[str], replies: list[Answer], calls: list[str], wanted: Any
) -> None:
    left = list(replies)
    with Receiver(lambda got: left.pop(0)) as api:
        via = GitHub(allow, lambda repo: f"token-of-{repo}", base_url=api.url)
        assert via.cannot(asked) == ""
        assert via.act(asked, State("claimed", 3, runner="vm-1")) == wanted
        assert [f"{got.method} {got.path}" for got in api.got] == calls
        told = {got.headers["authorization"] for got in api.got}
        assert told == {"Bearer token-of-acme/shop"}
    assert not left


@pytest.mark.parametrize(
    ("asked", "allow", "why"),
    [
        (command(CLOSE), [], "not_allowed"),
        (command(CLOSE), ["rerun_job", "delete_runner"], "not_allowed"),
        (command(), ["cancel_run"], "not_allowed"),
        (command(CommandKind.RELEASE_CLAIM), list(ACTIONS), "not_for_github"),
        (command(CommandKind.RELEASE_CLAIM, **LOST), ["rerun_job"], "not_allowed"),
        (command(CommandKind.RELEASE_CLAIM, **LOST), list(ACTIONS), ""),
        (command(CommandKind.QUARANTINE), list(ACTIONS), "not_for_github"),
        (command(CommandKind.WAKE_FLEET, job_key=""), list(ACTIONS), "not_for_github"),
        (command(CLOSE, run_id=0), list(ACTIONS), "no_run"),
        (command(repo=""), list(ACTIONS), "no_run"),
        (command(job_key="gitea:code.example:1"), list(ACTIONS), "other_host"),
        # Our token is not for whoever a webhook names.
        (command(job_key="github:evil.example:1"), list(ACTIONS), "other_host"),
    ],
)
def test_what_github_is_not_asked(asked: Command, allow: list[str], why: str) -> None:
    assert GitHub(allow, lambda repo: "t").cannot(asked) == why
