"""Files and functions stay small, what is open is no comment, and the quick tests stay quick.

Each exception has its reason, and goes when it is no longer one.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("topics", "pipeline", "sinks", "dashboards", "tests", "benchmarks", "docs", "examples")

MOST_LINES = 600
#: Files that may be longer, and why.
LONG_FILES = {
    "pipeline/settings.py": "a list: one field a setting, and what each may be",
    "tests/test_cli.py": "its tests share a broker, a ClickHouse and a worker",
    "tests/test_ledger.py": "its tests share the machinery of generated histories",
    "tests/test_quirks.py": "a list: one test a quirk, in their order",
    "tests/test_simulate.py": "its tests share one simulation",
    "tests/test_sink_loop.py": "its tests share a broker and a ClickHouse",
    "tests/test_web_limits.py": "its tests share a crowded worker",
}

MOST_LINES_OF_A_FUNCTION = 80
#: Functions that may be longer, and why.
LONG_FUNCTIONS = {
    "pipeline/providers/github.py:_job_facts": "one pass over the hottest body there is; its parts"
    " share a dozen locals",
    "pipeline/simulate/truth.py:_judge": "the documented order of rules, read from top to bottom",
    "sinks/metrics.py:SinkMetrics.__init__": "a list: one statement a metric, with its help",
}

MOST_FIELDS = 20
#: Classes that may have more, and why.
WIDE_CLASSES = {
    "dashboards/model.py:Panel": "a list: one field a property of a panel",
    "pipeline/jobs/record.py:StateRecord": "a record, with a field for each part of a job",
    "pipeline/ledger/ledger.py:Ledger": "a partition's clock, and one field a part",
    "pipeline/settings.py:Settings": "a list: one field a setting",
    "topics/models.py:JobState": "a record, with a field for each column",
}

#: What stands for work that nobody has taken on. An issue is the place for it.
OPEN = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
#: Files that must name these words, and why.
NAMES_OPEN = {"tests/test_tidy.py": "it looks for them"}

#: What a test imports that runs servers or processes, or needs a network.
HEAVY = (
    "aiohttp",
    "aiokafka",
    "clickhouse_driver.Client",
    "clickhouse_driver.client",
    "clickhouse_driver.connection",
    "clickhouse_driver.dbapi",
    "faust",
    "http",
    "httpx",
    "kafka",
    "pipeline.local",
    "socket",
    "subprocess",
    "tests.soak",
    "tests.support",
)
#: Of these, what is pure.
LIGHT = (
    "tests.support.both_folds",
    "tests.support.chaos",
    "tests.support.compat_truth",
    "tests.support.compat_world",
    "tests.support.deployment",
    "tests.support.fleet_world",
    "tests.support.probes",
    "tests.support.stall_loop",
    "tests.support.stall_world",
    "tests.support.telemetry",
    "tests.support.toy_fold",
)


def sources(*suffixes: str) -> list[Path]:
    """Files of ours, those in the root as well, by how their names end."""
    found = list(ROOT.iterdir())
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return sorted(path for path in found if path.is_file() and path.suffix in suffixes)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> dict[str, int]:
    """Lines of each function of a module, those inside others as well."""
    found: dict[str, int] = {}

    def look(node: ast.AST, within: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = within
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inside = f"{within}{child.name}."
                if not isinstance(child, ast.ClassDef):
                    found[within + child.name] = (child.end_lineno or 0) - child.lineno + 1
            look(child, inside)

    look(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def fields(path: Path) -> dict[str, int]:
    """How many fields each class of a module has: declared in it, or set on ``self``."""
    found = {}
    for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(each, ast.ClassDef):
            continue
        names = {
            node.target.id
            for node in each.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        names |= {
            node.attr
            for node in ast.walk(each)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
        found[each.name] = len(names)
    return found


def test_no_file_is_too_long() -> None:
    long = {
        name_of(path)
        for path in sources(".py", ".sql", ".css")
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    assert long == set(LONG_FILES)
    assert all(LONG_FILES.values())


def test_no_function_is_too_long() -> None:
    long = {
        f"{name_of(path)}:{function}"
        for path in sources(".py")
        for function, lines in functions(path).items()
        if lines > MOST_LINES_OF_A_FUNCTION
    }
    assert long == set(LONG_FUNCTIONS)
    assert all(LONG_FUNCTIONS.values())


def test_long_functions_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    body = "        x = 1\n" * MOST_LINES_OF_A_FUNCTION
    file.write_text(f"class A:\n    async def f(self):\n{body}\n    def g(self): ...\n")
    assert functions(file) == {"A.f": MOST_LINES_OF_A_FUNCTION + 1, "A.g": 1}


def test_no_class_is_too_wide() -> None:
    wide = {
        f"{name_of(path)}:{name}"
        for path in sources(".py")
        for name, number in fields(path).items()
        if number > MOST_FIELDS
    }
    assert wide == set(WIDE_CLASSES)
    assert all(WIDE_CLASSES.values())


def test_wide_classes_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "class A:\n    a: int\n    b: int = 1\n"
        "    def f(self):\n        self.c, self.d = 1, 2\n        self.a = self.e\n"
    )
    assert fields(file) == {"A": 4}


def test_what_is_open_is_no_comment() -> None:
    found = {
        name_of(path)
        for path in sources(".py", ".md", ".sql", ".toml", ".css", ".txt")
        if OPEN.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(NAMES_OPEN)


# --- the quick tests --------------------------------------------------------------------------


def is_quick(path: Path) -> bool:
    """Whether a test file needs neither server nor process: by what it imports and asks for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # `from pipeline import local` is pipeline.local, too.
            names = [f"{module}.{alias.name}" for alias in node.names]
            imported = names if all(name.startswith(LIGHT) for name in names) else [module, *names]
        elif isinstance(node, ast.arg) and node.arg == "server":
            return False  # the ClickHouse of tests/conftest.py
        imported = [name for name in imported if not name.startswith(LIGHT)]
        if any(
            name == heavy or name.startswith(f"{heavy}.") for name in imported for heavy in HEAVY
        ):
            return False
    return True


def test_make_unit_runs_what_needs_no_server_and_nothing_else() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    match = re.search(r"^UNIT = (.*)$", makefile, re.MULTILINE)
    assert match is not None
    listed = match.group(1).split()
    quick = [
        path.stem.removeprefix("test_")
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if is_quick(path)
    ]
    assert listed == quick


def test_a_test_with_a_server_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    for text in (
        "from kafka.admin import NewTopic",
        "import subprocess",
        "from tests import support",
        "from pipeline import local",
        "def test_x(server): ...",
    ):
        file.write_text(text)
        assert not is_quick(file), text
    file.write_text("from pipeline.jobs import merge\nimport json\n")
    assert is_quick(file)
