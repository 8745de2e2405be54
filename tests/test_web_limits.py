"""What strangers may do to the views: slow and many connections, odd parameters, long lists, long
answers of peers. And what people see: colours that can be read."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pipeline.door import ANSWER_S, HEADER_S, Door, files_limit
from pipeline.exporter import MAX_FLEETS, MAX_SERIES
from pipeline.ledger import Known, Ledger
from pipeline.local.process import LOOPBACK
from pipeline.web import group as group_module
from pipeline.web import part
from pipeline.web.group import Gathered, Group
from pipeline.web.jobs import _wire
from pipeline.web.pages import verdict
from pipeline.web.part import JobQuery
from pipeline.web.server import most_connections
from pipeline.web.turns import Busy, Places, Turn, Turns
from pipeline.windows.panes import Contribution
from tests.support import brokers
from tests.support.brokers import broker
from tests.support.house import House, fake_worker
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue
from topics.models import Clock, Conclusion, JobAttributes, JobFact, Milestone
from topics.tables import JOBS_TABLE

#: When the module's tests begin: what the views call recent is measured from their own now, and a
#: whole run imports all modules long before it comes to the last.
NOW = 0
MINUTE = 60_000


@pytest.fixture(scope="module", autouse=True)
def _now() -> None:
    global NOW  # noqa: PLW0603 - a default argument or a fixture would make each test ask for it
    NOW = int(time.time() * 1000)


def fact(number: int, *, fleet: str = "linux", repo: str = "acme/app", **times: int) -> JobFact:
    """Everything about a job at once."""
    last = max(times.values())
    return JobFact(
        id=f"f{number}",
        source="test",
        occurred_at=last,
        received_at=last,
        key=f"github:github.com:{number}",
        cause="test",
        times={Milestone(name): {Clock.PROVIDER: at} for name, at in times.items()},
        conclusion=Conclusion.SUCCESS if "completed" in times else None,
        job=JobAttributes(repo=repo, pool=fleet),
    )


def ledger_of(facts: Mapping[int, JobFact] | list[JobFact], partition: int = 0) -> Ledger:
    """A ledger that knows the facts, and its table."""
    table: dict[bytes, bytes | None] = {}
    ledger = Ledger(partition, table.get)
    for offset, one in enumerate(facts if isinstance(facts, list) else facts.values()):
        ledger.apply(offset, one)
    table.update(ledger.flush().writes(JOBS_TABLE))
    ledger.written()
    return ledger


def many_fleets(count: int, partition: int = 0) -> Ledger:
    """One queued job in each of so many fleets, each a second older; and a sample each."""
    ledger = Ledger(partition, lambda key: None)
    for n in range(count):
        fleet = f"labels-{n:05d}-" + "x" * 20
        known = Known("queued", fleet, NOW - n * 1000, NOW, None)
        ledger._index.put(f"github:github.com:{partition}-{n}", known)
        ledger._windows.contribute(
            n, 0, Contribution(NOW - NOW % MINUTE, fleet, "queue", 1_000 + n), 1
        )
    ledger.flush()
    return ledger


# -- peers -----------------------------------------------------------------------------------------


async def _peer(answer: bytes, pieces: int, *, cut: bool = False) -> tuple[web.AppRunner, str]:
    """A real server that sends its answer in many pieces, and may break off."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(answer)
        await response.prepare(request)
        size = -(-len(answer) // pieces)
        for number in range(pieces // 2 if cut else pieces):
            await response.write(answer[number * size : (number + 1) * size])
            # The next round of the loop sends the next packet.
            await asyncio.sleep(0.001)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/part/jobs", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, LOOPBACK, 0)
    await site.start()
    return runner, f"http://{LOOPBACK}:{site.port}"


def _gathered(answers: list[tuple[bytes, int, bool]]) -> Gathered:
    async def run() -> Gathered:
        peers = [await _peer(body, pieces, cut=cut) for body, pieces, cut in answers]
        owned = {url: [number + 1] for number, (_, url) in enumerate(peers)}
        group = Group(fake_worker({0: ledger_of([])}, peers=owned))

        async def local(partitions: list[int]) -> dict[str, Any]:
            return {"partitions": partitions, "jobs": []}

        try:
            return await group.gather("/part/jobs", {"state": "any"}, local)
        finally:
            await group.close()
            for runner, _ in peers:
                await runner.cleanup()

    return asyncio.run(run())


def _page(partition: int, jobs: int) -> bytes:
    rows = [{"key": f"github:github.com:{partition}-{n}", "name": "ü" * 300} for n in range(jobs)]
    return json.dumps({"partitions": [partition], "jobs": rows}, ensure_ascii=False).encode()


def test_an_answer_of_a_peer_that_comes_in_many_pieces_is_taken_whole() -> None:
    found = _gathered([(_page(1, 1_000), 60, False), (_page(2, 1_000), 7, False)])
    assert found.incomplete == []
    assert sorted(len(one["jobs"]) for one in found.parts) == [0, 1_000, 1_000]


def test_an_answer_that_breaks_off_or_is_too_long_is_named_not_half_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_module, "PEER_BYTES", 1 << 20)
    found = _gathered([(_page(1, 500), 60, True), (_page(2, 4_000), 60, False)])
    assert [len(one["jobs"]) for one in found.parts] == [0]
    broken, long = sorted(found.incomplete, key=lambda gap: gap["partitions"])
    assert "did not answer" in broken["reason"]
    assert "more than 1 MiB" in long["reason"]


# -- turns -----------------------------------------------------------------------------------------


def test_two_hundred_thousand_jobs_do_not_stop_the_loop() -> None:
    """However long the list, little is done between two turns of the event loop."""
    searched = 0

    def value_of(key: bytes) -> bytes:
        nonlocal searched
        searched += 1
        return b'{"job":{"repo":"Acme/App"}}'

    ledgers = {}
    for partition in range(8):
        ledger = Ledger(partition, value_of)
        ledger._index.known.update(
            (f"github:github.com:{partition}-{n}", Known("queued", f"f{n % 50}", n, 0, None))
            for n in range(25_000)
        )
        ledger.job = lambda key: None  # type: ignore[method-assign]
        ledgers[partition] = ledger
    worker = cast("Any", SimpleNamespace(ledgers=ledgers))
    between: list[int] = []

    class Counting(Turn):
        async def next(self) -> None:
            nonlocal searched
            between.append(searched)
            searched = 0
            await super().next()

    async def look(query: JobQuery) -> tuple[dict[str, Any], int]:
        turn = Counting(asyncio.Lock())
        await turn.begin()
        return await part.jobs(worker, range(8), query, turn), turn.slices

    answer, slices = asyncio.run(look(JobQuery(limit=1_000)))
    assert answer["matched"] == 200_000
    assert slices >= 200_000 // part.SLICE + 1_000 // part.DECODE_SLICE
    answer, slices = asyncio.run(look(JobQuery(limit=1, repo="acme/app")))
    assert answer["matched"] == 200_000
    assert max(between) <= part.SEARCH_SLICE


def test_many_views_at_once_take_one_turn_in_each_round_of_the_loop() -> None:
    rounds: list[int] = []

    async def run() -> None:
        now = 0
        turns = Turns()

        async def view() -> None:
            async with turns.turn() as turn:
                for _ in range(20):
                    rounds.append(now)
                    await turn.next()

        async def fold() -> None:
            nonlocal now
            while True:
                now += 1
                await asyncio.sleep(0)

        folding = asyncio.create_task(fold())
        await asyncio.gather(*(view() for _ in range(10)))
        folding.cancel()

    asyncio.run(run())
    assert len(rounds) == 200
    # The fold came between any two of them.
    assert len(set(rounds)) == 200


def test_a_view_that_is_given_up_gives_its_turn_back() -> None:
    async def run() -> None:
        turns = Turns()

        async def endless() -> None:
            async with turns.turn() as turn:
                while True:
                    await turn.next()

        tasks = [asyncio.create_task(endless()) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(20), turns.turn():
            pass

    asyncio.run(run())


def test_too_many_questions_at_once_are_refused() -> None:
    async def run() -> None:
        places = Places(at_a_time=2, waiting=1)
        release = asyncio.Event()

        async def ask() -> None:
            async with places.place():
                await release.wait()

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(Busy):
            await ask()
        release.set()
        await asyncio.gather(*asking)
        await ask()

    asyncio.run(run())


# -- ten thousand fleets ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded() -> Iterator[House]:
    with House({0: many_fleets(10_000), 1: many_fleets(10, 1)}) as house:
        yield house


def test_ten_thousand_fleets_come_in_pages(crowded: House) -> None:
    seen: list[str] = []
    waits: list[int] = []
    target = "/fleets?limit=1000"
    sizes = []
    counts: dict[str, int] = {}
    while True:
        status, head, body = crowded.raw(target.encode())
        assert status == 200, head
        sizes.append(len(body))
        answer = json.loads(body)
        # And what has no window of its own: beyond the cap of the fold they share one fleet's.
        assert answer["matched"] == 10_001
        assert answer["incomplete"] == []
        seen += [one["fleet"] for one in answer["fleets"]]
        waits += [one["oldest_ms"]["queued"] for one in answer["fleets"]]
        counts |= {
            one["fleet"]: one["families"].get("queue", {"count": 0})["count"]
            for one in answer["fleets"]
        }
        if answer["next"] is None:
            break
        target = f"/fleets?limit=1000&cursor={quote(answer['next'])}"
    assert len(seen) == len(set(seen)) == 10_001
    # Whoever has a window of its own or not: each sample counts once.
    assert sum(counts.values()) == 10_010
    assert counts["other"] == 10_000 - 200
    # The longest wait first. Each page is asked for later, so only within a page.
    assert all(waits[n : n + 1000] == sorted(waits[n : n + 1000], reverse=True)
               for n in range(0, 10_000, 1000))  # fmt: skip
    assert max(sizes) < 1_000_000
    # What both partitions know is one fleet: counts add up.
    both = crowded.get("/fleets?cursor=" + quote(f"{NOW - 10_000}~"))
    assert both[0] == 400
    _, first = crowded.get("/jobs?fleet=" + quote("labels-00003-" + "x" * 20))
    assert first["matched"] == 2


def test_pages_of_many_fleets_for_people_are_small_and_made_in_turns(crowded: House) -> None:
    before = crowded.views.site.turns.given
    status, page = crowded.get("/fleets", accept="text/html")
    assert status == 200
    assert page.count("<tr>") == 201
    assert "Next page" in page
    assert len(page) < 500_000
    # Looking through the fleets and their panes alone takes so many.
    assert (
        crowded.views.site.turns.given - before > 10_000 / part.SEARCH_SLICE + 10_000 / part.SLICE
    )


def test_metrics_of_ten_thousand_fleets_stay_bounded(crowded: House) -> None:
    before = crowded.views.site.turns.given
    status, text = crowded.get("/metrics", accept="text/plain")
    assert status == 200
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(series) <= MAX_SERIES
    fleets = set(re.findall(r'runnerstream_jobs\{fleet="([^"]*)"', text))
    assert 40 < len(fleets) <= MAX_FLEETS + 1
    assert "other" in fleets
    depth = [float(line.rpartition(" ")[2]) for line in text.splitlines()
             if line.startswith("runnerstream_jobs{")]  # fmt: skip
    assert sum(depth) == 10_010
    # Each family once, whole.
    named = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(named) == len(set(named))
    assert "_created" not in text
    assert crowded.views.site.turns.given - before > 10_000 / 500


def test_windows_come_in_pages_whole_and_once() -> None:
    ledgers = {}
    for partition in range(2):
        ledger = ledger_of([], partition)
        for n in range(400):
            at = NOW - NOW % MINUTE - (n // 4) * MINUTE
            ledger._windows.contribute(n, 0, Contribution(at, f"fleet~{n % 4}", "queue", 1_000), 1)
        ledger.flush()
        ledgers[partition] = ledger
    with House(ledgers) as house:
        for size in (60, 300):
            _, whole = house.get(f"/windows?size={size}&from=0&limit=1000")
            assert whole["next"] is None
            assert sum(w["families"]["queue"]["count"] for w in whole["windows"]) == 800
            seen = []
            target = f"/windows?size={size}&from=0&limit=7"
            for _ in range(200):
                _, page = house.get(target)
                seen += page["windows"]
                if page["next"] is None:
                    break
                target = f"/windows?size={size}&from=0&limit=7&cursor={quote(page['next'])}"
            assert seen == whole["windows"]
            where = [(-w["start"], w["fleet"]) for w in seen]
            assert where == sorted(where)


def test_what_is_empty_is_not_shown() -> None:
    """All samples of a fleet went elsewhere: no window of it, no conclusion of 0 jobs."""
    ledger = ledger_of([])
    at = NOW - NOW % MINUTE
    for offset, (fleet, weights) in enumerate({"left": (1, -1), "stays": (1, 1, -1)}.items()):
        for weight in weights:
            ledger._windows.contribute(offset, 0, Contribution(at, fleet, "run", 1_000), weight)
            ledger._windows.contribute(offset, 0, Contribution(at, fleet, "failure", None), weight)
    ledger._windows.contribute(9, 0, Contribution(at, "stays", "success", None), 1)
    ledger._windows.contribute(9, 0, Contribution(at, "stays", "success", None), -1)
    ledger.flush()
    with House({0: ledger}) as house:
        _, answer = house.get(f"/windows?to={NOW + MINUTE}&limit=1")
        assert answer["windows"] == []
        _, answer = house.get(f"/windows?to={NOW + MINUTE}&limit=1&cursor={quote(answer['next'])}")
        (window,) = answer["windows"]
        assert (window["fleet"], window["conclusions"]) == ("stays", {"failure": 1})
        assert answer["next"] is None
        assert [one["fleet"] for one in house.get("/fleets")[1]["fleets"]] == ["stays"]


# -- lists of jobs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    facts = [
        fact(n, queued=NOW - n * MINUTE, repo="Acme/App" if n % 2 else 'we"ird\\/Ünicode')
        for n in range(1, 21)
    ]
    facts += [
        fact(n, queued=NOW - n * MINUTE, started=NOW - n * MINUTE + 9_000,
             completed=NOW - n * MINUTE + 12_000)
        for n in range(100, 120)
    ]  # fmt: skip
    with House({0: ledger_of(facts[::2]), 1: ledger_of(facts[1::2], 1)}, most=32) as running:
        yield running


def numbers(answer: dict[str, Any]) -> list[int]:
    return [int(job["key"].rpartition(":")[2]) for job in answer["jobs"]]


def test_completed_jobs_come_latest_first_behind_the_live_ones(house: House) -> None:
    assert numbers(house.get("/jobs?state=completed")[1]) == list(range(100, 120))
    expected = [*range(20, 0, -1), *range(100, 120)]
    assert numbers(house.get("/jobs?state=any")[1]) == expected
    seen: list[int] = []
    target = "/jobs?state=any&limit=3"
    for _ in range(50):
        _, page = house.get(target)
        seen += numbers(page)
        if page["next"] is None:
            break
        target = f"/jobs?state=any&limit=3&cursor={quote(page['next'])}"
    assert seen == expected


def test_a_peer_is_asked_for_an_actor_only_when_somebody_asks() -> None:
    # One of an earlier release refuses parameters that it does not know.
    assert not {"actor", "trigger"} & set(_wire(JobQuery()))
    assert _wire(JobQuery(actor="ann"))["actor"] == "ann"


def test_a_repository_is_found_in_any_case(house: House) -> None:
    odd = list(range(19, 0, -2))
    for said in ("Acme/App", "acme/app", "ACME/APP"):
        assert numbers(house.get(f"/jobs?repo={said}")[1]) == odd
    assert numbers(house.get("/jobs?repo=" + quote('WE"IRD\\/üNICODE'))[1]) == [n + 1 for n in odd]
    assert numbers(house.get("/jobs?repo=acme/ap")[1]) == []


def test_a_host_with_a_port_is_told_from_the_job_and_found_in_any_case() -> None:
    key = "github:ghe.corp.example:8443:99"
    known = fact(99, queued=NOW - MINUTE).model_copy(update={"key": key})
    with House({0: ledger_of([known])}) as one:
        for asked in (key, "github:GHE.Corp.example:8443:99"):
            status, job = one.get(f"/jobs/{asked}")
            assert status == 200
            job = job.get("job", job)
            assert (job["provider"], job["host"], job["job_id"]) == (
                "github", "ghe.corp.example:8443", "99",
            )  # fmt: skip


def test_run_time_and_verdict_are_shown(house: House) -> None:
    _, page = house.get("/jobs?state=completed&limit=1", accept="text/html")
    assert '<th class="n">Ran</th>' in page
    assert ">3.0 s</td>" in page
    assert ">9.0 s</td>" in page
    assert '<span class="conclusion good">success</span>' in page
    assert {verdict(c.value) for c in Conclusion} == {"good", "bad", "plain"}
    assert verdict("failure") != verdict("success") != verdict("cancelled")


# -- what is asked for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/*", True),
        ("application/json", False),
        ("*/*", False),
        ("", False),
        ("image/png", False),
        ("application/json, text/html;q=0.5", False),
        ("text/html;q=0.5, application/json", False),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("application/json;q=0.1, text/html;q=0.2", True),
        ("text/html;q=0, */*", False),
        ("text/html;q=0", False),
        ("application/json;q=0, */*;q=0.1", True),
        ("text/html; level=1; q=0.3, application/*; q=0.9", False),
        ("application/json, text/html", False),
        ("text/html, application/json", True),
        ("text/html;q=banana, application/json;q=0.9", True),
    ],
)
def test_the_accept_header_is_weighed(house: House, accept: str, html: bool) -> None:
    for target in (b"/jobs", b"/fleets", b"/nothing"):
        _, head, body = house.raw(target, *([f"Accept: {accept}"] if accept else []))
        assert body.startswith(b"<!doctype html>") is html, head
        assert "\r\nVary: Accept\r\n" in head + "\r\n"
    assert house.get("/jobs?format=json", accept="text/html")[1]["jobs"]
    assert "<h1>" in house.get("/jobs?format=html")[1]


