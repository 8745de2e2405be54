"""The state behind a Faust table, by partition: in memory or in RocksDB.

Faust writes a table through the event being processed, one changelog record per set, and cannot
be written from a batch. Here the changelog is written first (and awaited), then the store, by
partition, so the local state is never ahead of the changelog.

A store vouches for what it holds: the changelog (:attr:`Origin.log`) and the offset up to which
it has been applied (:attr:`Origin.position`). Both are kept with the data, so a recovery that
was cut short goes on where the data ends and nowhere else, and state of a log that no longer
exists is not taken for state of the one that bears its name now.
"""

from __future__ import annotations

import logging
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterable, Set
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from faust.stores.base import Store as FaustStore

from pipeline.effects import Writes

try:
    import rocksdict
except ImportError:  # the extra `rocksdb` is not installed
    rocksdict = None

log = logging.getLogger(__name__)

#: Per partition database, in bytes. RocksDB's own defaults would want 35 GiB for eight partitions
#: of two tables.
BLOCK_CACHE = 32 << 20
WRITE_BUFFER = 16 << 20
#: How long another process on this machine may still hold a partition's database. Seconds.
LOCK_PATIENCE = 30.0


class Origin(NamedTuple):
    """What a partition's data was made from."""

    #: Names the changelog: cluster id and topic id, which a topic made anew does not share.
    log: str
    #: The changelog offset behind the last record applied.
    position: int


class PartitionedStore(FaustStore):
    """Raw changelog keys and values of one table, by partition."""

    #: What Faust says of its services is for debugging.
    logger = logging.getLogger("faust.safe")

    @abstractmethod
    def origin(self, partition: int) -> Origin | None:
        """What the partition's data was made from; ``None`` when it holds none."""

    @abstractmethod
    def reset(self, partition: int, log: str) -> None:
        """Hold nothing of the partition, from the beginning of ``log``."""

    @abstractmethod
    def get(self, partition: int, key: bytes) -> bytes | None:
        """The value of a key, ``None`` when there is none."""

    @abstractmethod
    def put(self, partition: int, writes: Writes, position: int | None) -> None:
        """Apply writes whose changelog records are durable; the changelog is applied up to
        ``position`` then (``None``: no record of it was read or written)."""

    @abstractmethod
    def items(self, partition: int) -> list[tuple[bytes, bytes]]:
        """Everything the partition holds."""

    @abstractmethod
    def blank(self, partition: int) -> bool:
        """Whether the partition holds nothing."""

    @abstractmethod
    def keep(self, partitions: Set[int]) -> None:
        """Let go of every other partition."""

    # -- what Faust asks of a store; recovery and expiry are not its business any more ----------

    def persisted_offset(self, tp: Any) -> int | None:
        """Faust's own recovery does not run."""
        return None

    def reset_state(self) -> None:
        """State is dropped by partition (:meth:`reset`)."""

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Faust's own recovery does not run."""
        raise NotImplementedError("a changelog is applied by pipeline.faust_safe.recovery")

    async def backup_partition(self, tp: Any, **options: Any) -> None:
        """The changelog is the backup."""
        raise NotImplementedError("the changelog is the backup")

    def restore_backup(self, tp: Any, **options: Any) -> None:
        """The changelog is the backup."""
        raise NotImplementedError("the changelog is the backup")


