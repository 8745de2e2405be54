"""``recovery``: what is stuck, what recovery may do about it, and the switches that say so."""

from __future__ import annotations

import getpass
import socket
import time
import uuid
from contextlib import suppress
from typing import Any, Final

import click
from pydantic import ValidationError

from pipeline.commands.connections import Answer, ask, web_url, worker_url
from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, USAGE, Failure
from pipeline.commands.kafka_producer import producer
from pipeline.commands.output import cell, print_json, print_table, say
from pipeline.fleet import everywhere, switch
from pipeline.settings import Settings
from pipeline.text import duration
from topics.catalogue import FLEETS
from topics.recovery import Mode

#: How long a worker may take to tell what it knows before a switch is thrown all the same. Seconds.
_HINT_S: Final = 3.0


@click.group()
def recovery() -> None:
    """What is stuck, and what recovery may do about it: look, and throw its switches.

    A switch wins over the setting RUNNERSTREAM_RECOVERY until it is taken back. Of the fleet's own
    and that of all fleets the one that was thrown last counts.
    """


_fleet = click.option("--fleet", default="", help="Only this fleet.  [default: all fleets]")
_reason = click.option("--reason", default="", help="Why; it is shown with the switch.")


@recovery.command()
@click.option("--fleet", help="Only this fleet.")
@click.option("--url", help="A worker.  [default: the one of the settings]")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
@click.pass_obj
def status(context: Context, fleet: str | None, url: str | None, as_json: bool) -> None:
    """Show switches, what is stuck, and each fleet's mode, as a worker knows them.

    Exit code 1 when the answer is incomplete, because a worker of the group did not answer.
    """
    base = worker_url(context.settings) if url is None else web_url(url)
    answer = ask(base, "/recovery", {"fleet": fleet, "limit": 1})
    if answer.status != 200:
        raise Failure(f"{base} answered {answer.status}: {answer.get('error', answer)}")
    if as_json:
        print_json({name: said for name, said in answer.items() if name not in ("stalls", "next")})
    else:
        _show(answer)
    for gap in answer["incomplete"]:
        click.echo(f"incomplete: {gap['reason']} (partitions {gap['partitions']})", err=True)
    if answer["incomplete"]:
        raise SystemExit(FAILED)


@recovery.command()
@_fleet
@click.option("--reason", required=True, help="Why; it is shown with the switch.")
@click.pass_obj
def pause(context: Context, fleet: str, reason: str) -> None:
    """Command nothing any more. Stalls are still found, asked about and proposed."""
    _throw(context.settings, fleet, Mode.PAUSED, reason)


@recovery.command("dry-run")
@_fleet
@_reason
@click.pass_obj
def dry_run(context: Context, fleet: str, reason: str) -> None:
    """Publish commands marked as not to be executed."""
    _throw(context.settings, fleet, Mode.DRY_RUN, reason)


@recovery.command()
@_fleet
@_reason
@click.pass_obj
def resume(context: Context, fleet: str, reason: str) -> None:
    """Command what is proven to be stuck, whatever the setting says."""
    _throw(context.settings, fleet, Mode.LIVE, reason)


@recovery.command()
@_fleet
@_reason
@click.pass_obj
def reset(context: Context, fleet: str, reason: str) -> None:
    """Take the switch back: then the setting counts."""
    _throw(context.settings, fleet, None, reason)


def _show(answer: Answer) -> None:
    """Tell a worker's answer in words."""
    now = answer["now"]
    say(f"configured: {_mode(answer['configured'])}")
    for one in answer["switches"]:
        where = f"fleet {cell(one['fleet'])}" if one["fleet"] else "all fleets"
        why = f": {cell(one['reason'])}" if one["reason"] else ""
        late = one["not_heeded_by"]
        missing = f" (not yet heeded by partitions {late})" if late else ""
        ago = duration(max(0, now - one["at"]))
        say(f"switch: {where}: {_mode(one['mode'])}, "
            f"by {cell(one['who'] or '?')} {ago} ago{why}{missing}")  # fmt: skip
    stalls = [(kind, one) for kind, one in answer["kinds"].items() if one["jobs"]]
    say()
    if stalls:
        print_table(
            ("stall", "jobs", "oldest"),
            ((kind, one["jobs"], duration(one["oldest_ms"])) for kind, one in stalls),
            right=(1, 2),
        )
    else:
        say("no job is known to be stuck")
    if not answer["fleets"]:
        return
    say()
    print_table(
        ("fleet", "stalls", "mode", "breaker", "pending", "in flight", "issued in an hour"),
        (
            (
                one["fleet"],
                one["stalls"],
                _mode(one["mode"]) if "mode" in one else None,
                *(one.get(name) for name in ("breaker", "pending", "in_flight", "issued_hour")),
            )
            for one in answer["fleets"]
        ),
        right=(1, 4, 5, 6),
    )
    more = answer["fleets_matched"] - len(answer["fleets"])
    if more > 0:
        say(f"\n{more:,} more fleets: choose one with --fleet")


def _throw(settings: Settings, fleet: str, mode: Mode | None, reason: str) -> None:
    """Put a switch into every partition, and say what that does."""
    if mode is Mode.PAUSED and not reason.strip():
        raise Failure("--reason is blank", "who finds it paused will ask why", USAGE)
    known = _known(settings, fleet)
    at = max(int(time.time() * 1000), known["at"] + 1)
    try:
        thrown = switch(f"switch|{uuid.uuid4()}", fleet, mode, _who(), reason, at)
    except ValidationError as error:
        fields = ", ".join(f"--{each['loc'][0]}" for each in error.errors())
        raise Failure(f"{fields}: too long", exit_code=USAGE) from None
    with producer(settings) as to:
        # As many as there are, not as the settings here say: none may miss it.
        outputs = everywhere(thrown, to.partitions_of(FLEETS))
        for each in outputs:
            to.send(each.topic, each.key, each.value, partition=each.partition)
    where = f"fleet {cell(fleet)}" if fleet else "all fleets"
    say(f"recovery of {where}: {_mode(mode)}, as {cell(thrown.who)} says; workers heed it within "
        f"one tick ({settings.tick_interval:g} s)")  # fmt: skip
    say(f"switch {thrown.id}, in all {len(outputs)} partitions of {FLEETS}")
    if not known["fleet"]:
        click.echo(
            f"warning: no fleet {cell(fleet)} is known to the workers; is it spelt so? See "
            "`runnerstream recovery status`",
            err=True,
        )


def _known(settings: Settings, fleet: str) -> dict[str, Any]:
    """What a worker tells, if one answers: whether the fleet exists, and when the last switch was
    thrown, which may be by a clock ahead of ours. The switch goes through the log: it needs no
    worker."""
    answer = Answer()
    with suppress(Failure):
        answer = ask(worker_url(settings), "/recovery", {"fleet": fleet, "limit": 1}, _HINT_S)
    if answer.status != 200 or "switches" not in answer or answer["incomplete"]:
        return {"fleet": True, "at": 0}
    thrown = (one["at"] for one in answer["switches"] if one["fleet"] in ("", fleet))
    return {
        "fleet": not fleet or any(one["fleet"] == fleet for one in answer["fleets"]),
        "at": max(thrown, default=0),
    }


def _who() -> str:
    """The user and the machine, as the system calls them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "?"
    return f"{user}@{socket.gethostname()}"


def _mode(mode: str | None) -> str:
    return "as configured" if mode is None else str(mode).replace("_", " ")