KNOWN = {
    "/": (),
    "/jobs": ("state", "fleet", "repo", "actor", "trigger", "age", "limit", "cursor"),
    "/jobs/github:github.com:1": (),
    "/fleets": ("span", "limit", "cursor"),
    "/windows": ("size", "fleet", "from", "to", "limit", "cursor"),
    "/recovery": ("kind", "fleet", "limit", "cursor"),
    "/runners": ("fleet", "state", "limit", "cursor"),
    "/telemetry": ("family", "fleet", "limit", "cursor"),
    "/webhooks": (),
    "/workers": (),
    "/healthz": (),
    "/readyz": ("part",),
    "/metrics": (),
    "/part/jobs": (
        "partitions", "state", "fleet", "repo", "actor", "trigger", "age", "limit", "cursor",
    ),
    "/part/job": ("key",),
    "/part/totals": ("partitions",),
    "/part/fleets": ("partitions", "since"),
    "/part/windows": ("partitions", "size", "fleet", "from", "to", "limit", "cursor"),
    "/part/recovery": ("partitions", "kind", "fleet", "limit", "cursor"),
    "/part/runners": ("partitions", "fleet", "state", "limit", "cursor"),
    "/part/telemetry": ("partitions", "family", "fleet", "limit", "cursor"),
    "/part/webhooks": ("partitions",),
    "/part/worker": ("partitions",),
}  # fmt: skip


