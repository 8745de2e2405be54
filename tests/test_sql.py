"""``runnerstream sql``: exact values, nothing cut in silence, nothing changed by mistake, and a
shell."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from clickhouse_driver import Client
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.commands.output import to_json
from pipeline.commands.sql import ended
from pipeline.commands.sql_statements import format_clause, split, statements, writes_file
from pipeline.commands.sql_values import FORMAT_NAMES, FORMATS, moment, shortest
from pipeline.local import EmbeddedClickHouse, unavailable
from tests.support import PATIENCE
from tests.support.worker import ROOT

needs_local = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    if reason := unavailable():
        pytest.skip(reason)
    with EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse")) as running:
        yield running


def environment(url: str) -> dict[str, str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
    return {**given, "PYTHONPATH": str(ROOT), "RUNNERSTREAM_CLICKHOUSE": url}


def ask(url: str, *arguments: str, stdin: str | None = None) -> Result:
    """Run ``sql`` with a database and no other setting."""
    env: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    env["RUNNERSTREAM_CLICKHOUSE"] = url
    return CliRunner().invoke(main, ["sql", *arguments], env=env, input=stdin)


# -- text ------------------------------------------------------------------------------------------


def test_statements_end_outside_of_quotes_and_comments() -> None:
    text = (
        "SELECT ';' AS a, \"b;\" , `c;`, 'it''s; \\'; x' -- not; here\n;"
        "# nor; here\nSELECT /* nor ; here */ 2\\G SELECT $x$;$x$;; ;\n-- the end;\n"
    )
    found, rest = split(text)
    assert [(s.text[:8], s.vertical) for s in found] == [
        ("SELECT '", False), ("# nor; h", True), ("SELECT $", False),
    ]  # fmt: skip
    assert rest == ""
    assert split("SELECT 1; SELECT 'open;")[1] == "SELECT 'open;"
    assert [s.text for s in statements("SELECT 1; SELECT 2")] == ["SELECT 1", "SELECT 2"]
    assert statements(" ;; -- nothing\n") == []


@given(st.lists(st.sampled_from(["'a;'", "b", ";", "--x;\n", "/*;*/", "(", ")", " ", '"', "\\G"])))
def test_any_text_is_cut_without_loss(pieces: list[str]) -> None:
    text = "".join(pieces)
    found, rest = split(text)
    # Cutting again what was cut changes nothing.
    assert all([s.text for s in statements(one.text)] == [one.text] for one in found)
    assert split(rest)[0] == []
    assert ended(text) or rest or not found


@pytest.mark.parametrize(
    ("text", "without", "name"),
    [
        ("SELECT 1 FORMAT CSV", "SELECT 1", "CSV"),
        ("SELECT 1 format JSONEachRow", "SELECT 1", "JSONEachRow"),
        ("SELECT 1 FORMAT CSV SETTINGS max_threads = 1", "SELECT 1  SETTINGS max_threads = 1",
         "CSV"),
        ("SELECT 1 /* x */ FORMAT /* y */ CSV -- z", "SELECT 1 /* x */  -- z", "CSV"),
        ("SELECT format FROM x", "SELECT format FROM x", None),
        ("SELECT 1 AS format", "SELECT 1 AS format", None),
        ("SELECT (SELECT 1 FORMAT CSV)", "SELECT (SELECT 1 FORMAT CSV)", None),
        ("SELECT 'x FORMAT CSV'", "SELECT 'x FORMAT CSV'", None),
    ],
)  # fmt: skip
def test_the_format_is_the_clients(text: str, without: str, name: str | None) -> None:
    assert format_clause(text) == (without, name)


def test_files_of_another_client_are_seen() -> None:
    assert writes_file("SELECT 1 into outfile 'x'")
    assert not writes_file("SELECT 'into outfile'")
    assert not writes_file("SELECT into, outfile FROM x")


def test_enter_runs_what_is_ended() -> None:
    for text in ("", " ", "exit", "quit", "help", "SELECT 1;", "SELECT 1\\G", "SELECT 1; -- x"):
        assert ended(text), text
    for text in ("SELECT 1", "SELECT ';", "SELECT 1; SELECT 2", "SELECT 1 -- ;"):
        assert not ended(text), text


# -- values ----------------------------------------------------------------------------------------


def test_singles_have_the_digits_that_were_stored() -> None:
    import struct

    for text in ("0.1", "3.4028235e+38", "1e-45", "16777216", "0.33333334"):
        (single,) = struct.unpack("f", struct.pack("f", float(text)))
        assert shortest(single) == float(text)


def test_times_keep_their_digits() -> None:
    from datetime import UTC

    assert moment(1_767_323_045_123_456_789, 9, UTC) == "2026-01-02 03:04:05.123456789"
    assert moment(-1, 3, UTC) == "1969-12-31 23:59:59.999"
    assert moment(0, 0, UTC) == "1970-01-01 00:00:00"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text()
        | st.decimals(allow_nan=True),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)  # fmt: skip
def test_json_is_json(value: object) -> None:
    def never(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for indent in (None, 2):
        text = to_json(value, indent)
        text.encode()
        json.loads(text, parse_constant=never)


def test_json_of_what_json_has_is_as_python_writes_it() -> None:
    value = {"a": [1, 2.5, None, True, "x\n\u00fc"], "b": {}, "c": [], "d": [[{}]]}
    assert to_json(value) == json.dumps(value, ensure_ascii=False)
    assert to_json(value, 2) == json.dumps(value, ensure_ascii=False, indent=2)


EVERYTHING = """
SELECT ':x: :bomb: [bold]not[/bold]' AS text, toFloat32(0.1) AS single, 0.1 + 0.2 AS double,
  6048000.0 AS whole, 1 / 0 AS infinite, 0 / 0 AS nothing, toUInt64(18446744073709551615) AS large,
  toInt256('-57896044618658097711785492504343953926634992332820282019728792003956564819968') AS
  huge, toDecimal64('1.25', 4) AS money,
  toDateTime64('2026-01-02 03:04:05.123456789', 9, 'Asia/Tokyo') AS nanoseconds,
  toDateTime('2026-01-02 03:04:05', 'UTC') AS second, toDate('2026-01-02') AS day,
  [toDateTime64('2026-01-02 03:04:05.000000001', 9, 'UTC')] AS moments,
  map('k', toNullable(NULL)) AS mapped, (1, 'it''s') AS pair, NULL AS absent, true AS yes,
  unhex('ff41') AS bytes, toIPv4('1.2.3.4') AS address, CAST('a' AS Enum('a' = 1)) AS named,
  'tab\\tand\\nline' AS lines, CAST('x' AS LowCardinality(Nullable(String))) AS low
