"""What `make` promises beside running tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("git") is None, reason="needs make and git"
)


def run(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in a repository of its own: nothing of this one's, or of the user's, counts."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "somebody", f"GIT_{role}_EMAIL": "somebody@example.com"}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        env.pop(name, None)
    return subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    assert run(tmp_path, "git", "init", "--quiet").returncode == 0
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def test_the_hook_refuses_what_lint_refuses(repository: Path) -> None:
    for _ in range(2):
        made = run(repository, "make", "hooks")
        assert made.returncode == 0, made.stderr
    commit = ("git", "commit", "--quiet", "--allow-empty", "--message", "x")
    (repository / "Makefile").write_text("lint:\n\t@echo not tidy >&2; exit 1\n")
    refused = run(repository, *commit)
    assert refused.returncode != 0
    assert "not tidy" in refused.stderr
    (repository / "Makefile").write_text("lint:\n\t@true\n")
    assert run(repository, *commit).returncode == 0


def test_a_hook_of_somebody_else_is_left_alone(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    refused = run(repository, "make", "hooks")
    assert refused.returncode != 0
    assert "not ours" in refused.stderr
    assert hook.read_text() == "#!/bin/sh\n"


def test_the_floor_of_coverage_is_for_all_tests_and_not_for_some() -> None:
    whole = run(ROOT, "make", "--dry-run", "test").stdout
    assert "--cov-fail-under=60" in whole
    some = run(ROOT, "make", "--dry-run", "test", "ARGS=tests/test_keys.py").stdout
    assert "--cov=pipeline" in some
    assert "--cov-fail-under" not in some
