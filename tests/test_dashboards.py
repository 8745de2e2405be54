"""Dashboards ask what ClickHouse answers, and show the truth; the files are what is declared."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result
from clickhouse_driver import Client
from prometheus_client import CollectorRegistry

from dashboards import generate, lint
from dashboards.ask import ask
from dashboards.boards import BOARDS
from dashboards.macros import Range
from dashboards.model import Dashboard, Kind, Panel, Promql, Sql
from docs import generate as docs
from pipeline.cli import main
from pipeline.local import EmbeddedClickHouse
from tests.support import boards
from tests.support.clients import ClientUnavailable
from tests.support.prometheus import promtool
from tests.support.seeded import Seeded, fill
from tests.test_compat import known_names

DAY_S: Final = 86_400
BY_TITLE: Final = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.title)

#: Panels that have no data over the seeded world, by dashboard and title, and why.
EMPTY: Final[dict[tuple[str, str], str]] = {}
#: Panels with quantiles, by dashboard and title, and of which timing they are.
TIMINGS: Final[dict[tuple[str, str], str]] = {
    ("Runners", "Enqueue → running (JIT-mint included)"): "queue",
    ("Runners", "Claim → running"): "claim_to_start",
    ("Runners", "Run time (running → completed)"): "run",
    ("Runners", "Total time (enqueue → completed)"): "total",
    ("Jobs", "Wait trend"): "queue",
    ("Jobs", "Run time trend"): "run",
}
#: Panels with quantiles of something that the truth about jobs does not say, and of what.
OTHER_QUANTILES: Final[dict[tuple[str, str], str]] = {
    ("Runners", "Queue time (enqueue → claim)"): "until the claim: tests/test_boards_runners.py",
    ("Runners", "Stranded time by kind"): "time in a wrong state",
    ("Runners", "Dispatch endpoint latency"): "requests to the dispatcher",
    ("Runners", "Boot time (p50 / p95 / p99)"): "boots of machines",
    ("Recovery", "Stranded time"): "time in a wrong state",
    ("Recovery", "Stranded time by kind"): "time in a wrong state",
    ("Recovery", "Time to detect, p95 by kind"): "from the wrong state to its finding",
    # Compared with the truth in test_boards_families.
    ("act_runner", "Poll latency p50/p95/p99"): "polls of runners",
    ("act_runner", "Job duration p50/p95/p99"): "tasks of runners",
    ("act_runner", "Final flush"): "tasks of runners",
    ("act_runner", "Log/state report latency, error ratio"): "reports of runners",
    ("Scheduler", "Planner Latency P95"): "runs of schedulers",
    ("Scheduler", "Planner Latency P99"): "runs of schedulers",
    ("Scheduler", "Run duration p50/p95"): "runs of schedulers",
    ("Reconciler", "Reconciler Wall Clock Time"): "ticks",
    ("Reconciler", "Slowest effects"): "side effects",
}
#: What Prometheus itself says of each target.
OF_PROMETHEUS: Final = {"up", "scrape_samples_scraped", "scrape_duration_seconds"}
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@pytest.fixture(scope="module")
def seeded(server: EmbeddedClickHouse) -> Seeded:
    # The same each day: at another time of day something else happens.
    noon = int(time.time()) // DAY_S * DAY_S - DAY_S // 2
    return fill(server.url, noon * 1000, jobs=800, hours=3.0)


@pytest.fixture(scope="module")
def client(server: EmbeddedClickHouse, seeded: Seeded) -> Iterator[Client]:
    """As Grafana: read only."""
    with Client.from_url(server.reader_url) as connection:
        yield connection


# --- files ----------------------------------------------------------------------------------------


def test_the_files_are_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert generate.main() == 0


def test_a_file_that_differs_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = generate.files()
    path = generate.OUT / f"{BOARDS[0].uid}.json"
    wanted[path] = wanted[path].replace("  ", " ", 1)
    monkeypatch.setattr(generate, "files", lambda: wanted)
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert generate.main() == 1
    assert path.name in capsys.readouterr().err


def written() -> list[dict[str, Any]]:
    return [json.loads(generate.written(board)) for board in BOARDS]


@BY_TITLE
def test_a_dashboard_is_put_together_well(board: Dashboard) -> None:
    assert lint.faults(json.loads(generate.written(board))) == []


def test_dashboards_have_addresses_of_their_own_and_links_lead_somewhere() -> None:
    assert lint.of_all(written()) == []


def _edit(board: Any) -> None:
    board["editable"] = True


def _fixed(board: Any) -> None:
    board["panels"][1]["datasource"]["uid"] = "P123"


def _silent(board: Any) -> None:
    board["panels"][1]["description"] = "Healthy: yes"


def _twice(board: Any) -> None:
    board["panels"].append(board["panels"][1])


def _unit(board: Any) -> None:
    del board["panels"][1]["fieldConfig"]["defaults"]["unit"]


def _nothing(board: Any) -> None:
    board["panels"][1]["targets"] = []


def _macro(board: Any) -> None:
    board["panels"][1]["targets"][0]["rawSql"] += " AND $__timeGroup(x)"


def _stale(board: Any) -> None:
    board["templating"]["list"][-1]["refresh"] = 0


def _forgetful(board: Any) -> None:
    board["links"][0]["keepTime"] = False


def _wide(board: Any) -> None:
    board["panels"][1]["gridPos"]["x"] = 23


def _zero(board: Any) -> None:
    board["panels"][1]["targets"][0] = {
        "refId": "A", "expr": "sum(rate(up[5m])) or vector(0)",
        "datasource": {"type": "prometheus", "uid": "${prometheus}"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_edit, "edited"), (_fixed, "datasource"), (_silent, "does not say"), (_twice, "2 panels"),
        (_unit, "no unit"), (_nothing, "nothing is asked"), (_macro, "timeGroup"),
        (_stale, "not asked again"), (_forgetful, "loses the time"), (_wide, "out of the grid"),
        (_zero, "look like 0"), (_zero, "rate over 5m"),
    ],
)  # fmt: skip
def test_what_is_not_well_is_said(spoil: Callable[[Any], None], said: str) -> None:
    board = json.loads(generate.written(BOARDS[0]))
    spoil(board)
    assert any(said in each for each in lint.faults(board))


# --- the seeded world -----------------------------------------------------------------------------


def test_every_table_and_every_view_has_rows(client: Client) -> None:
    names = [name for (name,) in client.execute("SHOW TABLES")]
    rows = {name: client.execute(f"SELECT count() FROM {name}")[0][0] for name in names}
    assert len(rows) > 20
    assert min(rows.values()) > 0, rows


def test_jobs_and_their_timings_are_those_of_the_truth(client: Client, seeded: Seeded) -> None:
    found = client.execute(
        "SELECT key, fleet, conclusion, queue_ms, claim_to_start_ms, run_ms, total_ms"
        " FROM job_timings FINAL"
    )
    assert {key: told for key, *told in found} == {
        key: [
            job.fleet,
            job.conclusion,
            *(ms if isinstance(ms := job.timings[family], int) else None
              for family in ("queue", "claim_to_start", "run", "total")),
        ]
        for key, job in seeded.jobs.jobs.items()
        if job.status == "completed"
    }  # fmt: skip
    assert len(found) > 400


def test_what_gets_stuck_is_found(client: Client, seeded: Seeded) -> None:
    kinds = client.execute(
        "SELECT kind, countIf(left_at IS NULL), count() FROM stalls FINAL GROUP BY kind"
    )
    assert len(kinds) >= 5
    assert sum(still for _, still, _ in kinds) > 0
    assert seeded.records["runners.commands"] > 20


# --- what is asked --------------------------------------------------------------------------------


@BY_TITLE
def test_everything_it_asks_is_answered(
    board: Dashboard,
    client: Client,
    seeded: Seeded,
    record_property: Callable[[str, object], None],
) -> None:
    # A job about which everything is known, for panels that tell of one.
    [(key,)] = client.execute(
        "SELECT key FROM stalls WHERE key IN (SELECT key FROM job_steps) ORDER BY key LIMIT 1"
    )
    tried = boards.Trial(client, seeded.end_ms, EMPTY, {"key": key}).board(board)
    record_property(
        "tried: dashboards",
        {
            "dashboard": board.title,
            "panels": len(list(board.panels)),
            "variables": len(board.variables),
            "queries run": tried.queries,
            "rows": tried.rows,
            "of Prometheus": tried.prometheus,
            "faults": len(tried.faults),
        },
    )
    assert tried.faults == [], "\n".join(tried.faults)


def test_no_exception_is_for_nothing() -> None:
    places = {(b.title, p.title) for b in BOARDS for p in b.panels}
    places |= {(b.title, a.name) for b in BOARDS for a in b.annotations}
    assert {*EMPTY, *TIMINGS, *OTHER_QUANTILES} - places == set()


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT nothing FROM jobs", "nothing"),
        ("SELECT count() FROM jobs", "not the time"),
        ("SELECT now() AS time, [1] AS v", "neither labels nor values"),
        (
            "SELECT $__timeInterval(minute) AS time, jobs FROM depth_1m"
            " WHERE $__timeFilter(minute) ORDER BY time DESC, jobs",
            "ascend",
        ),
        ("SELECT $__timeInterval(minute) AS time, jobs FROM depth_1m ORDER BY time", "asked for"),
        ("SELECT minute AS time, 0 / 0 AS v FROM depth_1m ORDER BY 1", "no numbers"),
        (
            "SELECT minute AS time, jobs FROM depth_1m WHERE $__timeFilter(minute) ORDER BY 1",
            "same series",
        ),
        (
            "SELECT minute AS time, jobs FROM depth_1m WHERE $__timeFilter(minute) AND fleet = ''",
            "no data",
        ),
        (
            "SELECT minute AS time, jobs FROM depth_1m WHERE fleet IN ('$fleet')",
            "left in the query",
        ),
        ("SELECT minute AS time, jobs FROM depth_1m WHERE fleet = ${fleet}", "left in the query"),
    ],
)
def test_a_question_that_is_not_well_put_is_noticed(
    sql: str, said: str, client: Client, seeded: Seeded
) -> None:
    panel = next(BOARDS[0].panels)
    spoilt = Panel("Spoilt", "timeseries", (Sql(sql),), *[panel.healthy] * 4)
    row = type(BOARDS[0].rows[0])("Row", (spoilt,))
    board = Dashboard("x", "X", "", (row,), BOARDS[0].variables)
    tried = boards.Trial(client, seeded.end_ms, {}).board(board)
    assert any(said in each for each in tried.faults), tried.faults


# --- what is answered -----------------------------------------------------------------------------


def with_quantiles() -> Iterator[tuple[Dashboard, Panel, Sql]]:
    """Everything in which quantiles are asked for."""
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                if isinstance(query, Sql) and re.search(r"\bAS p(50|95|99)\b", query.text):
                    yield board, panel, query


def test_of_each_quantile_it_is_known_what_it_is_of() -> None:
    shown = {(board.title, panel.title) for board, panel, _ in with_quantiles()}
    assert shown == {*TIMINGS, *OTHER_QUANTILES}


@pytest.mark.parametrize("place", TIMINGS, ids=" / ".join)
def test_quantiles_are_those_of_the_truth(
    place: tuple[str, str], client: Client, seeded: Seeded
) -> None:
    """Over the whole time in one bucket. Of two values beside each other either may be it, and a
    sketch is off by one percent. A job may end a little after the world does; windows have a wait
    when it is over, rows of timings when the job is."""
    [board] = [each for each in BOARDS if each.title == place[0]]
    panel = board.panel(place[1])
    by_fleet: dict[str, list[int]] = {}
    windows = any("windows" in query.text for query in panel.queries)
    for job in seeded.jobs.jobs.values():
        ms = job.timings[TIMINGS[place]]
        if isinstance(ms, int) and not job.copied and (windows or job.status == "completed"):
            by_fleet.setdefault(job.fleet, []).append(ms)
    fleets = ["", *by_fleet]
    seen = 0
    for fleet in fleets:
        known = sorted(
            ms for name, times in by_fleet.items() if fleet in ("", name) for ms in times
        )
        chosen = {each.name: () for each in board.variables} | {"fleet": [fleet] if fleet else []}
        over = Range(seeded.start_ms, seeded.end_ms + 3_600_000, 1_000_000_000, chosen)
        for query in panel.queries:
            assert isinstance(query, Sql)
            columns, rows = ask(client, query.text, over)
            names = [name for name, _ in columns]
            for row in rows:
                for name, share in QUANTILES.items():
                    if name not in names:
                        continue
                    value = row[names.index(name)]
                    scale = 1000 if panel.unit == "s" else 1
                    where = share * (len(known) - 1)
                    low = known[max(0, math.floor(where) - 1)]
                    high = known[min(len(known) - 1, math.ceil(where) + 1)]
                    assert low * 0.98 - 1 <= value * scale <= high * 1.02 + 1, (fleet, name)
                    seen += 1
    assert seen >= 3


# --- Prometheus -----------------------------------------------------------------------------------


def promql() -> Iterator[tuple[str, str]]:
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                if isinstance(query, Promql):
                    yield f"{board.title} / {panel.title}", query.text


def shown() -> set[str]:
    """Every metric that a process of ours shows."""
    registry = CollectorRegistry()
    docs.tell_process(registry, "")
    told = {name.strip("`") for name, *_ in docs.metric_rows(registry)}
    return {*known_names(), *told, *OF_PROMETHEUS}


def test_every_metric_exists() -> None:
    known = shown()
    assert len(known) > 100
    missing = {
        f"{where}: {name}"
        for where, query in promql()
        for name in lint.metrics(query)
        if ":" not in name and not {name, re.sub(r"_(bucket|sum|count)$", "", name)} & known
    }
    assert missing == set()


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"test:query_{n}", "expr": re.sub(r"\$\{?(\w+)(:\w+)?\}?", _value, query)}
        for n, (_, query) in enumerate(promql())
    ]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    try:
        code, said = promtool("check", "rules", str(file))
    except ClientUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert code == 0, said


def _value(variable: re.Match[str]) -> str:
    return "5m" if variable[1].startswith("__") else "x"


# --- drawn by hand --------------------------------------------------------------------------------


@pytest.fixture
def at_the_end(seeded: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who draws now looks at the end of the seeded world."""
    monkeypatch.setattr("pipeline.commands.plot.now_ms", lambda: seeded.end_ms)


