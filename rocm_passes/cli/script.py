"""Running a user's script or module inside the command, as Python itself would run it."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import click


class ScriptCommand(click.Command):
    """A command that ends in `SCRIPT ARGUMENTS...` or `-m MODULE ARGUMENTS...`; the arguments are
    the script's.

    Options of the command stand before the script's name: what stands behind it is handed over
    untouched.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._ended_at_module(args))

    def _ended_at_module(self, args: list[str]) -> list[str]:
        """`-m MODULE` ends the options, as it does for Python."""
        taking_values = {
            name
            for p in self.params
            if isinstance(p, click.Option) and not p.is_flag
            for name in p.opts
        }
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] != "--":
            if args[at] == "-m" and at + 1 < len(args):
                return [*args[: at + 2], "--", *args[at + 2 :]]
            at += 2 if args[at] in taking_values else 1
        return args


def hint_at_misplaced(command: str, options: Sequence[str], arguments: Sequence[str]) -> None:
    """Say so where an option of the command stands behind the script's name: the script gets it."""
    for option in options:
        if any(word == option or word.startswith(f"{option}=") for word in arguments):
            click.echo(
                f"rocm-passes {command}: {option} stands behind the script's name, so the script "
                "gets it. To give "
                f"it to rocm-passes, write: rocm-passes {command} {option} ... SCRIPT",
                err=True,
            )


def check_writable(*files: str | None) -> None:
    """Refuse, before anything runs, output files that could not be written afterwards."""
    for file in files:
        if file is None:
            continue
        reason = _unwritable(Path(file)) if file else "the name is empty"
        if reason is not None:
            raise click.UsageError(
                f"cannot write {file!r}: {reason}", click.get_current_context(silent=True)
            )


def _unwritable(path: Path) -> str | None:
    folder = path.resolve().parent
    if path.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r}"
    try:
        if path.exists():
            path.open("ab").close()
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


@dataclass(frozen=True)
class Script:
    """A program to run as __main__. name: as the user gave it. path: its file."""

    name: str
    path: str
    import_path: str
    arguments: tuple[str, ...]
    code: Callable[[], types.CodeType]
    spec: ModuleSpec | None = None

    @staticmethod
    def find(module: str | None, words: Sequence[str]) -> Script:
        """The script that a command line names. Raises click.UsageError where there is none."""
        if module is not None:
            return _of_module(module, words)
        if not words:
            raise _wrong("a script is needed, or -m MODULE")
        return _of_file(words[0], words[1:])

    def run(self) -> int:
        """Run it and return its exit code. An exception of the script is shown as Python would,
        from its frames on.

        SystemExit is let through: the caller's `finally` runs, and Python ends as the script asked.
        """
        main_module = types.ModuleType("__main__")
        names = {"__file__": self.path, "__builtins__": __builtins__, "__spec__": self.spec}
        main_module.__dict__.update(names)
        if self.spec is not None:
            main_module.__package__ = self.spec.parent
        # It stays __main__ after the run: functions that outlive the script, at exit say, need its
        # globals.
        sys.modules["__main__"] = main_module
        sys.argv = [self.path, *self.arguments]
        sys.path[0] = self.import_path
        try:
            exec(self.code(), main_module.__dict__)
        except SystemExit:
            raise
        except BaseException as error:
            return _shown(error)
        return 0


def _shown(error: BaseException) -> int:
    """Print an exception without the frames of this package in front of the script's. Returns the
    exit code.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.stdout.flush()
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    sys.stderr.flush()
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _of_file(name: str, arguments: Sequence[str]) -> Script:
    path = Path(name)
    if path.is_dir():
        raise _wrong(f"{name!r} is a folder: name a Python file, or a module by -m")
    if path.is_symlink() and not path.exists():
        raise _wrong(f"{name!r} is a link to a file that is not there")
    if not path.is_file():
        raise _wrong(f"there is no script {name!r}{_neighbour(path)}")
    folder = str(path.resolve().parent)
    return Script(
        name, name, folder, tuple(arguments), lambda: compile(path.read_bytes(), str(path), "exec")
    )


def _neighbour(path: Path) -> str:
    """The script beside it whose name is nearest. The ending is what all have alike."""
    beside = {p.stem: p.name for p in path.parent.glob("*.py")} if path.parent.is_dir() else {}
    close = difflib.get_close_matches(path.stem, beside, n=1)
    return f"; did you mean {beside[close[0]]!r}?" if close else ""


def _of_module(name: str, arguments: Sequence[str]) -> Script:
    if name.endswith(".py") and Path(name).is_file():
        raise _wrong(f"{name!r} is a file, not a module: leave out -m")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
            if spec is None:
                raise _wrong(f"{name!r} is a package without a __main__ module")
    except ImportError as error:
        raise _wrong(f"there is no module {name!r}: {error}") from error
    except click.UsageError:
        raise
    except Exception as error:
        # The package around the module is imported to find it.
        raise _wrong(
            f"module {name!r} is not found: importing its package raised "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    if spec is None or not hasattr(spec.loader, "get_code"):
        raise _wrong(f"there is no module {name!r} that can be run")
    loader: Any = spec.loader
    found = spec.name
    path = spec.origin or name
    return Script(f"-m {name}", path, here, tuple(arguments), lambda: loader.get_code(found), spec)


def _wrong(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context(silent=True))
