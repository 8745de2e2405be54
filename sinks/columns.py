"""A table's columns, each declared with its value. Pure.

A name and its value stand in one line, so they cannot get out of step. Most values are attributes
of what the row is made from (its *source*), and those of a whole group are read at once: one
:func:`operator.attrgetter` costs no more than the same written out, and half of a function per
column (0.9, 1.0 and 2.3 microseconds for 32 columns).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple

Row = tuple[Any, ...]


class Column(NamedTuple):
    """A column, and where its value comes from."""

    name: str
    #: An attribute of the source (``job.repo``), or a function of the source. Left out, it is the
    #: attribute that is called like the column.
    of: str | Callable[[Any], Any] = ""


class Columns:
    """Columns whose values come from one source. ``names`` is in the order of :meth:`values`."""

    def __init__(self, *columns: Column) -> None:
        names: list[str] = []
        attributes: list[str] = []
        computed: list[str] = []
        functions: list[Callable[[Any], Any]] = []
        for name, of in columns:
            if isinstance(of, str):
                names.append(name)
                attributes.append(of or name)
            else:
                computed.append(name)
                functions.append(of)
        if len(attributes) < 2:
            raise ValueError(f"attrgetter of one name gives no tuple: {columns}")
        self.names: Final = (*names, *computed)
        self._declared: Final = columns
        self._attributes: Final[Callable[[Any], Row]] = attrgetter(*attributes)
        self._functions: Final = tuple(functions)

    def __iter__(self) -> Iterator[Column]:
        """The columns as they were declared, to make a longer group of them."""
        return iter(self._declared)

    def values(self, source: Any) -> Row:
        """The values of ``names``. Raises AttributeError for a source of another kind."""
        row = self._attributes(source)
        if self._functions:
            return row + tuple([function(source) for function in self._functions])
        return row


class Given:
    """Columns whose values are given as they are: the source is a tuple of them, in order."""

    def __init__(self, *names: str) -> None:
        self.names: Final = names

    def values(self, source: Row) -> Row:
        """The source itself."""
        return source


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the sink writes.

    ``shared`` are columns whose values are the same for several rows or tables, and so are made
    once: :meth:`row` is told them.
    """

    name: str
    own: Columns | Given
    shared: Columns | None = None
    #: Names of all columns, in the order of the row tuples.
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        shared = self.shared.names if self.shared else ()
        object.__setattr__(self, "columns", (*shared, *self.own.names))

    def row(self, source: Any, shared: Row = ()) -> Row:
        """One row; ``shared`` are the values of the shared columns."""
        return shared + self.own.values(source)
