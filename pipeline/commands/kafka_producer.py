"""The producer of the commands that send records, and what signs webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kafka.errors import KafkaError

from pipeline.commands.connections import broker_failure, kafka_admin, kafka_options
from pipeline.commands.failure import Failure
from pipeline.providers.sending import Headers, Signer
from pipeline.settings import Settings
from topics.catalogue import WEBHOOKS
from topics.producer import DeliveryError, Producer

#: How long a record may take to be acknowledged before the command says that it was not. ms.
DELIVERY_MS: Final = 30_000


@contextmanager
def producer(settings: Settings) -> Iterator[Producer]:
    """A producer for the configured Kafka. Raises :class:`Failure`."""
    with kafka_admin(settings):
        pass
    options = kafka_options(settings)
    brokers = options.pop("bootstrap_servers")
    try:
        with Producer(
            brokers,
            client_id=f"{settings.app_id}-feed",
            delivery_timeout_ms=DELIVERY_MS,
            max_block_ms=DELIVERY_MS,
            **options,
        ) as made:
            yield made
    except DeliveryError as error:
        remedy = "are the topics there? `runnerstream topics show`"
        raise Failure(str(error), remedy) from None
    except KafkaError as error:
        raise broker_failure(settings, error) from None


def signer(settings: Settings) -> Signer:
    """What makes webhooks that workers with these settings believe."""
    return Signer(settings.webhook_secrets(), settings.trust_envelopes)


class Signing:
    """A producer whose webhooks are signed."""

    def __init__(self, to: Producer, signer: Signer) -> None:
        self._to = to
        self._signer = signer

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> None:
        """As :meth:`topics.producer.Producer.send`."""
        if topic == WEBHOOKS and value is not None:
            headers = self._signer.signed(headers, value)
        self._to.send(topic, key, value, headers)
