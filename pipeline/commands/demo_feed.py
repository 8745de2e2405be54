"""The events of the demo: recorded payloads, then a simulated fleet, in real time.

Webhooks go to the gateway, what a dispatcher says to Kafka. So does what is wrong in a way that no
webhook can be: a producer of envelopes may write anything to the topic.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from importlib import resources
from typing import Final

from pipeline.commands import demo_recovery
from pipeline.commands.demo_gateway import Gateway, Hooks
from pipeline.commands.demo_recovery import BOUND_S, Other
from pipeline.commands.failure import Failure, short
from pipeline.replay import deliveries
from pipeline.simulate import Faults, Sending, Simulation
from pipeline.simulate.produce import live
from pipeline.simulate.wire import Headers, guid_at
from topics import bridge
from topics.catalogue import WEBHOOKS
from topics.models import DELIVERY, Delivery, Unreadable
from topics.producer import Producer
from topics.reading import read

#: What happens on the way: everything that happens to webhooks, within a minute or two.
FAULTS: Final = Faults(
    duplicates=0.02,
    drops=0.003,
    reordered=0.03,
    reorder_s=8.0,
    redelivered=0.005,
    redeliver_s=(20.0, 90.0),
    malformed=0.004,
)
#: The recorded payloads are told as of so long ago: their queued jobs are stuck for us to find,
#: and their samples stay clear of the simulated ones.
RECORDED_AGO: Final = timedelta(hours=3)
#: How long the gateway may take to start, and to answer everything in the end. Seconds.
_START_S: Final = 60.0
_FINISH_S: Final = 60.0
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


class Feed:
    """Sends from a thread of its own until it is ended.

    Args:
        rate: jobs a minute.
        lasts: how long the demo is to run, in seconds.
        checked: whether it is compared at the end. Then events go on a while longer, for what is
            stuck by then may be recovered.
        other: whom the prober and the executor talk to about this fleet.
        gateway: who takes webhooks; it may be starting.
    """

    def __init__(
        self, kafka: str, seed: int, rate: float, lasts: float, checked: bool, other: Other,
        gateway: Gateway,
    ) -> None:  # fmt: skip
        self._kafka = kafka
        self._other = other
        self._gateway = gateway
        #: Who posts webhooks.
        self.hooks = Hooks(gateway.port, gateway.secret)
        self._ending = threading.Event()
        self._error: BaseException | None = None
        minutes = (lasts + (BOUND_S if checked else 0)) / 60
        self._planned = (seed, rate, minutes, demo_recovery.stalls(lasts, checked))
        #: Records sent so far: simulated ones, and recorded ones.
        self.sent = 0
        self.recorded = 0
        #: Once it has begun.
        self.simulation: Simulation | None = None
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise :class:`Failure` when events cannot be sent."""
        if self._error is not None:
            raise Failure(f"the events cannot be sent: {short(self._error)}")

    def end(self, patience_s: float = 20.0) -> None:
        """Send no more, and wait until all that was taken is sent and answered."""
        self._ending.set()
        self._thread.join(patience_s)
        self.hooks.close()

    def _run(self) -> None:
        try:
            with Producer(self._kafka, client_id="runnerstream-demo") as producer:
                self._send(producer)
        except BaseException as error:
            self._error = error

    def _send(self, producer: Producer) -> None:
        deadline = time.monotonic() + _START_S
        while not self._gateway.ready():
            if self._ending.wait(0.1):
                return
            if time.monotonic() > deadline:
                raise Failure(f"the gateway is not ready after {_START_S:g} s")
        for delivery in recorded():
            if (natural := bridge.natural(delivery)) is not None:
                self.hooks.post(*natural)
                self.recorded += 1
        self.hooks.finish(_FINISH_S)
        seed, rate, minutes, stalls = self._planned
        self.simulation = simulation = live(
            seed,
            rate,
            minutes,
            start_ms=int(time.time() * 1000),
            fleets=demo_recovery.fleets(max(1, round(rate * minutes)), minutes * 60),
            faults=FAULTS,
            stalls=stalls,
        )
        for record in simulation.records():
            if self._other.asked is None and simulation.asked is not None:
                self._other.open(simulation.asked)
            while (ahead := record.send_at_ms / 1000 - time.time()) > 0:
                if self._ending.wait(min(ahead, 0.25)):
                    break
            # The truth counts every record that was taken: so the last one is sent, too.
            webhook = _webhook(record) if record.topic == WEBHOOKS else None
            if webhook is not None:
                self.hooks.post(*webhook)
            else:
                producer.send(record.topic, record.key, record.value, record.headers)
                self.hooks.tally.past += record.topic == WEBHOOKS
            self.sent += 1
            if self._ending.is_set():
                break
        self.hooks.finish(_FINISH_S)


def _webhook(record: Sending) -> tuple[Headers, bytes] | None:
    """Headers and body of the webhook that a record is; None when no webhook can be like that."""
    if record.headers:
        return record.headers, record.value
    try:
        natural = bridge.natural(read(DELIVERY, record.value))
    except Unreadable:
        return None
    return None if natural is None else (tuple(natural[0]), natural[1])


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
    occurred = min(occurred, delivery.received_at)
    node = int.from_bytes(blake2b(delivery.id.encode(), digest_size=6).digest())
    return delivery.model_copy(
        update={
            # As GitHub makes them: all that tells when it happened.
            "id": guid_at(occurred, 0, node),
            "payload": _ISO.sub(move, delivery.payload),
            "occurred_at": occurred,
        }
    )
