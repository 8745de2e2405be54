"""Stands between the program and one server it started: run as a script, never imported.

A server must not outlive the program that started it, however that program ends. The kernel's
parent-death signal alone is not enough: it follows the *thread* that forked, and only Linux has
it. So the server's parent is this small process, and the program holds the other end of its
standard input. When that end closes, which a kill -9 of the program does too, the server is
killed. When this process is itself killed, the parent-death signal does the same on Linux.

    guard.py GRACE COMMAND...

Standard output carries two lines for the program: `pid N` at once and `exit CODE` at the end (a
negative code is a signal). SIGTERM passes to the server, and SIGKILL follows after GRACE seconds.
The server writes to this process's standard error, which the program has opened on a log file.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
# How often to ask who our parent is. A process that the program forked without exec holds the
# lifeline open, but cannot keep the program's pid.
_POLL_SECONDS = 0.5


def _die_with(guard: int) -> None:
    """Run in the child between fork and exec; this process has one thread, so that is safe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Run the command until it ends, is told to stop or loses the program; 0 unless it fails."""
    grace, command = float(arguments[0]), arguments[1:]
    program = os.getppid()
    guard = os.getpid()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    asked: list[float] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(time.monotonic()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            preexec_fn=lambda: _die_with(guard),  # noqa: PLW1509
            restore_signals=True,
        )
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
        os.write(1, b"exit 127\n")
        return 1
    os.write(1, f"pid {server.pid}\n".encode())
    told = False
    lifeline = sys.stdin.fileno()
    while server.poll() is None:
        ready, _, _ = select.select([lifeline, wake_read], [], [], _POLL_SECONDS)
        if wake_read in ready:
            os.read(wake_read, 512)
        if (lifeline in ready and not os.read(lifeline, 512)) or os.getppid() != program:
            server.kill()
            server.wait()
            break
        if asked and not told:
            server.terminate()
            told = True
        if asked and time.monotonic() - asked[0] > grace:
            server.kill()
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"exit {server.wait()}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
