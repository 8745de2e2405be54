"""The laws, the words and the places that pages name: each file and each name in it is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAWS = ROOT / "docs" / "invariants.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
QUESTIONS = ROOT / "docs" / "where-things-are.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])

#: A place between backticks: a file, and perhaps a name in it.
PLACE = re.compile(
    r"`((?:topics|pipeline|sinks|tests|docs|benchmarks|examples)/[\w/.\-]+)(?::([A-Za-z_][\w.]*))?`"
)


def rows(page: Path, first: int = 0) -> list[list[str]]:
    """The cells of one table of a page, without its head."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in tables[first].splitlines()[2:]
    ]


@cache
def names(path: Path) -> frozenset[str]:
    """What a module defines: functions, classes with what is in them, constants."""
    found: set[str] = set()

    def look(body: list[ast.stmt], within: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(within + node.name)
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{within}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(within + each.id for each in targets if isinstance(each, ast.Name))

    look(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def missing(text: str) -> list[str]:
    """The places in a text that do not exist."""
    absent = []
    for file, name in PLACE.findall(text):
        path = ROOT / file
        if not path.exists() or (name and (path.suffix != ".py" or name not in names(path))):
            absent.append(f"{file}:{name}" if name else file)
    return absent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_places_that_pages_name_exist(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_a_place_that_is_gone_would_be_noticed() -> None:
    assert missing("`topics/keys.py`, `topics/keys.py:job_key`, `topics/models.py:Tick.kind`") == []
    gone = "`topics/gone.py` `topics/keys.py:gone` `topics/models.py:Tick.gone`"
    assert missing(gone) == ["topics/gone.py", "topics/keys.py:gone", "topics/models.py:Tick.gone"]


def test_there_are_twelve_laws_each_with_its_code_and_its_test() -> None:
    laws = rows(LAWS)
    assert [law[0].partition("** ")[0].strip("*") for law in laws] == [
        f"L{number}" for number in range(1, 13)
    ]
    for law, sentence, code, tests in laws:
        assert sentence.endswith("."), law
        kept = [file for file, _ in PLACE.findall(code)]
        assert kept, law
        assert not any(file.startswith("tests/") for file in kept), law
        shown = PLACE.findall(tests)
        assert shown, law
        assert all(
            file.startswith("tests/test_") and name.startswith("test_") for file, name in shown
        ), law


def test_the_twenty_questions_have_an_answer() -> None:
    questions = rows(QUESTIONS)
    assert len(questions) == 20
    for question, answer, _ in questions:
        assert question.endswith("?")
        assert PLACE.search(answer) or re.search(r"\]\([\w.#-]+\)", answer), question


def test_a_word_has_one_meaning_and_its_place() -> None:
    words = [word.strip("*") for word, _ in rows(GLOSSARY)]
    assert words == sorted(set(words))
    for _, meaning in rows(GLOSSARY):
        assert meaning.endswith((".", ".)"))
    # Without these nobody can read the code.
    assert {"fact", "claim", "fleet", "pane", "fence", "tick", "rev", "watermark"} <= set(words)
