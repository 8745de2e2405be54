"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from pipeline.local import EmbeddedClickHouse, MissingServer
from tests.support import brokers
from tests.support.worker import kill_leftovers

# `ordinary` runs with every `make test`, `unit` with `make unit`; `nightly` is for a long look,
# `quick` for a short one: HYPOTHESIS_PROFILE=quick. The ordinary examples are the same for the same
# tests, so that a change is blamed for its own faults only; the other profiles look elsewhere each
# time.
COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile("ordinary", max_examples=500, derandomize=True, **COMMON)  # type: ignore[arg-type]
settings.register_profile("nightly", max_examples=5_000, **COMMON)  # type: ignore[arg-type]
settings.register_profile("quick", max_examples=50, **COMMON)  # type: ignore[arg-type]
settings.register_profile("unit", max_examples=15, **COMMON)  # type: ignore[arg-type]
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ordinary"))

# A suite that was started in the background of a script ignores the interrupt key, and so do the
# programs it starts: the tests of that key would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Which broker the tests run on, and why."""
    return brokers.describe()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that kill processes come first: of two that run at a time none is left alone with the
    longest."""
    long = {item.path for item in items if item.get_closest_marker("crash")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="module")
def _no_leftovers() -> Iterator[None]:
    """A failed test must not leave a worker running beside the next module."""
    yield
    kill_leftovers()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    """A ClickHouse for the module, which may kill and start it."""
    clickhouse = EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse"))
    try:
        clickhouse.start()
    except MissingServer as missing:
        pytest.skip(str(missing))
    yield clickhouse
    clickhouse.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables of what tests say they tried: ``record_property("tried: NAME", {column: value})``."""
    tables: dict[str, list[dict[str, object]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, row in report.user_properties:
                if name.startswith("tried: "):
                    tables.setdefault(name.removeprefix("tried: "), []).append(row)
    for name, rows in sorted(tables.items()):
        lines = [[str(column) for column in rows[0]]]
        lines += [[str(value) for value in row.values()] for row in rows]
        numbers = [[row[column] for row in rows] for column in rows[0]]
        if len(rows) > 1:
            lines.append(
                [
                    str(sum(each)) if all(isinstance(n, int) for n in each) else ""
                    for each in numbers
                ]  # type: ignore[arg-type]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        terminalreporter.section(name)
        for line in lines:
            cells = (each.ljust(width) for each, width in zip(line, widths, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())
