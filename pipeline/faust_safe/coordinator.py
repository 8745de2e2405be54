"""Keeps aiokafka's transactional producer alive when a broker goes away.

Before a request of a transaction it asks which broker coordinates it. When the connection breaks
just then, aiokafka 0.14 takes that for an answer that nobody foresaw: the producer's sender ends,
every later transaction fails, and a restarted broker took the workers with it. It is asked again as
long as a broker is merely not ready, so that is what a broken connection is called here.
"""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError


def keep_asking(producer: AIOKafkaProducer) -> None:
    """Have a producer look its coordinators up again after a connection broke. Before it starts."""
    client = producer.client
    lookup = client.coordinator_lookup

    async def coordinator_lookup(kind: Any, key: str) -> Any:
        try:
            return await lookup(kind, key)
        except KafkaConnectionError as broken:
            raise NodeNotReadyError(str(broken)) from broken

    client.coordinator_lookup = coordinator_lookup
