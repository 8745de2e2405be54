"""Scraping: pages of runners, served over real HTTP, become the right events; odd ones none."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError

from pipeline.roles import RoleFailed
from pipeline.roles.scrape import SCRAPE, scrape_of
from pipeline.scrape import Scrape, ScrapeConfig, Target
from pipeline.scrape.fetch import Blind, Fetch, Outcome
from pipeline.scrape.look import Seen
from pipeline.scrape.page import Distribution, Odd, Page, read
from pipeline.settings import Settings
from tests.support import PATIENCE, brokers
from tests.support import telemetry as fold
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue
from topics.events import EVENT, Event
from topics.events.runners import RunnerInfo, RunnerScraped, RunnerStatus

DATA = Path(__file__).parent / "data"
NAMESPACES = ("act_runner", "gitea_runner")
PAGES = {name: (DATA / f"{name}.metrics").read_text(encoding="utf-8") for name in NAMESPACES}
PAGE = PAGES["act_runner"]
Answer = Callable[[BaseHTTPRequestHandler], None]


def plain(text: str, status: int = 200, **headers: str) -> Answer:
    """An answer with this body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = text.encode("utf-8", "surrogateescape")
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


class Runner:
    """A process with a page."""

    def __init__(self) -> None:
        self.answer = plain(PAGE)
        self.asked: list[str] = []
        runner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                runner.asked.append(self.path)
                with suppress(OSError):  # whoever asked has gone
                    runner.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    made.close()


class World:
    """A scraper of one page; what it posted, and its clock."""

    def __init__(self, url: str, **fetch: Any) -> None:
        self.posted: list[Event] = []
        self.down = 0
        self.now = fold.START / 1000
        self.scrape = Scrape(
            ScrapeConfig((Target(url, "f0"),), {}, "test"),
            clock=lambda: self.now, post=self.post, fetch=Fetch(**fetch),
        )  # fmt: skip

    def post(self, events: Sequence[Event]) -> None:
        if self.down:
            self.down -= 1
            raise KafkaTimeoutError
        self.posted += events

    def look(self) -> list[Event]:
        """Look once; what was posted."""
        before = len(self.posted)
        self.scrape.one(self.scrape.looked[0])
        self.now += 15
        return self.posted[before:]

    def outcomes(self) -> dict[str, float]:
        get = self.scrape.metrics.registry.get_sample_value
        found = {each: get("runnerstream_scrapes_total", {"outcome": each}) for each in Outcome}
        return {each.value: n for each, n in found.items() if n}


def grown(text: str, **changed: str) -> str:
    """The page with some values replaced: by the series without its namespace."""
    for series, value in changed.items():
        lines = text.splitlines()
        (at,) = (n for n, line in enumerate(lines) if line.partition(" ")[0].endswith(series))
        lines[at] = f"{lines[at].partition(' ')[0]} {value}"
        text = "\n".join(lines) + "\n"
    return text


def later(text: str) -> str:
    return grown(
        text,
        **{
            'poll_fetch_total{result="task"}': "16",
            'job_total{status="success"}': "11",
            'job_duration_seconds_bucket{le="8192"}': "13",
            'job_duration_seconds_bucket{le="+Inf"}': "14",
            "job_duration_seconds_sum": "16164.5",
            'client_errors_total{method="UpdateLog"}': "5",
            "job_running": "0",
        },
    )


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_page_becomes_the_right_events(runner: Runner, name: str) -> None:
    runner.answer = plain(PAGES[name])
    world = World(runner.url)
    info, status, scraped = world.look()
    where = runner.url.removeprefix("http://").removesuffix("/metrics")
    assert isinstance(info, RunnerInfo)
    assert (info.runner, info.fleet, info.capacity) == (where, "f0", 3)
    assert (info.name, info.runner_version) == {
        "act_runner": ("builder-1", "v0.3.1"), "gitea_runner": ("builder-2", "v1.0.0"),
    }[name]  # fmt: skip
    assert isinstance(status, RunnerStatus)
    assert (status.uptime_ms, status.capacity, status.running) == (3_600_250, 3, 1)
    assert (status.backoff_ms, status.buffer_rows, status.buffer_since) == (8_000, 17, None)
    assert isinstance(scraped, RunnerScraped)
    assert (scraped.polls, scraped.histograms) == ({}, {}), "the first look counts nothing"

    runner.answer = plain(later(PAGES[name]))
    status, scraped = world.look()
    assert isinstance(status, RunnerStatus)
    assert isinstance(scraped, RunnerScraped)
    assert status.running == 0
    assert scraped.polls == {"task": 2}
    assert scraped.jobs == {"success": 1}
    assert scraped.client_errors == {"update_log": 3}
    assert (scraped.log_reports, scraped.state_reports) == ({}, {})
    bounds, counts, total = scraped.histograms["job"]
    assert bounds == tuple(2.0**n for n in range(14))
    assert counts == (*(0,) * 13, 1, 0)
    assert total == 7_000
    # Nothing has grown: how it is, is told; what it counted, now and then.
    assert [each.kind for each in world.look()] == ["runner.status"]
    kinds = Counter(each.kind for _ in range(16) for each in world.look())
    assert kinds == {"runner.status": 16, "runner.scrape": 2}
    assert all(EVENT.validate_json(e.model_dump_json(exclude_none=True)) for e in world.posted)
    assert len({each.id for each in world.posted}) == len(world.posted)
    assert set(runner.asked) == {"/metrics"}