def plot(server: EmbeddedClickHouse | str, *arguments: str) -> Result:
    """Run ``plot`` with a database and no other setting."""
    env: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    env["RUNNERSTREAM_CLICKHOUSE"] = server if isinstance(server, str) else server.reader_url
    return CliRunner().invoke(main, ["plot", *arguments], env=env)


@pytest.mark.usefixtures("at_the_end")
@BY_TITLE
def test_plot_draws_every_panel(
    board: Dashboard, server: EmbeddedClickHouse, seeded: Seeded
) -> None:
    done = plot(server, board.title, "--width", "240")
    assert done.exit_code == 0, done.output
    for panel in board.panels:
        # A long title is cut to the box.
        assert panel.title[:14] in done.output, panel.title


@pytest.mark.usefixtures("at_the_end")
def test_plot_shows_the_number_of_its_query(
    server: EmbeddedClickHouse, client: Client, seeded: Seeded
) -> None:
    [query] = BOARDS[0].panel("Queued jobs").queries
    assert isinstance(query, Sql)
    _, rows = ask(client, query.text, boards.Trial(client, seeded.end_ms, {}).range(
        "6 hours", {"fleet": ["linux-small"]}))  # fmt: skip
    done = plot(server, "runners", "Queued jobs", "--from", "6h", "--fleet", "linux-small")
    assert done.exit_code == 0
    told = [line.strip("│ ") for line in done.output.splitlines()]
    assert str(round(rows[-1][-1])) in told, done.output


