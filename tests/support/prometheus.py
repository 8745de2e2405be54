"""A Prometheus of its own, started by a test on a free port, that scrapes every second."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.local.process import LOOPBACK, free_port
from tests.support import PATIENCE
from tests.support.clients import prometheus

#: A query's answer: the value of each series by its labels.
Vector = dict[tuple[tuple[str, str], ...], float]


def promtool(*arguments: str, told: bytes = b"") -> tuple[int, str]:
    """Exit code and what it says. Raises ClientUnavailable."""
    done = subprocess.run(
        [prometheus("promtool"), *arguments], input=told, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


class Prometheus:
    """Scrapes pages: address and path by the name of the job; evaluates rules of files.

    Raises ClientUnavailable.
    """

    def __init__(
        self, directory: Path, pages: Mapping[str, tuple[str, str]], rules: Sequence[Path] = ()
    ) -> None:
        self._program = prometheus("prometheus")
        self._directory = directory
        self._url = f"http://{LOOPBACK}:{(port := free_port())}"
        self._listen = f"{LOOPBACK}:{port}"
        self._config = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(path.resolve()) for path in rules],
            "scrape_configs": [
                {
                    "job_name": job,
                    "metrics_path": path,
                    "static_configs": [{"targets": [address]}],
                }
                for job, (address, path) in pages.items()
            ],
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        config = self._directory / "prometheus.json"
        config.write_text(json.dumps(self._config))  # JSON is YAML
        self._log = (self._directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                self._program, f"--config.file={config}", f"--web.listen-address={self._listen}",
                f"--storage.tsdb.path={self._directory / 'data'}", "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def query(self, text: str, at: float | None = None) -> Vector:
        """The answer at a time (Unix, seconds), or now. Raises OSError while it is not up."""
        asked = {"query": text} | ({} if at is None else {"time": f"{at:.3f}"})
        told = self._ask(f"query?{urllib.parse.urlencode(asked)}")
        return {
            tuple(sorted(each["metric"].items())): float(each["value"][1])
            for each in told["result"]
        }

    def rules(self) -> dict[str, str]:
        """Of each rule ``ok``, or what went wrong with it; once all were evaluated."""
        deadline = time.monotonic() + 15 * PATIENCE
        while True:
            groups = self._ask("rules")["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            if rules and all(rule["health"] != "unknown" for rule in rules):
                return {rule["name"]: rule.get("lastError") or rule["health"] for rule in rules}
            assert time.monotonic() < deadline, rules
            time.sleep(0.2)

    def _ask(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{what}", timeout=20) as answer:
            told: dict[str, Any] = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def wait_for(self, text: str, holds: Callable[[Vector], bool]) -> Vector:
        """The first answer for which ``holds`` is true."""
        deadline = time.monotonic() + 15 * PATIENCE
        found: Vector = {}
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, (self._directory / "prometheus.log").read_text()
            try:
                found = self.query(text)
                if holds(found):
                    return found
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{text}: {found}")