def test_what_the_fold_counts_is_what_the_page_says(runner: Runner) -> None:
    """A process that begins at nothing, then all of the page: bucket by bucket."""
    runner.answer = plain("act_runner_capacity 3\n")
    world = World(runner.url)
    world.look()
    runner.answer = plain(PAGE)
    world.look()
    seen = fold.Seen([*world.posted, *world.posted, fold.tick(20_000)])
    ours = {
        "poll_fetch_duration_seconds": ("runner_poll_seconds", {"fleet": "f0"}),
        "job_duration_seconds": ("runner_task_seconds", {"fleet": "f0"}),
        "report_log_duration_seconds": ("runner_log_report_seconds", {"result": "unknown"}),
        "report_state_duration_seconds": ("runner_state_report_seconds", {"result": "unknown"}),
    }
    page = read(PAGE)
    for name, (metric, labels) in ours.items():
        said = page.histograms[name]
        for bound, number in zip((*said.bounds, float("inf")), said.up_to, strict=True):
            le = "+Inf" if bound == float("inf") else str(bound)
            assert seen.counted(f"{metric}_bucket", le=le, **labels) == number
        assert seen.counted(f"{metric}_sum", **labels) == said.total
    for (metric, label), number in {
        ("runner_polls", "result=empty"): 190, ("runner_polls", "result=error"): 6,
        ("runner_tasks", "result=failure"): 3, ("runner_log_reports", "result=error"): 2,
        ("runner_state_reports", "result=success"): 41,
        ("runner_client_errors", "method=update_log"): 2,
    }.items():  # fmt: skip
        name, _, value = label.partition("=")
        assert seen.counted(f"{metric}_total", fleet="f0", **{name: value}) == number
    levels = {where[0]: n for where, n in seen.levels.items() if where[2:] in ((), ("running",))}
    assert levels["runner_capacity"] == 3
    assert levels["runner_tasks_open"] == 1
    assert levels["runner_backoff_seconds"] == 8
    assert levels["runner_buffer_rows"] == levels["runner_buffer_rows_max"] == 17
    assert "runner_buffer_oldest_seconds" not in levels, "the page does not say it"


@pytest.mark.parametrize(
    "sign",
    [
        {"process_start_time_seconds": "1.763996999e+09"},
        {'poll_fetch_total{result="error"}': "5"},
        {"uptime_seconds": "3"},
    ],
    ids=["start", "counter", "uptime"],
)
def test_a_process_that_started_again_counts_from_nothing(
    runner: Runner, sign: dict[str, str]
) -> None:
    world = World(runner.url)
    world.look()
    runner.answer = plain(grown(PAGE, **sign))
    info, _, scraped = world.look()
    assert info.kind == "runner.info"
    assert isinstance(scraped, RunnerScraped)
    assert scraped.polls["empty"] == 190
    assert scraped.histograms["poll"][1][0] == 100
    assert world.scrape.metrics.registry.get_sample_value("runnerstream_scrape_restarts_total") == 1


def test_what_a_page_leaves_out_once_does_not_begin_anew(runner: Runner) -> None:
    world = World(runner.url)
    world.look()
    half = PAGE[: PAGE.index("# HELP act_runner_poll_fetch_duration")]
    runner.answer = plain(half)
    world.look()
    runner.answer = plain(later(PAGE))
    scraped = world.look()[-1]
    assert isinstance(scraped, RunnerScraped)
    assert scraped.polls == {"task": 2}
    assert set(scraped.histograms) == {"job"}


