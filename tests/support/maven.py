"""Java programs from Maven Central: what a pom names, resolved once and kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support.cache import cached

_COPY_GOAL: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_RESOLVE_SECONDS: Final = 600.0


class JarsUnavailable(RuntimeError):
    """A Java program cannot be had here; the message says why."""


def missing(what: str) -> str | None:
    """Why ``what`` cannot be run here, in one sentence; None when the tools are there."""
    absent = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if absent:
        return f"{what} needs Java 17 and Maven; not on the PATH: {', '.join(absent)}"
    return None


def jars(what: str, name: str, pom: Path) -> Path:
    """The directory of the jars that ``pom`` names, kept as ``name``.

    Raises:
        JarsUnavailable: when the tools are missing or Maven cannot resolve the artifacts.
    """
    reason = missing(what)
    if reason is not None:
        raise JarsUnavailable(reason)

    def resolve(work: Path) -> Path:
        shutil.copy(pom, work / "pom.xml")
        command = ["mvn", "-q", "-B", _COPY_GOAL, "-DincludeScope=runtime", "-DoutputDirectory=lib"]
        try:
            result = subprocess.run(
                command,
                cwd=work,
                capture_output=True,
                text=True,
                timeout=_RESOLVE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise JarsUnavailable(
                f"Maven did not resolve {what} within {_RESOLVE_SECONDS:g} s"
            ) from error
        if result.returncode != 0:
            raise JarsUnavailable(
                f"Maven cannot resolve {what}: {(result.stdout + result.stderr)[-2000:]}"
            )
        return work / "lib"

    return cached(name, pom.read_bytes(), resolve)
