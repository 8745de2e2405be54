"""Reading a record: bytes in, a model out, or :class:`~topics.models.Unreadable` with a reason.

The reason is chosen from what pydantic says was wrong, so that dead letters can be counted,
searched and replayed by cause.

What producers send is read leniently: only what identifies can refuse a record. An optional field
with a value that it cannot have counts as missing (and is told to who asks for it), and a lone
surrogate (``\\ud83d`` without its other half, as a cut emoji leaves it) reads as U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from topics.envelope import NULL_PLACE, VALUE_PLACE
from topics.models import DELIVERY, LIFECYCLE, Delivery, LifecycleEvent, Reason, Unreadable

T = TypeVar("T")

_NOT_JSON = frozenset({"json_invalid", "bytes_invalid_encoding", "string_unicode", "json_type"})
_KIND = frozenset({"union_tag_invalid", "union_tag_not_found"})

#: Fields that identify or decide how the rest is to be read, though they have a default.
_BLANKABLE: Final = frozenset({"provider", "host"})
_FIXED: Final = frozenset({"version", "job_id"}) | _BLANKABLE


def _optional(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(n for n, field in model.model_fields.items() if not field.is_required())


#: What may be left out of a producer's record when its value cannot be: by adapter.
_LENIENT: Final = {
    id(DELIVERY): _optional(Delivery) - _FIXED,
    id(LIFECYCLE): _optional(LifecycleEvent) - _FIXED,
}
#: The same for an adapter of several models, by kind.
_LENIENT_KINDS: Final[dict[int, Mapping[str, frozenset[str]]]] = {}


def lenient(adapter: TypeAdapter[Any], models: Mapping[str, type[BaseModel]]) -> None:
    """Read what this adapter parses leniently. ``models`` are what it tells apart by kind."""
    optional = {kind: _optional(model) - _FIXED - {"kind"} for kind, model in models.items()}
    _LENIENT_KINDS[id(adapter)] = optional


_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F]..|.)",
    re.DOTALL,
)
_LONE: Final = re.compile(rb"\\u[dD][89a-fA-F]..", re.DOTALL)


def mend_surrogates(value: bytes) -> bytes:
    """JSON with every lone surrogate escape replaced by U+FFFD's. ``value`` itself without one."""

    def mended(found: re.Match[bytes]) -> bytes:
        escape = found.group()
        return rb"\ufffd" if _LONE.fullmatch(escape) else escape

    return _ESCAPE.sub(mended, value) if _LONE.search(value) else value


def read(
    adapter: TypeAdapter[T],
    value: bytes | None,
    kinds: tuple[str, ...] | frozenset[str] = (),
    odd: list[str] | None = None,
) -> T:
    """Parse and validate one record value.

    ``kinds`` lists the kinds that are understood where the model leaves ``kind`` open. ``odd``
    collects the names of optional fields whose value cannot be and counts as missing. Raises
    Unreadable for anything else: not JSON, wrong shape, unknown kind, a newer version.
    """
    if value is None:
        raise Unreadable(
            Reason.NOT_JSON, "the record has no value (a tombstone) on a topic of events"
        )
    try:
        # Not through the adapter's own method, which only passes on: asked of every record.
        record: T = adapter.validator.validate_json(value)
    except ValidationError as exc:
        record = _again(adapter, value, exc, odd)
    if kinds and record.kind not in kinds:  # type: ignore[attr-defined]
        named = ", ".join(kinds) if len(kinds) < 8 else "those known"
        raise Unreadable(
            Reason.UNKNOWN_KIND,
            f"kind {record.kind!r} is not one of {named}",  # type: ignore[attr-defined]
        )
    return record


def unreadable(exc: ValidationError) -> Unreadable:
    """The Unreadable that says what a ValidationError says, with its most telling reason."""
    errors = _errors(exc)
    reason = min((_reason(error) for error in errors), key=_TELLING.index)
    text = "; ".join(
        f"{'.'.join(str(part) for part in error['loc']) or 'record'}: {error['msg']}"
        for error in errors[:5]
    )
    return Unreadable(reason, text)


def _again(adapter: TypeAdapter[T], value: bytes, exc: ValidationError, odd: list[str] | None) -> T:
    """A second look at a record that was refused: whether it can do without what is wrong."""
    by_kind = _LENIENT_KINDS.get(id(adapter), {})
    optional = _LENIENT.get(id(adapter), frozenset())
    found: Any = None
    mended = mend_surrogates(value)
    # Each round leaves something out, and what is inside what was left out is gone with it.
    for _ in range(8):
        errors = _errors(exc)
        if by_kind and all(error["loc"] and error["loc"][0] in by_kind for error in errors):
            # Of one of several models: its kind stands before the place.
            optional = by_kind[errors[0]["loc"][0]]
            errors = [{**error, "loc": error["loc"][1:]} for error in errors]
        if any(error["type"] in _NOT_JSON for error in errors):
            if mended is value:
                break
            value = mended
        elif optional and all(_dispensable(error, optional) for error in errors):
            if found is None:
                found = from_json(value)
            for error in errors:
                _leave_out(found, error["loc"])
                if odd is not None:
                    odd.append(str(error["loc"][0]))
        else:
            break
        try:
            if found is None:
                return adapter.validate_json(value)
            return adapter.validate_python(found)
        except ValidationError as next_exc:
            exc = next_exc
    raise unreadable(exc) from None


def _dispensable(error: Any, optional: frozenset[str]) -> bool:
    loc = error["loc"]
    if not loc:
        return False
    # Blank means unknown, also where another wrong value would be another identity.
    return loc[0] in optional or (loc[0] in _BLANKABLE and error["type"] == "string_too_short")


def _leave_out(found: Any, place: tuple[int | str, ...]) -> None:
    """Remove what lies at ``place``, or the innermost object around it that can be removed."""
    holder, last = found, place[0]
    for part in place[1:]:
        inner = holder.get(last)
        if not isinstance(inner, dict) or part not in inner:
            break
        holder, last = inner, part
    holder.pop(last, None)


def _errors(exc: ValidationError) -> list[Any]:
    """What was wrong, where, without pydantic's words for "or null"."""
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    for error in errors:
        error["loc"] = tuple(part for part in error["loc"] if part != VALUE_PLACE)
    told = [error for error in errors if NULL_PLACE not in error["loc"]]
    return told or errors


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
