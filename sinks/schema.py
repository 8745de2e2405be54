"""Create and upgrade the tables: numbered SQL files, applied once each, in order.

ClickHouse has no lock that a program could take and no transaction around DDL. So safety comes
from the migrations instead: every statement may run twice and on two machines at once (``IF NOT
EXISTS``, ``OR REPLACE``), and a version is recorded only after its last statement. A crash in the
middle, or two sinks that start together, repeat statements and change nothing.

A migration that was applied is frozen: when its text no longer matches the recorded checksum,
:class:`EditedMigration` is raised instead of guessing which of the two the tables follow.

On a cluster (``sinks/cluster.py``) every node is brought up to date by itself, and has its own list
of what was applied. Its tables are replicated where its nodes have the macros ``shard`` and
``replica``.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from sinks.cluster import Layout, of_local
from sinks.declared import (
    LEDGER,
    Migration,
    SchemaError,
    columns,
    made,
    made_by,
    migrations,
    script,
    spread_over,
    statements,
)
from sinks.nodes import Node, NodesAway, UnknownCluster, nodes, visit

__all__ = [
    "EditedMigration", "Held", "Layout", "Migration", "NodesAway", "Report", "SchemaError",
    "WrongCluster", "absent", "apply", "connected", "database_of", "epoch", "held", "migrations",
    "pending", "replicas", "script", "table_of", "with_database",
]  # fmt: skip

#: Used when the URL names no database.
DEFAULT_DATABASE: Final = "runnerstream"

_DATABASE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")

#: Codes seen when two appliers create the same object at the same moment: table exists (57),
#: database exists (82), table is being dropped or replaced (60, 218, 219), DDL guard (337). And two
#: replicas that change the same table: the change of the other comes first (517).
_RACE_CODES: Final = frozenset({57, 60, 82, 218, 219, 337, 517})
_RACE_ATTEMPTS: Final = 8
_RACE_PAUSE_S: Final = 0.2


class EditedMigration(SchemaError):
    """A migration was changed after it had been applied. Write a new one instead."""


class WrongCluster(SchemaError):
    """The cluster is not there, or cannot have our tables, or the tables are those of another."""


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`apply` did. ``mended`` names what was gone, ``emptied`` the tables that have lost
    rows by that."""

    database: str
    applied: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()


def database_of(url: str) -> str:
    """Name of the database in a ``clickhouse://`` URL."""
    name = urlsplit(url).path.strip("/") or DEFAULT_DATABASE
    if not _DATABASE_NAME.match(name):
        raise ValueError(f"not a database name: {name!r}")
    return name


def with_database(url: str, database: str) -> str:
    """The same URL with another database."""
    return urlunsplit(urlsplit(url)._replace(path="/" + database))


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A client for the URL's database (:data:`DEFAULT_DATABASE` when it names none)."""
    client = Client.from_url(with_database(url, database_of(url)))
    try:
        yield client
    finally:
        client.disconnect()


def apply(url: str, todo: Sequence[Migration] | None = None, cluster: str = "") -> Report:
    """Create the database and apply what is missing. Idempotent; safe with several appliers.

    ``url`` is ``clickhouse://user:password@host:port/database``. With a ``cluster``, on all of its
    nodes. Raises :class:`EditedMigration`, :class:`SchemaError` when the database is newer than
    this release or its tables are not such as are to be made, :class:`NodesAway` when all is done
    but on some nodes, and clickhouse-driver's errors when the server cannot be reached or refuses.
    """
    wanted = migrations() if todo is None else tuple(todo)
    if not cluster:
        return _apply(url, wanted)
    found, layout = _layout(url, cluster)
    spread = spread_over(wanted, layout)
    visited = visit(found, lambda node: _apply_on(node, spread, layout, found))
    if visited.away:
        raise NodesAway(cluster, visited)
    reports = visited.answers.items()
    done = {label for _, report in reports for label in report.applied}
    labels = [migration.label for migration in wanted]
    return Report(
        database_of(url),
        tuple(label for label in labels if label in done),
        tuple(label for label in labels if label not in done),
        tuple(f"{name} on {node}" for node, report in reports for name in report.mended),
        tuple(dict.fromkeys(name for _, report in reports for name in report.emptied)),
    )


