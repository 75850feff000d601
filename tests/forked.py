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
import select
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
#: What a zygote is started with: its address, the run to outlive and its kind follow.
ZYGOTE = (sys.executable, "-m", "tests.zygote")
#: In seconds: between two tries to connect to a zygote that imports.
PAUSE = 0.05
#: Of an error output: what a message has of it.
LAST = 2000


def without_interpreter() -> dict[str, str]:
    """This process's environment, for one in which no kernel is interpreted."""
    return {k: v for k, v in os.environ.items() if k != INTERPRET}


@dataclass(frozen=True)
class Kind:
    """What a zygote has imported. bare: torch and Inductor, and nothing of this package."""

    interpret: str | None
    bare: bool = False


@dataclass(frozen=True)
class Zygote:
    """A process that forks: all workers of pytest-xdist share those of their run."""

    address: Path
    pid: int

    def connected(self) -> socket.socket:
        """A connection, for one request. Waits until the zygote has imported all."""
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.address))
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if not self._lives():
                    raise self.ended() from None
                signal.sigtimedwait([], PAUSE)

    def ended(self) -> ChildProcessError:
        log = _log(self.address).read_text(errors="replace")
        return ChildProcessError(f"the process that forks has ended, with:\n{log[-LAST:]}")

    def _lives(self) -> bool:
        """Unlike a signal, which reaches a process that ended until its parent waits for it."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            return not select.select([descriptor], [], [], 0)[0]
        finally:
            os.close(descriptor)


@functools.cache
def _zygote(folder: Path, kind: Kind) -> Zygote:
    """The zygote of that kind of the run with that folder."""
    address = folder / f"zygote-{kind.interpret}{'-bare' if kind.bare else ''}"
    with open(address.with_suffix(".pid"), "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        pid = file.read()
        if not pid:
            pid = str(_start(kind, address))
            file.write(pid)
    return Zygote(address, int(pid))


def _log(address: Path) -> Path:
    return address.with_suffix(".log")


def _start(kind: Kind, address: Path) -> int:
    environment = without_interpreter()
    found = [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    # Asked otherwise, CUDA is initialised, and a fork of that process cannot use it.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if kind.interpret:
        environment[INTERPRET] = kind.interpret
    command = [*ZYGOTE, str(address), os.environ[RUN], *["bare"] * kind.bare]
    # What a bare one has imported need not be imported again.
    start = subprocess.Popen if kind.bare else functools.partial(Popen, bare=True)
    with open(_log(address), "w") as log:
        return start(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stderr=log
        ).pid


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
        kind = Kind(request["env"].get(INTERPRET), bare)
        self._zygote = _zygote(Path(os.environ[FOLDER]), kind)
        self._connection = self._zygote.connected()
        rights = array.array("i", [given, out, err])
        self._connection.sendmsg(
            [json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        )
        for descriptor in self._ours:
            os.close(descriptor)
        self._replies = self._connection.makefile("r")
        self.pid = self._reply()

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

    def _reply(self) -> int:
        """The next number that the monitor sends: nothing comes where it or the zygote ended."""
        try:
            answer = self._replies.readline()
        except ConnectionResetError:
            answer = ""
        if not answer:
            raise self._zygote.ended()
        return int(answer)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = self._reply()
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


def main() -> int:
    """Run `python ARGUMENTS` in a forked process. It ends with this one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    command = [sys.executable, *sys.argv[1:]]
    process = Popen(command, stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)
    try:
        return process.wait()
    finally:
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
