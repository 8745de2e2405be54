"""Looks whether a generated dashboard is put together as it should be.

The rules are those of Grafana's dashboard-linter that hold for any datasource, and the house's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from dashboards import config
from dashboards.macros import Range, UnknownMacro, expand
from dashboards.model import WIDTH

Json = Mapping[str, Any]

#: The kinds of our datasources, by the variables that choose one.
_SOURCES: Final = {
    f"${{{config.CLICKHOUSE_VARIABLE}}}": config.CLICKHOUSE,
    f"${{{config.PROMETHEUS_VARIABLE}}}": config.PROMETHEUS,
}
#: What a description answers.
_ANSWERS: Final = ("Healthy:", "Otherwise:", "What to do:", "No data:")
#: Variables that Grafana has of itself.
_BUILT_IN: Final = frozenset({"__rate_interval", "__interval", "__range"})
_WORDS: Final = frozenset({
    "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool",
    "offset", "inf", "nan",
})  # fmt: skip


def faults(board: Json) -> list[str]:
    """What is wrong with a dashboard, in words."""
    found = [*_whole(board), *_variables(board), *_layout(board)]
    names = {each["name"] for each in _listed(board)}
    for annotation in board.get("annotations", {}).get("list", ()):
        found += _source(annotation, f"annotation {annotation['name']}")
        found += _target(annotation.get("target", {}), names, f"annotation {annotation['name']}")
    for panel in panels(board):
        found += _panel(panel, names)
    return found


def of_all(boards: Sequence[Json]) -> list[str]:
    """What is wrong with dashboards beside each other: addresses, and links that lead nowhere."""
    uids = [board["uid"] for board in boards]
    found = [f"the uid {uid} is there {n} times" for uid, n in Counter(uids).items() if n > 1]
    for board in boards:
        for panel in panels(board):
            for url in _urls(panel):
                to = re.match(r"/d/([\w-]+)", url)
                where = f"{board['title']}, {panel['title']}"
                if to is None:
                    continue
                if to[1] not in uids:
                    found.append(f"{where}: the link to {to[1]} leads nowhere")
                    continue
                target = boards[uids.index(to[1])]
                known = {each["name"] for each in _listed(target)}
                given = set(re.findall(r"[?&]var-(\w+)=", url))
                if given - known:
                    found.append(f"{where}: {to[1]} has no variable {sorted(given - known)}")
                if "${__url_time_range}" not in url:
                    found.append(f"{where}: the link to {to[1]} loses the time range")
    return found


def panels(board: Json) -> Iterator[Json]:
    """All panels of a dashboard, those of collapsed rows as well, without the rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def metrics(promql: str) -> set[str]:
    """The names of metrics in a query to Prometheus."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', promql)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    names = re.findall(r"(?<![\w:.$])[a-zA-Z_:][\w:]*(?!\s*\()\b(?![\w:]*\s*\()", bare)
    return {name for name in names if name.lower() not in _WORDS}


# -- the whole -------------------------------------------------------------------------------------


def _whole(board: Json) -> Iterator[str]:
    for name in ("title", "description", "uid", "refresh"):
        if not board.get(name):
            yield f"the dashboard has no {name}"
    if board.get("editable") is not False:
        yield "it can be edited in Grafana, where nobody commits it"
    titles = Counter(panel["title"] for panel in panels(board))
    yield from (f"{n} panels are called {title}" for title, n in titles.items() if n > 1)
    links = board.get("links", ())
    if not any(each["type"] == "dashboards" for each in links):
        yield "it does not link the other dashboards"
    for link in links:
        if not (link.get("keepTime") and link.get("includeVars")):
            yield f"the link {link['title']} loses the time range or the variables"


def _listed(board: Json) -> Iterable[Json]:
    found: Iterable[Json] = board.get("templating", {}).get("list", ())
    return found


def _variables(board: Json) -> Iterator[str]:
    listed = list(_listed(board))
    names = Counter(each["name"] for each in listed)
    yield from (f"{n} variables are called {name}" for name, n in names.items() if n > 1)
    sources = [each for each in listed if each["type"] == "datasource"]
    if not any(
        (each["name"], each.get("label"), each["query"])
        == (config.CLICKHOUSE_VARIABLE, "Data source", config.CLICKHOUSE)
        for each in sources
    ):
        yield "its datasource cannot be chosen by a variable `datasource`, 'Data source'"
    for variable in listed:
        where = f"variable {variable['name']}"
        if not variable.get("label"):
            yield f"{where}: no label"
        if variable["type"] != "query":
            continue
        yield from _source(variable, where)
        if variable.get("refresh") != 2:
            yield f"{where}: not asked again when the time range changes"
        if not variable["query"].get("rawSql"):
            yield f"{where}: no query"


def _layout(board: Json) -> Iterator[str]:
    taken: dict[tuple[int, int], str] = {}
    ids = Counter(panel.get("id") for panel in [*board["panels"], *panels(board)]
                  if panel["type"] != "row")  # fmt: skip
    for panel in board["panels"]:
        place = panel["gridPos"]
        if place["x"] + place["w"] > WIDTH or place["w"] < 1 or place["h"] < 1:
            yield f"{panel['title']}: out of the grid"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    yield f"{panel['title']} lies on {other}"
                    return
    if None in ids:
        yield "a panel has no id"


# -- a panel ---------------------------------------------------------------------------------------


def _panel(panel: Json, names: set[str]) -> Iterator[str]:
    where = panel["title"]
    told = panel.get("description", "")
    yield from (f"{where}: the description does not say {each}" for each in _ANSWERS
                if not re.search(rf"{each} \S", told))  # fmt: skip
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    if panel["type"] == "heatmap":
        unit = panel["options"].get("yAxis", {}).get("unit")
    else:
        unit = defaults.get("unit")
        if not defaults.get("thresholds", {}).get("steps"):
            yield f"{where}: no thresholds"
    if not unit:
        yield f"{where}: no unit"
    yield from _source(panel, where)
    targets = panel.get("targets", ())
    if not targets:
        yield f"{where}: nothing is asked"
    refs = Counter(target["refId"] for target in targets)
    yield from (f"{where}: {n} queries are called {ref}" for ref, n in refs.items() if n > 1)
    for target in targets:
        yield from _source(target, where)
        yield from _target(target, names, where)


def _source(of: Json, where: str) -> Iterator[str]:
    source = of.get("datasource") or {}
    if _SOURCES.get(source.get("uid", "")) != source.get("type", ""):
        yield f"{where}: the datasource is not one that is chosen by a variable"


def _target(target: Json, names: set[str], where: str) -> Iterator[str]:
    if "expr" in target:
        unknown = set(re.findall(r"\$\{?(\w+)", target["expr"])) - names - _BUILT_IN
        yield from (f"{where}: there is no variable {each}" for each in sorted(unknown))
        for range_ in re.findall(r"\b(?:rate|irate|increase)\([^\[]*\[([^\]:]+)", target["expr"]):
            if not range_.startswith("$__"):
                yield f"{where}: a rate over {range_} does not follow the resolution"
        if re.search(r"\bor\s+vector\(0\)", target["expr"]):
            yield f"{where}: no data would look like 0"
        return
    sql = target.get("rawSql", "")
    if not sql:
        yield f"{where}: an empty query"
        return
    try:
        expand(sql, Range(0, 1, 60, dict.fromkeys(names, ())))
    except UnknownMacro as error:
        yield f"{where}: {error}"


def _urls(panel: Json) -> Iterator[str]:
    for override in panel.get("fieldConfig", {}).get("overrides", ()):
        for told in override["properties"]:
            if told["id"] == "links":
                yield from (link["url"] for link in told["value"])