@pytest.mark.parametrize("path", KNOWN)
def test_unknown_parameters_are_refused_with_the_known_ones(house: House, path: str) -> None:
    for name in ("stat", "State", "²", "limit ", "x[]"):
        status, answer = house.get(f"{path}?{quote(name)}=1")
        assert status == 400
        assert "unknown query parameter" in answer["error"]
        assert all(known in answer["error"] for known in KNOWN[path])


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/jobs?cursor=%C2%B2~1~x", "cursor: take it from"),
        ("/jobs?cursor=0~%C2%B2~x", "cursor: take it from"),
        ("/jobs?cursor=0~~x", "cursor: take it from"),
        ("/jobs?cursor=7~1~x", "cursor: take it from"),
        ("/jobs?cursor=0~1~", "cursor: take it from"),
        ("/fleets?cursor=%D9%A3~x", "cursor: take it from"),
        ("/windows?cursor=~x", "cursor: take it from"),
        ("/jobs?limit=%D9%A3", "limit: "),
        ("/jobs?limit=1_0", "is not a whole number"),
        ("/jobs?age=%D9%A3", "age: seconds"),
        ("/jobs?age=1e3", "age: seconds"),
        ("/jobs?age=inf", "age: seconds"),
        ("/jobs?limit=5&limit=6", "limit: given more than once"),
        ("/jobs?fleet=a&fleet=b", "fleet: given more than once"),
        ("/jobs?format=xml", "format: 'xml' is not one of json, html"),
        ("/readyz?part=sink", "part: all or fold"),
        ("/windows?from=2&to=1", "from: not later than"),
        ("/part/jobs?partitions=%C2%B2", "partitions: numbers"),
        ("/part/jobs?partitions=-1", "partitions: numbers"),
    ],
)
def test_odd_values_are_refused_with_what_is_wrong(house: House, target: str, says: str) -> None:
    status, answer = house.get(target)
    assert (status, says in answer["error"]) == (400, True), answer


