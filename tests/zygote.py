"""A Python process that has imported torch, Inductor, diffusers and the package, and forks.

Importing them takes 8 s of one core; a fork of this process has them at once. `tests.forked` starts
it and asks it for processes. It ends when its standard input is closed.

Each request comes over a connection of its own: a line of JSON, and with it the descriptors that
are to be standard input, output and error. A monitor is forked for it, which forks the process,
and answers with its number, then with its exit code.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.without_codegen import without_codegen

#: Set in the environment of a process in which our backend stops before generating code.
WITHOUT_CODEGEN = "TESTS_WITHOUT_CODEGEN"
#: More than any request takes.
LARGEST = 1 << 20


def main() -> None:
    _import_all()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    # Monitors are nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _monitor(connection)
            finally:
                os._exit(1)
        connection.close()


def _import_all() -> None:
    import diffusers

    for name in ("AutoencoderKL", "FluxTransformer2DModel", "WanPipeline"):
        getattr(diffusers, name)


def _monitor(connection: socket.socket) -> None:
    """Fork what is asked for, and say how it ends. Does not return."""
    text, ancillary, _, _ = connection.recvmsg(LARGEST, socket.CMSG_SPACE(3 * 4))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    child = os.fork()
    if child == 0:
        connection.close()
        for standard, given in enumerate(descriptors):
            os.dup2(given, standard)
            os.close(given)
        os._exit(_run(json.loads(text)))
    for given in descriptors:
        os.close(given)
    connection.send(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    connection.send(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any]) -> int:
    """The exit code of `python arguments...`, after what Python does at its end."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    sys.stderr.reconfigure(line_buffering=True)
    code = 0
    try:
        with without_codegen() if os.environ.get(WITHOUT_CODEGEN) else nullcontext():
            _execute(request["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _execute(arguments: list[str]) -> None:
    sys.modules["__main__"] = types.ModuleType("__main__")
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [p for p in added if p and p not in sys.path]
    if arguments[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = arguments[1:]
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        return
    if arguments[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *arguments[2:]]
        code: Any = compile(arguments[1], "<string>", "exec")
    else:
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        sys.argv = arguments
        code = compile(Path(arguments[0]).read_bytes(), arguments[0], "exec")
        sys.modules["__main__"].__file__ = arguments[0]
    exec(code, sys.modules["__main__"].__dict__)


if __name__ == "__main__":
    main()