class MemoryStore(PartitionedStore):
    """A dictionary per partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._data: dict[int, dict[bytes, bytes]] = {}
        self._origins: dict[int, Origin] = {}

    def origin(self, partition: int) -> Origin | None:
        """See PartitionedStore."""
        return self._origins.get(partition)

    def reset(self, partition: int, log: str) -> None:
        """See PartitionedStore."""
        self._data[partition] = {}
        self._origins[partition] = Origin(log, 0)

    def get(self, partition: int, key: bytes) -> bytes | None:
        """See PartitionedStore."""
        held = self._data.get(partition)
        return None if held is None else held.get(key)

    def put(self, partition: int, writes: Writes, position: int | None) -> None:
        """See PartitionedStore."""
        held = self._data[partition]
        for key, value in writes:
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value
        if position is not None:
            self._origins[partition] = self._origins[partition]._replace(position=position)

    def items(self, partition: int) -> list[tuple[bytes, bytes]]:
        """See PartitionedStore."""
        return list(self._data.get(partition, {}).items())

    def blank(self, partition: int) -> bool:
        """See PartitionedStore."""
        return not self._data.get(partition)

    def keep(self, partitions: Set[int]) -> None:
        """See PartitionedStore."""
        for partition in self._data.keys() - partitions:
            del self._data[partition], self._origins[partition]


class RocksStore(PartitionedStore):
    """A database per partition, below the worker's data directory."""

    #: Key of the :class:`Origin`. No changelog key begins with a zero byte.
    ORIGIN = b"\0origin"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if rocksdict is None:
            raise RuntimeError(
                "setting store is rocksdb and rocksdict is not installed: "
                "pip install 'runnerstream[rocksdb]'"
            )
        self._dbs: dict[int, Any] = {}
        self._directory = Path(self.app.conf.tabledir) / "by-partition" / self.table_name

    def origin(self, partition: int) -> Origin | None:
        """See PartitionedStore."""
        raw = self._db(partition).get(self.ORIGIN)
        return None if raw is None else Origin(*msgspec.json.decode(raw))

    def reset(self, partition: int, log: str) -> None:
        """See PartitionedStore."""
        db = self._dbs.pop(partition, None)
        if db is not None:
            db.close()
        shutil.rmtree(self._path(partition), ignore_errors=True)
        self._db(partition)[self.ORIGIN] = msgspec.json.encode(Origin(log, 0))

    def get(self, partition: int, key: bytes) -> bytes | None:
        """See PartitionedStore."""
        value: bytes | None = self._db(partition).get(key)
        return value

    def put(self, partition: int, writes: Writes, position: int | None) -> None:
        """See PartitionedStore. Data and position reach the disk together or not at all."""
        db = self._db(partition)
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in writes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if position is not None:
            origin = self.origin(partition)
            if origin is None:
                raise RuntimeError(f"partition {partition} of {self.table_name} was not recovered")
            batch.put(self.ORIGIN, msgspec.json.encode(origin._replace(position=position)))
        db.write(batch)

    def items(self, partition: int) -> list[tuple[bytes, bytes]]:
        """See PartitionedStore."""
        return [(key, value) for key, value in self._db(partition).items() if key != self.ORIGIN]

    def blank(self, partition: int) -> bool:
        """See PartitionedStore."""
        return all(key == self.ORIGIN for key in islice(self._db(partition).keys(), 2))

    def keep(self, partitions: Set[int]) -> None:
        """See PartitionedStore. What is on disk stays: its position says how far it goes."""
        for partition in self._dbs.keys() - partitions:
            self._dbs.pop(partition).close()

    async def on_stop(self) -> None:
        """Close the databases."""
        self.keep(frozenset())

    def _path(self, partition: int) -> Path:
        path: Path = self._directory / str(partition)
        return path

    def _db(self, partition: int) -> Any:
        db = self._dbs.get(partition)
        if db is None:
            db = self._dbs[partition] = self._open(self._path(partition))
        return db

    def _open(self, path: Path) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(WRITE_BUFFER)
        options.set_max_write_buffer_number(2)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(BLOCK_CACHE))
        blocks.set_bloom_filter(10, block_based=False)
        options.set_block_based_table_factory(blocks)
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return rocksdict.Rdict(str(path), options=options)
            except Exception as error:
                # The process that was killed a moment ago, or a second worker by mistake.
                if "lock" not in str(error).lower() or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def partitions_of(tps: Iterable[Any]) -> frozenset[int]:
    """The partitions among topic partitions."""
    return frozenset(tp.partition for tp in tps)
