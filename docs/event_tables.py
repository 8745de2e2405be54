"""The tables of the producers' page that show every kind of telemetry with its fields."""

from __future__ import annotations

import inspect
import re

from docs.markdown import said, table
from pipeline.commands.event_fields import hints_of, words
from topics import events, models


def tables() -> str:
    """A table a family, of its kinds with their fields."""
    out = []
    for family, kept in events.FAMILIES.items():
        rows = []
        for model in kept:
            # Also what a model has from those that it extends.
            comments = {
                name: text
                for each in reversed(model.__mro__)
                if issubclass(each, events.Event) and each is not events.Event
                for name, text in said(each).items()
            }
            kind = ", ".join(f"`{each}`" for each in events.kinds(model))
            meaning = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]
            rows.append((kind, "", "", f"**{meaning}**"))
            hints = hints_of(events.kinds(model)[0])
            for name, hint in hints.items():
                if name not in models.Record.model_fields and name != "fleet":
                    needed = "required" if model.model_fields[name].is_required() else ""
                    kind_of_value = re.sub(r"[a-z_]+(?: \| [a-z_]+)+", _coded, words(hint))
                    rows.append(("", f"`{name}`", kind_of_value, _joined(needed, comments[name])))
        columns = ("kind", "field", "type", "meaning")
        out.append(f"**{family.capitalize()}**\n\n{table(columns, rows)}")
    return "\n".join(out)


def _coded(found: re.Match[str]) -> str:
    return ", ".join(f"`{each}`" for each in found.group().split(" | "))


def _joined(needed: str, meaning: str) -> str:
    return f"{needed.capitalize()}. {meaning}".strip() if needed else meaning
