"""Which broker the tests run on, by the environment variable RUNNERSTREAM_TEST_BROKER.

`kafka`: Apache Kafka, and a failure where it cannot be run. `embedded`: the embedded broker.
Unset: Apache Kafka where Java and Maven are, the embedded broker elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from pipeline.local.broker import EmbeddedBroker
from tests.support import kafka

VARIABLE = "RUNNERSTREAM_TEST_BROKER"

Kind = Literal["kafka", "embedded"]


class Broker(Protocol):
    """What the tests need of a broker, whichever it is."""

    @property
    def bootstrap(self) -> str:
        """`host:port`."""

    @property
    def port(self) -> int:
        """The port."""

    @property
    def pid(self) -> int | None:
        """The broker's process id; None when it does not run."""

    def alive(self) -> bool:
        """Whether its process runs."""

    def start(self) -> None:
        """Start it, on its earlier data where it keeps any."""

    def stop(self) -> None:
        """End it in order."""

    def kill(self) -> None:
        """kill -9."""

    def restart(self) -> None:
        """Kill it and start it on the same port (and, Kafka only, the same data)."""


def kind() -> Kind:
    """Which broker is used.

    Raises:
        RuntimeError: when the environment asks for what does not exist here.
    """
    wanted = os.environ.get(VARIABLE, "")
    reason = kafka.missing()
    if wanted == "kafka":
        if reason is not None:
            raise RuntimeError(f"{VARIABLE}=kafka, but: {reason}")
        return "kafka"
    if wanted == "embedded":
        return "embedded"
    if wanted:
        raise RuntimeError(f"{VARIABLE} is {wanted!r}: should be 'kafka', 'embedded' or unset")
    return "embedded" if reason is not None else "kafka"


def describe() -> str:
    """One line for the head of the test report: which broker, and why."""
    try:
        used = kind()
    except RuntimeError as error:
        return f"broker: none ({error})"
    name = {"kafka": "Apache Kafka", "embedded": "embedded (Tansu, in memory)"}[used]
    if os.environ.get(VARIABLE):
        return f"broker: {name} ({VARIABLE}={used})"
    return f"broker: {name} ({kafka.missing() or 'Java and Maven are here'})"


@contextmanager
def broker(directory: Path, wanted: Kind | None = None) -> Iterator[Broker]:
    """A running broker, ended at the end.

    Args:
        directory: for its files; one broker each.
        wanted: which one; `kind()` when None.
    """
    made: kafka.ApacheKafka | EmbeddedBroker
    if (wanted or kind()) == "kafka":
        made = kafka.ApacheKafka(directory)
    else:
        made = EmbeddedBroker(directory)
    made.start()
    try:
        yield made
    finally:
        made.stop()
