"""One key for one job: made, taken apart, and canonical."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topics.keys import canonical_host, canonical_key, job_key, parse_job_key, run_key

providers = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
hosts = st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9-]{0,8}(\.[A-Za-z]{2,8})?(:[0-9]{1,5})?", fullmatch=True
)
ids = st.from_regex(r"[A-Za-z0-9_.\-]{1,40}", fullmatch=True)


@given(providers, hosts, ids)
def test_a_key_comes_apart_into_what_it_was_made_of(provider: str, host: str, job: str) -> None:
    key = job_key(provider, host, job)
    assert parse_job_key(key) == (provider, canonical_host(host), job)
    assert job_key(*parse_job_key(key)) == key == canonical_key(key)


@given(st.text(max_size=60))
def test_canonical_is_canonical(host: str) -> None:
    once = canonical_host(host)
    assert canonical_host(once) == once


@given(providers, hosts, ids)
def test_case_scheme_and_default_port_do_not_matter(provider: str, host: str, job: str) -> None:
    key = job_key(provider, host, job)
    assert job_key(provider.upper(), host.upper(), job) == key
    assert job_key(provider, f"https://{host}/", job) == key
    if ":" not in host:
        assert job_key(provider, f"{host}:443", job) == job_key(provider, f"{host}.:80", job) == key


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("GHE.corp", "ghe.corp"),
        (" ghe.corp ", "ghe.corp"),
        ("ghe.corp:8443", "ghe.corp:8443"),
        ("ghe.corp:08443", "ghe.corp:8443"),
        ("ghe.corp:443", "ghe.corp"),
        ("ghe.corp:", "ghe.corp"),
        ("ghe.corp.", "ghe.corp"),
        ("https://GHE.corp:443/api/v3?x#y", "ghe.corp"),
        ("http://user:secret@ghe.corp:8080/", "ghe.corp:8080"),
        ("[2001:DB8::1]:8443", "[2001:db8::1]:8443"),
        ("[2001:db8::1]:443", "[2001:db8::1]"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("", ""),
    ],
)
def test_hosts(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical


def test_a_host_with_a_port_is_not_cut() -> None:
    assert parse_job_key("github:ghe.corp:8443:41") == ("github", "ghe.corp:8443", "41")
    assert run_key("github", "GHE.corp:8443", 7) == "github:ghe.corp:8443:run/7"


@pytest.mark.parametrize(
    ("provider", "host", "job"),
    [("", "h", "1"), ("a:b", "h", "1"), ("a", " ", "1"), ("a", "h", ""), ("a", "h", "1:2")],
)
def test_what_would_not_come_apart_again_makes_no_key(provider: str, host: str, job: str) -> None:
    with pytest.raises(ValueError, match="a key needs"):
        job_key(provider, host, job)


@pytest.mark.parametrize("key", ["", "a", "a:b", ":b:c", "a::c", "a:b:"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not a job key"):
        parse_job_key(key)