ODD = (
    "", "²", "٣", "1_0", " 1", "-1", "+1", "0", "1e9", "nan", "inf", "\x00", "~", "~~", "0~0~x",
    "1~-5~x", "0~²~x", "9" * 30, "any", "live", "completed", "60", "html", "json", "all", "fold",
    "github:github.com:1", "a" * 3_000, "<b>", "\u202e", "\U0001f600", "%", "%zz",
)  # fmt: skip
odd = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=20),
    st.integers(-(2**70), 2**70).map(str),
)  # fmt: skip
raw = st.one_of(
    odd.map(lambda text: quote(text.encode(errors="surrogatepass"), safe="").encode()),
    # Bytes that are no UTF-8: as they are, and escaped.
    st.binary(max_size=8).map(lambda some: quote(some, safe="").encode()),
    st.binary(max_size=8).map(lambda some: bytes(b for b in some if b > 0x7F)),
)


@given(data=st.data())
def test_no_question_makes_the_views_fail(house: House, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([*KNOWN, "/jobs/", "/nothing"]))
    target = path.encode()
    if path in ("/jobs/", "/nothing"):
        target += data.draw(raw)
    names = st.one_of(st.sampled_from([*KNOWN.get(path, ()), "format"]).map(str.encode), raw)
    given_ = data.draw(st.lists(st.tuples(names, raw), max_size=4))
    if given_:
        target += b"?" + b"&".join(name + b"=" + value for name, value in given_)
    accept = data.draw(st.sampled_from(["text/html", "*/*", ";q=;,/", "text/html;q=²"]))
    status, _, body = house.raw(target, "Accept: " + accept.encode().decode("latin-1"))
    assert status < 500 or (path, status) == ("/readyz", 503), (target, body)
    body.decode()
    assert body or status == 204


