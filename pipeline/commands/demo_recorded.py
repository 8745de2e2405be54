"""The recorded GitHub deliveries that the demo begins with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Final

from pipeline.replay import deliveries
from topics.models import Delivery

#: The recorded payloads are told as of so long ago: their queued jobs are stuck for us to find,
#: and their samples stay clear of the simulated ones.
RECORDED_AGO: Final = timedelta(hours=3)
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


def recorded() -> Iterator[Delivery]:
    """The recorded GitHub deliveries that come with the program, told as of some hours ago."""
    for file in sorted(resources.files("pipeline.simulate").joinpath("data").iterdir(), key=str):
        if file.name.endswith(".json"):
            with resources.as_file(file) as path:
                for delivery in deliveries(path):
                    yield shifted(delivery, datetime.now(UTC) - RECORDED_AGO)


def shifted(delivery: Delivery, to: datetime) -> Delivery:
    """The same delivery, all its times moved so that the latest is at ``to``."""
    times = [datetime.fromisoformat(text) for text in _ISO.findall(delivery.payload)]
    if not times:
        return delivery
    # The repository and its owner are older and must not decide; nothing is later than the job.
    by = to.replace(microsecond=0) - max(times)

    def move(match: re.Match[str]) -> str:
        at = datetime.fromisoformat(match.group()) + by
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")

    occurred = delivery.occurred_at + int(by.total_seconds() * 1000)
    return delivery.model_copy(
        update={
            "payload": _ISO.sub(move, delivery.payload),
            "occurred_at": min(occurred, delivery.received_at),
        }
    )
