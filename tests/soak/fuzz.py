"""``python -m tests.soak.fuzz``: odd requests to a real gateway for as long as one likes.

What the tests of the gateway draw some hundreds of: requests made from its OpenAPI document, bodies
of any bytes with a right signature or a wrong one, and requests that are hardly HTTP. And recorded
deliveries in which anything is replaced by anything, signed. It ends with what was answered, or
with the first request that met a server error, another answer than it should, or none in a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests import test_gateway, test_gateway_openapi
from tests.support.brokers import broker
from tests.support.gateways import Served, ready, serve, until
from topics.apply import apply
from topics.catalogue import catalogue

#: Examples between two looks at the clock.
ROUND = 200

RECORDED = sorted((Path(test_gateway.__file__).parent / "data" / "github").glob("*.json"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
PLACES = st.lists(
    st.tuples(st.lists(st.integers(0, 200), min_size=1, max_size=4), JSON), max_size=5
)


def replaced(said: Any, place: list[int], value: Any) -> Any:
    """A JSON value with another at a place: a way down, each step the number of a member."""
    if not place or not said or not isinstance(said, dict | list):
        return value
    made = said.copy()
    key = [*said][place[0] % len(said)] if isinstance(said, dict) else place[0] % len(said)
    made[key] = replaced(said[key], place[1:], value)
    return made


def inner(test: Any) -> Callable[..., None]:
    """What a test of generated examples does with one."""
    found: Callable[..., None] = test.hypothesis.inner_test
    return found


def check_changed(gate: Served, path: Path, changes: list[tuple[list[int], Any]]) -> None:
    """What is authentic is taken, whatever it says."""
    said = json.loads(path.read_bytes())
    for place, value in changes:
        said = replaced(said, place, value)
    event = path.name.partition(".")[0]
    reply = gate.deliver(json.dumps(said).encode(), event=event)
    assert reply.status == 202, (reply.status, reply.said, said)


PARTS: dict[str, tuple[Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = {
    "from the document": (
        inner(test_gateway_openapi.test_a_webhook_is_answered_as_the_document_says),
        {"case": test_gateway_openapi.HOOKS, "signed": st.booleans()},
    ),
    "bodies": (
        inner(test_gateway.test_no_body_does_harm),
        {"body": test_gateway.BODIES, "event": test_gateway.EVENTS, "signed": st.booleans()},
    ),
    "framing": (
        inner(test_gateway.test_no_framing_does_harm),
        {"lines": test_gateway.FRAMES, "end": test_gateway.ENDS},
    ),
    "recorded, changed": (
        check_changed,
        {"path": st.sampled_from(RECORDED), "changes": PLACES},
    ),
}


def fuzz(
    gate: Served,
    check: Callable[..., None],
    drawn: dict[str, st.SearchStrategy[Any]],
    seconds: float,
) -> int:
    """Check new examples until the time is over; how many."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        options = settings(
            max_examples=ROUND, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        once = given(**drawn)(lambda **each: check(gate, **each))
        seed(rounds)(options(once))()
        rounds += 1
    return rounds * ROUND


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.05), default=10.0, show_default=True)
def main(minutes: float) -> None:
    """Send odd requests to a gateway, as long as told."""
    with (
        tempfile.TemporaryDirectory() as place,
        broker(Path(place)) as kafka,
        open(os.devnull, "w") as nowhere,
        # The gateway's access log is a line for each.
        contextlib.redirect_stderr(nowhere),
    ):
        apply({"bootstrap_servers": kafka.bootstrap}, catalogue(partitions=2))
        with serve(kafka.bootstrap) as gate:
            ready(gate)
            for name, (check, drawn) in PARTS.items():
                made = fuzz(gate, check, drawn, 60 * minutes / len(PARTS))
                click.echo(f"{made:>9,} {name}")
            outcomes: Counter[str] = Counter()
            for family in gate.gateway.metrics.registry.collect():
                for sample in family.samples:
                    if sample.name == "runnerstream_gateway_requests_total":
                        outcomes[sample.labels["outcome"]] += int(sample.value)
            for outcome, number in outcomes.most_common():
                click.echo(f"{number:>9,} {outcome}")
            until(lambda: gate.gateway.status().ready)


if __name__ == "__main__":
    main()
