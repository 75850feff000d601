"""`rocm-passes bench`: time a user's script, a whole pipeline, or run one of the programs in
rocm_passes/bench.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rocm_passes import torch_version
from rocm_passes.cli.script import Script, ScriptCommand, check_writable, hint_at_misplaced
from rocm_passes.cli.tables import print_table
from rocm_passes.errors import nearest

PACKAGE = "rocm_passes.bench"
FOLDER = Path(__file__).resolve().parent.parent / "bench"
SCRIPT_FORMS = "eager,inductor,static,ours"


@click.command(
    cls=ScriptCommand, short_help="compare a script, or a pipeline, with eager and plain Inductor"
)
@click.option(
    "--list", "list_them", is_flag=True, help="Print the pipelines and the other benchmarks."
)
@click.option(
    "--forms", default=SCRIPT_FORMS, show_default=True, help="Forms of a script to compare."
)
@click.option(
    "--rounds",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Timed runs of each form.",
)
@click.option(
    "--seconds",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Start no run of a script after so many.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    help="Write the figures of a script and the ledger as JSON.",
)
@click.option(
    "--share", "share_file", metavar="FILE", help="The same, without paths, names and arguments."
)
@click.option(
    "-m", "module", metavar="MODULE", help="A module to run as a script; it ends the options."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SCRIPT | NAME] [ARGUMENTS]...")
def bench(
    list_them: bool, forms: str, rounds: int, seconds: float, json_file: str | None,
    share_file: str | None,
    module: str | None, words: tuple[str, ...],
) -> int:  # fmt: skip
    """Compare a script, or a pipeline with random weights, with eager and with plain Inductor.

    SCRIPT runs in processes of its own: with nothing compiled; with Inductor, as the script
    compiles and with static shapes; and with this backend. NAME is a pipeline or another benchmark
    (--list); its arguments stand behind it, and `rocm-passes bench NAME --help` shows them.
    """
    torch_version.check_import()
    if list_them:
        click.echo(_listed())
        return 0
    name = words[0] if words and module is None else ""
    if name in benchmarks():
        return _program(name, words[1:])
    if name and not Path(name).exists() and not name.endswith(".py"):
        return _pipeline(name, words[1:])
    script = Script.find(module, words)
    check_writable(json_file, share_file)
    hint_at_misplaced(
        "bench", ("--json", "--share", "--forms", "--rounds", "--seconds"), script.arguments
    )
    given = ["-m", module, *words] if module is not None else list(words)
    asked = list(dict.fromkeys(forms.split(",")))
    return _script(given, script.name, asked, rounds, seconds, json_file, share_file)


def benchmarks() -> list[str]:
    """The programs among the modules of the package."""
    files = sorted(FOLDER.glob("*.py"))
    programs = [f.stem for f in files if '__name__ == "__main__"' in f.read_text(encoding="utf-8")]
    return [name for name in programs if name != "script_child"]


def _pipelines() -> list[str]:
    from rocm_passes.bench.pipeline_specs import PIPELINES

    return list(PIPELINES)


def _listed() -> str:
    return f"pipelines: {', '.join(_pipelines())}\nother benchmarks: {', '.join(benchmarks())}"


def _program(name: str, arguments: Sequence[str]) -> int:
    sys.argv = [f"rocm-passes bench {name}", *arguments]
    runpy.run_module(f"{PACKAGE}.{name}", run_name="__main__")
    return 0


def _pipeline(name: str, arguments: Sequence[str]) -> int:
    known = [*_pipelines(), *benchmarks()]
    if name not in _pipelines():
        listed = ", ".join(known)
        raise click.UsageError(
            f"bench: there is no script and no benchmark {name!r}; there are "
            f"{listed}{nearest(name, known)}"
        )
    return _program("pipelines", ["--only", name, *arguments])


def _script(
    words: list[str], name: str, forms: list[str], rounds: int, seconds: float,
    json_file: str | None, share_file: str | None,
) -> int:  # fmt: skip
    from rocm_passes.bench import script, script_calls
    from rocm_passes.cli.bench_ranks import of_all_ranks, together

    known = script_calls.FORMS
    for form in forms:
        if form not in known:
            listed = ", ".join(known)
            raise click.UsageError(
                f"bench: there is no form {form!r}; there are {listed}{nearest(form, known)}"
            )
    rows, ledger = script.measure(
        words, forms, rounds, seconds, lambda what: click.echo(what, err=True), together()
    )
    merged = of_all_ranks(rows, ledger)
    if merged is None:
        return 1 if all("failed" in row for row in rows) else 0
    rows, ledger, where = merged
    click.echo(f"{name}: medians of {rounds} runs, each in a process of its own{where}")
    print_table(script.HEAD, script.table(rows))
    for row in rows:
        if "failed" in row:
            click.echo(f"{row['form']}: {row['failed']}", err=True)
        elif row.get("callables") == 0:
            click.echo(f"{row['form']}: the script compiled nothing that it called")
    _write(json_file, {"script": name, "rows": rows, "ledger": ledger})
    if share_file is not None:
        from rocm_passes.bench.share import without_private

        shared = without_private({"script": Path(name).name, "rows": rows, "ledger": ledger})
        _write(share_file, shared)
    return 1 if all("failed" in row for row in rows) else 0


def _write(file: str | None, content: dict[str, Any]) -> None:
    if file is None:
        return
    from rocm_passes.environment import environment

    Path(file).write_text(
        json.dumps({"machine": environment(), **content}, indent=1) + "\n", encoding="utf-8"
    )
    click.echo(f"written to {file}", err=True)