"""


@needs_local
def test_values_are_exact(clickhouse: EmbeddedClickHouse) -> None:
    result = ask(clickhouse.url, "--vertical", EVERYTHING)
    assert result.exit_code == 0, result.output
    lines = [line.partition(": ") for line in result.stdout.splitlines()]
    shown = {name: value.strip() for name, _, value in lines}
    assert shown["text"] == ":x: :bomb: [bold]not[/bold]"
    assert (shown["single"], shown["double"], shown["whole"]) == (
        "0.1", "0.30000000000000004", "6048000",
    )  # fmt: skip
    assert (shown["infinite"], shown["nothing"]) == ("inf", "nan")
    assert shown["large"] == "18446744073709551615"
    assert shown["huge"].endswith("564819968")
    assert shown["money"] == "1.25"
    assert shown["nanoseconds"] == "2026-01-02 03:04:05.123456789"
    assert shown["second"] == "2026-01-02 03:04:05"
    assert shown["moments"] == "['2026-01-02 03:04:05.000000001']"
    assert (shown["mapped"], shown["pair"]) == ("{'k':NULL}", "(1,'it\\'s')")
    assert (shown["absent"], shown["yes"], shown["bytes"]) == ("NULL", "true", "\\xffA")
    assert (shown["address"], shown["named"], shown["low"]) == ("1.2.3.4", "a", "x")

    def never(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = ask(clickhouse.url, "--json", EVERYTHING).stdout.splitlines()
    row = json.loads(line, parse_constant=never)
    assert (row["infinite"], row["nothing"], row["absent"]) == (None, None, None)
    assert row["large"] == 18446744073709551615
    assert (row["single"], row["text"]) == (0.1, ":x: :bomb: [bold]not[/bold]")
    assert row["lines"] == "tab\tand\nline"
    assert '"money": 1.25' in line
    # A table has a line a row, whatever is in it, and is never folded.
    table = ask(clickhouse.url, EVERYTHING + ", repeat('w', 3000) AS wide").stdout
    assert len(table.splitlines()) == 2
    assert "tab\\tand\\nline" in table
    assert "w" * 3000 in table


@needs_local
@pytest.mark.parametrize("name", ["TSV", "TSVWithNames", "CSV", "CSVWithNames", "JSONEachRow"])
def test_formats_are_as_clickhouse_writes_them(name: str, clickhouse: EmbeddedClickHouse) -> None:
    query = (
        "SELECT number AS n, concat('a\\t\"b\\\\ \\n', toString(number)) AS s, number / 3 AS f, "
        "toDateTime64(number, 3, 'UTC') AS t, if(number = 1, NULL, number) AS o, "
        "toDecimal32(number, 2) AS d, [number, 1] AS l FROM numbers(3)"
    )
    # JSON has the same values, whatever the spaces.
    theirs = clickhouse.query(f"{query} FORMAT {name}")
    ours = ask(clickhouse.url, f"{query} FORMAT {name}").stdout
    if name == "JSONEachRow":
        assert [*map(json.loads, ours.splitlines())] == [*map(json.loads, theirs.splitlines())]
    else:
        assert ours == theirs


@needs_local
def test_every_format_writes_something_and_no_other_is_taken(
    clickhouse: EmbeddedClickHouse,
) -> None:
    assert {name.lower() for name in FORMAT_NAMES} <= set(FORMATS)
    for name in FORMATS:
        result = ask(clickhouse.url, f"SELECT 'a|b' AS x, 2 AS y FORMAT {name}")
        assert result.exit_code == 0, result.output
        assert ("2" in result.stdout) is (name != "null"), name
    told = json.loads(ask(clickhouse.url, "SELECT 1 AS x FORMAT JSON").stdout)
    assert told["data"] == [{"x": 1}]
    result = ask(clickhouse.url, "SELECT 1 FORMAT Parquet")
    assert result.exit_code == 2
    assert "FORMAT Parquet" in result.output
    assert "JSONEachRow" in result.output
    result = ask(clickhouse.url, "SELECT 1 INTO OUTFILE 'x'")
    assert result.exit_code == 2


@needs_local
def test_what_is_cut_is_told(clickhouse: EmbeddedClickHouse) -> None:
    query = "SELECT number AS n FROM numbers(10001)"
    result = ask(clickhouse.url, "--json", query)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 10_000)
    assert "cut: there are more rows than 10,000; --all shows all" in result.stderr
    result = ask(clickhouse.url, "--json", "--all", query)
    assert (len(result.stdout.splitlines()), result.stderr) == (10_001, "")
    result = ask(clickhouse.url, "--json", "--limit", "10001", query)
    assert (len(result.stdout.splitlines()), result.stderr) == (10_001, "")
    result = ask(clickhouse.url, "--limit", "2", f"{query}; SELECT 7 AS m")
    assert "cut: " in result.stderr
    assert result.stdout.splitlines()[-1].strip() == "7"


@needs_local
def test_nothing_is_changed_unless_it_is_asked_for(clickhouse: EmbeddedClickHouse) -> None:
    assert ask(clickhouse.url, "--write", "CREATE TABLE kept (a Int8) ENGINE = Memory;"
               "INSERT INTO kept VALUES (1)").exit_code == 0  # fmt: skip
    for statement in (
        "DROP TABLE kept",
        "INSERT INTO kept SELECT 2",
        "TRUNCATE TABLE kept",
        "ALTER TABLE kept ADD COLUMN b Int8",
        "CREATE TABLE other (a Int8) ENGINE = Memory",
        "SELECT 1 SETTINGS readonly = 0",
        "SET readonly = 0; DROP TABLE kept",
    ):
        result = ask(clickhouse.url, statement)
        assert result.exit_code == 1, statement
        assert "--write" in result.output, statement
    assert ask(clickhouse.url, "SELECT count() AS n FROM kept", "--json").stdout == '{"n": 1}\n'
    # What only reads may have settings of its own.
    assert ask(clickhouse.url, "SELECT 1 SETTINGS max_threads = 1").exit_code == 0
    assert ask(clickhouse.url, "SET max_threads = 1; SELECT 1").exit_code == 0
    # A user who may only read anyway.
    result = ask(clickhouse.reader_url, "SELECT 1 AS one")
    assert (result.exit_code, result.stdout.split()) == (0, ["one", "1"])
    assert ask(clickhouse.url, "--write", "DROP TABLE kept").exit_code == 0


@needs_local
def test_a_type_without_values_is_told(clickhouse: EmbeddedClickHouse) -> None:
    result = ask(clickhouse.url, "SELECT quantileState(0.5)(number) FROM numbers(3)")
    assert result.exit_code == 1
    assert "finalizeAggregation" in result.output


@needs_local
def test_two_columns_of_a_name_are_both_there(clickhouse: EmbeddedClickHouse) -> None:
    query = "SELECT * FROM (SELECT 1 AS a) AS x CROSS JOIN (SELECT 2 AS a) AS y"
    (line,) = ask(clickhouse.url, "--json", query).stdout.splitlines()
    assert sorted(json.loads(line).values()) == [1, 2]


@needs_local
@pytest.mark.parametrize("arguments", [[], ["--json"], ["--vertical"], ["--all"]])
def test_a_reader_that_has_gone_ends_it_quietly(
    arguments: list[str], clickhouse: EmbeddedClickHouse
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "sql", *arguments,
         "SELECT number, repeat('x', 100) FROM numbers(9999)"],
        cwd=ROOT, env=environment(clickhouse.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE * 60) == 141
    assert process.stderr.read() == b""


@needs_local
def test_the_interrupt_key_ends_it_quietly(clickhouse: EmbeddedClickHouse) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "sql", "--json",
         "SELECT sleepEachRow(1) FROM numbers(60) SETTINGS max_block_size = 1"],
        cwd=ROOT, env=environment(clickhouse.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE * 60) == 130
    assert process.stderr is not None
    assert process.stderr.read().strip() == b""


# -- the shell -------------------------------------------------------------------------------------


class Terminal:
    """The shell on a terminal of 80 columns."""

    def __init__(self, url: str, home: Path) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            env = {**environment(url), "XDG_STATE_HOME": str(home), "TERM": "xterm",
                   "COLUMNS": "80", "LINES": "24"}  # fmt: skip
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "pipeline.cli", "sql"], env)
        self.seen = ""

    def read_until(self, text: str, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + PATIENCE * timeout
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.listen(0.2)
        self.seen = self.seen.partition(text)[2]

    def listen(self, seconds: float) -> None:
        """Take what is written, as a terminal always does: else the shell waits to write more."""
        if select.select([self._fd], [], [], seconds)[0]:
            try:
                got = os.read(self._fd, 65_536).decode(errors="replace")
            except OSError:
                got = ""
            assert got, self.seen
            # A real terminal says where its cursor is.
            if "\x1b[6n" in got:
                os.write(self._fd, b"\x1b[1;1R")
            self.seen += got

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        while True:
            try:
                if not os.read(self._fd, 65_536):
                    break
            except OSError:
                break
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@needs_local
def test_the_shell(clickhouse: EmbeddedClickHouse, tmp_path: Path) -> None:
    shell = Terminal(clickhouse.url, tmp_path)
    shell.read_until("sql>")

    def typed(text: str, *answers: str) -> None:
        shell.type(text)
        for answer in answers:
            shell.read_until(answer)
        shell.read_until("sql>")

    shell.type("SELECT 40 + 1\r")
    shell.read_until("...>")
    typed("+ 1 AS answer;\r", "42", "1 row")
    typed("SELECT 7 AS a, 8 AS b\\G\r", "Row 1:", "b: 8")
    typed("SELECT 'fir' || 'st'; SELECT 'sec' || 'ond';\r", "first", "second", "1 row")
    # An error is told, and the next may follow.
    typed("SELEC 1;\r", "Syntax error")
    typed("CREATE TABLE new (a Int8) ENGINE = Memory;\r", "--write")
    # Ctrl-C stops what runs, and the connection is there again. Not the statement of the test
    # above, which the server may still be about to stop.
    shell.type("SELECT sleepEachRow(1) FROM numbers(59) SETTINGS max_block_size = 1;\r")
    with Client.from_url(clickhouse.url) as client:
        deadline = time.monotonic() + PATIENCE * 60
        while not client.execute(
            "SELECT count() FROM system.processes WHERE query LIKE '%numbers(59)%'"
            " AND query NOT LIKE '%processes%'"
        )[0][0]:
            assert time.monotonic() < deadline
            shell.listen(0.05)
    typed("\x03", "stopped")
    typed("SELECT 6 * 7 AS again;\r", "42", "1 row")
    shell.type("exit;\r")
    assert shell.end() == 0
    # What was typed is there the next time, for this user only.
    (history,) = tmp_path.rglob("sql_history")
    assert history.stat().st_mode & 0o077 == 0
    shell = Terminal(clickhouse.url, tmp_path)
    shell.read_until("sql>")
    shell.type("\x1b[A\x1b[A")  # the last but one: after it stands exit
    shell.read_until("6 * 7")
    typed("\r", "42", "1 row")
    shell.type("\x04")
    assert shell.end() == 0
