"""``jobs`` and ``sql``: answers on a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

import click
from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ServerException

from pipeline.commands.common import (
    FAILED,
    Context,
    Duration,
    Failure,
    plain_console,
    print_json,
    short,
    table,
)
from pipeline.commands.reach import ask, clickhouse, clickhouse_failure, worker_url
from pipeline.text import duration
from topics.models import Status


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["any", "live", *(status.value for status in Status)]),
    help="Only these; may be repeated.  [default: live]",
)
@click.option("--fleet", help="Only this fleet.")
@click.option("--repo", help="Only this repository (owner/name).")
@click.option("--age", type=Duration(), help="At least this long in their state: 90s, 15m, 2h.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--url", help="A worker.  [default: the one of the settings]")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def jobs(
    context: Context,
    states: tuple[str, ...],
    fleet: str | None,
    repo: str | None,
    age: float | None,
    limit: int,
    url: str | None,
    as_json: bool,
) -> None:
    """Live jobs, the longest in their state first, as a worker knows them.

    Exit code 1 when the answer is incomplete, because a worker of the group did not answer.
    """
    base = url or worker_url(context.settings)
    query: dict[str, Any] = {"state": ",".join(states), "fleet": fleet, "repo": repo, "age": age}
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = ask(
            base, "/jobs", {**query, "limit": min(1_000, limit - len(rows)), "cursor": cursor}
        )
        if page.status != 200:
            raise Failure(f"{base} answered {page.status}: {page.get('error', page)}")
        rows += page["jobs"]
        cursor = page["next"]
        if cursor is None or len(rows) >= limit or page["incomplete"]:
            break
    if as_json:
        print_json({**page, "jobs": rows})
    else:
        columns = ("state", "for", "job", "workflow", "repository", "fleet", "runner", "key")
        plain_console().print(
            table(
                columns,
                (
                    (
                        f"{row['status']} ({row['conclusion']})"
                        if row["conclusion"]
                        else row["status"],
                        duration(row["age_ms"]) if row["age_ms"] is not None else "unknown",
                        row["name"] or None,
                        row["workflow"] or None,
                        row["repo"] or None,
                        row["fleet"],
                        row["runner"] or None,
                        row["key"],
                    )
                    for row in rows
                ),
                right=(1,),
            )
        )
        more = f" of {page['matched']:,}" if page["matched"] > len(rows) else ""
        click.echo(f"\n{len(rows):,}{more} jobs")
    for gap in page["incomplete"]:
        click.echo(f"incomplete: {gap['reason']} (partitions {gap['partitions']})", err=True)
    if page["incomplete"]:
        raise SystemExit(FAILED)


@click.command()
@click.argument("query", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True,
              help="Most rows shown.")  # fmt: skip
@click.pass_obj
def sql(context: Context, query: str | None, as_json: bool, limit: int) -> None:
    """Ask ClickHouse. Without QUERY, statements are read from the terminal (end each with ;)
    or from standard input.

    Example: runnerstream sql "SELECT fleet, count() FROM jobs_latest GROUP BY fleet"
    """
    settings = context.settings
    with clickhouse(settings) as client:
        if query is not None:
            try:
                _run(client, query, as_json, limit)
            except ServerException as error:
                raise Failure(_server_said(error)) from None
            except (ClickHouseError, OSError, EOFError) as error:
                raise clickhouse_failure(settings, error) from None
        else:
            _session(client, as_json, limit)


def _session(client: Client, as_json: bool, limit: int) -> None:
    """Statements one after another. On a terminal an error is told and the next may follow."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - history and editing for input()
        tables = [name for (name,) in client.execute("SHOW TABLES")]
        click.echo(f"tables: {', '.join(tables)}\nend a statement with ; and leave with Ctrl-D")
    pending: list[str] = []
    failed = False
    while True:
        try:
            line = input(("sql> " if not pending else "...> ") if interactive else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            pending = []
            click.echo()
            continue
        if not pending and line.strip() in ("exit", "quit", "\\q"):
            break
        pending.append(line)
        if not line.rstrip().endswith(";"):
            continue
        statement, pending = "\n".join(pending), []
        failed = not _attempt(client, statement, as_json, limit, interactive) or failed
    if "".join(pending).strip():
        failed = not _attempt(client, "\n".join(pending), as_json, limit, interactive) or failed
    if interactive:
        click.echo()
    elif failed:
        raise SystemExit(FAILED)


def _attempt(client: Client, statement: str, as_json: bool, limit: int, interactive: bool) -> bool:
    """Run one; whether it went well. Not interactive, a failure ends the command."""
    try:
        _run(client, statement, as_json, limit)
    except ServerException as error:
        if not interactive:
            raise Failure(_server_said(error)) from None
        click.echo(f"error: {_server_said(error)}", err=True)
        return False
    except (ClickHouseError, OSError, EOFError) as error:
        if not interactive:
            raise Failure(short(error)) from None
        # The driver connects again at the next statement.
        click.echo(f"error: {short(error)}", err=True)
        client.disconnect()
        return False
    except KeyboardInterrupt:
        client.disconnect()
        click.echo("interrupted", err=True)
        return False
    return True


def _run(client: Client, statement: str, as_json: bool, limit: int) -> None:
    statement = statement.strip().rstrip(";").strip()
    if not statement:
        return
    rows, columns = client.execute(statement, with_column_types=True)
    if not columns:
        if not as_json:
            click.echo("ok", err=True)
        return
    names = [name for name, _ in columns]
    numbers = [
        index
        for index, (_, kind) in enumerate(columns)
        if kind.removeprefix("Nullable(").startswith(("Int", "UInt", "Float", "Decimal"))
    ]
    shown = rows[:limit]
    if as_json:
        for row in shown:
            click.echo(
                json.dumps(dict(zip(names, row, strict=True)), default=str, ensure_ascii=False)
            )
    else:
        plain_console().print(
            table(names, ([_sql_cell(value) for value in row] for row in shown), right=numbers)
        )
        left = f" of {len(rows):,}" if len(rows) > len(shown) else ""
        click.echo(f"\n{len(shown):,}{left} row{'' if len(shown) == 1 else 's'}")


def _sql_cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e15 else value
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    return value


def _server_said(error: ServerException) -> str:
    text = str(error.message).split("Stack trace:")[0].strip()
    # A syntax error goes on with a page of what would have been allowed there.
    text = text.removeprefix("DB::Exception:").partition(". Expected one of:")[0].strip()
    return f"ClickHouse says ({error.code}): {text}"
