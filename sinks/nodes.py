"""The nodes of a ClickHouse cluster: which there are, and doing something on each of them.

Each is asked by itself, at its address in ``remote_servers`` and with the user of our URL. So
neither Keeper nor ClickHouse's queue of distributed DDL is needed, and a node that is away holds up
nobody but itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from clickhouse_driver import Client
from clickhouse_driver.errors import Error

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class UnknownCluster(RuntimeError):
    """ClickHouse has no cluster of that name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A server of a cluster. ``url`` has what is secret in it, and is not shown."""

    shard: int
    replica: int
    place: str
    url: str = field(repr=False)

    def __str__(self) -> str:
        return self.place


class NodesAway(RuntimeError):
    """Some nodes did not take part. What was done on the others stays done.

    Attributes:
        enough: whether every shard has a node that did take part.
    """

    def __init__(self, cluster: str, visited: Visited[object]) -> None:
        self.enough = visited.enough
        nodes = len(visited.answers) + len(visited.away)
        told = "; ".join(
            f"{node} (shard {node.shard}): {why}" for node, why in visited.away.items()
        )
        super().__init__(
            f"{len(visited.away)} of {nodes} nodes of cluster {cluster} take no part: {told}"
        )


@dataclass(frozen=True, slots=True)
class Visited(Generic[T_co]):
    """What nodes answered, and why others did not."""

    answers: Mapping[Node, T_co]
    away: Mapping[Node, str]

    @property
    def enough(self) -> bool:
        """Whether every shard has answered."""
        return {node.shard for node in self.away} <= {node.shard for node in self.answers}


def nodes(url: str, cluster: str) -> tuple[Node, ...]:
    """The nodes of a cluster by shard and replica, as the server at ``url`` knows them.

    Raises :class:`UnknownCluster`, and clickhouse-driver's errors.
    """
    with Client.from_url(_with(url, path="/default")) as client:
        found = client.execute(
            "SELECT shard_num, replica_num, host_name, port FROM system.clusters"
            " WHERE cluster = %(cluster)s ORDER BY shard_num, replica_num",
            {"cluster": cluster},
        )
        if not found:
            known = client.execute("SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster")
            names = ", ".join(name for (name,) in known) or "none"
            raise UnknownCluster(
                f"ClickHouse knows no cluster {cluster} in its remote_servers; it knows: {names}"
            )
    return tuple(
        Node(shard, replica, f"{host}:{port}", at(url, host, port))
        for shard, replica, host, port in found
    )


def visit(nodes: Sequence[Node], do: Callable[[Node], T]) -> Visited[T]:
    """Do something on each node in turn. A node that cannot be reached, or refuses, is away."""
    answers: dict[Node, T] = {}
    away: dict[Node, str] = {}
    for node in nodes:
        try:
            answers[node] = do(node)
        except (OSError, EOFError, Error) as error:
            text = " ".join(str(error).partition("Stack trace:")[0].split())
            away[node] = f"{type(error).__name__}: {text}"[:300]
    return Visited(answers, away)


def at(url: str, host: str, port: int) -> str:
    """The same URL for another server only."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = [
        (name, value)
        for name, value in parse_qsl(parts.query)
        if name not in ("alt_hosts", "round_robin")
    ]
    return _with(url, netloc=f"{user}@{place}" if user else place, query=urlencode(options))


def _with(url: str, **parts: str) -> str:
    return urlunsplit(urlsplit(url)._replace(**parts))