def absent(url: str, cluster: str = "") -> tuple[str, ...]:
    """Tables, views and columns (``table.column``) that applied migrations have made and that are
    gone; with a ``cluster`` also where (``table on host:port``). Changes nothing.

    Raises :class:`NodesAway` when that is so of some nodes and nothing is known to be gone, and
    clickhouse-driver's errors.
    """
    if not cluster:
        return _gone(url, migrations())
    found, layout = _layout(url, cluster)
    spread = spread_over(migrations(), layout)
    visited = visit(found, lambda node: _gone(node.url, spread))
    gone = [f"{name} on {node}" for node, names in visited.answers.items() for name in names]
    if visited.away and not gone:
        raise NodesAway(cluster, visited)
    return tuple(gone)


def table_of(gone: str) -> str:
    """The table or view of what :func:`absent` or a :class:`Report` names."""
    return of_local(gone.partition(" on ")[0].partition(".")[0])


@dataclass(frozen=True, slots=True)
class Held:
    """What a table or view of a database holds; a view holds nothing. ``size`` is in bytes."""

    name: str
    engine: str
    rows: int
    size: int
    comment: str

    def __add__(self, other: Held) -> Held:
        return replace(self, rows=self.rows + other.rows, size=self.size + other.size)


def held(url: str, cluster: str = "") -> tuple[Held, ...]:
    """What there is, tables first; on a ``cluster`` of all shards together.

    Raises clickhouse-driver's errors, :class:`NodesAway` when one of them has no answer.
    """
    if not cluster:
        return _held(url)
    visited = visit(nodes(url, cluster), lambda node: _held(node.url))
    if not visited.enough:
        raise NodesAway(cluster, visited)
    # The replicas of a shard hold the same.
    shards = {node.shard: found for node, found in visited.answers.items()}
    whole: dict[str, Held] = {}
    for found in shards.values():
        for each in found:
            whole[each.name] = whole[each.name] + each if each.name in whole else each
    return tuple(whole.values())


def _held(url: str) -> tuple[Held, ...]:
    with connected(url) as client:
        found = client.execute(
            "SELECT name, engine, ifNull(total_rows, 0), ifNull(total_bytes, 0), comment"
            " FROM system.tables WHERE database = currentDatabase() AND engine != 'Distributed'"
            " ORDER BY engine = 'View', name"
        )
    return tuple(Held(*row) for row in found)


def epoch(client: Client, topic: str, log_id: str, table: str = "jobs") -> int:
    """Which life of ``topic`` the log is, from 1; noted when it was not known.

    The same answer for every sink, also for two that ask at once. Should the notes be lost, a log
    that is not known comes after all that ``table`` knows, whose ``rev`` are places.

    Raises clickhouse-driver's errors.
    """
    place = {"topic": topic, "log": log_id}
    ((known, number),) = client.execute(
        "SELECT min(epoch), count() FROM log_epochs WHERE topic = %(topic)s AND log_id = %(log)s",
        place,
    )
    if number:
        return int(known)
    ((latest,),) = client.execute(
        "SELECT greatest((SELECT max(epoch) FROM log_epochs WHERE topic = %(topic)s),"
        " (SELECT max(if(rev >= 0x8000000000000000,"
        f" bitAnd(bitShiftRight(rev, 48), 0x7FFF), 0)) FROM {table}))",
        place,
    )
    client.execute(
        "INSERT INTO log_epochs (topic, log_id, epoch, noted_at) VALUES",
        [(topic, log_id, latest + 1, int(time.time() * 1000))],
        settings={"async_insert": 0, "insert_deduplicate": 0, "distributed_foreground_insert": 1},
    )
    return int(latest) + 1


