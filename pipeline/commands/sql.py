"""``sql``: questions to ClickHouse, one by one on the command line or in a small shell.

Rows are streamed, values are written exactly, and nothing can be changed unless that is asked for.
Data go to standard output and remarks to standard error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ServerException, UnknownTypeError

from pipeline.commands.connections import (
    SILENCE_S,
    beside_a_demo,
    clickhouse_failure,
    open_clickhouse,
)
from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import UNREACHABLE, USAGE, Failure, place, short
from pipeline.commands.sql_statements import (
    Statement,
    first_words,
    format_clause,
    split,
    statements,
    writes_file,
)
from pipeline.commands.sql_values import (
    FORMAT_NAMES,
    FORMATS,
    as_json_lines,
    as_table,
    as_vertical,
    exactly,
)
from pipeline.settings import Settings, default_data_dir

_LEAVE: Final = frozenset({"exit", "quit", "logout", "\\q", ":q", "q"})
_HELP: Final = """\
A statement ends with ; and may span lines. \\G instead of ; writes a line a
value. FORMAT at its end chooses how rows are written:
{formats}
SHOW TABLES and DESCRIBE name tell what there is. The arrow keys bring back
what was typed, Tab completes. Ctrl-C drops what is typed or stops what runs.
exit or Ctrl-D leaves."""
#: Codes of what a server refuses because the connection may only read.
_READONLY: Final = 164
#: Codes of an unknown user, a wrong password, and rights that are missing.
_NO_RIGHTS: Final = frozenset({192, 193, 497, 516})


@click.command()
@click.argument("query", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
@click.option("--vertical", is_flag=True, help="One value a line; the same as \\G for ;.")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True,
              help="Most rows shown of a statement.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Show all rows, however many.")
@click.option("--write", is_flag=True, help="Let statements change things; else they only read.")
@click.option("--timeout", type=Duration(), default=f"{SILENCE_S:g}s", show_default=True,
              help="How long ClickHouse may give no sign of life.")  # fmt: skip
@click.pass_obj
def sql(
    context: Context,
    query: str | None,
    as_json: bool,
    vertical: bool,
    limit: int,
    everything: bool,
    write: bool,
    timeout: float,
) -> None:
    """Ask ClickHouse. QUERY may be several statements, each ended with ;. Without it, they are read
    from the terminal, where it is a small shell, or from standard input.

    Rows go to standard output; how many there are, and whether some were left out, to standard
    error. FORMAT at the end of a statement is honoured.

    Example: runnerstream sql "SELECT fleet, count() FROM jobs_latest GROUP BY fleet"
    """
    if as_json and vertical:
        raise Failure("--json and --vertical exclude each other", exit_code=USAGE)
    if timeout <= 0:
        raise Failure("--timeout must be more than 0", exit_code=USAGE)
    how = as_json_lines if as_json else as_vertical if vertical else as_table
    session = Session(context.settings, how, None if everything else limit, write, timeout)
    with exactly(), session:
        if query is not None:
            session.run_all(query)
        elif sys.stdin.isatty() and sys.stdout.isatty():
            shell(session)
        else:
            session.run_all(_standard_input())


def _standard_input() -> str:
    raw = click.get_binary_stream("stdin").read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Failure("standard input is not UTF-8 text", exit_code=USAGE) from None


class Session:
    """Statements on one connection, which is opened again after a failure."""

    def __init__(
        self,
        settings: Settings,
        how: Callable[[Any, Any], int],
        limit: int | None,
        write: bool,
        silence_s: float,
    ) -> None:
        self.settings = settings
        self.write = write
        self._how = how
        self._limit = limit
        self._silence_s = silence_s
        self._client: Client | None = None
        self._query_settings: dict[str, Any] = {}

    def __enter__(self) -> Session:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; ClickHouse ends what runs on it."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()

    def connect(self) -> Client:
        """The connection, made when there is none. Raises :class:`Failure`."""
        if self._client is None:
            self._client = client = open_clickhouse(self.settings, self._silence_s)
            # A connection that was lost is told, not silently made anew: it held a session.
            client.connection.disable_reconnect = True
            try:
                ((readonly,),) = client.execute("SELECT toUInt8(getSetting('readonly'))")
            except (ClickHouseError, OSError, EOFError) as error:
                self.close()
                raise self._failure(error) from None
            # Of a user who may only read, the server lets nobody set it. 2 leaves settings of a
            # query, such as its limits, to who asks.
            self._query_settings = {} if readonly or self.write else {"readonly": 2}
        return self._client

    def names(self) -> tuple[list[str], list[str]]:
        """Tables and columns of the database."""
        client = self.connect()
        tables = [n for (n,) in client.execute("SHOW TABLES", settings=self._query_settings)]
        columns = client.execute(
            "SELECT DISTINCT name FROM system.columns WHERE database = currentDatabase()",
            settings=self._query_settings,
        )
        return tables, [n for (n,) in columns]

    def run_all(self, text: str) -> None:
        """Run every statement of a text; the first failure ends it."""
        for statement in statements(text):
            if statement.text.lower() in _LEAVE:
                return
            self.run(statement)

    def run(self, statement: Statement) -> None:
        """Run one statement and write what it gives. Raises :class:`Failure`."""
        if writes_file(statement.text):
            raise Failure(
                "INTO OUTFILE is for ClickHouse's own client",
                "leave it out, and let your shell write the file: runnerstream sql ... > file",
                USAGE,
            )
        text, how = statement.text, self._how
        inserts = first_words(text, 1) == ["INSERT"]
        if not inserts:
            text, name = format_clause(text)
            if name is not None and name.lower() not in FORMATS:
                raise Failure(
                    f"FORMAT {name} is not one of those that are written here",
                    f"these are: {', '.join(FORMAT_NAMES)}",
                    USAGE,
                )
            if name is not None:
                how = FORMATS[name.lower()]
        if statement.vertical:
            how = as_vertical
        client = self.connect()
        try:
            self._ask(client, text, how)
        except (ClickHouseError, OSError, EOFError) as error:
            if not isinstance(error, ServerException):
                self.close()
            raise self._failure(error) from None
        except KeyboardInterrupt:
            self.close()
            raise

    def _ask(self, client: Client, text: str, how: Callable[[Any, Any], int]) -> None:
        answers = client.execute_iter(
            text, with_column_types=True, settings=dict(self._query_settings)
        )
        columns = next(answers, None)
        if not columns:
            for _ in answers:
                pass
            click.echo("ok", err=True)
            return
        if self._limit is None:
            count, more = how(columns, answers), False
        else:
            count = how(columns, islice(answers, self._limit))
            more = next(answers, None) is not None
        if how in (as_table, as_vertical):  # the others are for programs
            click.echo(f"{count:,} row{'' if count == 1 else 's'}", err=True)
        if more:
            click.echo(
                f"cut: there are more rows than {self._limit:,}; --all shows all, --limit another "
                "number",
                err=True,
            )
            self._stop(client, answers)

    def _stop(self, client: Client, answers: Iterator[Any]) -> None:
        """Have the server end a statement whose further rows nobody wants."""
        client.connection.send_cancel()
        for _ in answers:
            pass

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, ServerException):
            return server_failure(error, self.write, beside_a_demo(self.settings))
        if isinstance(error, UnknownTypeError):
            return Failure(
                f"a column's type cannot be read: {short(error)}",
                "write toString(column), or finalizeAggregation(column) for an aggregate's state",
            )
        if isinstance(error, TimeoutError):
            where = place(self.settings.clickhouse.get_secret_value())
            return Failure(
                f"ClickHouse at {where} gave no sign of life for {self._silence_s:g} s in the "
                "middle of a statement",
                "look at its log; --timeout waits longer",
                UNREACHABLE,
            )
        return clickhouse_failure(self.settings, error)


def server_failure(error: ServerException, write: bool, elsewhere: str = "") -> Failure:
    """What ClickHouse says about a statement, without its stack trace.

    ``elsewhere`` is what to do about rights that are missing.
    """
    text = str(error.message).split("Stack trace:")[0].strip()
    # A syntax error goes on with a page of what would have been allowed there.
    text = text.removeprefix("DB::Exception:").partition(". Expected one of:")[0].strip()
    remedy = ""
    if error.code == _READONLY and not write:
        remedy = "statements only read unless --write is given: runnerstream sql --write"
    elif error.code in _NO_RIGHTS:
        remedy = elsewhere
    return Failure(f"ClickHouse says ({error.code}): {text}", remedy)


# -- the shell -------------------------------------------------------------------------------------


def shell(session: Session) -> None:
    """Read statements from the terminal until it is left."""
    # Here, because it takes a tenth of a second that the other ways of asking need not pay.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    tables, columns = session.names()
    settings = session.settings
    rights = "may change things" if session.write else "only reads; --write lifts that"
    click.echo(
        f"ClickHouse at {place(settings.clickhouse.get_secret_value())}; {rights}\n"
        + wrapped(
            f"tables: {', '.join(tables) or 'none; make them with `runnerstream schema apply`'}"
        )
        + "\n"
        "end a statement with ; or \\G, leave with exit, help says more"
    )
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and not ended(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    words = sorted({*tables, *columns, *_KEYWORDS}, key=str.lower)
    file = _history_file()
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(str(file)) if file is not None else InMemoryHistory(),
        completer=WordCompleter(words, ignore_case=True),
        complete_while_typing=False,
        multiline=True,
        prompt_continuation=lambda width, number, wrapped: "...> ",
        key_bindings=keys,
        enable_open_in_editor=False,
    )
    while True:
        try:
            typed = prompt.prompt("sql> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if typed.strip().rstrip(";").strip().lower() in _LEAVE:
            return
        if typed.strip().rstrip(";").strip().lower() in ("help", "?", "\\?", "\\h"):
            click.echo(_HELP.format(formats=wrapped(", ".join(FORMAT_NAMES))))
            continue
        for statement in statements(typed):
            if statement.text.lower() in _LEAVE:
                return
            if not _attempt(session, statement):
                break


def wrapped(text: str) -> str:
    """A text in lines that the terminal does not break within words."""
    width = min(100, shutil.get_terminal_size().columns) - 2
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False)


def _attempt(session: Session, statement: Statement) -> bool:
    """Run one; whether it went well. A failure is told, and the next may follow."""
    try:
        session.run(statement)
    except Failure as failure:
        failure.show()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    else:
        return True
    return False


def ended(text: str) -> bool:
    """Whether Enter runs what is typed: it is empty, all of it is ended, or it is a word to us."""
    word = text.strip().lower()
    if not word or word in _LEAVE or word in ("help", "?", "\\?", "\\h"):
        return True
    found, rest = split(text)
    return bool(found) and not rest


_KEYWORDS: Final = (
    "SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "LIMIT", "FINAL", "WITH", "AS", "AND", "OR",
    "NOT", "IN", "IS NULL", "DESC", "HAVING", "INTERVAL", "count()", "sum(", "avg(", "min(", "max(",
    "quantileExact(", "now()", "SHOW TABLES", "DESCRIBE", "FORMAT", "Vertical", "JSONEachRow",
)  # fmt: skip


def _history_file() -> Path | None:
    """Where the shell keeps what was typed, for its user only; ``None`` where it cannot."""
    file = default_data_dir() / "sql_history"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        return file
    return None
