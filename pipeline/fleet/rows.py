"""The rows of the table of fleets: their keys, and what is in them.

A row is a JSON array as key: part, fleet, name. One row a thing, not one a fleet: a fleet of
10,000 runners would not fit into a record, and each sign of life would write all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.json import Decoder, Encoder
from pydantic import BaseModel

from pipeline.fleet.runners import Runner
from pipeline.fleet.state import HostLost, Told
from topics.recovery import Decision, Ending, Proposal, Switch

#: Table key of the partition's clock. No row's key begins like it.
CLOCK_KEY: Final = "~clock"
#: The switches, whose scope may be empty, are of no fleet.
SWITCHES: Final = "switches"

_encoder: Final = Encoder(order="deterministic")
_keys: Final = Decoder(tuple[str, str, str])
_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "runners": Decoder(Runner).decode,
    "hosts": Decoder(HostLost).decode,
    "told": Decoder(Told).decode,
    "pending": Proposal.model_validate_json,
    "issued": Decision.model_validate_json,
    "endings": Ending.model_validate_json,
    SWITCHES: Switch.model_validate_json,
}


def clock_key(partition: int) -> bytes:
    """Table key under which a partition keeps its clock."""
    return f"{CLOCK_KEY}:{partition}".encode()


def row_key(part: str, fleet: str, name: str) -> bytes:
    """Table key of one thing."""
    return _encoder.encode((part, fleet, name))


def parse_key(key: bytes) -> tuple[str, str, str] | None:
    """Part, fleet and name of a row; None for the clock."""
    return None if key.startswith(CLOCK_KEY.encode()) else _keys.decode(key)


def encode(value: Any) -> bytes:
    """The value of a row. Equal things give equal bytes."""
    if isinstance(value, BaseModel):
        return value.model_dump_json(exclude_defaults=False, exclude_none=True).encode()
    return _encoder.encode(value)


def decode(part: str, value: bytes) -> Any:
    """What :func:`encode` was given."""
    return _DECODERS[part](value)


def encode_clock(at: int) -> bytes:
    """The value of the clock's row."""
    return _encoder.encode({"at": at})


def decode_clock(value: bytes) -> int:
    """What :func:`encode_clock` was given."""
    return int(msgspec.json.decode(value, type=dict[str, int])["at"])
