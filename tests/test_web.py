"""The views of real workers on a real broker: JSON and HTML, paging, two workers answering for
each other, strangers' names, and readiness with its reasons."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from markupsafe import escape

from pipeline.cli import main
from pipeline.faust_safe.outbox import partition_of
from pipeline.web.pages import Pages, ranges, safe_link
from tests.support.brokers import Broker, broker
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue
from topics.models import Delivery, LifecycleEvent, LifecycleKind, RunnerRef, job_key, run_key
from topics.producer import Producer

#: When the fixture below began, in whole seconds: not when the file was read, which in a long run
#: may be a quarter of an hour before.
NOW = 0
EVIL = "<script>alert(1)</script>\u202e"
JOBS = 30


def iso(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))


def delivery(number: int, action: str, **changes: Any) -> Delivery:
    """A workflow_job delivery as GitHub sends it. The job was created ``number`` minutes ago."""
    created = NOW - number * 60_000
    job = {
        "id": number,
        "run_id": 9_000 + number,
        "run_attempt": 1,
        "name": f"build ({number})",
        "workflow_name": "CI",
        "head_branch": "main",
        "head_sha": "0" * 40,
        "html_url": f"https://github.com/acme/app/actions/runs/1/job/{number}",
        "status": action,
        "conclusion": None,
        "created_at": iso(created),
        "started_at": iso(created),
        "completed_at": None,
        "labels": ["self-hosted", "Linux", "even" if number % 2 == 0 else "odd"],
        "runner_name": None,
        "runner_id": None,
        "steps": [],
    } | changes
    body = {
        "action": action,
        "workflow_job": job,
        "repository": {"full_name": "acme/app" if number % 3 else "acme/tools"},
    }
    return Delivery(
        id=f"{action}-{number}",
        kind="github.workflow_job",
        source="github",
        occurred_at=created,
        received_at=NOW,
        key=job_key("github", "github.com", number),
        payload=json.dumps(body),
    )


def workflow_run(number: int, who: str, pull_requests: list[int]) -> Delivery:
    """A workflow_run delivery of the run of a job: by whom, by what and from where it is."""
    body = {
        "action": "in_progress",
        "workflow_run": {
            "id": 9_000 + number,
            "run_attempt": 1,
            "status": "in_progress",
            "event": "pull_request" if pull_requests else who,
            "actor": {"login": who},
            "pull_requests": [{"number": each} for each in pull_requests],
            "head_repository": {"full_name": f"{who}/app"},
        },
        "repository": {"full_name": "acme/app"},
    }
    return Delivery(
        id=f"run-{number}",
        kind="github.workflow_run",
        source="github",
        occurred_at=NOW,
        received_at=NOW,
        key=run_key("github", "github.com", 9_000 + number),
        payload=json.dumps(body),
    )


def completed(
    number: int, queued_s: int, ran_s: int, steps: list[dict[str, Any]] | None = None
) -> list[Delivery]:
    started = NOW - number * 60_000 + queued_s * 1000
    times = {"started_at": iso(started), "runner_name": "r1", "runner_id": 7}
    return [
        delivery(number, "queued"),
        delivery(number, "in_progress", **times),
        delivery(
            number,
            "completed",
            **times,
            completed_at=iso(started + ran_s * 1000),
            conclusion="success",
            steps=steps or [],
        ),
    ]


def step(number: int, name: str, at: int | None, ran_s: int | None) -> dict[str, Any]:
    """A step that started ``at``, Unix milliseconds, and ran so long."""
    ended = None if at is None or ran_s is None else iso(at + ran_s * 1000)
    return {
        "number": number,
        "name": name,
        "conclusion": None if ended is None else "success",
        "started_at": None if at is None else iso(at),
        "completed_at": ended,
    }


def steps_of_52() -> list[dict[str, Any]]:
    """Told in no order; the last one has no end, and one ended before it began."""
    began = NOW - 52 * 60_000 + 10_000
    return [
        step(3, "Run make test", began + 5_000, 50),
        step(1, "Set up job", began, 5),
        step(7, "Odd clocks", began + 55_000, -20),
        step(9, "Complete job", began + 60_000, None),
    ]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(app_id="web"))
        yield running


@pytest.fixture(scope="module")
def workers(kafka: Broker) -> Iterator[tuple[WorkerProcess, WorkerProcess]]:
    """Two workers that share the partitions and know all jobs."""
    global NOW  # noqa: PLW0603
    NOW = int(time.time() * 1000) // 1000 * 1000
    with (
        WorkerProcess(kafka.bootstrap, app_id="web", compat="tuist,tuist") as one,
        WorkerProcess(kafka.bootstrap, app_id="web", compat="tuist") as two,
    ):
        with Producer(kafka.bootstrap) as producer:
            for number in range(1, JOBS + 1):
                producer.post(delivery(number, "queued"))
            hostile = {"name": EVIL, "html_url": "javascript:alert(1)"}
            steps = [step(1, EVIL, None, None), step(2, "x" * 500, None, None)]
            producer.post(delivery(40, "queued", **hostile, steps=steps))
            producer.post(workflow_run(40, EVIL, []))
            producer.post(workflow_run(52, "ann", [77]))
            for number in range(50, 54):
                for each in completed(number, 10, 60, steps_of_52() if number == 52 else None):
                    producer.post(each)
            producer.post(
                LifecycleEvent(
                    id="claim-1",
                    kind=LifecycleKind.JOB_CLAIMED,
                    source="dispatcher",
                    occurred_at=NOW,
                    received_at=NOW,
                    key=job_key("github", "github.com", 1),
                    job_id="1",
                    claim="lease-1",
                    runner=RunnerRef(name="pod-1"),
                    fleet="pool-a",
                )
            )
        for worker in (one, two):
            worker.wait_ready()
        one.wait(lambda: _settled(one), 60, "know all jobs and its peer")
        yield one, two


def _settled(worker: WorkerProcess) -> bool:
    _, jobs = worker.get("/jobs?state=any&limit=1000")
    _, group = worker.get("/workers")
    # The fleets of a partition are loaded after its jobs.
    _, runners = worker.get("/runners")
    return (
        jobs["matched"] == JOBS + 5
        and sum(job["status"] == "completed" for job in jobs["jobs"]) == 4
        and sum(job["status"] == "claimed" for job in jobs["jobs"]) == 1
        and sum(bool(job["trigger"]) for job in jobs["jobs"]) == 2
        and all(each["assigned"] for each in group["workers"])
        and len(group["workers"]) == 2
        and not jobs["incomplete"]
        and not runners["incomplete"]
    )


def keys_of(answer: dict[str, Any]) -> list[str]:
    return [job["key"] for job in answer["jobs"]]


VIEWS = [
    "/",
    "/jobs",
    "/jobs?state=any",
    "/jobs/github:github.com:1",
    "/jobs/github:github.com:50",
    "/fleets",
    "/fleets?span=3600",
    "/windows",
    "/windows?size=60&fleet=even,linux",
    "/windows?size=3600",
    "/recovery",
    "/recovery?kind=orphan&fleet=even,linux",
    "/runners",
    "/runners?state=idle,busy&fleet=even,linux",
    "/telemetry",
    "/telemetry?family=pools&fleet=even,linux",
    "/webhooks",
    "/workers",
]


@pytest.mark.parametrize("path", VIEWS)
def test_every_view_answers_programs_and_people(
    workers: tuple[WorkerProcess, WorkerProcess], path: str
) -> None:
    for worker in workers:
        status, answer = worker.get(path)
        assert status == 200
        assert isinstance(answer, dict)
        assert not answer.get("incomplete")
        status, page = worker.get(path, accept="text/html,*/*;q=0.8")
        assert status == 200
        assert page.startswith("<!doctype html>")
        assert "<h1>" in page
        assert "<script" not in page


def test_both_workers_answer_the_same_for_every_job(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    one, two = workers
    owned = {w.url: set(w.get("/part/worker")[1]["partitions"]) for w in workers}
    assert owned[one.url] | owned[two.url] == set(range(8))
    assert not owned[one.url] & owned[two.url]
    _, listed = one.get("/jobs?state=any&limit=1000")
    for key in keys_of(listed):
        first, second = one.get(f"/jobs/{key}")[1], two.get(f"/jobs/{key}")[1]
        for answer in (first, second):
            # The first words say how long ago.
            del answer["now"], answer["age_ms"], answer["explanation"][0]
        assert first == second
        assert first["partition"] == partition_of(key.encode(), 8)
        assert first["partition"] in owned[first["worker"]]
    # Lists and sums, too.
    assert keys_of(two.get("/jobs?state=any&limit=1000")[1]) == keys_of(listed)
    for path in ("/fleets?span=7200", "/windows?size=60&from=0"):
        mine, theirs = one.get(path)[1], two.get(path)[1]
        for answer in (mine, theirs):
            for name in ("now", "to"):
                answer.pop(name, None)
            for fleet in answer.get("fleets", ()):
                del fleet["oldest_ms"]
        assert mine == theirs


def test_a_job_tells_where_each_time_comes_from(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    _, job = workers[0].get("/jobs/github:github.com:50")
    assert job["status"] == "completed"
    assert job["timings"]["queue"] == {
        "ms": 10_000, "missing": None, "start_clock": "provider", "end_clock": "provider",
        "clamped_ms": 0,
    }  # fmt: skip
    assert job["timings"]["claim_to_start"]["missing"] == "no_claim"
    assert {"queued", "started", "completed"} <= {
        moment["what"] for moment in job["timeline"] if moment["used"]
    }
    assert job["timeline"] == sorted(job["timeline"], key=lambda moment: moment["at"])
    _, claimed = workers[0].get("/jobs/github:github.com:1")
    assert claimed["status"] == "claimed"
    assert claimed["fleet"] == "pool-a"
    assert claimed["claims"][0]["runner"] == "pod-1"
    _, page = workers[0].get("/jobs/github:github.com:1", accept="text/html")
    assert "lease-1" in page
    assert "not over yet" in page


def test_a_job_tells_who_started_it_by_what_and_from_where(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    said = {"actor": "ann", "trigger": "pull_request", "pull_request": 77, "head_repo": "ann/app"}
    blank = {"actor": "", "trigger": "", "pull_request": 0, "head_repo": ""}
    for worker in workers:
        _, job = worker.get("/jobs/github:github.com:52")
        _, listed = worker.get("/jobs?state=any&limit=1000")
        [row] = [each for each in listed["jobs"] if each["key"] == job["key"]]
        for answer in (job, row):
            assert {name: answer[name] for name in said} == said
        _, other = worker.get("/jobs/github:github.com:50")
        assert {name: other[name] for name in blank} == blank
        _, page = worker.get("/jobs/github:github.com:52", accept="text/html")
        assert '<dd><bdi>ann/app</bdi> <span class="soft">a fork</span></dd>' in page
        assert "<dd>#77</dd>" in page
        _, page = worker.get("/jobs?actor=ann&state=any", accept="text/html")
        assert '<td><bdi>ann</bdi> <span class="soft"><bdi>pull_request</bdi></span></td>' in page
        assert 'name="actor" value="ann"' in page


def test_a_job_shows_its_steps_by_number_and_one_without_shows_none(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    began = NOW - 52 * 60_000 + 10_000
    for worker in workers:
        _, job = worker.get("/jobs/github:github.com:52")
        told = [(s["number"], s["name"], s["conclusion"], s["started_at"]) for s in job["steps"]]
        assert told == [
            (1, "Set up job", "success", began),
            (3, "Run make test", "success", began + 5_000),
            (7, "Odd clocks", "success", began + 55_000),
            (9, "Complete job", None, began + 60_000),
        ]
        # What is not over, or whose clocks contradict each other, has no duration.
        assert [s["ms"] for s in job["steps"]] == [5_000, 50_000, None, None]
        _, page = worker.get("/jobs/github:github.com:52", accept="text/html")
        names = re.findall(r'<td class="n">(\d+)</td><td><bdi>([^<]*)</bdi></td>', page)
        assert names == [(str(number), name) for number, name, *_ in told]
        assert '<td class="n">50.0 s</td>' in page
        _, other = worker.get("/jobs/github:github.com:50")
        assert other["steps"] == []
        _, page = worker.get("/jobs/github:github.com:50", accept="text/html")
        assert "<h2>Steps</h2>" not in page


def test_a_job_is_explained_alike_by_the_command_and_its_page(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    held = (
        'Claim "lease-1" ("pod-1") holds it since ',
        "It waits until its dispatcher mints a runner.",
    )
    for worker in workers:
        result = CliRunner().invoke(main, ["explain", "1", "--url", worker.url])
        assert result.exit_code == 0, result.output
        _, page = worker.get("/jobs/github:github.com:1", accept="text/html")
        for words in ("Why it is claimed", *held):
            assert words in result.stdout
            assert escape(words) in page
        told = CliRunner().invoke(main, ["explain", "1", "--json", "--url", worker.url])
        answer = json.loads(told.stdout)
        assert (answer["key"], answer["status"]) == ("github:github.com:1", "claimed")
        assert [each["heading"] for each in answer["explanation"]][:3] == [
            "In short", "Why it is claimed", "What is odd or missing",
        ]  # fmt: skip
        # Of a stranger's name nothing reaches the terminal.
        result = CliRunner().invoke(main, ["explain", "40", "--url", worker.url])
        assert "<script>alert(1)</script>" in result.stdout
        assert all(c.isprintable() or c == "\n" for c in result.stdout)
        result = CliRunner().invoke(main, ["explain", "999999", "--url", worker.url])
        assert result.exit_code == 1
        assert "no job github:github.com:999999 is known" in result.output
        assert "of another host give the key" in result.output


def test_a_job_that_nobody_explains_has_its_page(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    # As a peer of an earlier release answers.
    _, answer = workers[0].get("/jobs/github:github.com:50")
    assert answer.pop("explanation")

    async def pause() -> None: ...

    page = asyncio.run(
        Pages().render(
            "job.html", pause, path="/", answer=answer, reasons=[], missed=[], version="1"
        )
    )
    assert b"<h2>Timings</h2>" in page
    assert b"Why it is" not in page


def test_pages_hold_every_job_once_oldest_first(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    for worker in workers:
        _, whole = worker.get("/jobs?limit=1000")
        seen: list[str] = []
        query = "limit=7"
        while True:
            _, page = worker.get(f"/jobs?{query}")
            seen += keys_of(page)
            assert page["matched"] == JOBS + 1
            if page["next"] is None:
                break
            query = f"limit=7&cursor={quote(page['next'])}"
        assert seen == keys_of(whole)
        assert len(set(seen)) == JOBS + 1
        since = [job["since"] for job in whole["jobs"]]
        assert since == sorted(since)
    _, page = workers[0].get("/jobs?limit=7", accept="text/html")
    link = re.search(r'href="(/jobs\?[^"]*cursor=[^"]*)"', page)
    assert link is not None
    _, following = workers[0].get(link.group(1).replace("&amp;", "&"), accept="text/html")
    assert "First page" in following


def test_filters(workers: tuple[WorkerProcess, WorkerProcess]) -> None:
    one, two = workers

    def listed(query: str) -> list[int]:
        _, answer = two.get(f"/jobs?limit=1000&{query}")
        return sorted(int(key.rpartition(":")[2]) for key in keys_of(answer))

    assert listed("state=completed") == [50, 51, 52, 53]
    assert listed("state=claimed") == [1]
    assert listed("state=claimed,completed") == [1, 50, 51, 52, 53]
    assert listed("state=claimed&state=completed") == [1, 50, 51, 52, 53]
    assert listed("fleet=pool-a") == [1]
    assert listed("fleet=even,linux") == [*range(2, 31, 2), 40]
    assert listed("repo=acme/tools") == list(range(3, 31, 3))
    assert listed("repo=ACME/Tools") == list(range(3, 31, 3))
    assert listed("repo=acme/tools&fleet=linux,odd") == [3, 9, 15, 21, 27]
    assert listed("repo=acme/to") == []
    assert listed("state=any&actor=ann") == listed("state=any&actor=ANN") == [52]
    assert listed("state=any&trigger=pull_request&repo=acme/app") == [52]
    assert listed("actor=ann") == listed("state=any&actor=ann&trigger=push") == []
    assert listed("actor=" + quote(EVIL)) == [40]
    since_made = round(time.time() - NOW / 1000)
    assert listed(f"age={20.5 * 60 + since_made}&state=queued") == [*range(21, 31), 40]
    assert one.get("/jobs?repo=acme/tools")[1]["matched"] == 10


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/jobs?state=asleep", 400, "'asleep' is not one of any, live, waiting"),
        ("/jobs?age=soon", 400, "age: seconds"),
        ("/jobs?age=-1", 400, "not less than 0"),
        ("/jobs?age=nan", 400, "age: seconds"),
        ("/jobs?limit=0", 400, "limit: between 1 and 1000"),
        ("/jobs?cursor=x", 400, "cursor: take it from"),
        ("/windows?size=90", 400, "size: one of 60, 300, 3600"),
        ("/windows?from=yesterday", 400, "'yesterday' is not a whole number"),
        ("/jobs/42", 400, "is not a job key"),
        ("/jobs/github:github.com:999999", 404, "no job github:github.com:999999 is known"),
        ("/nothing", 404, "there is no /nothing here"),
    ],
)
def test_what_is_wrong_is_said(
    workers: tuple[WorkerProcess, WorkerProcess], path: str, status: int, says: str
) -> None:
    for worker in workers:
        found, answer = worker.get(path)
        assert (found, says in answer["error"]) == (status, True), answer
        found, page = worker.get(path, accept="text/html")
        assert found == status
        assert "<!doctype html>" in page


def test_names_of_strangers_are_text(workers: tuple[WorkerProcess, WorkerProcess]) -> None:
    one, _ = workers
    for path in ("/jobs", "/jobs/github:github.com:40", "/jobs?fleet=" + quote(EVIL)):
        _, page = one.get(path, accept="text/html")
        assert "<script" not in page
        assert "javascript:" not in page
    _, page = one.get("/jobs/github:github.com:40", accept="text/html")
    assert "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;" in page
    # Who started it, by what, from where, and the first step: each is text and keeps its direction.
    assert page.count("<bdi>&lt;script&gt;alert(1)&lt;/script&gt;") == 5
    job = one.get("/jobs/github:github.com:40")[1]
    assert (job["name"], job["actor"], job["trigger"]) == (EVIL, EVIL, EVIL)
    assert (job["steps"][0]["name"], len(job["steps"][1]["name"])) == (EVIL, 128)


def test_fleets_and_windows_have_the_right_numbers(
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    one, _ = workers
    _, answer = one.get("/fleets?span=7200")
    fleets = {fleet["fleet"]: fleet for fleet in answer["fleets"]}
    assert fleets["even,linux"]["jobs"]["queued"] == 16
    assert fleets["even,linux"]["jobs"]["completed"] == 2
    queue = fleets["even,linux"]["families"]["queue"]
    assert (queue["count"], queue["sum_ms"]) == (2, 20_000)
    assert abs(queue["p50_ms"] - 10_000) <= 100
    oldest = fleets["even,linux"]["oldest_ms"]["queued"]
    assert 40 * 60_000 <= oldest <= 60 * 60_000
    _, answer = one.get("/windows?size=60&from=0")
    assert answer["incomplete"] == []
    assert len(answer["windows"]) == 8
    started = sum(w["families"].get("queue", {"count": 0})["count"] for w in answer["windows"])
    ended = sum(sum(w["conclusions"].values()) for w in answer["windows"])
    assert (started, ended) == (4, 4)
    assert all(window["open"] for window in answer["windows"])


def test_health_metrics_and_workers(workers: tuple[WorkerProcess, WorkerProcess]) -> None:
    for worker in workers:
        assert worker.get("/healthz")[0] == 200
        status, ready = worker.get("/readyz")
        assert (status, ready["ready"], ready["reasons"]) == (200, True, [])
        assert ready["clickhouse"] == "not configured"
        _, metrics = worker.get("/metrics", accept="text/plain")
        assert "runnerstream_ready 1.0" in metrics
        assert 'runnerstream_consumer_lag_records{topic="runners.jobs"}' in metrics
        assert re.search(r"runnerstream_tick_lag_seconds [0-9.]+", metrics)
        assert 'runnerstream_records_missed_total{topic="runners.webhooks"} 0.0' in metrics
        assert ready["missed"] == []
    # Each tells of its own partitions, by Tuist's names as by ours.
    pages = [worker.get("/metrics/compat", accept="text/plain")[1] for worker in workers]
    queued = re.findall(r"^tuist_runners_queue_length\S* (\d+)$", "\n".join(pages), re.MULTILINE)
    assert sum(map(int, queued)) == JOBS
    _, group = workers[0].get("/workers")
    assert group["workers"][0]["worker"] == workers[0].url
    assert {each["pid"] for each in group["workers"]} == {w.pid for w in workers}


def test_a_worker_that_hangs_is_named(workers: tuple[WorkerProcess, WorkerProcess]) -> None:
    one, two = workers
    _, listed = one.get("/jobs?state=any&limit=1000")
    theirs = next(key for key in keys_of(listed) if one.get(f"/jobs/{key}")[1]["worker"] == two.url)
    two.signal(signal.SIGSTOP)
    try:
        status, answer = one.get("/jobs?state=any&limit=1000")
        assert status == 200
        assert [gap["worker"] for gap in answer["incomplete"]] == [two.url]
        assert "did not answer within" in answer["incomplete"][0]["reason"]
        assert 0 < answer["matched"] < listed["matched"]
        status, answer = one.get(f"/jobs/{theirs}")
        assert status == 503
        assert two.url in answer["error"]
        _, page = one.get("/fleets", accept="text/html")
        assert "Incomplete" in page
    finally:
        two.signal(signal.SIGCONT)
    # It may have been thrown out of its group meanwhile, and comes back.
    one.wait(lambda: _settled(one), 60, "get its peer back")
    one.wait_ready()
    two.wait_ready()


def test_readiness_names_what_is_wrong(tmp_path: Path) -> None:
    with broker(tmp_path / "broker") as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(app_id="sick"))
        # Nothing listens at port 1.
        url = "clickhouse://somebody:s3cret@127.0.0.1:1/nowhere"
        with WorkerProcess(running.bootstrap, app_id="sick", clickhouse=url, max_lag="3") as worker:

            def codes() -> set[str]:
                status, ready = worker.get("/readyz")
                assert status == (200 if ready["ready"] else 503)
                return {reason["code"] for reason in ready["reasons"]}

            worker.wait(lambda: "clickhouse" in codes(), 30, "miss ClickHouse")
            worker.wait(lambda: worker.get("/readyz?part=fold")[0] == 200, 30, "be ready itself")
            _, ready = worker.get("/readyz")
            texts = " ".join(reason["text"] for reason in ready["reasons"])
            assert re.search(r"ClickHouse unreachable for \d+ s: .*127\.0\.0\.1:1", texts)
            assert "s3cret" not in json.dumps(ready) + worker.tail(1000)
            running.kill()
            worker.wait(lambda: {"broker", "lagging"} <= codes(), 60, "miss the broker")
            texts = " ".join(r["text"] for r in worker.get("/readyz")[1]["reasons"])
            assert f"Kafka at {running.bootstrap} unreachable for" in texts
            assert worker.get("/healthz")[0] == 200
            assert "runnerstream_ready 0.0" in worker.get("/metrics", accept="text/plain")[1]
            worker.kill()


# -- without a worker ------------------------------------------------------------------------------


def test_only_web_addresses_become_links() -> None:
    assert safe_link("https://github.com/a") == "https://github.com/a"
    assert safe_link("javascript:alert(1)") == ""
    assert safe_link("") == ""
    assert ranges([3, 1, 2, 7]) == "1–3, 7"
    assert ranges([]) == "none"
