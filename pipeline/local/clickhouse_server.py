"""The ClickHouse server process: run as a script by `EmbeddedClickHouse`, never imported.

The chdb-core wheel holds the whole clickhouse-local program, and that program can open real
listeners. This script loads the extension, reads `config.xml` of the directory given as its only
argument, opens the native TCP and HTTP ports named there and then keeps the program's one query
sleeping for as long as the process is wanted. SIGTERM and SIGINT end it.

It must be the first engine of its process: `import chdb` opens and closes a probe engine, after
which the listeners stay shut. So the extension is loaded by path, and nothing else is imported.
"""

import ctypes
import importlib.machinery
import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path

# RTLD_DEEPBIND: the engine's own allocator and libc symbols win over those of the interpreter.
_DEEPBIND = getattr(os, "RTLD_DEEPBIND", 0)

# Never yields a row and never ends: one block of one number at a time, asleep in each.
_SERVE = (
    "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; "
    "SELECT 1 FROM system.numbers WHERE sleepEachRow(2) != 0 "
    "SETTINGS max_block_size = 1, max_threads = 1, max_execution_time = 0"
)
_DRAIN_SECONDS = 0.2


def main(directory: str) -> int:
    """Serve from `directory` until a signal; the exit code is 1 when the engine gave up."""
    found = importlib.util.find_spec("chdb")
    if found is None or not found.submodule_search_locations:
        print("the package chdb-core is not installed", file=sys.stderr)
        return 1
    libraries = sorted(Path(found.submodule_search_locations[0]).glob("_chdb.*so"))
    if not libraries:
        print(f"chdb-core has no engine for this platform ({sys.platform})", file=sys.stderr)
        return 1
    library = str(libraries[0])
    ctypes.CDLL(library, mode=sys.getdlopenflags() | _DEEPBIND)
    loader = importlib.machinery.ExtensionFileLoader("_chdb", library)
    spec = importlib.util.spec_from_loader("_chdb", loader)
    if spec is None:
        print(f"{library} cannot be loaded as a Python extension", file=sys.stderr)
        return 1
    engine = importlib.util.module_from_spec(spec)
    # The extension looks for a companion library beside itself, in the working directory.
    os.chdir(os.path.dirname(library))
    loader.exec_module(engine)
    os.chdir(directory)

    over = threading.Event()
    failed = threading.Event()

    def serve() -> None:
        try:
            # The format becomes the server's default_format; "Null" would silence every client.
            result = engine.query(_SERVE, "TabSeparated", path=os.path.join(directory, "data"))
            if result.has_error():
                print(result.error_message(), file=sys.stderr, flush=True)
        except Exception as error:  # the engine raises its own, undocumented types
            print(error, file=sys.stderr, flush=True)
        failed.set()
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    threading.Thread(target=serve, daemon=True).start()
    # A bounded wait: a signal handler runs only when the main thread comes back to Python.
    while not over.wait(0.1):
        pass
    if failed.is_set():
        sys.stderr.flush()
        os._exit(1)
    # Ending the sleeping query properly takes seconds; MergeTree parts are safe without it.
    over.clear()
    failed.wait(_DRAIN_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
