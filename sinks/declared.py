"""What migrations declare: the numbered SQL files, their statements, the tables and columns made by
them. Pure; who runs them is ``sinks/schema.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Final

from sinks.cluster import Layout, Rewriter

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

#: Which migrations a server has seen. Each has its own list, also in a cluster.
LEDGER: Final = """
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


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file. ``instead``: what is run of it on a node of a cluster."""

    version: int
    name: str
    text: str
    instead: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        return f"{self.version:04d}_{self.name}"

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def statements(self) -> tuple[str, ...]:
        if self.instead is not None:
            return self.instead
        bare = _COMMENT_LINE.sub("", self.text)
        return tuple(part.strip() for part in _END_OF_STATEMENT.split(bare) if part.strip())


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


def spread_over(todo: Sequence[Migration], layout: Layout) -> tuple[Migration, ...]:
    """The same migrations for a node of a cluster; all from the first, in order.

    Raises :class:`sinks.cluster.UnknownStatement`.
    """
    rewriter = Rewriter(layout)
    return tuple(
        replace(migration, instead=rewriter.all(migration.statements)) for migration in todo
    )


def script(layout: Layout | None = None) -> Iterator[str]:
    """All statements of this release, and what notes that they were run, for people who run them
    themselves: on one server, or on each node of a cluster, or once with ``ON CLUSTER``.

    Notes are for each node: no ``ON CLUSTER`` writes rows.
    """
    todo = migrations() if layout is None else spread_over(migrations(), layout)
    ledger = LEDGER.strip()
    if layout is not None:
        ledger = layout.everywhere(ledger)
    yield ledger
    for migration in todo:
        yield from migration.statements
    for migration in todo:
        yield (
            "INSERT INTO schema_migrations (version, name, checksum, applied_at, applied_by) VALUES"
            f" ({migration.version}, '{migration.name}', '{migration.checksum}', now64(3),"
            " hostName())"
        )


def made(done: Sequence[Migration]) -> dict[str, str]:
    """Tables and views, and the statement that makes each (the last of them)."""
    return {name: each for each in statements(done) if (name := made_by(each))}


def made_by(statement: str) -> str:
    """The table or view that a statement makes; empty: it makes none."""
    found = _MAKES.match(statement)
    return found.group(1) if found else ""


def statements(done: Sequence[Migration]) -> Iterator[str]:
    """All of their statements, in order."""
    for migration in done:
        yield from migration.statements


def columns(done: Sequence[Migration]) -> dict[tuple[str, str], str]:
    """Every column of every table with its definition, as the migrations give it."""
    found: dict[tuple[str, str], str] = {}
    for statement in statements(done):
        if made := _TABLE.match(statement):
            for line in made.group(2).splitlines():
                if (column := _COLUMN.match(line)) and column.group(1) != "INDEX":
                    found[made.group(1), column.group(1)] = column.group(2).rstrip(",")
        elif added := _ADDED.match(statement):
            found[added.group(1), added.group(2)] = added.group(3)
    return found
