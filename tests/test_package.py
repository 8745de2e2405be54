"""The package as others get it: it installs alone, imports in any order, and keeps its rooms."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("topics", "pipeline", "sinks", "dashboards")

#: What a rule of the pipeline must never touch: clocks, networks, databases, frameworks.
EDGES = frozenset(
    {
        "faust",
        "mode",
        "kafka",
        "aiokafka",
        "aiohttp",
        "clickhouse_driver",
        "prometheus_client",
        "click",
    }
)


@cache
def modules() -> dict[str, Path]:
    """Every module of ours, by its name."""
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


#: Modules that need a package which is not installed with ours: those that only write what is
#: committed, and that which draws pictures.
MORE_NEEDED = ("dashboards.generate", "dashboards.rules", "dashboards.drawing.png")


def importable() -> list[str]:
    """The modules that may be imported with what is always installed; no scripts."""
    apart = ("__main__", ".clickhouse_server", *MORE_NEEDED)
    return [name for name in modules() if not name.endswith(apart)]


# --- installed --------------------------------------------------------------------------------


def clean_env() -> dict[str, str]:
    """The environment without what would let a process see this checkout or our settings."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith(("RUNNERSTREAM_", "COV_", "COVERAGE_"))
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh environment with the package and nothing optional; its directory of programs."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in OURS:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    programs = home / "bin"
    result = subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-compile", "--constraint", ROOT / "constraints.txt", source],
        cwd=home, env=clean_env(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    yield programs
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_it_installs_alone_and_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        return subprocess.run(
            [installed / "runnerstream", *arguments],
            cwd=tmp_path, env=clean_env(), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert run("--version").startswith("runnerstream 0.")
    overview = run("--help")
    for command in ("demo", "worker", "topics", "schema", "sql", "dead-letters"):
        assert command in overview
    # One process for all; whether each can come first is the next test's question.
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n    importlib.import_module(name)\n"
        "import pipeline; print(pipeline.__file__)"
    )
    told = subprocess.run(
        [installed / "python", "-W", "ignore", "-c", code, json.dumps(importable())],
        cwd=tmp_path, env=clean_env(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    assert installed.parent.resolve() in Path(told.stdout.strip()).resolve().parents


@pytest.mark.slow
def test_what_is_not_code_is_installed_too(installed: Path) -> None:
    (package,) = installed.parent.glob("lib/python*/site-packages")
    for name in OURS:
        for path in (ROOT / name).rglob("*"):
            wanted = path.is_file() and "__pycache__" not in path.parts
            if wanted and path.suffix not in (".py", ".md") and path.name != "LICENSE":
                assert (package / path.relative_to(ROOT)).is_file(), path.relative_to(ROOT)


def test_the_licences_come_along(installed: Path) -> None:
    (about,) = installed.parent.glob("lib/python*/site-packages/runnerstream-*.dist-info")
    assert "License-Expression: Apache-2.0\n" in (about / "METADATA").read_text()
    for name in ("LICENSE", "pipeline/simulate/data/LICENSE"):
        assert (about / "licenses" / name).read_bytes() == (ROOT / name).read_bytes()


# --- imports ----------------------------------------------------------------------------------

#: Imports each module in a process of its own, forked after the libraries are loaded, so that no
#: module of ours is there because of another. Prints what failed as JSON.
_ALONE = """
import importlib, io, json, os, sys, traceback
libraries, modules = json.loads(sys.argv[1])
for name in libraries:
    importlib.import_module(name)
failed = {}
for name in modules:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        text = ""
        try:
            importlib.import_module(name)
        except BaseException:
            text = traceback.format_exc()
        with open(write, "w") as out:
            out.write(text)
        os._exit(0)
    os.close(write)
    with open(read) as told:
        text = told.read()
    if os.waitpid(child, 0)[1] or text:
        failed[name] = text[-2000:]
origin = importlib.import_module("pipeline").__file__
print(json.dumps({"failed": failed, "origin": origin}))
"""
_LIBRARIES = (
    "faust",
    "kafka",
    "aiokafka",
    "clickhouse_driver",
    "pydantic_settings",
    "click",
    "rich",
)


def test_every_module_can_be_imported_first(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ALONE, json.dumps([_LIBRARIES, importable()])],
        cwd=tmp_path, env={**clean_env(), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["failed"] == {}, "\n".join(f"{k}:\n{v}" for k, v in told["failed"].items())
    assert ROOT in Path(told["origin"]).resolve().parents


# --- rooms ------------------------------------------------------------------------------------


@cache
def imports(name: str) -> frozenset[str]:
    """Full names of what a module imports, wherever in it, except for type checkers only."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for each in node.orelse:
                visit(each)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in modules() else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def reached(*rooms: str) -> dict[str, str]:
    """Everything that modules of these rooms import, directly or through ours, and through what."""
    start = [name for name in modules() if within(name, *rooms)]
    assert start, rooms
    found: dict[str, str] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        for imported in imports(name):
            if imported not in found:
                found[imported] = name
                if imported in modules():
                    waiting.append(imported)
    return found


def within(name: str, *rooms: str) -> bool:
    """Whether a module is one of these or inside."""
    return any(name == room or name.startswith(room + ".") for room in rooms)


def test_topics_knows_nobody() -> None:
    assert not {n: via for n, via in reached("topics").items() if within(n, "pipeline", "sinks")}


@pytest.mark.parametrize("room", ["pipeline.jobs", "pipeline.windows", "pipeline.providers",
                                  "pipeline.metrics", "pipeline.effects",
                                  "pipeline.ledger", "pipeline.verify"])  # fmt: skip
def test_rules_touch_no_edge(room: str) -> None:
    found = reached(room)
    assert not {n: via for n, via in found.items() if n.split(".")[0] in EDGES}
    edges = ("pipeline.agents", "pipeline.faust_safe", "pipeline.web", "pipeline.commands",
             "pipeline.local", "pipeline.settings", "pipeline.exporter", "sinks")  # fmt: skip
    assert not {n: via for n, via in found.items() if within(n, *edges)}


def test_parts_of_the_ledger_do_not_know_it() -> None:
    parts = [name for name in modules() if within(name, "pipeline.ledger")]
    whole = {"pipeline.ledger", "pipeline.ledger.ledger"}
    assert len(parts) > len(whole)
    assert not {name for name in parts if name not in whole and imports(name) & whole}


def test_sinks_know_topics_only() -> None:
    assert not {n: via for n, via in reached("sinks").items() if within(n, "pipeline")}


def test_dashboards_are_data() -> None:
    """They know nobody, and what they declare needs nothing that is not installed with us."""
    assert not {n: via for n, via in reached("dashboards").items() if within(n, *OURS[:3])}
    boards = {name.split(".")[0] for name in reached("dashboards.boards", "dashboards.model")}
    assert boards <= {"dashboards", *sys.stdlib_module_names}


def test_the_judge_shares_nothing_with_the_judged() -> None:
    judged = ("pipeline.jobs", "pipeline.windows", "pipeline.ledger", "pipeline.agents")
    found = reached("pipeline.simulate.truth")
    assert not {n: via for n, via in found.items() if within(n, *judged)}


def test_the_rules_would_notice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        textwrap.dedent("""
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            import faust
        def late():
            from pipeline.worker import Worker
            from . import status
        """)
    )
    monkeypatch.setitem(modules(), "pipeline.jobs.x", file)
    assert imports("pipeline.jobs.x") == {"typing", "pipeline.worker", "pipeline.jobs.status"}
    assert "faust" in {name.split(".")[0] for name in reached("pipeline.jobs.x")}
    monkeypatch.undo()
    imports.cache_clear()


# --- words ------------------------------------------------------------------------------------


def test_everything_public_says_what_it_is() -> None:
    silent = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree) and tree.body:
            silent.append(name)
        for node in public(tree.body):
            if not ast.get_docstring(node):
                silent.append(f"{name}.{node.name}")
    assert silent == []


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes without an underscore."""
    for node in body:
        if isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ) and not node.name.startswith("_"):
            yield node


# --- tests ------------------------------------------------------------------------------------


def test_no_test_asserts_how_long_something_took() -> None:
    """A busy machine would fail it. Count slices, yields or flushes; measure in the benchmark."""
    clocks = {"monotonic", "perf_counter", "process_time", "time"}

    def reads_clock(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and (
            getattr(node.func, "attr", getattr(node.func, "id", "")) in clocks
        )

    def slow(node: ast.AST) -> bool:
        """A difference of a clock and something earlier, compared with a number."""
        return isinstance(node, ast.Compare) and any(
            isinstance(part, ast.BinOp)
            and isinstance(part.op, ast.Sub)
            and reads_clock(part.left)
            and isinstance(node.comparators[-1], ast.Constant)
            and node.comparators[-1].value < 60
            for part in ast.walk(node)
        )

    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert) and any(slow(part) for part in ast.walk(node.test)):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
