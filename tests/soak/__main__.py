"""``python -m tests.soak [quiet] [kills] [three] [lag]``: each mode in turn, a line for each."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.soak.day import Pace
from tests.soak.run import Mode, soak

_MODES = ("quiet", "kills", "three", "lag")


@click.command()
@click.argument("modes", nargs=-1, type=click.Choice(_MODES))
@click.option("--jobs", default=2_000, show_default=True, help="Jobs of the day.")
@click.option("--hours", default=24.0, show_default=True, help="Hours of the day.")
@click.option("--workers", type=int, help="Workers.  [default: 1, 2 for kills and lag, or 3]")
@click.option("--kill-every", default=30.0, show_default=True, help="Real seconds.")
@click.option("--lag", default=30.0, show_default=True, help="Minutes, by the workers' clock.")
@click.option("--seed", default=1, show_default=True, help="Of what happens to whom.")
@click.option("--speed", default=10.0, show_default=True, help="Of the clocks.")
@click.option("--squeeze", default=12.0, show_default=True,
              help="How much shorter the day and its rules are on these clocks.")  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path), help="Where logs are left.")
def main(
    modes: tuple[str, ...],
    jobs: int,
    hours: float,
    workers: int | None,
    kill_every: float,
    lag: float,
    seed: int,
    speed: float,
    squeeze: float,
    keep: Path | None,
) -> None:
    """A day of a CI fleet in which everything goes wrong, with real processes.

    Takes hours * 3600 / speed / squeeze seconds a mode, and some minutes for what is under way,
    verify and the replay. Exit code 1 when anything is not as it must be.
    """
    known = {
        "quiet": Mode("quiet", workers or 1),
        "kills": Mode("kills", workers or 2, kill_every=kill_every),
        "three": Mode("three", workers or 3),
        "lag": Mode("lag", workers or 2, lag_minutes=lag),
    }
    # So that whoever ends it ends all that it has started.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    folder = keep or Path(tempfile.mkdtemp(prefix="soak-"))
    failed = False
    for name in modes or _MODES:
        place = folder / name
        place.mkdir(parents=True)
        began = time.monotonic()

        def say(text: str, name: str = name, began: float = began) -> None:
            click.echo(f"{name} {time.monotonic() - began:6.0f} s: {text}", err=True)

        report = soak(known[name], place, jobs, hours, seed, Pace(speed, squeeze), say)
        click.echo(report.line())
        for failure in report.failures[:20]:
            click.echo(f"  {failure}")
        failed |= bool(report.failures)
    click.echo(f"logs in {folder}", err=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