def _apply(
    url: str,
    wanted: Sequence[Migration],
    layout: Layout | None = None,
    there: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """Bring one server up to date. ``there``: how other replicas have their tables."""
    database = database_of(url)
    _create_database(url, database)
    applied: list[str] = []
    already: list[str] = []
    with connected(url) as client:
        _check_kind(client, wanted, layout)
        _execute(client, LEDGER)
        known = _ledger(client)
        _check(wanted, known)
        for migration in wanted:
            if migration.version in known:
                already.append(migration.label)
                continue
            for statement in migration.statements:
                _execute(client, _taken_over(statement, there))
            client.execute(
                "INSERT INTO schema_migrations (version, name, checksum, applied_at, applied_by)"
                " VALUES",
                [
                    (
                        migration.version,
                        migration.name,
                        migration.checksum,
                        int(time.time() * 1000),
                        socket.gethostname(),
                    )
                ],
                settings={"async_insert": 0, "insert_deduplicate": 0},
            )
            applied.append(migration.label)
        mended = _mend(client, wanted, there)
    lost = dict.fromkeys(name.partition(".")[0] for name in mended)
    if layout is not None:
        # Without its rows a table asks the shards, and has lost nothing.
        lost = dict.fromkeys(of_local(name) for name in lost if of_local(name) != name)
    return Report(database, tuple(applied), tuple(already), mended, tuple(lost))


def _apply_on(
    node: Node, wanted: Sequence[Migration], layout: Layout, all_nodes: Sequence[Node]
) -> Report:
    """Bring one node of a cluster up to date. What is wrong with it is told with its name."""
    there: dict[str, str] = {}
    if layout.replicated:
        others = [each for each in all_nodes if each.shard == node.shard and each != node]
        for found in visit(others, lambda other: replicas(other.url)).answers.values():
            there |= found
    try:
        return _apply(node.url, wanted, layout, there)
    except SchemaError as error:
        raise type(error)(f"{node}: {error}") from None


def replicas(url: str) -> dict[str, str]:
    """The replicated tables of a server, and the statement that makes another replica of each.

    Raises clickhouse-driver's errors.
    """
    with connected(url) as client:
        found = client.execute(
            "SELECT name, create_table_query FROM system.tables"
            " WHERE database = currentDatabase() AND engine LIKE 'Replicated%MergeTree'"
        )
    begin = "CREATE TABLE "
    return {name: query.replace(begin, f"{begin}IF NOT EXISTS ", 1) for name, query in found}


def _taken_over(statement: str, there: Mapping[str, str]) -> str:
    """A replica has to begin as the others are by now, with all that has changed since the table
    was made: Keeper refuses one that begins as they began."""
    return there.get(made_by(statement), statement)


def _layout(url: str, cluster: str) -> tuple[tuple[Node, ...], Layout]:
    """The nodes of a cluster, and how their tables are to be."""
    try:
        found = nodes(url, cluster)
    except UnknownCluster as error:
        raise WrongCluster(str(error)) from None
    visited = visit(found, _has_macros)
    if not visited.answers:
        raise NodesAway(cluster, visited)
    having = [str(node) for node, has in visited.answers.items() if has]
    lacking = [str(node) for node, has in visited.answers.items() if not has]
    if having and lacking:
        raise WrongCluster(
            f"of cluster {cluster} {', '.join(having)} have the macros shard and replica, and"
            f" {', '.join(lacking)} have not: all of them, or none"
        )
    if lacking and len({node.shard for node in found}) < len(found):
        raise WrongCluster(
            f"cluster {cluster} has shards with several replicas: that needs Keeper, and the macros"
            " shard and replica on every node"
        )
    return found, Layout(cluster, replicated=bool(having))


def _has_macros(node: Node) -> bool:
    with Client.from_url(with_database(node.url, "default")) as client:
        ((found,),) = client.execute(
            "SELECT uniqExact(macro) FROM system.macros WHERE macro IN ('shard', 'replica')"
        )
    return bool(found == 2)


def _check_kind(client: Client, wanted: Sequence[Migration], layout: Layout | None) -> None:
    """Tables of a cluster and of a server have the same names: neither is changed into the
    other."""
    ours = {table for table, _ in columns(wanted)}
    there = client.execute(
        "SELECT name, engine, engine_full FROM system.tables WHERE database = currentDatabase()"
    )
    for name, engine, full in sorted(there):
        if name not in ours:
            continue
        rows = engine.endswith("MergeTree")
        if layout is None:
            if not rows:
                raise WrongCluster(
                    f"{name} is a table of a cluster, {full.partition(',')[0]}): set"
                    " RUNNERSTREAM_CLICKHOUSE_CLUSTER to its name"
                )
        elif rows and of_local(name) == name:
            raise WrongCluster(
                f"{name} is a table of one server, and a cluster is to be in its place: name"
                " another database in RUNNERSTREAM_CLICKHOUSE, and copy what it has"
            )
        elif rows and engine.startswith("Replicated") != layout.replicated:
            raise WrongCluster(
                f"{name} is {'' if layout.replicated else 'not '}to be replicated, and its engine"
                f" is {engine}: the macros shard and replica have come or gone"
            )
        elif not rows and f"'{layout.cluster}'" not in full:
            raise WrongCluster(f"{name} is a table of another cluster: {full}")


def _gone(url: str, wanted: Sequence[Migration]) -> tuple[str, ...]:
    with connected(url) as client:
        if ("schema_migrations",) not in client.execute("SHOW TABLES"):
            return ()
        known = _ledger(client)
        return _absent(client, [each for each in wanted if each.version in known])


def _absent(client: Client, done: Sequence[Migration]) -> tuple[str, ...]:
    there = {name for (name,) in client.execute("SHOW TABLES")}
    known = set(
        client.execute("SELECT table, name FROM system.columns WHERE database = currentDatabase()")
    )
    return (
        *(name for name in made(done) if name not in there),
        *(
            f"{table}.{column}"
            for table, column in columns(done)
            if table in there and (table, column) not in known
        ),
    )


def _mend(client: Client, done: Sequence[Migration], there: Mapping[str, str]) -> tuple[str, ...]:
    """Make again what was dropped. All statements are run again, in order: later ones may have
    changed what an earlier one makes, and all can be repeated."""
    gone = _absent(client, done)
    if gone:
        # Columns first: views are made of them.
        for (table, column), definition in columns(done).items():
            if f"{table}.{column}" in gone:
                _execute(
                    client, f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS `{column}` {definition}"
                )
        for statement in statements(done):
            _execute(client, _taken_over(statement, there))
    return gone


def pending(url: str, cluster: str = "") -> tuple[Migration, ...]:
    """Migrations of this release that the database has not seen; with a ``cluster``, that some node
    has not. Changes nothing.

    Raises as :func:`apply` does; :class:`NodesAway` only when the others have seen all.
    """
    if not cluster:
        return _pending(url)
    try:
        visited = visit(nodes(url, cluster), lambda node: _pending(node.url))
    except UnknownCluster as error:
        raise WrongCluster(str(error)) from None
    missing = {each.version for found in visited.answers.values() for each in found}
    if visited.away and not missing:
        raise NodesAway(cluster, visited)
    return tuple(each for each in migrations() if each.version in missing)


def _pending(url: str) -> tuple[Migration, ...]:
    with Client.from_url(with_database(url, "default")) as client:
        exists = client.execute(
            "SELECT count() FROM system.tables WHERE database = %(database)s"
            " AND name = 'schema_migrations'",
            {"database": database_of(url)},
        )
    if not exists[0][0]:
        return migrations()
    with connected(url) as client:
        known = _ledger(client)
    wanted = migrations()
    _check(wanted, known)
    return tuple(migration for migration in wanted if migration.version not in known)


def _check(wanted: Sequence[Migration], known: dict[int, set[str]]) -> None:
    for migration in wanted:
        recorded = known.get(migration.version)
        if recorded and recorded != {migration.checksum}:
            raise EditedMigration(
                f"migration {migration.label} was changed after it had been"
                " applied; restore it and put the change into a new migration"
            )
    # A sink of an older release must not write into tables it does not know.
    newest = max((migration.version for migration in wanted), default=0)
    unknown = sorted(version for version in known if version > newest)
    if unknown:
        raise SchemaError(f"the database is newer than this program: migrations {unknown}")


def _ledger(client: Client) -> dict[int, set[str]]:
    known: dict[int, set[str]] = {}
    rows: list[tuple[Any, ...]] = client.execute("SELECT version, checksum FROM schema_migrations")
    for version, checksum in rows:
        known.setdefault(version, set()).add(checksum)
    return known


def _create_database(url: str, database: str) -> None:
    """Create the database unless it is there (a user without that right may have one given)."""
    with Client.from_url(with_database(url, "default")) as client:
        found = client.execute(
            "SELECT count() FROM system.databases WHERE name = %(database)s",
            {"database": database},
        )
        if not found[0][0]:
            # Atomic is the default of a server; the embedded one has another default, under
            # which CREATE OR REPLACE does not work.
            _execute(client, f"CREATE DATABASE IF NOT EXISTS `{database}` ENGINE = Atomic")


def _execute(client: Client, statement: str) -> None:
    """Run a repeatable DDL statement; try again when another applier was in the way."""
    for attempt in range(1, _RACE_ATTEMPTS + 1):
        try:
            client.execute(statement)
            return
        except ServerException as error:
            if error.code not in _RACE_CODES or attempt == _RACE_ATTEMPTS:
                raise
            time.sleep(_RACE_PAUSE_S * attempt)
