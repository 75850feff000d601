"""A Python process that has imported torch, Inductor, diffusers and the package, and forks.

Importing them takes 8 s of one core; a fork of this process has them at once. `tests.forked` starts
it and asks it for processes. It ends soon after the run of pytest, whose process it is given. Bare,
it leaves diffusers and the package out.

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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests import fast

#: Set in the environment of a process in which our backend stops before generating code.
WITHOUT_CODEGEN = "TESTS_WITHOUT_CODEGEN"
#: Of one in which C++ is written and kept in Inductor's caches, and compiled by nobody.
WITHOUT_COMPILER = "TESTS_WITHOUT_COMPILER"
#: In seconds: how often the zygote looks whether the run goes on.
LOOKS = 2.0
#: More than any request takes.
LARGEST = 1 << 20


def main() -> None:
    address, run, *bare = sys.argv[1:]
    _import_all(bool(bare))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    # Monitors are nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        while not select.select([listener], [], [], LOOKS)[0]:
            if not _is_there(int(run)):
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


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _import_all(bare: bool) -> None:
    with suppress(ImportError):
        import triton  # noqa: F401
    _prepare_inductor()
    if not bare:
        import diffusers

        import tests.without_codegen  # noqa: F401

        for name in ("AutoencoderKL", "FluxTransformer2DModel", "WanPipeline"):
            getattr(diffusers, name)
    fast.everywhere()


def _prepare_inductor() -> None:
    """What the first graph of a process waits for: 1.5 s. Left out where a torch has it otherwise:
    the first graph then waits.
    """
    import torch._dynamo
    import torch._inductor.compile_fx
    from torch._inductor import codecache
    from torch._inductor.fx_passes import joint_graph, post_grad

    with suppress(AttributeError, TypeError):
        codecache.torch_key()
    with suppress(AttributeError, TypeError):
        # Read from all of Triton, for the key of each graph in the caches.
        codecache.triton_key()
    with suppress(AttributeError, TypeError):
        joint_graph.lazy_init(torch.device("cpu"))
        post_grad.lazy_init()


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
        with ExitStack() as stack:
            _enter(stack)
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


def _enter(stack: ExitStack) -> None:
    """What the environment asks to be left out."""
    if os.environ.get(WITHOUT_CODEGEN):
        from tests.without_codegen import without_codegen

        stack.enter_context(without_codegen())
    if os.environ.get(WITHOUT_COMPILER):
        from tests.generated_code import not_compiled

        stack.enter_context(not_compiled())


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
