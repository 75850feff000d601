"""`rocm-passes tune`: measure the lowerings of what a script meets ahead of its compiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rocm_passes import torch_version
from rocm_passes.cli.script import Script, ScriptCommand, check_writable, hint_at_misplaced
from rocm_passes.cli.tables import progress
from rocm_passes.errors import plural

if TYPE_CHECKING:
    from rocm_passes.options import Options
    from rocm_passes.target import Target
    from rocm_passes.tuning.ahead import Call
    from rocm_passes.tuning.store import Measured
    from rocm_passes.tuning.tuning import Timer

State = Literal["measured", "known", "not measured"]
INTERRUPTED = 130


@dataclass(frozen=True)
class Tuned:
    """What became of one call. reason: why it was not measured. found: its times, where any are
    known.
    """

    key: str
    state: State
    reason: str = ""
    found: Measured | None = None


@click.command(
    cls=ScriptCommand, short_help="measure the lowerings that a script meets, and remember the best"
)
@click.option("--seconds", type=click.FloatRange(min=0), default=600.0, show_default=True,
              help="Time to spend measuring.")  # fmt: skip
@click.option("--choices", metavar="FILE", help="File to add to. Default: the user's cache folder.")
@click.option(
    "--merge", metavar="FILE", multiple=True, help="Add this file and run nothing. May be repeated."
)
@click.option("--show", is_flag=True, help="Print what is known and run nothing.")
@click.option(
    "-m", "module", metavar="MODULE", help="Run a module, as python -m does; it ends the options."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SCRIPT [ARGUMENTS]...]")
def tune(
    seconds: float,
    choices: str | None,
    merge: tuple[str, ...],
    show: bool,
    module: str | None,
    words: tuple[str, ...],
) -> int:
    """Run a script with the passes alone, then measure the calls that they met.

    Inductor compiles nothing meanwhile: what the script compiles runs in eager, so this takes
    little longer than the script without compiling. A later run that compiles measures nothing.
    Where the script or a measurement fails, what was measured so far is kept.
    """
    if show and (merge or words or module):
        raise click.UsageError("tune: --show runs and merges nothing: give it alone")
    if merge:
        # Written `--merge a.json b.json`, the second is a word.
        return _merge([*merge, *words], choices)
    if show:
        return _show(choices)
    torch_version.check_import()
    script = Script.find(module, words)
    hint_at_misplaced("tune", ("--seconds", "--choices", "--merge", "--show"), script.arguments)
    return _tune(script, seconds, _path(choices))


def _path(choices: str | None) -> Path:
    from rocm_passes.tuning.store import default_path

    return Path(choices).expanduser() if choices else default_path()


def _merge(files: Sequence[str], choices: str | None) -> int:
    from rocm_passes.tuning.store import load, update

    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise click.UsageError(f"tune: there is no file {missing[0]!r} to merge")
    path = _writable(_path(choices))
    for file in files:
        update(path, load(Path(file)))
    click.echo(known(path))
    return 0


def _show(choices: str | None) -> int:
    path = _path(choices)
    if choices is not None and not path.is_file():
        raise click.UsageError(f"tune: there is no file {choices!r}")
    click.echo(known(path))
    return 0


def _writable(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(
            f"tune: cannot make the folder {str(path.parent)!r}: {error}"
        ) from error
    check_writable(str(path))
    return path


def _tune(script: Script, seconds: float, path: Path) -> int:
    """The script as Python would run it; then, with the GPU to itself, the measurements."""
    from rocm_passes.tuning.store import load

    load(_writable(path))  # Refused now, and not after the script, where it is none of ours.
    os.environ["ROCM_PASSES_TUNE_SECONDS"] = str(seconds)
    os.environ["ROCM_PASSES_CHOICES"] = str(path)
    # Imported after the variables are set: the script reads them through the backend.
    from rocm_passes.options import Options
    from rocm_passes.report.ledger import history
    from rocm_passes.target import Target
    from rocm_passes.tuning import ahead

    code: int | None = None
    with ahead.noting() as noted:
        try:
            code = script.run()
        except SystemExit as ended:
            code = _exit_code(ended)
    calls, target = noted.calls, Target.current()
    if code:
        kept = "; what it had met is measured all the same" if calls else ""
        click.echo(f"{script.name} ended with code {code}{kept}", err=True)
    tuned = measure(calls, Options(choices=str(path), tune_seconds=seconds), target)
    click.echo(told(script.name, len(history()), tuned, target))
    click.echo(f"choices are kept in {path}")
    return code or 0


def _exit_code(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    click.echo(ended.code, err=True)
    return 1


def measure(
    calls: Sequence[Call], options: Options, target: Target, timer: Timer | None = None
) -> list[Tuned]:
    """Measure the calls one after another. Each result is in the file at once; a failure costs its
    call only.
    """
    tuned: list[Tuned] = []
    for call in progress(calls, "measuring"):
        try:
            tuned.append(_measured(call, options, target, timer))
        except KeyboardInterrupt:
            left = calls[len(tuned) :]
            return tuned + [Tuned(c.key, "not measured", "interrupted") for c in left]
        except Exception as error:
            reason = f"measuring failed: {type(error).__name__}: {error}"
            tuned.append(Tuned(call.key, "not measured", reason))
    return tuned


def _measured(call: Call, options: Options, target: Target, timer: Timer | None) -> Tuned:
    from rocm_passes.tuning import tuning
    from rocm_passes.tuning.store import store

    kept, where = store(options.choices), tuning.machine(target)
    before = kept.find(where, call.key)
    tuning.pick(call.key, tuning.lowerings(call), call.call, target, options, timer)
    found = kept.find(where, call.key)
    if found is None or not found.ms:
        return Tuned(call.key, "not measured", _why_not(found, options, target, timer), found)
    return Tuned(call.key, "known" if found == before else "measured", found=found)


def _why_not(found: Measured | None, options: Options, target: Target, timer: Timer | None) -> str:
    from rocm_passes.tuning import budget

    if found is not None and found.skipped:
        return "no lowering could be run"
    if not target.is_gpu and timer is None:
        return "this machine has no GPU, and times of a CPU choose nothing"
    if options.tune_seconds <= 0 or budget.BUDGET.spent >= options.tune_seconds:
        return f"the {options.tune_seconds:g} seconds are spent (--seconds gives more)"
    return "the measurement gave no times"


def told(name: str, graphs: int, tuned: Sequence[Tuned], target: Target) -> str:
    """What was met, measured and skipped, and why."""
    if not graphs:
        return (
            f"{name} compiled nothing with torch.compile(..., backend='rocm_diffusion'): there "
            "is nothing to measure"
        )
    lines = [
        f"{name}: {plural(graphs, 'graph')}, {plural(len(tuned), 'different call')} to choose by "
        "measurement"
    ]
    if not tuned:
        lines.append(
            "only convolutions are measured after the script, and no graph has one of known sizes "
            "that may be rewritten; other sites are measured while it runs"
        )
    for state in ("measured", "known", "not measured"):
        of_state = [t for t in tuned if t.state == state]
        if of_state:
            lines.append(f"{state}: {len(of_state)}")
            lines += [line for t in of_state for line in _lines(t)]
    return "\n".join(lines)


def _lines(tuned: Tuned) -> list[str]:
    found = tuned.found
    said = tuned.reason or (_times(found) if found is not None else "")
    skipped = (
        [f"      {name} skipped: {why}" for name, why in found.skipped.items()]
        if found is not None
        else []
    )
    return [f"  {tuned.key}", f"      {said}", *skipped]


def _times(found: Measured) -> str:
    return ", ".join(
        f"{name} {ms:.3g} ms" for name, ms in sorted(found.ms.items(), key=lambda i: i[1])
    )


def known(path: Path) -> str:
    """The content of a file of measured choices."""
    from rocm_passes.tuning.store import load

    choices = load(path)
    if not choices:
        return f"{path}: nothing is measured yet"
    lines = [f"{path}:"]
    for machine, entries in sorted(choices.items()):
        lines.append(f"  {machine}: {plural(len(entries), 'call')}")
        for key, found in sorted(entries.items()):
            skipped = "; ".join(f"{name} skipped: {why}" for name, why in found.skipped.items())
            lines.append(f"    {key}: {'; '.join(filter(None, (_times(found), skipped)))}")
    return "\n".join(lines)
