"""The envelope of every record, and the words its fields are made of.

What :mod:`topics.models` and :mod:`topics.recovery` share. Units: every time is an integer,
milliseconds since the Unix epoch, UTC. Every duration is an integer in milliseconds and says so in
its name (``*_ms``).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, core_schema

#: The version of every record in this module. A record with a higher version is refused.
VERSION: Final = 1

#: Times outside these bounds are not milliseconds since the epoch (2015-01-01 .. 2100-01-01).
#: Zero times and seconds-instead-of-milliseconds are the usual ways to get there
#: (actions-runner-controller#4444 records jobs of 63,911,499,556 s).
EARLIEST_MS: Final = 1_420_070_400_000
LATEST_MS: Final = 4_102_444_800_000

Millis = Annotated[int, Field(ge=EARLIEST_MS, le=LATEST_MS, strict=True)]
ShortText = Annotated[str, StringConstraints(max_length=1024)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
#: Bounds keep one job's state far below the largest record a broker takes (1 MiB), whatever is
#: said about it, and every number within 64 bits.
Word = Annotated[str, StringConstraints(max_length=256)]
Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
Attempt = Annotated[int, Field(ge=0, le=1_000_000)]
#: Steps of a job that are kept, those with the smallest numbers, and the length of a step's name.
MAX_STEPS: Final = 128
StepName = Annotated[str, StringConstraints(max_length=128)]
#: ``provider:host:job_id``; the host may have a port.
JobKey = Annotated[
    str, StringConstraints(pattern=r"^[^:]+:.+:[^:]+$", min_length=5, max_length=256)
]

#: What the error of an optional field is filed under: its value, or null.
VALUE_PLACE: Final = ""
NULL_PLACE: Final = "or null"


class OrNull:
    """Null stands for a default: the same as leaving the field out.

    Said in pydantic-core's own terms, so that it costs no call into Python.
    """

    def __init__(self, default: object) -> None:
        self.default = default

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema of the value, or of null, which becomes the default."""
        # The first step takes nothing but null; the second takes no null, so gives the default.
        null = core_schema.chain_schema(
            [
                core_schema.none_schema(),
                core_schema.with_default_schema(
                    core_schema.literal_schema(["\0"]), default=self.default, on_error="default"
                ),
            ]
        )
        return core_schema.union_schema(
            [(handler(source), VALUE_PLACE), (null, NULL_PLACE)], mode="left_to_right"
        )


class Record(BaseModel):
    """The envelope every record carries."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_enum_values=False)

    #: Unique for what it says: the same id twice is the same statement twice.
    id: Name
    #: Which model this record follows, for instance ``job.fact``.
    kind: Name
    #: Schema version of that model.
    version: Annotated[Annotated[int, Field(ge=1, le=VERSION)], OrNull(VERSION)] = VERSION
    #: Who says so: ``github``, a dispatcher's name, ``runnerstream``.
    source: Name
    #: When it happened, by the best clock the source has.
    occurred_at: Millis
    #: When it reached us.
    received_at: Millis
    #: Kafka key as text: the job key, run key or window key.
    key: Name
    #: W3C ``traceparent``, when the producer has one.
    trace: ShortText | None = None
