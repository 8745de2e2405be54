"""What the page of parity names is there: dashboards, panels, alerts and their runbooks.

The declarations of other systems know ours by name only, and dashboards do not know of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Final

import pytest

from dashboards.boards import BOARDS
from pipeline.compat import parity
from pipeline.compat.model import Alert, Kindred, Panel, Shown, System
from pipeline.compat.systems import SYSTEMS

TITLES: Final = {board.title: {panel.title for panel in board.panels} for board in BOARDS}
#: Alerts by name, as soon as there are any.
ALERTS: Final = import_module("dashboards.alerts") if find_spec("dashboards.alerts") else None


def told(system: System) -> Iterator[Panel | Alert | Kindred]:
    """Whatever may be shown by a panel of ours."""
    return chain(system.panels, system.alerts, *(system.further or {}).values())


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_each_panel_that_is_named_is_in_its_dashboard(system: System) -> None:
    named = {shown for each in told(system) for shown in each.shown}
    assert named
    assert {each for each in named if each.title not in TITLES[each.board]} == set()
    files = {f"dashboards/grafana/{board.uid}.json" for board in BOARDS}
    assert {parity.board_file(each.board) for each in named} <= files


@pytest.mark.parametrize(
    ("system", "board", "section"),
    [
        ("tuist", "Runners", ""),
        ("act_runner", "act_runner", ""),
        ("gitea_runner", "act_runner", ""),
        ("stellaops", "Scheduler", ""),
        ("gastown", "Reconciler", "Reconciler"),
    ],
)
def test_panels_have_the_titles_of_their_models(system: str, board: str, section: str) -> None:
    panels = [panel for panel in SYSTEMS[system].panels if panel.section == section or not section]
    assert len(panels) >= 6
    if system == "tuist":  # whose 32 entries are these and the headings
        rows = next(each.rows for each in BOARDS if each.title == board)
        assert {panel.section for panel in panels} <= {row.title for row in rows}
    # What is two panels in one there, is two here, by the words of both.
    other = [panel for panel in panels if Shown(board, panel.title) not in panel.shown]
    assert {panel.title for panel in other} <= {"Job duration p50/p95/p99 + heatmap"}
    for panel in other:
        first, second = panel.shown
        assert f"{first.title} + {second.title.removeprefix('Job duration ')}" == panel.title


@pytest.mark.skipif(ALERTS is None, reason="no alerts are declared")
def test_each_alert_that_is_named_is_declared() -> None:
    assert ALERTS is not None
    alerts = {*ALERTS.ALERTS, *ALERTS.SQL_ALERTS}
    fires = {name for s in SYSTEMS.values() for alert in s.alerts for name in alert.fires}
    assert len(fires) > 20
    assert fires - alerts == set()
    leads = {name for board in BOARDS for panel in board.panels for name in panel.alerts}
    assert leads - alerts == set()
