"""Python processes of tests, forked from one that has imported torch (`tests.zygote`).

For tests of what a process does after its imports: a command, a worker, a second start from a
cache. A test of the imports themselves, or of variables that they read, starts Python by
`subprocess`. TRITON_INTERPRET is the exception: there is a zygote for each value.
"""

from __future__ import annotations

import array
import fcntl
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).parents[1]

#: Triton reads it at its import.
INTERPRET = "TRITON_INTERPRET"
#: Set for a run of pytest (tests/conftest.py): its temporary folder, and the process to outlive.
FOLDER, RUN = "TESTS_FOLDER", "TESTS_RUN"
#: Of a twentieth of a second each.
WAITS = 2400


def without_interpreter() -> dict[str, str]:
    """This process's environment, for one in which no kernel is interpreted."""
    return {k: v for k, v in os.environ.items() if k != INTERPRET}


@dataclass(frozen=True)
class Kind:
    """What a zygote has imported. bare: torch and Inductor, and nothing of this package."""

    interpret: str | None
    bare: bool = False


@functools.cache
def _zygote(kind: Kind) -> str:
    """The address of this run's zygote of that kind: all workers of pytest-xdist share it."""
    folder = Path(os.environ[FOLDER])
    name = f"zygote-{kind.interpret}{'-bare' if kind.bare else ''}"
    with open(folder / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock.fileno()).st_size == 0:
            _start(kind, folder / name)
            lock.write("started")
    return str(folder / name)


def _start(kind: Kind, address: Path) -> None:
    environment = without_interpreter()
    found = [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    # Asked otherwise, CUDA is initialised, and a fork of that process cannot use it.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if kind.interpret:
        environment[INTERPRET] = kind.interpret
    command = [sys.executable, "-m", "tests.zygote", str(address), os.environ[RUN]]
    subprocess.Popen(
        [*command, "bare"] if kind.bare else command,
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def _connected(kind: Kind) -> socket.socket:
    address = _zygote(kind)
    for _ in range(WAITS):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            signal.sigtimedwait([], 0.05)
    raise AssertionError("the process that forks has not answered for two minutes")


class Popen:
    """`subprocess.Popen([sys.executable, ...])`, as far as tests and the bench's workers use it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        text: bool = True,
        bare: bool = False,
    ) -> None:
        assert command[0] == sys.executable and text
        self.args = list(command)
        self.returncode: int | None = None
        self._null = os.open(os.devnull, os.O_RDWR)
        self._ours: list[int] = [self._null]
        given, self.stdin = self._end(stdin, "w")
        out, self.stdout = self._end(stdout, "r")
        err, self.stderr = (out, None) if stderr == subprocess.STDOUT else self._end(stderr, "r")
        request: dict[str, Any] = {
            "arguments": [str(word) for word in command[1:]],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or os.getcwd()),
        }
        self._connection = _connected(Kind(request["env"].get(INTERPRET), bare))
        rights = array.array("i", [given, out, err])
        self._connection.sendmsg(
            [json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        )
        for descriptor in self._ours:
            os.close(descriptor)
        self._replies = self._connection.makefile("r")
        self.pid = int(self._replies.readline())

    def _end(self, asked: int | IO[Any] | None, mode: str) -> tuple[int, IO[str] | None]:
        """The process's end of a standard stream, and this process's."""
        if asked == subprocess.PIPE:
            read, write = os.pipe()
            theirs, mine = (read, write) if mode == "w" else (write, read)
            self._ours.append(theirs)
            return theirs, open(mine, mode)
        if asked is None or asked == subprocess.DEVNULL:
            return self._null, None
        return asked if isinstance(asked, int) else asked.fileno(), None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._replies.readline())
            except TimeoutError as error:
                # A file over a socket takes no reads after one that was cut off.
                self._replies = self._connection.makefile("r")
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from error
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0.01)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 300,
    bare: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(command, capture_output=True, text=True, ...)`.

    bare: the process has not imported this package, and imports the one that its path has.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Popen(command, stdout=out, stderr=err, env=env, cwd=cwd, bare=bare)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(command), code, out.read(), err.read())
