"""Which Kafka, and which very topic: what state on disk must belong to.

A name is not enough. A cluster set up again on the same address, or a topic deleted and created
again, has the names of the old one and other records at the same offsets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from typing import Any

from kafka import KafkaAdminClient


def cluster_id(options: Mapping[str, Any]) -> str:
    """The id of the cluster. Raises kafka.errors.KafkaError when it cannot be asked."""
    admin = KafkaAdminClient(**options)
    try:
        return str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()


async def log_names(options: Mapping[str, Any], topics: Set[str]) -> Mapping[str, str]:
    """Topic -> cluster id and topic id, which no other topic has, whatever its name.

    Raises kafka.errors.KafkaError when the broker cannot be asked, KeyError for a missing topic.
    """
    return await asyncio.to_thread(_log_names, options, topics)


def _log_names(options: Mapping[str, Any], topics: Set[str]) -> Mapping[str, str]:
    admin = KafkaAdminClient(**options)
    try:
        cluster = admin.describe_cluster()["cluster_id"]
        found = {each["name"]: each["topic_id"] for each in admin.describe_topics(sorted(topics))}
        return {topic: f"{cluster}/{found[topic]}" for topic in topics}
    finally:
        admin.close()
