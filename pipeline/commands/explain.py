"""``explain``: all about one job, in words."""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import Final
from urllib.parse import quote, urlsplit

import click

from pipeline.commands.connections import ask, web_url, worker_url
from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, USAGE, Failure
from pipeline.commands.output import cell, on_terminal, print_json, say
from topics.keys import GITHUB_HOST, canonical_key, job_key

#: The page of a job at GitHub: ``/owner/name/actions/runs/1/job/2``.
_PAGE: Final = re.compile(r"/[^/]+/[^/]+/actions/runs/\d+/(?:attempts/\d+/)?jobs?/(\d+)/?")
_ID: Final = re.compile(r"[0-9]{1,19}")


@click.command()
@click.argument("job")
@click.option("--url", help="A worker.  [default: the one of the settings]")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@click.pass_obj
def explain(context: Context, job: str, url: str | None, as_json: bool) -> None:
    """Why a job is where it is, in words: what is known of it, since when, by whose clock.

    JOB is its key as `runnerstream jobs` shows it, the address of its page at GitHub, or its id at
    github.com.
    """
    key = key_of(job)
    base = worker_url(context.settings) if url is None else web_url(url)
    answer = ask(base, f"/jobs/{quote(key, safe=':')}")
    if answer.status == 404:
        raise Failure(
            f"{base}: {answer.get('error', f'no job {key} is known')}",
            "`runnerstream jobs --state any` lists what is known"
            + (
                f"; an id alone is taken for one of {GITHUB_HOST}: of another host give the key"
                if _ID.fullmatch(job.strip())
                else ""
            ),
            FAILED,
        )
    if answer.status != 200:
        raise Failure(f"{base} answered {answer.status}: {answer.get('error', answer)}")
    sections = answer.get("explanation")
    if sections is None:
        raise Failure(
            f"the worker that has {key} does not explain jobs: it is of an earlier release",
            "bring all workers to one release",
        )
    if as_json:
        wanted = ("now", "worker", "key", "status", "since", "explanation")
        print_json({name: answer.get(name) for name in wanted})
        return
    width = max(40, shutil.get_terminal_size().columns) if on_terminal() else None
    for number, section in enumerate(sections):
        heading = cell(section["heading"])
        if number:
            say()
        say(click.style(heading, bold=True) if on_terminal() else heading)
        for sentence in section["sentences"]:
            say(_indented(cell(sentence), width))


def key_of(job: str) -> str:
    """The key of the job that a person names. Raises :class:`Failure` with code 2 if it is none."""
    job = job.strip()
    if _ID.fullmatch(job):
        return job_key("github", GITHUB_HOST, job)
    if job.lower().startswith(("https://", "http://")):
        try:
            parts = urlsplit(job)
            found = _PAGE.fullmatch(parts.path)
            if found is None:
                raise ValueError(job)
            return job_key("github", parts.netloc, found[1])
        except ValueError:
            raise Failure(
                f"{cell(job)} is not the page of a job",
                "open the job at GitHub: its address ends with /actions/runs/RUN/job/JOB",
                USAGE,
            ) from None
    try:
        return canonical_key(job)
    except ValueError:
        raise Failure(
            f"{cell(job)!r} is neither a job's key nor its id nor the address of its page",
            "a key is provider:host:job_id, for example github:github.com:4567; "
            "`runnerstream jobs` shows them",
            USAGE,
        ) from None


def _indented(text: str, width: int | None) -> str:
    if width is None:
        return f"  {text}"
    return textwrap.fill(
        text, width, initial_indent="  ", subsequent_indent="    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
