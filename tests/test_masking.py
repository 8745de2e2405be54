"""Secrets in whatever form they are written."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topics.masking import MASK, Masker

SECRET = "p@ss w\\rd/+é'\"<&>=% x9"

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 without padding": lambda s: base64.b64encode(s.encode()).decode().rstrip("="),
    "base64, one byte before": lambda s: base64.b64encode(b"a" + s.encode() + b"zz").decode(),
    "base64, two bytes before": lambda s: base64.b64encode(b"ab" + s.encode() + b"z").decode(),
    "URL-safe base64": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64 of a login": lambda s: base64.b64encode(f"user:{s}\n".encode()).decode(),
    "base64 of UTF-16": lambda s: base64.b64encode(s.encode("utf-16-le")).decode(),
    "hexadecimal": lambda s: s.encode().hex(),
    "hexadecimal, upper case": lambda s: s.encode().hex().upper(),
    "hexadecimal with colons": lambda s: s.encode().hex(":"),
    "hexadecimal of UTF-16": lambda s: s.encode("utf-16-le").hex(),
    "bytes in C": lambda s: "".join(f"\\x{b:02x}" for b in s.encode()),
    "a list of bytes": lambda s: ", ".join(f"0x{b:02X}" for b in s.encode()),
    "percent-encoded for a query": quote_plus,
    "percent-encoded for a path": quote,
    "percent-encoded wholly": lambda s: "".join(f"%{b:02x}" for b in s.encode()),
    "percent-encoded twice": lambda s: quote(quote(s, safe=""), safe=""),
    "JSON": lambda s: json.dumps(s)[1:-1],
    "JSON as UTF-8": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "JSON safe in HTML": lambda s: json.dumps(s)[1:-1]
    .replace("<", "\\u003c").replace(">", "\\u003E").replace("&", "\\u0026").replace("/", "\\/"),
    "HTML": html.escape,
    "HTML by numbers": lambda s: "".join(f"&#{ord(c)};" for c in s),
    "HTML by hexadecimal numbers": lambda s: "".join(f"&#x{ord(c):X};" for c in s),
    "between quotes of a shell": shlex.quote,
    "a workflow command": lambda s: s.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"),
}  # fmt: skip

#: `user:` without its last two bits, and a line's end with padding, in base64: dXNlcj and Cg==.
MOST_BESIDE = 10


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_as(form: str) -> None:
    written = FORMS[form](SECRET)
    masked = Masker([SECRET]).mask(f"before {written} after")
    assert MASK in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    # Of what stood between there is nothing left but what is not the secret's.
    assert len(masked.removeprefix("before ").removesuffix(" after")) <= len(MASK) + MOST_BESIDE


def test_a_secret_is_masked_as_the_shell_prints_it() -> None:
    # What `printf %q` of bash makes of it.
    made = "a\\ b\\'c\\\"d\\\\e\\&f"
    assert Masker(["a b'c\"d\\e&f"]).mask(made) == MASK


def test_several_and_those_within_others() -> None:
    masker = Masker(["abcd", "cdef", b"cdefgh", "", "x", "***"])
    assert masker.mask("an abcdef and an abcdefghi, x") == "an *** and an ***i, x"
    masker.add("later")
    assert masker.mask("now and later") == f"now and {MASK}"
    assert masker.mask("nothing here") == "nothing here"
    assert Masker().mask("as it was") == "as it was"
    assert Masker(["aaaa"]).mask("aaaaaaa") == MASK


def test_each_line_of_a_key_is_one() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQ\n x \nIBADAN\n-----END KEY-----\n"
    masker = Masker([key])
    assert masker.mask("only MIIEvQ here, and x") == f"only {MASK} here, and x"
    assert masker.mask(key.strip()) == MASK
    assert masker.mask(json.dumps(key)) == f'"{MASK}"'


def test_short_ones_are_masked_as_they_are() -> None:
    assert Masker(["abc"]).mask("abc YWJj 616263") == f"{MASK} YWJj 616263"


def test_hostile_text_takes_no_time_to_speak_of() -> None:
    """Where forms overlap there would be very many ways to try."""
    masker = Masker(["\\" * 40 + "x", "%" * 40 + "x", "&" * 40 + "x", "'" * 40 + "x"])
    for text in ("\\" * 3_000, "%25" * 1_000, "&amp;" * 600, "'\\''" * 600):
        assert masker.mask(text) == text


secrets = st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
    min_size=8, max_size=24,
).filter(lambda s: s == s.strip() and len(set(s)) > 3 and "*" not in s)  # fmt: skip


@given(secrets, st.sampled_from(sorted(FORMS)), st.text(max_size=6), st.text(max_size=6))
def test_any_secret_in_any_form(secret: str, form: str, before: str, after: str) -> None:
    written = FORMS[form](secret)
    masked = Masker([secret]).mask(f"{before} {written} {after}")
    assert MASK in masked
    assert written.strip("'=") not in masked
    assert len(masked) <= len(before) + len(after) + 2 + len(MASK) + MOST_BESIDE


@given(st.lists(st.text(min_size=2, max_size=6), max_size=4), st.text(max_size=60))
def test_what_is_left_holds_none(known: list[str], text: str) -> None:
    masked = Masker(known).mask(text)
    for secret in known:
        if len(secret.strip()) > 1 and "*" not in secret:
            assert secret not in masked
