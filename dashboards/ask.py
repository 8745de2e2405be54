"""Asks ClickHouse what a panel asks, as Grafana's datasource would."""

from __future__ import annotations

from typing import Any

from clickhouse_driver import Client

from dashboards.macros import Range, expand


def ask(client: Client | str, sql: str, over: Range) -> tuple[list[tuple[str, str]], list[Any]]:
    """Columns (name and type) and rows. ``client`` may be a URL; then it is asked once.

    Raises :class:`dashboards.macros.UnknownMacro`, and clickhouse-driver's errors.
    """
    if isinstance(client, str):
        with Client.from_url(client) as made:
            return ask(made, sql, over)
    rows, columns = client.execute(expand(sql, over), with_column_types=True)
    return columns, rows
