"""Teaches aiokafka's idempotent producer the later form of InitProducerId.

aiokafka 0.14 knows version 0 only, in which a producer cannot say "I have no id yet". Kafka takes
the absence for that; Tansu, the embedded broker, answers UNKNOWN_SERVER_ERROR to every version
below 3, so no idempotent producer of aiokafka would start there. Version 3 has the two fields.
Brokers that do not know it are still asked in version 0.
"""

from __future__ import annotations

from typing import Any

from aiokafka.producer import sender
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.transaction import InitProducerIdRequest, InitProducerIdRequest_v0
from aiokafka.protocol.types import CompactString, Int16, Int32, Int64, Schema, TaggedFields

_NONE = -1


class InitProducerIdResponse_v3(Response):  # noqa: N801 - named as aiokafka names them
    """What the broker answers."""

    API_KEY = 22
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class InitProducerIdRequest_v3(RequestStruct):  # noqa: N801
    """Asks for a producer id, having none."""

    API_KEY = 22
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = InitProducerIdResponse_v3
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("transaction_timeout_ms", Int32),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class LaterInitProducerIdRequest(InitProducerIdRequest):
    """The request in the highest version both sides know."""

    def build(self, request_struct_class: Any) -> Any:
        """The request's bytes-to-be."""
        if request_struct_class is InitProducerIdRequest_v3:
            return InitProducerIdRequest_v3(
                self._transactional_id, self._transaction_timeout_ms, _NONE, _NONE, {}
            )
        return super().build(request_struct_class)


# aiokafka derives this from the type parameter of the base class, which has one version only.
LaterInitProducerIdRequest._CLASSES = (InitProducerIdRequest_v0, InitProducerIdRequest_v3)


def install() -> None:
    """Make aiokafka's producers use it. May be called twice."""
    sender.InitProducerIdRequest = LaterInitProducerIdRequest
