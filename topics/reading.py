"""Reading a record: bytes in, a model out, or :class:`~topics.models.Unreadable` with a reason.

The reason is chosen from what pydantic says was wrong, so that dead letters can be counted,
searched and replayed by cause.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from topics.models import Reason, Unreadable

T = TypeVar("T")

_NOT_JSON = frozenset({"json_invalid", "bytes_invalid_encoding", "string_unicode", "json_type"})
_KIND = frozenset({"union_tag_invalid", "union_tag_not_found"})


def read(adapter: TypeAdapter[T], value: bytes | None, kinds: tuple[str, ...] = ()) -> T:
    """Parse and validate one record value.

    ``kinds`` lists the kinds that are understood where the model leaves ``kind`` open. Raises
    Unreadable for anything else: not JSON, wrong shape, unknown kind, a newer version.
    """
    if value is None:
        raise Unreadable(
            Reason.NOT_JSON, "the record has no value (a tombstone) on a topic of events"
        )
    try:
        record = adapter.validate_json(value)
    except ValidationError as exc:
        raise unreadable(exc) from None
    if kinds and record.kind not in kinds:  # type: ignore[attr-defined]
        raise Unreadable(
            Reason.UNKNOWN_KIND,
            f"kind {record.kind!r} is not one of {', '.join(kinds)}",  # type: ignore[attr-defined]
        )
    return record


def unreadable(exc: ValidationError) -> Unreadable:
    """The Unreadable that says what a ValidationError says, with its most telling reason."""
    errors = exc.errors(include_url=False, include_context=False)
    reason = min((_reason(error) for error in errors), key=_TELLING.index)
    text = "; ".join(
        f"{'.'.join(str(part) for part in error['loc']) or 'record'}: {error['msg']}"
        for error in errors[:5]
    )
    return Unreadable(reason, text)


_TELLING = [
    Reason.NOT_JSON,
    Reason.UNKNOWN_KIND,
    Reason.NEWER_VERSION,
    Reason.BAD_TIME,
    Reason.BAD_ENVELOPE,
]


def _reason(error: Any) -> Reason:
    kind, loc = error["type"], error["loc"]
    last = str(loc[-1]) if loc else ""
    if kind in _NOT_JSON:
        return Reason.NOT_JSON
    if kind in _KIND or last == "kind":
        return Reason.UNKNOWN_KIND
    if last == "version" and kind == "less_than_equal":
        return Reason.NEWER_VERSION
    if last.endswith("_at") or (len(loc) > 1 and "times" in loc):
        return Reason.BAD_TIME
    return Reason.BAD_ENVELOPE
