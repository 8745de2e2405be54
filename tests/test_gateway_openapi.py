"""The gateway does what its OpenAPI document says: requests made from it, signed or not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.gateway import openapi
from pipeline.local.process import LOOPBACK
from pipeline.providers.registry import PROVIDERS
from tests.support.brokers import broker
from tests.support.gateways import SECRET, Served, headers_of, queued, ready, serve
from topics.apply import apply
from topics.catalogue import catalogue

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_headers_conformance, response_schema_conformance,
]  # fmt: skip
SCHEMA = schemathesis.openapi.from_dict(openapi.document("test"))
SEEN: Counter[int] = Counter()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with broker(tmp_path_factory.mktemp("broker")) as kafka:
        apply({"bootstrap_servers": kafka.bootstrap}, catalogue(partitions=2))
        with serve(kafka.bootstrap) as made:
            ready(made)
            yield made


def ask(gate: Served, case: Any, signed: bool) -> requests.Response:
    """Send a case, with the right signature of whatever its body became."""
    made = case.as_transport_kwargs(base_url=f"http://{LOOPBACK}:{gate.port}")
    made.pop("timeout", None)
    with requests.Session() as session:
        request = session.prepare_request(requests.Request(**made))
        provider = PROVIDERS.get(case.path.rpartition("/")[2])
        if signed and provider is not None:
            body = request.body or b""
            body = body.encode() if isinstance(body, str) else body
            for name in provider.signatures:
                request.headers.pop(name, None)
            request.headers.update(provider.sign(body, SECRET))
        answer = session.send(request, timeout=60)
    SEEN[answer.status_code] += 1
    return answer


HOOKS = st.sampled_from(sorted(PROVIDERS)).flatmap(
    lambda name: SCHEMA[f"/webhooks/{name}"]["POST"].as_strategy()
)


@settings(max_examples=120)
@given(case=HOOKS, signed=st.booleans())
def test_a_webhook_is_answered_as_the_document_says(gate: Served, case: Any, signed: bool) -> None:
    case.validate_response(ask(gate, case, signed), checks=CHECKS)


@settings(max_examples=10)
@given(
    case=st.sampled_from(["/healthz", "/readyz", "/openapi.json"]).flatmap(
        lambda path: SCHEMA[path]["GET"].as_strategy()
    )
)
def test_the_pages_are_as_the_document_says(gate: Served, case: Any) -> None:
    case.validate_response(ask(gate, case, False), checks=CHECKS)


@pytest.mark.parametrize(
    ("secret", "status", "outcomes"),
    [(SECRET, 202, ["accepted", "duplicate"]), (b"guessed", 403, ["unauthenticated"] * 2)],
)
def test_an_answer_is_the_same_whether_the_connection_goes_on_or_not(
    gate: Served, secret: bytes, status: int, outcomes: list[str]
) -> None:
    body = queued()
    headers = headers_of(body, secret)
    both = [gate.ask(body, headers), gate.ask(body, headers | {"Connection": "close"})]
    assert [each.said["outcome"] for each in both] == outcomes
    told = [dict(each.headers) for each in both]
    assert told[1].pop("connection") == "close"
    for reply, named in zip(both, told, strict=True):
        assert reply.status == status
        assert int(named.pop("content-length")) == len(json.dumps(reply.said)) + 1
        assert parsedate_to_datetime(named.pop("date")).tzinfo is not None
        assert named == {"server": "runnerstream", "content-type": "application/json"}


def test_the_requests_came_through_to_kafka_and_were_refused(gate: Served) -> None:
    assert SEEN[202]
    assert SEEN[403] + SEEN[401]
    assert SEEN[200]
    told = gate.ask(method="GET", path="/openapi.json").said
    assert told["paths"] == json.loads(json.dumps(openapi.document("")))["paths"]