@pytest.mark.usefixtures("at_the_end")
def test_plot_writes_a_picture(
    server: EmbeddedClickHouse,
    seeded: Seeded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a panel of each kind, one with nothing in it, and one that Prometheus is asked."""
    depth = "FROM depth_1m WHERE $__timeFilter(minute) GROUP BY time"
    series = f"SELECT minute AS time, fleet, sum(jobs) AS jobs {depth}, fleet ORDER BY time"
    heat = (
        f"SELECT $__timeInterval(minute) AS time, toString(oldest_ms) AS le, sum(jobs) {depth}, le"
    )
    panels = (
        _drawn("stat", f"SELECT minute AS time, sum(jobs) AS jobs {depth} ORDER BY time"),
        _drawn("timeseries", series),
        _drawn("timeseries", series, stacked=True, unit="ms"),
        _drawn("heatmap", f"{heat} ORDER BY time"),
        _drawn("bars", "SELECT fleet, count() AS jobs FROM jobs GROUP BY fleet", "table"),
        _drawn("table", "SELECT key, fleet, queued_at, claims, queue_ms FROM jobs", "table"),
        _drawn("table", "SELECT key FROM jobs WHERE key = ''", "table"),
        Panel("Of Prometheus", "stat", (Promql("up"),), "h", "d", "t", "n"),
    )
    rows = (type(BOARDS[0].rows[0])("First", panels[:4]), type(BOARDS[0].rows[0])("2", panels[4:]))
    board = Dashboard("runnerstream-x", "All $ kinds", "", rows)
    monkeypatch.setattr("pipeline.commands.plot.BOARDS", (board,))
    file = tmp_path / "x.png"
    done = plot(server, "x", "--from", "3h", "--out", str(file))
    assert done.exit_code == 0, done.output
    assert file.read_bytes().startswith(b"\x89PNG")
    whole = struct.unpack(">II", file.read_bytes()[16:24])
    assert plot(server, "x", "stat", "--from", "3h", "--out", str(file)).exit_code == 0
    one = struct.unpack(">II", file.read_bytes()[16:24])
    assert whole[0] > one[0]
    assert whole[1] > 2 * one[1]
    gone = plot(server, "x", "stat", "--out", str(tmp_path / "no" / "x.png"))
    assert gone.exit_code == 1
    assert "cannot be written" in gone.output


def _drawn(
    kind: Kind, sql: str, shape: Literal["timeseries", "table"] = "timeseries", **more: Any
) -> Panel:
    title = f"{kind} {sorted(more)}"
    return Panel(title, kind, (Sql(sql, shape),), "h", "d", "t", "n", height=6, **more)


@pytest.mark.usefixtures("at_the_end")
def test_plot_says_what_is_wrong(
    server: EmbeddedClickHouse, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = plot("clickhouse://127.0.0.1:1/x")
    assert listed.exit_code == 0
    assert all(board.title in listed.output for board in BOARDS)
    for arguments, code, said in (
        (["nothing"], 2, BOARDS[0].title),
        (["runners", "nothing"], 2, "Queued jobs"),
        (["runners", "--set", "colour=red"], 2, "fleet"),
        (["runners", "--from", "1s"], 2, "a minute"),
    ):
        done = plot(server, *arguments)
        assert (done.exit_code, said in done.output) == (code, True), done.output
    away = plot("clickhouse://127.0.0.1:1/x", "runners")
    assert away.exit_code == 3
    monkeypatch.setattr("pipeline.commands.plot.find_spec", lambda name: None)
    missing = plot(server, "runners", "--out", "x.png")
    assert missing.exit_code == 2
    assert "runnerstream[plot]" in missing.output


class _Prometheus(BaseHTTPRequestHandler):
    """Answers as Prometheus does; remembers what it was asked."""

    asked: Final[list[dict[str, list[str]]]] = []

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        self.asked.append(parse_qs(place.query))
        now = time.time()
        series = {"metric": {"topic": "jobs", "__name__": "m"}}
        if place.path.endswith("query_range"):
            series["values"] = [[now - 60 * n, str(7 * n)] for n in range(9)]
        else:
            series["value"] = [now, "42"]
        body = json.dumps({"status": "success", "data": {"result": [series]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def test_plot_asks_prometheus_what_it_knows(
    server: EmbeddedClickHouse, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("h", "d", "t", "n")
    asking = Panel("Lag", "timeseries", (Promql('lag{f=~"$fleet"}', "{{topic}}"),), *words)
    now = Panel("Up", "stat", (Promql("up", instant=True),), *words)
    row = type(BOARDS[0].rows[0])("Row", (asking, now))
    board = Dashboard("runnerstream-x", "X", "", (row,), BOARDS[0].variables)
    monkeypatch.setattr("pipeline.commands.plot.BOARDS", (board,))
    assert plot(server, "x").output.count("--prometheus") == 2
    with ThreadingHTTPServer(("127.0.0.1", 0), _Prometheus) as prometheus:
        threading.Thread(target=prometheus.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{prometheus.server_address[1]}"
        done = plot(server, "x", "--fleet", "linux-small", "--prometheus", url)
        prometheus.shutdown()
    assert done.exit_code == 0, done.output
    assert "jobs  last 0  max 56" in done.output
    assert "42" in done.output
    assert _Prometheus.asked[0]["query"] == ['lag{f=~"linux\\\\-small"}']
    gone = plot(server, "x", "--prometheus", url)
    assert (gone.exit_code, "Prometheus does not answer" in gone.output) == (3, True)
