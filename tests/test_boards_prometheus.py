"""What panels and rules ask of Prometheus, a real one answers.

It reads the pages that our processes show, with every series that can be there; only the numbers
are made: of what counts up each look brings more. Whether names, labels and the matching of series
fit shows at an answer and nowhere else.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dashboards.boards import BOARDS
from dashboards.model import Promql
from docs.generate import ROLE_METRICS
from pipeline.gateway.metrics import GatewayMetrics
from pipeline.metrics import ROLE_RESTARTS
from pipeline.prober.metrics import ProberMetrics
from pipeline.redeliver.metrics import RedeliverMetrics
from sinks.process import tell_process
from tests.support.clients import ClientUnavailable
from tests.support.prometheus import Prometheus, Vector
from tests.test_compat import no_pause
from tests.test_compat_prometheus import every_series

DATA: Final = Path(__file__).parent / "data"
RULES: Final = Path(__file__).parents[1] / "dashboards" / "prometheus"
#: Over how many seconds rates are, here.
RATE_S: Final = 60

#: What any program in Go shows of itself.
PROCESS: Final = """\
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 3e7
# TYPE process_open_fds gauge
process_open_fds 12
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 4.5
"""


def grown(page: str, looks: int) -> str:
    """A page after so many looks: each thing that counts has risen by one at each.

    Of a histogram each bucket has got one more of its own, which is why the later ones rise more.
    """
    lines = []
    for family in text_string_to_metric_families(page):
        lines.append(f"# TYPE {family.name} {family.type}")
        nth: dict[tuple[tuple[str, str], ...], int] = {}
        for sample in family.samples:
            value, own = sample.value, tuple(sorted({**sample.labels, "le": ""}.items()))
            if sample.name.endswith("_bucket"):
                nth[own] = nth.get(own, 0) + 1
                value += looks * nth[own]
            elif family.type == "histogram" and sample.name.endswith(("_count", "_sum")):
                value += looks * nth.get(own, 1)
            elif family.type == "counter" and not sample.name.endswith("_created"):
                value += looks
            labels = ",".join(f'{name}="{text}"' for name, text in sample.labels.items())
            lines.append(f"{sample.name}{{{labels}}} {value!r}")
    return "\n".join([*lines, ""])


def pages() -> dict[str, str]:
    """What each kind of process shows, by the name of the job that reads it."""
    _, exporter = every_series()
    # There once something was.
    exporter.count(ROLE_RESTARTS, ("sink",), 1)
    gateway, prober, redeliver = GatewayMetrics(), ProberMetrics(), RedeliverMetrics()
    gateway.last_delivery.labels("github").set(time.time())
    redeliver.passed.labels("hooks").set(time.time())
    prober.watch(lambda: 4_000)
    roles = {role: make() for role, make in ROLE_METRICS.items()}
    roles |= {"gateway": gateway, "prober": prober, "redeliver": redeliver}
    process = CollectorRegistry()
    tell_process(process, "1.0")
    found = {"runnerstream-fold": asyncio.run(exporter.exposition(no_pause)).decode()}
    for role, metrics in roles.items():
        told = generate_latest(metrics.registry) + generate_latest(process)
        found[f"runnerstream-{role}"] = told.decode()
    found["act_runner"] = (DATA / "act_runner.metrics").read_text() + PROCESS
    return found


@contextmanager
def shown(told: Mapping[str, str]) -> Iterator[str]:
    """The pages over HTTP, growing at each look; the address."""
    looks = {name: count() for name in told}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            body = grown(told[name], next(looks[name])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def asked() -> Iterator[tuple[tuple[str, str], str]]:
    """Every question of every panel, of all fleets, by dashboard and title."""
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                if isinstance(query, Promql):
                    text = query.text.replace("$__rate_interval", f"{RATE_S}s")
                    yield (board.title, panel.title), re.sub(r"\$\{?fleet(:\w+)?\}?", ".*", text)


def test_a_real_prometheus_answers_every_panel_and_every_rule(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    told = pages()
    with shown(told) as address:
        targets = {name: (address, f"/{name}") for name in told}
        try:
            prometheus = Prometheus(tmp_path, targets, sorted(RULES.glob("*.yaml")))
        except ClientUnavailable as missing:
            pytest.skip(str(missing))
        with prometheus:
            prometheus.wait_for("up", lambda found: sum(found.values()) == len(told))
            prometheus.wait_for(f"min(count_over_time(up[{RATE_S}s]))", enough)
            faults = []
            silent: set[str] = set()
            questions = list(asked())
            for place, text in questions:
                try:
                    found = prometheus.query(text)
                except OSError as error:
                    faults.append(f"{place}: {text}: {error}")
                    continue
                if not found:
                    silent.add(f"{place}: {text}")
                elif not all(map(math.isfinite, found.values())):
                    faults.append(f"{place}: {text}: {found}")
            rules = prometheus.rules()
    assert faults == []
    assert silent == set()
    assert {name: said for name, said in rules.items() if said != "ok"} == {}
    record_property(
        "tried: Prometheus",
        {"pages": len(told), "series": sum(page.count("\n") for page in told.values()),
         "queries answered": len(questions), "rules evaluated": len(rules)},
    )  # fmt: skip
    assert len(questions) > 100
    assert len(rules) > 90


def enough(found: Vector) -> bool:
    """Whether each page was read so often that there are rates."""
    return bool(found) and min(found.values()) >= 4
