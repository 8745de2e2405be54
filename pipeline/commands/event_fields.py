"""The fields of events in words, and values of them that came as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import EnumMeta
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from topics.envelope import Millis, Name
from topics.events import MODELS
from topics.events.base import Count, MaybeNamed, Ms, Named, Text
from topics.events.reconcilers import ByType
from topics.models import LifecycleEvent, LifecycleKind, RunnerRef
from topics.said import sayable

#: What the words of the contract are called. Each is what a field's annotation is, or holds.
_WORDS: Final[tuple[tuple[Any, str], ...]] = (
    (Ms, "ms"),
    (Count, "number"),
    (Named, "name"),
    (MaybeNamed, "name"),
    (Text, "word"),
    (Millis, "time in ms"),
    (ByType, "numbers by type"),
    (Name, "text"),
    (RunnerRef, "name"),
)
#: Every kind that can be told.
KINDS: Final = (*(kind.value for kind in LifecycleKind), *MODELS)


def hints_of(kind: str) -> Mapping[str, Any]:
    """The annotation of each field that an event of a kind may be given. Raises ValueError."""
    hints = get_type_hints(MODELS.get(kind, LifecycleEvent), include_extras=True)
    return {name: hints[name] for name in sayable(kind)}


def is_required(kind: str, field: str) -> bool:
    """Whether who says it must, what is said of every event aside."""
    model = MODELS.get(kind, LifecycleEvent)
    return model.model_fields[field].is_required()


def words(hint: Any) -> str:
    """A field's type in words."""
    for known, said in _WORDS:
        if hint == known:
            return said
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(words(each) for each in inner if each is not NoneType)
    if origin is Literal:
        return _choice(inner)
    if isinstance(hint, EnumMeta):
        return _choice(list(hint))
    if hint is bool:
        return "true or false"
    if origin is tuple and inner[1:] == (...,):
        return f"{words(inner[0])}s"
    if origin is tuple:
        return f"[{', '.join(words(each) for each in inner)}]"
    if origin is dict:
        return f"{words(inner[1])} by {words(inner[0])}"
    if origin is Annotated:
        return words(inner[0])
    return {int: "number", float: "number", str: "text"}.get(hint, "object")


def _choice(values: Iterable[str]) -> str:
    return " | ".join(values)


def typed(kind: str, field: str, text: str) -> Any:
    """What a text stands for as a value of a field: itself where the field holds text; JSON
    elsewhere, and a list also with commas between. None, which is unknown, when it is empty.

    What is nothing of that sort stays text, for the model to refuse. Raises ValueError for a kind
    or a field that is none.
    """
    hints = hints_of(kind)
    if field not in hints:
        raise ValueError(f"{kind} has no {field}; it has {', '.join(hints)}")
    sort = _sort(hints[field])
    if sort is None:
        return text
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.split(",") if sort == "list" else text


def _sort(hint: Any) -> str | None:
    """``list`` or ``other`` for a field that holds no text."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _sort(inner[0])
    if origin in (Union, UnionType):
        return next((each for each in map(_sort, inner) if each), None)
    if origin is Literal or isinstance(hint, EnumMeta) or hint in (str, NoneType, RunnerRef):
        return None
    return "list" if origin is tuple else "other"
