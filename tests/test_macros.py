"""What the port of Grafana's macros makes of a query, and what it refuses."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards.config import OF_FLEET
from dashboards.macros import Range, UnknownMacro, expand

OVER = Range(1_790_000_000_123, 1_790_000_900_456, 20, {"fleet": (), "repo": ("acme/app",)})

#: Parts of an argument: calls within it, commas, and strings with either in them.
PIECES = ("at", "1", "f(", "g(", ")", ", ", "'a, (b'", "')'", "'('", " + ")


def closed(pieces: list[str]) -> str:
    """All of them within one call, with as many parentheses closed as are open."""
    text, depth = "h(", 1
    for piece in pieces:
        if piece == ")" and depth == 1:
            continue
        text, depth = text + piece, depth + (piece[-1] == "(") - (piece == ")")
    return text + ")" * depth


arguments = st.lists(st.sampled_from(PIECES), max_size=12).map(closed)
values = st.lists(st.text(max_size=12), max_size=4)


@given(arguments, arguments)
def test_an_argument_may_be_nested_and_quoted(one: str, other: str) -> None:
    column = f"concat({one}, {other})"
    assert expand(f"SELECT 1 WHERE $__timeFilter({column}) AND x", OVER) == (
        f"SELECT 1 WHERE {column} >= toDateTime(1790000000) AND"
        f" {column} <= toDateTime(1790000900) AND x"
    )


@given(arguments, values)
def test_a_condition_holds_unless_all_are_chosen(condition: str, chosen: list[str]) -> None:
    over = Range(0, 1, 60, {"fleet": chosen})
    made = expand(f"SELECT 1 WHERE $__conditionalAll({condition} = y, $fleet) OR z", over)
    assert (
        made == f"SELECT 1 WHERE {f'{condition} = y' if chosen not in ([], ['']) else '1=1'} OR z"
    )


@given(values.filter(lambda chosen: any(each.strip("$") for each in chosen)))
def test_what_is_chosen_is_quoted_so_that_it_is_read_as_it_was(chosen: list[str]) -> None:
    # A dollar in a value is refused below: the datasource would take it for a macro.
    chosen = [each.replace("$", "") for each in chosen]
    made = expand(f"WHERE {OF_FLEET}", Range(0, 1, 60, {"fleet": chosen}))
    [inside] = re.findall(r"^WHERE fleet IN \((.*)\)$", made, re.DOTALL)
    assert unquoted(inside) == chosen


def unquoted(text: str) -> list[str]:
    """Strings of SQL, as ClickHouse reads them."""
    found, place = [], 0
    while place < len(text):
        assert text[place] == "'"
        place, read = place + 1, ""
        while text[place] != "'":
            place += text[place] == "\\"
            read, place = read + text[place], place + 1
        found.append(read)
        assert text[place + 1 : place + 2] in ("", ",")
        place += 2
    return found


@pytest.mark.parametrize(
    ("sql", "made"),
    [
        ("$__timeInterval(at)", "toStartOfInterval(toDateTime(at), INTERVAL 20 second)"),
        ("$__timeFilter_ms(at)", "at >= fromUnixTimestamp64Milli(1790000000123) AND"
         " at <= fromUnixTimestamp64Milli(1790000900456)"),
        ("$__fromTime, $__toTime", "toDateTime(1790000000), toDateTime(1790000900)"),
        ("$__fromTime_ms", "fromUnixTimestamp64Milli(1790000000123)"),
        ("$__toTime_ms", "fromUnixTimestamp64Milli(1790000900456)"),
        ("60 * $__interval_s", "60 * 20"),
        ("'${repo}' = '$repo'", "'acme/app' = 'acme/app'"),
        ("${repo:raw}", "acme/app"),
        ("x IN (${repo:singlequote})", "x IN ('acme/app')"),
        ("'$fleet'", "'$__all'"),
        ("1 -- of $nothing\n + 1", "1 \n + 1"),
    ],
)  # fmt: skip
def test_each_macro(sql: str, made: str) -> None:
    if made == "'$__all'":
        # What the frontend writes for all is no macro: such a query would find nothing.
        with pytest.raises(UnknownMacro):
            expand(sql, OVER)
    else:
        assert expand(sql, OVER) == made


@pytest.mark.parametrize(
    "sql",
    [
        "$__timeGroup(at)",
        "$__interval",
        "$branch",
        "${branch:singlequote}",
        "${repo:csv}",
        "$__conditionalAll(a, $branch)",
        "$__conditionalAll(a)",
        "$__conditionalAll(a, b)",
        "$__timeFilter(at",
        "$__timeFilter(a, b)",
        "$__timeInterval()",
        "${",
    ],
)
def test_what_is_unknown_is_an_error(sql: str) -> None:
    with pytest.raises(UnknownMacro):
        expand(f"SELECT {sql}", OVER)


@given(st.text("$_{}():abcfleetrepo', \n-", max_size=40))
def test_nothing_is_left_to_expand(sql: str) -> None:
    """Whatever is asked: it is an error, or no macro is left in it."""
    try:
        made = expand(sql, OVER)
    except UnknownMacro:
        return
    assert not re.search(r"\$[\w{]", made)
