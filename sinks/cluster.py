"""The tables of a cluster, from the same migrations as those of one server. Pure.

What a migration calls ``jobs`` is two tables on every node of a cluster. ``jobs_local`` has rows,
and all that has to do with rows: engine, indexes, projections, TTL, settings. ``jobs`` has the same
columns and no rows: it spreads what is written over the shards and asks all of them. Views stay as
they are, over such tables, so sinks, dashboards and people use the same names everywhere.

**Which shard.** All versions of a row have to meet on one, or none would replace another; so the
sharding key is made of the sorting key alone. Where that has the job's ``key``, it is the job, and
all that is known of a job lies together. Elsewhere it is the sorting key without its times: what is
one series lies together, and each shard adds up its own.

A kind of statement that is not known here is refused: what it means on a cluster has to be thought
about first, and :data:`_PLACES` extended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["table", "view"]
Place = Literal["local", "both"]

_SUFFIX: Final = "_local"
#: Where the replicas of a shard meet in Keeper; ``{}`` is the table with rows. By the name of the
#: table and not by its UUID: every node makes its own.
_PATH: Final = "/clickhouse/tables/{{shard}}/{{database}}/{}"
#: For so long an insert that is tried again is known by its token (s); as many as the window has.
_WINDOW_S: Final = 7 * 86_400

#: What a change is done to. Of a view there is only one.
_PLACES: Final[dict[str, Place]] = {
    "ADD COLUMN IF NOT EXISTS": "both",
    "COMMENT COLUMN IF EXISTS": "both",
    "MODIFY COMMENT": "both",
    "MODIFY SETTING": "local",
    "MODIFY TTL": "local",
    "ADD INDEX IF NOT EXISTS": "local",
    "MATERIALIZE INDEX IF EXISTS": "local",
    "ADD PROJECTION IF NOT EXISTS": "local",
    "MATERIALIZE PROJECTION IF EXISTS": "local",
}

_NAME = re.compile(r"^[A-Za-z0-9_.-]+$")
_TABLE = re.compile(
    r"CREATE TABLE IF NOT EXISTS (?P<name>\w+) \(\n(?P<columns>.*?)\n\)"
    r" ENGINE = (?P<engine>\w+MergeTree)(?:\((?P<arguments>[\w, ]*)\))?\n"
    r"(?:PARTITION BY (?P<partition>[^\n]+)\n)?"
    r"ORDER BY (?P<sorting>[^\n]+)\n"
    r"(?:TTL (?P<ttl>[^\n]+)\n)?"
    r"SETTINGS non_replicated_deduplication_window = (?P<window>\d+)\n"
    r"COMMENT (?P<comment>'(?:[^'\\]|\\.|'')*')",
    re.DOTALL,
)
_COLUMN = re.compile(r"^ {2}`?(?P<name>\w+)`? (?P<type>.+?),?$")
_VIEW = re.compile(r"(?P<begin>CREATE OR REPLACE VIEW (?P<name>\w+))(?P<rest> AS\s.*)", re.DOTALL)
_ALTER = re.compile(r"ALTER TABLE (?P<name>\w+)(?P<changes>\s.*)", re.DOTALL)
#: Between two changes of one statement. A migration has one a line.
_BETWEEN = re.compile(r",\n\s*(?=[A-Z]+ [A-Z]+ )")
_CHANGE = re.compile(r"\s*(?P<kind>[A-Z]+ [A-Z]+(?: IF (?:NOT )?EXISTS)?)\s")


class UnknownStatement(ValueError):
    """A migration has a statement of which nobody has said what it means on a cluster."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tables of a cluster are made.

    Attributes:
        cluster: its name in ``remote_servers``.
        replicated: whether the nodes of a shard have the same rows, which they agree on in Keeper.
        ddl: whether ClickHouse is to do each statement on all nodes (``ON CLUSTER``).
    """

    cluster: str
    replicated: bool = False
    ddl: bool = False

    def __post_init__(self) -> None:
        if not _NAME.match(self.cluster):
            raise ValueError(f"not the name of a cluster: {self.cluster!r}")

    @property
    def on(self) -> str:
        """What follows the name in a statement."""
        return f" ON CLUSTER '{self.cluster}'" if self.ddl else ""

    def everywhere(self, table: str) -> str:
        """A CREATE TABLE for a table that every node has for itself."""
        return table.replace(" (", f"{self.on} (", 1)


def local(table: str) -> str:
    """The table that has the rows of ``table``."""
    return table + _SUFFIX


def of_local(name: str) -> str:
    """The table whose rows ``name`` has; another name stays as it is."""
    return name.removesuffix(_SUFFIX)


def sharding_key(table: str) -> str:
    """On which shard a row of a table lies, as an expression, from its CREATE TABLE."""
    return _sharding_key(_matched(_TABLE, table))


@dataclass(slots=True)
class Rewriter:
    """Rewrites statements in the order in which they are run. Remembers what they make.

    Raises :class:`UnknownStatement`.
    """

    layout: Layout
    _made: dict[str, Kind] = field(default_factory=dict)

    def all(self, statements: Iterable[str]) -> tuple[str, ...]:
        """What these statements are on a node of the cluster."""
        return tuple(made for each in statements for made in self._one(each))

    def _one(self, statement: str) -> Iterator[str]:
        if table := _TABLE.fullmatch(statement):
            self._made[table["name"]] = "table"
            yield self._local(table)
            yield self._distributed(table)
        elif view := _VIEW.fullmatch(statement):
            self._made[view["name"]] = "view"
            yield f"{view['begin']}{self.layout.on}{view['rest']}"
        elif altered := _ALTER.fullmatch(statement):
            yield from self._altered(altered, statement)
        else:
            raise UnknownStatement(f"what is this on a cluster? {statement[:200]}")

    def _altered(self, altered: re.Match[str], statement: str) -> Iterator[str]:
        name, changes = altered["name"], altered["changes"]
        found = [_CHANGE.match(each) for each in _BETWEEN.split(changes)]
        kinds = {change["kind"] if change else "" for change in found}
        if kinds - _PLACES.keys() or name not in self._made:
            raise UnknownStatement(f"what is this on a cluster? {statement[:200]}")
        places = {_PLACES[kind] for kind in kinds}
        if self._made[name] == "view":
            yield f"ALTER TABLE {name}{self.layout.on}{changes}"
        elif len(places) > 1:
            raise UnknownStatement(f"changes of rows and of columns in one: {statement[:200]}")
        else:
            yield f"ALTER TABLE {local(name)}{self.layout.on}{changes}"
            if places == {"both"}:
                yield f"ALTER TABLE {name}{self.layout.on}{changes}"

    def _local(self, table: re.Match[str]) -> str:
        name = local(table["name"])
        engine, arguments, window = table["engine"], table["arguments"], table["window"]
        kept = f"non_replicated_deduplication_window = {window}"
        if self.layout.replicated:
            engine = f"Replicated{engine}"
            path = _PATH.format(name)
            arguments = ", ".join(filter(None, [f"'{path}'", "'{replica}'", arguments]))
            kept = (
                f"replicated_deduplication_window = {window},"
                f" replicated_deduplication_window_seconds = {_WINDOW_S}"
            )
        lines = [
            f"CREATE TABLE IF NOT EXISTS {name}{self.layout.on} (",
            table["columns"],
            f") ENGINE = {engine}" + (f"({arguments})" if arguments else ""),
            f"PARTITION BY {table['partition']}" if table["partition"] else "",
            f"ORDER BY {table['sorting']}",
            f"TTL {table['ttl']}" if table["ttl"] else "",
            f"SETTINGS {kept}",
            f"COMMENT {table['comment']}",
        ]
        return "\n".join(filter(None, lines))

    def _distributed(self, table: re.Match[str]) -> str:
        # Written out, since what AS copies differs from release to release.
        columns = [line for line in table["columns"].split("\n") if not _is_index(line)]
        columns[-1] = columns[-1].removesuffix(",")
        name = table["name"]
        return "\n".join([
            f"CREATE TABLE IF NOT EXISTS {name}{self.layout.on} (",
            *columns,
            f") ENGINE = Distributed('{self.layout.cluster}', currentDatabase(), {local(name)},"
            f" {_sharding_key(table)})",
            f"COMMENT {table['comment']}",
        ])  # fmt: skip


def _is_index(line: str) -> bool:
    return line.startswith("  INDEX ")


def _sharding_key(table: re.Match[str]) -> str:
    columns = re.findall(r"\w+", table["sorting"])
    if "key" in columns:
        return "cityHash64(key)"
    types = {
        column["name"]: column["type"]
        for line in table["columns"].split("\n")
        if not _is_index(line) and (column := _COLUMN.match(line))
    }
    lasting = [name for name in columns if not types[name].startswith("DateTime")]
    if not lasting:
        raise UnknownStatement(f"{table['name']}: nothing but times in the sorting key")
    return f"cityHash64({', '.join(f'`{name}`' for name in lasting)})"


def _matched(pattern: re.Pattern[str], statement: str) -> re.Match[str]:
    found = pattern.fullmatch(statement)
    if found is None:
        raise UnknownStatement(f"no table is made by this: {statement[:200]}")
    return found
