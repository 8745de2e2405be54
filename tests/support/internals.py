"""Fingerprints of the internals of Faust and aiokafka that pipeline/faust_safe rests on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.producer.sender import Sender
from faust.streams import Stream
from faust.tables.base import Collection
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

OVERRIDDEN: dict[str, Callable[..., Any]] = {
    "Consumer.getmany": Consumer.getmany,
    "Consumer._wait_next_records": Consumer._wait_next_records,
    "Consumer._drain_messages": Consumer._drain_messages,
    "Consumer.ack": Consumer.ack,
    "Consumer.track_message": Consumer.track_message,
    "Consumer._new_offset": Consumer._new_offset,
    "Consumer._add_gap": Consumer._add_gap,
    "Consumer.resume_partitions": Consumer.resume_partitions,
    "Consumer.resume_flow": Consumer.resume_flow,
    "Consumer.wait_empty": Consumer.wait_empty,
    "Consumer.perform_seek": Consumer.perform_seek,
    "Consumer.force_commit": Consumer.force_commit,
    "ConsumerThread._create_worker_consumer": AIOKafkaConsumerThread._create_worker_consumer,
    "ConsumerThread._fetch_records": AIOKafkaConsumerThread._fetch_records,
    "Recovery.on_rebalance": Recovery.on_rebalance,
    "Recovery._restart_recovery": Recovery._restart_recovery.fun,
    "Recovery._wait": Recovery._wait,
    "Recovery.on_recovery_completed": Recovery.on_recovery_completed,
    "Recovery._resume_streams": Recovery._resume_streams,
    "Collection._should_expire_keys": Collection._should_expire_keys,
    "Collection._maybe_set_key_ttl": Collection._maybe_set_key_ttl,
    "Collection._maybe_del_key_ttl": Collection._maybe_del_key_ttl,
    "Collection._new_store": Collection._new_store,
    "Stream.noack": Stream.noack,
    "Stream.ack": Stream.ack,
    "aiokafka.PartitionRecords._unpack_records": PartitionRecords._unpack_records,
    "aiokafka.AIOKafkaProducer.send_offsets_to_transaction": (
        AIOKafkaProducer.send_offsets_to_transaction
    ),
    "aiokafka.Sender._find_coordinator": Sender._find_coordinator,
    "aiokafka.AIOKafkaConnection.close": AIOKafkaConnection.close,
}


def fingerprints() -> dict[str, str]:
    """Name of each internal -> digest of its source."""
    return {
        name: hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
        for name, function in OVERRIDDEN.items()
    }