ODD: dict[str, tuple[Answer, Outcome]] = {
    "html": (plain("<html><body>Sign in</body></html>\n"), Outcome.ODD),
    "empty": (plain(""), Outcome.ODD),
    "another": (plain("node_load1 0.5\n"), Outcome.ODD),
    "cut": (plain(PAGE[:-9]), Outcome.ODD),
    "garbage": (plain('act_runner_info{name="x} 1\n\udcff{{{\n'), Outcome.ODD),
    "json": (plain('{"act_runner_capacity": 1}\n'), Outcome.ODD),
    "packed": (plain(gzip.compress(PAGE.encode()).decode("utf-8", "surrogateescape"),
                     Content_Encoding="gzip"), Outcome.ODD),
    "huge": (plain(PAGE + "x 1\n" * 600_000), Outcome.TOO_LARGE),
    "moved": (plain(PAGE, 302, Location="/other"), Outcome.REFUSED),
    "error": (plain(PAGE, 500), Outcome.REFUSED),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_page_does_no_harm(runner: Runner, name: str) -> None:
    """Nothing is told of it, and then all that grew meanwhile."""
    answer, outcome = ODD[name]
    world = World(runner.url)
    world.look()
    runner.answer = answer
    assert world.look() == []
    assert world.outcomes() == {"read": 1, outcome.value: 1}
    status = world.scrape.status()
    assert (status.ready, list(status.blind)) == (True, [runner.url])
    runner.answer = plain(later(PAGE))
    told = world.look()
    assert [each.kind for each in told] == ["runner.info", "runner.status", "runner.scrape"]
    assert isinstance(told[2], RunnerScraped)
    assert told[2].polls == {"task": 2}
    assert not world.scrape.status().blind


def test_a_page_that_is_cut_on_the_way_is_none(runner: Runner) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(PAGE)))
        handler.end_headers()
        handler.wfile.write(PAGE[: PAGE.index("# HELP go_info")].encode())

    runner.answer = cut
    world = World(runner.url)
    assert world.look() == []
    assert world.outcomes() == {"unreachable": 1}


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_page_that_trickles_ends_in_time(runner: Runner, where: str) -> None:
    gone = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if where == "body" else b"X: "))
        while not gone.wait(0.02):
            handler.wfile.write(b"x")

    runner.answer = trickle
    world = World(runner.url, whole_s=0.5)
    assert world.look() == []
    gone.set()
    assert world.outcomes() == {"too_slow": 1}


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(Blind) as told:
        Fetch()(f"http://127.0.0.1:{port}/metrics")
    assert told.value.outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e300", "-Inf"])
@pytest.mark.parametrize(
    "series",
    ['poll_fetch_total{result="empty"}', 'job_duration_seconds_bucket{le="64"}', "job_running",
     "job_duration_seconds_sum", "uptime_seconds", "capacity", "process_start_time_seconds"],
)  # fmt: skip
def test_a_value_that_cannot_be_is_as_if_it_were_not_there(series: str, value: str) -> None:
    seen = Seen(Target("http://x:1/metrics", "f0"))
    seen.look(read(PAGE), fold.START)
    events, is_new = seen.look(read(grown(later(PAGE), **{series: value})), fold.START + 1)
    assert not is_new
    (scraped,) = (each for each in events if isinstance(each, RunnerScraped))
    assert scraped.polls == {"task": 2}
    assert scraped.jobs == {"success": 1}
    events, is_new = seen.look(read(later(PAGE)), fold.START + 2)
    assert not is_new
    assert all(isinstance(e, RunnerStatus) or not getattr(e, "polls", {}) for e in events)


def test_types_are_not_asked_for_and_names_not_believed() -> None:
    text = PAGE.replace(" counter", " gauge").replace(" histogram", " untyped")
    assert read(text) == read(PAGE)
    odd = PAGE.replace("builder-1", "a\\n\\n\\\\b" + "c" * 900).replace("v0.3.1", "\u202e\x07")
    seen = Seen(Target("http://x:1/metrics", "f0"))
    info = seen.look(read(odd), fold.START)[0][0]
    assert isinstance(info, RunnerInfo)
    assert info.name == "a\\b" + "c" * 197
    assert info.runner_version == ""


def test_a_page_with_both_names_counts_once() -> None:
    assert read(PAGE + PAGES["gitea_runner"]) == read(PAGES["gitea_runner"])
    with pytest.raises(Odd):
        read("act_runner 1\n")


COUNTS = st.dictionaries(st.sampled_from(["task", "empty", "error"]), st.integers(0, 9))


