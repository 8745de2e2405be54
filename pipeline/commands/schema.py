"""``schema``: the tables in ClickHouse."""

from __future__ import annotations

import time

import click
from clickhouse_driver.errors import Error as ClickHouseError
from kafka.errors import KafkaError

from pipeline.commands.connections import (
    bounded,
    clickhouse_failure,
    clickhouse_url,
    kafka_admin,
    require_clickhouse,
)
from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, UNREACHABLE, USAGE, Failure
from pipeline.commands.output import print_json, print_table, say
from sinks import schema as tables
from sinks.refill import RefillError, refill
from sinks.rows import TABLES


@click.group()
def schema() -> None:
    """The tables in ClickHouse: create and upgrade them, show what is applied."""


@schema.command("apply")
@click.pass_obj
def schema_apply(context: Context) -> None:
    """Create the database, apply missing migrations, and make again what was dropped.

    Applying twice changes nothing. On a cluster it is done on every node; when one is away, it is
    done on the others, and the exit code is 3.
    """
    settings = context.settings
    url = clickhouse_url(settings)
    require_clickhouse(settings)
    try:
        report = tables.apply(bounded(url), cluster=settings.clickhouse_cluster)
    except tables.SchemaError as error:
        raise Failure(str(error)) from None
    except tables.NodesAway as error:
        raise nodes_away(error) from None
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    for name in report.applied:
        say(f"applied  {name}")
    for name in report.mended:
        say(f"made     {name}, which was gone")
    say(
        f"database {report.database}: {len(report.applied)} migrations applied, "
        f"{len(report.already)} were there"
    )
    ours = {table.name for table in TABLES}
    lost = [name for name in report.emptied if name in ours]
    if lost:
        say(f"fill from the log what was lost: runnerstream schema refill {' '.join(lost)}")


def nodes_away(error: tables.NodesAway) -> Failure:
    """Some nodes of a cluster take no part: what to tell."""
    return Failure(
        str(error),
        "what was done on the others stays; when all answer, run `runnerstream schema apply` again",
        UNREACHABLE,
    )


@schema.command("sql")
@click.option("--cluster", metavar="NAME", help="As on every node of this cluster, instead of the "
              "one of the settings.")  # fmt: skip
@click.option("--replicated", is_flag=True, help="Its shards have replicas, and Keeper.")
@click.option("--on-cluster", is_flag=True, help="Let ClickHouse run each statement on all nodes.")
@click.pass_obj
def schema_sql(context: Context, cluster: str | None, replicated: bool, on_cluster: bool) -> None:
    """Print the SQL of all migrations, for people who run it themselves. Asks no server.

    The last statements note what was run, for each server: no ON CLUSTER can do that.
    """
    name = context.settings.clickhouse_cluster if cluster is None else cluster
    if not name and (replicated or on_cluster):
        raise Failure("there are replicas on clusters only", "name one with --cluster", USAGE)
    try:
        layout = tables.Layout(name, replicated, on_cluster) if name else None
    except ValueError as error:
        raise Failure(str(error), exit_code=USAGE) from None
    for statement in tables.script(layout):
        say(f"{statement};\n")


@schema.command("refill")
@click.argument("names", nargs=-1, required=True, metavar="TABLE...")
@click.pass_obj
def schema_refill(context: Context, names: tuple[str, ...]) -> None:
    """Fill tables from what the topics still hold, after they were dropped and made again.

    May run while sinks run, and twice: rows that are there already are replaced by themselves.
    """
    settings = context.settings
    url = clickhouse_url(settings)
    unknown = sorted(set(names) - {table.name for table in TABLES})
    if unknown:
        raise Failure(
            f"no table of the sink: {', '.join(unknown)}",
            f"one of {', '.join(table.name for table in TABLES)}",
            USAGE,
        )
    require_clickhouse(settings)
    try:
        missing = tables.absent(bounded(url), settings.clickhouse_cluster)
    except tables.SchemaError as error:
        raise Failure(str(error)) from None
    except tables.NodesAway as error:
        raise nodes_away(error) from None
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    gone = [each for each in missing if tables.table_of(each) in names]
    if gone:
        raise Failure(f"missing: {', '.join(gone)}", "make it with `runnerstream schema apply`")
    with kafka_admin(settings):
        pass
    told = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > 5:
            told = time.monotonic()
            click.echo(f"{done:,} of {of:,} offsets", err=True)

    try:
        filled = refill(settings.kafka_options(), url, names, progress)
    except (RefillError, KafkaError) as error:
        raise Failure(
            f"not filled to the end: {error}", "begin it again: nothing is lost"
        ) from None
    for name, number in filled.rows.items():
        say(f"filled   {name}: {number:,} rows")
    say(f"{filled.records:,} records read, {filled.passed_over:,} of them gave no row")


@schema.command("show")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def schema_show(context: Context, as_json: bool) -> None:
    """Show migrations and tables. Exit code 1 while a migration or a table is missing, on a cluster
    on any node; 3 when a node is away."""
    settings = context.settings
    url, cluster = clickhouse_url(settings), settings.clickhouse_cluster
    require_clickhouse(settings)
    try:
        pending = {migration.version for migration in tables.pending(bounded(url), cluster)}
        gone: tuple[str, ...] = ()
        there: tuple[tables.Held, ...] = ()
        if len(pending) < len(tables.migrations()):
            gone = tables.absent(bounded(url), cluster)
            there = tables.held(bounded(url), cluster)
    except tables.SchemaError as error:
        raise Failure(str(error)) from None
    except tables.NodesAway as error:
        raise nodes_away(error) from None
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    migrations = [
        (f"{m.version:04d}_{m.name}", "missing" if m.version in pending else "applied")
        for m in tables.migrations()
    ]
    if as_json:
        print_json(
            {
                "migrations": [{"name": name, "state": state} for name, state in migrations],
                "tables": [
                    {"name": t.name, "engine": t.engine, "rows": t.rows, "bytes": t.size,
                     "comment": t.comment}
                    for t in there
                ],
                "missing": list(gone),
            }
        )  # fmt: skip
    else:
        print_table(("migration", "state"), migrations)
        if there:
            rows = [
                (t.name, t.engine, "", "")
                if t.engine == "View"
                else (t.name, t.engine, f"{t.rows:,}", _size(t.size))
                for t in there
            ]
            say()
            print_table(("table", "engine", "rows", "on disk"), rows, right=(2, 3))
        if gone:
            say(f"\nmissing: {', '.join(gone)}")
        if pending or gone:
            say("\napply what is missing with `runnerstream schema apply`")
    if pending or gone:
        raise SystemExit(FAILED)


def _size(number: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number //= 1024
    return f"{number:,} GiB"
