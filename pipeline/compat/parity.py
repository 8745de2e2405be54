"""Where all that a system measures and shows is here: the tables of docs/parity.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.compat.model import (
    Always,
    From,
    Pair,
    Rule,
    Shown,
    System,
    Take,
    Theirs,
    Turn,
    values_of,
)
from pipeline.compat.systems import SYSTEMS


@dataclass(frozen=True)
class Table:
    """A table of Markdown cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def page(markdown: Callable[[Sequence[str], Iterable[Sequence[str]]], str]) -> str:
    """The tables of all systems with headings; ``markdown`` writes a table of columns and rows."""
    told = []
    for system in SYSTEMS.values():
        told.append(f"## {system.name}\n\n{system.about}\n")
        told += [
            f"### {each.title} of {system.name}\n\n{markdown(each.columns, each.rows)}"
            for each in tables(system)
        ]
    return "\n".join(told)


def tables(system: System) -> Iterator[Table]:
    """All tables of a system. No cell of them is empty."""
    yield Table(
        "Metrics",
        ("there", "type", "labels", "follows from", "what is otherwise"),
        tuple(_metric(each) for each in system.metrics),
    )
    if system.panels:
        rows = [(each.section, each.title, _here(each.here, each.shown)) for each in system.panels]
        yield Table("Panels", ("section", "panel", "here"), tuple(rows))
    if system.alerts:
        told = [
            (
                each.title,
                each.condition or "not told",
                _here(each.here, each.shown, each.fires),
            )
            for each in system.alerts
        ]
        yield Table("Alerts", ("alert", "fires there", "here"), tuple(told))
    for title, kindred in (system.further or {}).items():
        more = [(f"`{each.title}`", each.what, _here(each.here, each.shown)) for each in kindred]
        yield Table(title, ("there", "what it is", "here"), tuple(more))


def board_file(board: str) -> str:
    """Where Grafana's file of a dashboard of ours is, from the root of the repository."""
    return f"dashboards/grafana/runnerstream-{board.lower().replace('_', '-')}.json"


def _here(here: str, shown: Iterable[Shown] = (), fires: Iterable[str] = ()) -> str:
    """Alerts, then panels by their dashboards, then what asks for the same."""
    boards: dict[str, list[str]] = {}
    for board, title in shown:
        boards.setdefault(board, []).append(f"*{title}*")
    told = [f"[{name}](runbooks/{name}.md)" for name in fires]
    told += [f"[{each}](../{board_file(each)}): {', '.join(boards[each])}" for each in boards]
    return "; ".join((*told, here))


def _metric(theirs: Theirs) -> tuple[str, ...]:
    labels = ", ".join(f"`{label}`" for label in theirs.labels) or "none"
    sources = "; ".join(_source(theirs, each) for each in theirs.follows) or "nothing"
    if theirs.over is not None:
        sources += f", divided by {_source(theirs, theirs.over)}"
    return f"`{theirs.name}`", theirs.kind, labels, sources, theirs.said or "nothing"


def _source(theirs: Theirs, source: From) -> str:
    where = ",".join(
        f'{name}="{"|".join(sorted(values))}"' for name, values in (source.only or {}).items()
    )
    name = source.metric.shown
    if source.metric.kind == "histogram" and theirs.kind == "counter":
        name += "_count"
    told = [f"`{name}{{{where}}}`" if where else f"`{name}`"]
    if source.scale != 1.0:
        told.append(f"times {source.scale:g}")
    if source.fold == "max":
        told.append("the greatest")
    for label, rule in zip(theirs.labels, source.labels, strict=True):
        text = _rule(label, rule, source)
        if text:
            told.append(text)
    return ", ".join(told)


def _rule(label: str, rule: Rule, source: From) -> str:
    if isinstance(rule, Always):
        return f'`{label}="{rule.value}"`'
    if isinstance(rule, Take):
        return "" if rule.ours == label else f"`{label}` is `{rule.ours}`"
    if isinstance(rule, Turn):
        changed = {ours: there for ours, there in rule.values.items() if ours != there}
        return f"`{label}`: {_turned(changed)}" if changed else ""
    assert isinstance(rule, Pair)
    first, second = rule.ours
    firsts: dict[tuple[str, str], list[str]] = {}
    for (one, other), there in rule.values.items():
        firsts.setdefault((other, there), []).append(one)
    by: dict[str, str] = {}
    for (other, there), ones in firsts.items():
        every = set(ones) == set(values_of(source.metric, first) or ())
        by |= {other if every else f"{one} {other}": there for one in ones}
    return f"`{label}` by `{first}` and `{second}`: {_turned(by)}"


def _turned(values: Mapping[str, str]) -> str:
    """What is called what, several of ours together."""
    together: dict[str, list[str]] = {}
    for ours, there in values.items():
        together.setdefault(there, []).append(ours)
    return "; ".join(f"{', '.join(ours)} → {there}" for there, ours in together.items())
