"""Create and upgrade the tables: numbered SQL files, applied once each, in order.

ClickHouse has no lock that a program could take and no transaction around DDL. So safety comes
from the migrations instead: every statement may run twice and on two machines at once (``IF NOT
EXISTS``, ``OR REPLACE``), and a version is recorded only after its last statement. A crash in the
middle, or two sinks that start together, repeat statements and change nothing.

A migration that was applied is frozen: when its text no longer matches the recorded checksum,
:class:`EditedMigration` is raised instead of guessing which of the two the tables follow.
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

#: Used when the URL names no database.
DEFAULT_DATABASE: Final = "runnerstream"

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
#: A statement ends with a semicolon at the end of a line. Good enough for files of our own, and
#: far from a SQL parser; the schema test holds the files to it.
_END_OF_STATEMENT = re.compile(r";[ \t]*$", re.MULTILINE)
#: What a statement makes.
_MAKES = re.compile(r"^CREATE (?:TABLE IF NOT EXISTS|OR REPLACE VIEW) (\w+)")
_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)\n\) ENGINE", re.DOTALL)
_COLUMN = re.compile(r"^  `?(\w+)`? (.*)$")
_ADDED = re.compile(r"^ALTER TABLE (\w+) ADD COLUMN IF NOT EXISTS (\w+) (.*?)(?: AFTER \w+)?$")
_COMMENT_LINE = re.compile(r"^\s*--.*$", re.MULTILINE)
_DATABASE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")

#: Codes seen when two appliers create the same object at the same moment: table exists (57),
#: database exists (82), table is being dropped or replaced (60, 218, 219), DDL guard (337).
_RACE_CODES: Final = frozenset({57, 60, 82, 218, 219, 337})
_RACE_ATTEMPTS: Final = 8
_RACE_PAUSE_S: Final = 0.2

_LEDGER: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  version UInt32 COMMENT 'Number of the migration',
  name String COMMENT 'Its name',
  checksum String COMMENT 'SHA-256 of its text',
  applied_at DateTime64(3, 'UTC') COMMENT 'When it was applied',
  applied_by String COMMENT 'Host that applied it'
) ENGINE = ReplacingMergeTree
ORDER BY (version, checksum)
SETTINGS non_replicated_deduplication_window = 100
COMMENT 'Which migrations were applied.'
"""


class SchemaError(RuntimeError):
    """The schema cannot be brought up to date. An operator has to look."""


class EditedMigration(SchemaError):
    """A migration was changed after it had been applied. Write a new one instead."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def statements(self) -> tuple[str, ...]:
        bare = _COMMENT_LINE.sub("", self.text)
        return tuple(part.strip() for part in _END_OF_STATEMENT.split(bare) if part.strip())


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`apply` did. ``mended`` names what was gone."""

    database: str
    applied: tuple[str, ...] = ()
    already: tuple[str, ...] = field(default=())
    mended: tuple[str, ...] = ()


def migrations() -> tuple[Migration, ...]:
    """The migrations of this release, in order. Numbers are unique and without gaps."""
    found = []
    for entry in resources.files("sinks").joinpath("migrations").iterdir():
        match = _FILE.match(entry.name)
        if match:
            text = entry.read_text(encoding="utf-8")
            found.append(Migration(int(match.group(1)), match.group(2), text))
    found.sort(key=lambda migration: migration.version)
    numbers = [migration.version for migration in found]
    if numbers != list(range(1, len(numbers) + 1)):
        raise SchemaError(f"migrations must be numbered 1..n without gaps: {numbers}")
    return tuple(found)


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


def apply(url: str, todo: Sequence[Migration] | None = None) -> Report:
    """Create the database and apply what is missing. Idempotent; safe with several appliers.

    ``url`` is ``clickhouse://user:password@host:port/database``. Raises :class:`EditedMigration`,
    :class:`SchemaError` when the database is newer than this release, and clickhouse-driver's
    errors when the server cannot be reached or refuses.
    """
    wanted = migrations() if todo is None else tuple(todo)
    database = database_of(url)
    _create_database(url, database)
    applied: list[str] = []
    already: list[str] = []
    with connected(url) as client:
        _execute(client, _LEDGER)
        known = _ledger(client)
        _check(wanted, known)
        for migration in wanted:
            label = f"{migration.version:04d}_{migration.name}"
            if migration.version in known:
                already.append(label)
                continue
            for statement in migration.statements:
                _execute(client, statement)
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
            applied.append(label)
        mended = _mend(client, wanted)
    return Report(database, tuple(applied), tuple(already), mended)


def absent(url: str) -> tuple[str, ...]:
    """Tables, views and columns (``table.column``) that applied migrations have made and that are
    gone. Changes nothing.

    Raises clickhouse-driver's errors.
    """
    with connected(url) as client:
        if ("schema_migrations",) not in client.execute("SHOW TABLES"):
            return ()
        known = _ledger(client)
        return _absent(client, [each for each in migrations() if each.version in known])


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
        settings={"async_insert": 0, "insert_deduplicate": 0},
    )
    return int(latest) + 1


def _absent(client: Client, done: Sequence[Migration]) -> tuple[str, ...]:
    there = {name for (name,) in client.execute("SHOW TABLES")}
    made = {
        found.group(1): None
        for statement in _statements(done)
        if (found := _MAKES.match(statement))
    }
    columns = set(
        client.execute("SELECT table, name FROM system.columns WHERE database = currentDatabase()")
    )
    return (
        *(name for name in made if name not in there),
        *(
            f"{table}.{column}"
            for table, column in _columns(done)
            if table in there and (table, column) not in columns
        ),
    )


def _mend(client: Client, done: Sequence[Migration]) -> tuple[str, ...]:
    """Make again what was dropped. All statements are run again, in order: later ones may have
    changed what an earlier one makes, and all can be repeated."""
    gone = _absent(client, done)
    if gone:
        # Columns first: views are made of them.
        for (table, column), definition in _columns(done).items():
            if f"{table}.{column}" in gone:
                _execute(
                    client, f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS `{column}` {definition}"
                )
        for statement in _statements(done):
            _execute(client, statement)
    return gone


def _statements(done: Sequence[Migration]) -> Iterator[str]:
    for migration in done:
        yield from migration.statements


def _columns(done: Sequence[Migration]) -> dict[tuple[str, str], str]:
    """Every column of every table with its definition, as the migrations give it."""
    found: dict[tuple[str, str], str] = {}
    for statement in _statements(done):
        if made := _TABLE.match(statement):
            for line in made.group(2).splitlines():
                if (column := _COLUMN.match(line)) and column.group(1) != "INDEX":
                    found[made.group(1), column.group(1)] = column.group(2).rstrip(",")
        elif added := _ADDED.match(statement):
            found[added.group(1), added.group(2)] = added.group(3)
    return found


def pending(url: str) -> tuple[Migration, ...]:
    """Migrations of this release that the database has not seen. Changes nothing.

    Raises as :func:`apply` does.
    """
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
                f"migration {migration.version:04d}_{migration.name} was changed after it had been"
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
