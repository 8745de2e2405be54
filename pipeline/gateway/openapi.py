"""The gateway's OpenAPI document, made from what it answers and from the providers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from pipeline.gateway.answers import (
    BAD_FRAMING,
    HOOK_ANSWERS,
    NOT_ALLOWED,
    NOT_FOUND,
    Answer,
    Outcome,
)
from pipeline.gateway.server import HOOKS, MAX_BODY
from pipeline.providers.base import Provider
from pipeline.providers.registry import PROVIDERS
from topics import bridge

#: Where it is served, and who may ask whether a gateway is well.
PATH: Final = "/openapi.json"
HEALTH: Final = {"/healthz": "alive", "/readyz": "ready"}


def document(version: str) -> dict[str, Any]:
    """The document, as JSON has it."""
    paths: dict[str, Any] = {
        f"{HOOKS}{provider.name}": {"post": _hook(provider)} for provider in PROVIDERS.values()
    }
    for path, word in HEALTH.items():
        paths[path] = {"get": _health(word)}
    paths[PATH] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document.",
            "responses": {"200": _json("The document.", {"type": "object"}), **_others()},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "runnerstream gateway",
            "version": version,
            "description": "Takes webhooks and writes them to Kafka. What is answered 2xx with the "
            "outcome accepted, duplicate or malformed is in Kafka.",
        },
        "paths": paths,
        "components": {"schemas": {"Answer": _ANSWER}},
    }


def page(version: str) -> tuple[int, bytes]:
    """The document as an answer."""
    return 200, json.dumps(document(version)).encode() + b"\n"


_ANSWER: Final = {
    "type": "object",
    "required": ["outcome", "message"],
    "properties": {
        "outcome": {"enum": [outcome.value for outcome in Outcome]},
        "message": {"type": "string"},
        "events": {
            "type": "object",
            "description": "Of a ping: which of the events that say something about jobs are sent.",
            "additionalProperties": {"type": "boolean"},
        },
    },
    "additionalProperties": False,
}


def _hook(provider: Provider) -> dict[str, Any]:
    form = bridge.FORMS[provider.name]
    event = form.header_of(sorted({*provider.events} - form.asked)[0])
    named = {"type": "string", "examples": [event]}
    return {
        "operationId": f"hook-{provider.name}",
        "summary": f"A webhook of {provider.name}.",
        "parameters": [
            *(_header(name, "The event.", named, required=not form.also)
              for name in (form.event, *form.also)),
            *(_header(name, "The delivery's id.", {"type": "string"}, required=False)
              for name in (form.delivery, *form.also.values())),
            *(_header(name, "The signature, or of it.", {"type": "string"}, required=False)
              for name in sorted(provider.signatures)),
        ],
        "requestBody": {
            "required": True,
            "description": f"The body as the provider sends it, up to {MAX_BODY:,} bytes.",
            "content": {kind: {"schema": {}} for kind in provider.content_types},
        },
        "responses": _responses((*HOOK_ANSWERS, NOT_FOUND, NOT_ALLOWED)),
    }  # fmt: skip


def _health(word: str) -> dict[str, Any]:
    schema = {
        "type": "object", "required": [word], "properties": {word: {"type": "boolean"}},
    }  # fmt: skip
    return {
        "operationId": word,
        "summary": f"Whether the gateway is {word}.",
        "responses": {
            "200": _json(f"It is {word}.", schema),
            "503": _json(f"It is not {word}.", schema),
            **_others(),
        },
    }


def _others() -> dict[str, Any]:
    return {
        status: told
        for status, told in _responses((BAD_FRAMING, NOT_ALLOWED)).items()
        if status not in ("200", "503")
    }


def _header(
    name: str, text: str, schema: dict[str, Any], *, required: bool = True
) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "description": text,
            "schema": schema}  # fmt: skip


def _responses(answers: Iterable[Answer]) -> dict[str, Any]:
    """By status; one that several answers have names all of them."""
    said: dict[str, list[Answer]] = {}
    for answer in answers:
        said.setdefault(str(answer.status), []).append(answer)
    found = {}
    for status in sorted(said):
        several = said[status]
        told = _json("; or: ".join(dict.fromkeys(each.says for each in several)),
                     {"$ref": "#/components/schemas/Answer"})  # fmt: skip
        if any(each.retry_after_s for each in several):
            told["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
        found[status] = told
    return found


def _json(text: str, schema: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
