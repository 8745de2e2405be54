"""A cluster of ClickHouse for tests: embedded servers that know each other.

Each is in ``remote_servers`` of all, knows who asks by a common secret, and has the profile that
docs/deploy.md tells people to have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.local import EmbeddedClickHouse
from pipeline.local.process import LOOPBACK, free_port

NAME: Final = "runners"
_MEMORY_MIB: Final = 1_024

#: What every server has beside its own configuration. ``deploy.md`` shows the same.
_CONFIG: Final = """\
<clickhouse>
  <remote_servers>
    <{name}>
      <secret>sesame</secret>
{shards}
    </{name}>
  </remote_servers>
{more}
</clickhouse>
"""
_SHARD: Final = """\
      <shard>
        <internal_replication>true</internal_replication>
{replicas}
      </shard>"""
_REPLICA: Final = "        <replica><host>{host}</host><port>{port}</port></replica>"
_KEEPER: Final = """\
  <zookeeper><node><host>{host}</host><port>{keeper}</port></node></zookeeper>
  <macros><shard>{shard}</shard><replica>{replica}</replica></macros>"""
_USERS: Final = """\
<clickhouse>
  <profiles>
    <default><distributed_product_mode>global</distributed_product_mode></default>
    <reader><distributed_product_mode>global</distributed_product_mode></reader>
  </profiles>
</clickhouse>
"""


class Cluster:
    """Servers in ``directory``, by shard and replica. ``nodes`` has them in that order.

    Args:
        directory: of all of them; created when absent.
        shape: how many replicas each shard has.
        keeper: port of a ZooKeeper; 0: none, so nothing is replicated.
        profile: whether the users have the profile for clusters.
    """

    def __init__(
        self, directory: Path, shape: Sequence[int] = (1, 1), keeper: int = 0, profile: bool = True
    ) -> None:
        places = [
            (shard, replica, free_port())
            for shard, replicas in enumerate(shape, 1)
            for replica in range(1, replicas + 1)
        ]
        shards = "\n".join(
            _SHARD.format(
                replicas="\n".join(
                    _REPLICA.format(host=LOOPBACK, port=port)
                    for of, _, port in places
                    if of == shard
                )
            )
            for shard in range(1, len(shape) + 1)
        )
        self.nodes: list[EmbeddedClickHouse] = []
        for shard, replica, port in places:
            home = directory / f"shard-{shard}-replica-{replica}"
            for each in (home, home / "config.d", home / "users.d"):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
            # One user, one password: whoever asks one of them may ask the others.
            (home / "passwords").write_text("written-by-the-sink\nread-by-people\n")
            more = keeper and _KEEPER.format(
                host=LOOPBACK,
                keeper=keeper,
                shard=shard,
                replica=f"replica-{replica}",
            )
            (home / "config.d" / "cluster.xml").write_text(
                _CONFIG.format(name=NAME, shards=shards, more=more or "")
            )
            if profile:
                (home / "users.d" / "cluster.xml").write_text(_USERS)
            self.nodes.append(EmbeddedClickHouse(home, port, memory_mib=_MEMORY_MIB))

    @property
    def url(self) -> str:
        """Of the first node, for the program."""
        return self.nodes[0].url

    @property
    def reader_url(self) -> str:
        """Of the last node, for people and dashboards."""
        return self.nodes[-1].reader_url

    @property
    def all_urls(self) -> str:
        """The same, with the others where to go when it is away."""
        others = ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes[1:])
        return f"{self.url}?alt_hosts={others}"

    def __enter__(self) -> Cluster:
        try:
            for node in self.nodes:
                node.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()