def test_a_method_that_is_not_allowed_says_which_are(house: House) -> None:
    status, head, body = house.raw(b"/jobs", method=b"POST")
    assert status == 405
    assert "Allow: GET,HEAD" in head
    assert b"error" in body


def test_a_body_that_does_not_come_keeps_nobody_waiting(house: House) -> None:
    callers = [house.connect() for _ in range(10)]
    for caller in callers:
        caller.sendall(b"POST /part/panes HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
    assert house.get("/part/totals?partitions=0,1")[1]["partitions"] == [0, 1]
    assert callers[0].recv(100).startswith(b"HTTP/1.1 408")
    for caller in callers:
        caller.close()
    status, _, body = house.raw(b"/part/panes", "Content-Length: 0", method=b"POST")
    assert (status, b"the body: " in body) == (400, True)


# -- the door --------------------------------------------------------------------------------------


class _Connection:
    """A protocol and its transport, as the door knows them."""

    def __init__(self) -> None:
        self.transport: Any = self
        self.aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_the_door_shows_out_who_is_silent_first_and_longest() -> None:
    now = 0.0
    door = Door(3, lambda: now)
    silent, idle, busy, late = (_Connection() for _ in range(4))
    for one in (busy, silent, idle):
        door.make_room()
        door.enter(one)
        door.seat(one, one)
        now += 1
    door.asks(busy)
    door.asks(idle)
    door.answered(idle)
    now += 1
    door.make_room()
    door.enter(late)
    door.seat(late, late)
    assert [one.aborted for one in (silent, idle, busy, late)] == [True, False, False, False]
    # Who has gone makes room by itself.
    idle.aborted = True
    door.make_room()
    assert door.evicted == 1
    # Each has its time.
    now += HEADER_S + 0.5
    door.sweep()
    assert (late.aborted, busy.aborted) == (True, False)
    now += ANSWER_S
    door.sweep()
    assert busy.aborted
    assert len(door) == 0


def test_connections_leave_most_files_to_others() -> None:
    for files in (64, 256, 1_024, 65_536, 1 << 30):
        assert 8 <= most_connections(files) <= files / 4
    assert most_connections(1_024) == 256
    assert files_limit() > 0


def test_slow_connections_do_not_keep_others_out(house: House) -> None:
    """Ten times as many as fit: silent ones, half headers, and bodies that never come."""
    said = (
        b"",
        b"GET /jobs HT",
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
        b"GET /jobs?state=any HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    )
    callers: list[socket.socket] = []
    try:
        for number in range(320):
            caller = house.connect()
            callers.append(caller)
            caller.sendall(said[number % len(said)])
            if number % 40 == 39:
                assert house.get("/healthz")[0] == 200
                assert house.get("/jobs?state=any")[1]["matched"] == 40
        assert len(house.door) <= house.door.most
        assert house.door.evicted >= 320 - 2 * house.door.most
    finally:
        for caller in callers:
            caller.close()
    assert house.get("/readyz")[0] in (200, 503)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files in /proc")
def test_a_flood_leaves_the_worker_files_for_its_broker(tmp_path: Path) -> None:
    limit = 256
    limited = (
        "import resource, runpy, sys; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})); "
        "sys.argv = ['runnerstream', 'worker', '--role', 'fold']; "
        "runpy.run_module('pipeline.cli', run_name='__main__')"
    )
    with broker(tmp_path / "broker") as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(app_id="flood"))
        with WorkerProcess(
            running.bootstrap, app_id="flood", command=["-c", limited], max_lag="5"
        ) as worker:
            worker.wait_ready()
            callers: list[socket.socket] = []
            try:
                for _ in range(2 * limit):
                    callers.append(socket.create_connection((LOOPBACK, worker.port), timeout=20))
                    callers[-1].sendall(b"GET /jobs HTTP/1.1\r\nX-Slow: ")
                assert worker.get("/healthz")[0] == 200
                assert worker.get("/readyz")[0] == 200
                assert len(os.listdir(f"/proc/{worker.pid}/fd")) < limit - 100
                if brokers.kind() == "kafka":
                    # The embedded broker would come back without its topics.
                    running.restart()
                    worker.wait(lambda: worker.get("/readyz")[0] == 200, 90, "find its broker")
                assert worker.get("/healthz")[0] == 200
            finally:
                for caller in callers:
                    caller.close()


# -- colours ---------------------------------------------------------------------------------------

STYLE = (Path(part.__file__).parent / "style.css").read_text()


def schemes() -> dict[str, dict[str, str]]:
    """The colours of both schemes, by name."""
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{([^}]*)\}", STYLE)
    )
    return {"light": light, "dark": light | dark}


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""

    def luminance(colour: str) -> float:
        parts = []
        for at in (1, 3, 5):
            c = int(colour[at : at + 2], 16) / 255
            parts.append(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    assert round(contrast("#ffffff", "#000000")) == 21
    colours = schemes()[scheme]
    texts = {"ink", "soft", "link", "good", "bad"}
    for text in texts:
        for ground in ("ground", "raise"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text in ("warn", "bad"):
        assert contrast(colours[text], colours["warn-ground"]) >= 4.5, text
    # Edges of fields, and the marks of states, stand out enough to be seen.
    marks = {name for name in colours if name.startswith("mark-")}
    assert len(marks) == 6
    for name in {"edge", *marks}:
        assert contrast(colours[name], colours["ground"]) >= 3, name
    assert contrast(colours["good"], colours["bad"]) > 1


def test_links_in_text_are_underlined() -> None:
    """Their colour is too near to that of the text around them (WCAG 1.4.1)."""
    underlined = re.findall(r"([^{}]*)\{[^}]*text-decoration: underline", STYLE)
    selectors = {one.strip() for rule in underlined for one in rule.split(",")}
    assert {"p a", "dd a", ".note a"} <= selectors


def test_every_colour_of_the_style_is_a_named_one() -> None:
    """Otherwise the test above would miss it."""
    rules = re.sub(r":root \{[^}]*\}", "", STYLE)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb|hsl|opacity", rules) == []
    used = set(re.findall(r"(?<![-a-z])color: var\(--([a-z-]+)\)", rules))
    assert used <= {"ink", "soft", "link", "good", "bad", "warn"}
