"""Sets deliveries aside that the target did not take: letters on ``runners.dead-letters``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from sinks.writer import Backoff
from topics.catalogue import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES
from topics.dead_letters import SourceRecord, letter_bytes, relay_letter, without_value
from topics.models import DeadLetter

log = logging.getLogger(__name__)

_REQUEST_MS: Final = 10_000


class Letters:
    """A producer that tries until the broker acknowledges. Of one event loop."""

    def __init__(self, kafka: Mapping[str, Any], group: str, backoff: Backoff) -> None:
        self._options = {**kafka, "client_id": group}
        self._group = group
        self._backoff = backoff
        self._lock = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        #: Why nothing can be written; empty when it can.
        self.trouble = ""

    async def bury(self, record: SourceRecord, why: str) -> None:
        """Write the letter of a record; return once the broker has it."""
        letter = relay_letter(record, self._group, why, int(time.time() * 1000))
        attempt = 0
        while True:
            try:
                await self._put(letter)
            except MessageSizeTooLargeError:
                # The record still lies in its own topic, at the offset that the letter tells.
                letter = without_value(letter)
            except (KafkaError, OSError, TimeoutError) as error:
                attempt += 1
                self.trouble = f"dead letters cannot be written ({type(error).__name__})"
                log.warning("%s; trying on", self.trouble)
                await asyncio.sleep(self._backoff.delay(attempt))
            else:
                self.trouble = ""
                return

    async def close(self) -> None:
        """Let go of the broker."""
        if self._producer is not None:
            await self._producer.stop()

    async def _put(self, letter: DeadLetter) -> None:
        async with self._lock:
            if self._producer is None:
                self._producer = await self._connect()
        await self._producer.send_and_wait(DEAD_LETTERS, letter_bytes(letter), letter.key.encode())

    async def _connect(self) -> AIOKafkaProducer:
        # Not idempotent: a copy has the same id, and one record that is refused as too large would
        # leave a hole in the sequence behind which the broker refuses all others.
        made = AIOKafkaProducer(**self._options, acks="all", request_timeout_ms=_REQUEST_MS,
                                max_request_size=MAX_DEAD_LETTER_BYTES)  # fmt: skip
        try:
            await made.start()
        except BaseException:
            await made.stop()
            raise
        return made