@given(steps=st.lists(st.tuples(COUNTS, st.booleans()), max_size=12))
def test_all_that_grew_is_told_once(steps: list[tuple[dict[str, int], bool]]) -> None:
    """Processes that count, and start again; each look is told."""
    seen = Seen(Target("http://x:1/metrics", "f0"))
    counts: Counter[str] = Counter({"empty": 7})
    truth: Counter[str] = Counter()
    told: Counter[str] = Counter()
    boot = 1.0

    def page() -> Page:
        n = sum(counts.values())
        held = {"poll_fetch_duration_seconds": Distribution((1.0,), (0, n), n * 2.0)}
        return Page(process_start=boot, counters={"poll_fetch_total": dict(counts)},
                    histograms=held)  # fmt: skip

    seen.look(page(), fold.START)
    for n, (more, starts_again) in enumerate(steps, 1):
        if starts_again:
            boot += 10
            counts.clear()
        counts.update(more)
        truth.update(more)
        truth["values"] += sum(more.values())
        for each in seen.look(page(), fold.START + n * 15_000)[0]:
            if isinstance(each, RunnerScraped):
                told.update({result.value: number for result, number in each.polls.items()})
                told["values"] += sum(sum(grew[1]) for grew in each.histograms.values())
    assert +told == +truth


def test_while_kafka_is_away_the_same_is_sent_again_and_nothing_is_looked_at(
    runner: Runner,
) -> None:
    world = World(runner.url)
    world.look()
    runner.answer = plain(later(PAGE))
    world.down = 3
    asked = len(runner.asked)
    assert world.look() == world.look() == world.look() == []
    assert len(runner.asked) == asked + 1
    assert not world.scrape.status().ready
    told = world.look()
    assert [each.kind for each in told] == ["runner.status", "runner.scrape"]
    assert told[0].occurred_at == fold.START + 15_000, "it is what was seen then"
    assert world.scrape.status().ready


def test_it_goes_on_until_told_to_stop(runner: Runner) -> None:
    """All pages, one of them odd, each at its own pace."""
    posted: list[Event] = []
    config = ScrapeConfig(
        (Target(runner.url, "f0"), Target("http://127.0.0.1:1/metrics", "f1")), {}, "test", 0.05
    )
    scrape = Scrape(config, post=posted.extend)
    stop = threading.Event()
    running = threading.Thread(target=scrape.run, args=(stop,))
    running.start()
    deadline = time.monotonic() + PATIENCE * 60
    while sum(each.kind == "runner.status" for each in posted) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list(scrape.status().blind) == ["http://127.0.0.1:1/metrics"]
    stop.set()
    running.join(PATIENCE * 60)
    assert not running.is_alive()
    assert {each.fleet for each in posted} == {"f0"}


def test_it_is_a_role_of_a_worker_that_is_asked_for_it(runner: Runner, tmp_path: Path) -> None:
    with brokers.broker(tmp_path / "broker") as broker:
        apply({"bootstrap_servers": broker.bootstrap}, catalogue(partitions=2))
        with WorkerProcess(
            broker.bootstrap, role="scrape", partitions=2, log=tmp_path / "scrape.log",
            directory=tmp_path, scrape_act_runners=f"linux={runner.url}", scrape_interval=1,
        ) as process:  # fmt: skip
            process.wait_ready()
            told = "runnerstream_scrape_events_total"
            process.wait(lambda: (process.metric(told) or 0) >= 4, 60, "look twice")
            assert process.metric("runnerstream_scrape_targets") == 1
            assert process.metric("runnerstream_scrape_blind") == 0
            assert process.stop() == 0, process.tail()
    assert not SCRAPE.wanted(Settings(scrape_act_runners=f"linux={runner.url}"))


def test_settings_name_pages_and_fleets() -> None:
    made = scrape_of(Settings(scrape_act_runners="http://a:1, big=https://b:2/m?x=1,http://a:1",
                              scrape_fleet="small"))  # fmt: skip
    assert [(each.url, each.fleet, each.runner) for each in made.config.targets] == [
        ("http://a:1/metrics", "small", "a:1"),
        ("https://b:2/m?x=1", "big", "b:2/m"),
    ]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "no page is named"),
        ("http://a:1", "belongs to no fleet"),
        ("f=ftp://a", "no URL"),
        ("f=http://a:x", "no URL"),
        ("f=http://user:secret@a:1", "has a login"),
        (f"{'f' * 300}=http://a:1", "200 characters"),
        ("f=http://" + "a" * 400, "no URL"),
    ],
)
def test_settings_that_do_not_do(told: str, why: str) -> None:
    with pytest.raises(RoleFailed, match=why) as failed:
        scrape_of(Settings(scrape_act_runners=told))
    assert "secret" not in str(failed.value)
