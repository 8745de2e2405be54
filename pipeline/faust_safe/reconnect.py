"""Teaches aiokafka 0.14 that a connection may break at any time.

* *A transactional producer ends for good* when the connection breaks while it asks which broker
  coordinates its transactions: that is taken for an answer nobody foresaw, and every later
  transaction fails. It asks again as long as a broker is merely not ready, so that is what it is
  told.
* *A client waits for ever* when it writes between a connection's end and the moment it hears of it:
  uvloop, unlike asyncio's own loop, raises RuntimeError then. Nothing expects it, and what dies of
  it is now and then the task that brings the addresses of the brokers, on which everything waits.
  It is a broken connection like any other.

A broker that was restarted ended workers, and now and then left one standing still.
"""

from __future__ import annotations

from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError

_send = AIOKafkaConnection.send
_lookup = AIOKafkaClient.coordinator_lookup


def _send_or_break(self: Any, request: Any, expect_response: bool = True) -> Any:
    if self._writer is not None and self._writer.is_closing():
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {self._host}:{self._port} has ended")
    return _send(self, request, expect_response)


async def _look_up_again(self: Any, coordinator_type: Any, coordinator_key: str) -> Any:
    try:
        return await _lookup(self, coordinator_type, coordinator_key)
    except KafkaConnectionError as broken:
        raise NodeNotReadyError(str(broken)) from broken


def install() -> None:
    """Make all of aiokafka's clients in this process do so. May be called twice."""
    AIOKafkaConnection.send = _send_or_break
    AIOKafkaClient.coordinator_lookup = _look_up_again
