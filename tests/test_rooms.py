"""Who imports whom: the table in docs/how-it-works.md is what the code does, and has no circle.

Imports for the type checker count as well: what needs a name needs to know whose it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("topics", "pipeline", "sinks", "dashboards")
_ROW = re.compile(r"^\| `([\w/.]+)` \| (.+) \|$", re.MULTILINE)


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(source: str, known: Iterable[str]) -> set[str]:
    """Our own modules that a source imports, anywhere in it."""
    known = set(known)
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & known) or {base}
    return found & known


def room(module: str) -> str:
    """``pipeline/jobs``, ``pipeline/worker.py``; the other packages are a room each."""
    first, *rest = module.split(".")
    if first != "pipeline" or not rest:
        return first
    name = f"{first}/{rest[0]}"
    return name if (ROOT / name).is_dir() else f"{name}.py"


def known_by_room(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module, imported in graph.items():
        mine = found.setdefault(room(module), set())
        mine |= {room(each) for each in imported} - {room(module)}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = modules()
    return {
        name: imports(path.read_text(encoding="utf-8"), found) - {name}
        for name, path in found.items()
    }


def test_the_page_shows_who_knows_whom(graph: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    section = page.partition("## The rooms of the code")[2].partition("\n## ")[0]
    told = {
        name: {each.strip("` ") for each in known.split(",")} - {"nobody"}
        for name, known in _ROW.findall(section)
    }
    rooms = known_by_room(graph)
    # The package that holds the rooms of the pipeline is empty.
    assert not rooms.pop("pipeline")
    assert {name: known for name, known in told.items() if known != rooms.get(name)} == {}
    assert told.keys() == rooms.keys()


def test_there_is_no_circle(graph: dict[str, set[str]]) -> None:
    assert not circle(graph), "modules"
    assert not circle(known_by_room(graph)), "rooms"


def test_a_circle_would_be_noticed() -> None:
    known = {"pipeline.web.part", "pipeline.worker", "pipeline.web"}
    late = "if TYPE_CHECKING:\n    from pipeline.worker import Worker\n"
    graph = {
        "pipeline.web.part": imports(late, known),
        "pipeline.worker": imports("def f():\n    from pipeline.web import part\n", known),
    }
    assert circle(graph)
    assert circle(known_by_room(graph))
