"""`rocm-passes verify`: run a script and hold each rewrite in it against float64."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import click

from rocm_passes import torch_version
from rocm_passes.cli.explain import compiled_graphs, switch_caches_off
from rocm_passes.cli.script import Script, ScriptCommand, check_writable, hint_at_misplaced
from rocm_passes.cli.tables import print_table
from rocm_passes.errors import plural

if TYPE_CHECKING:
    from rocm_passes.report.ledger import Entry, Ledger

#: The exit code where a rewrite was put back and the script itself ended well.
PUT_BACK = 1


@click.command(cls=ScriptCommand, short_help="run a script and verify each rewrite in it")
@click.option("--json", "json_file", metavar="FILE", help="Write the ledger as JSON.")
@click.option("--live", is_flag=True, help="Verify on the inputs of the first call too.")
@click.option(
    "-m", "module", metavar="MODULE", help="Run a module, as python -m does; it ends the options."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def verify(json_file: str | None, live: bool, module: str | None, words: tuple[str, ...]) -> int:
    """Run a script as Python would, with the option verify on, then print what each rewritten site
    is off by.

    Exits with 1 where a rewrite was put back, and with the script's own code where that is not 0.
    An option `verify` that the script gives itself is stronger than this command.
    """
    torch_version.check()
    script = Script.find(module, words)
    check_writable(json_file)
    hint_at_misplaced("verify", ("--json", "--live"), script.arguments)
    switch_caches_off()
    os.environ["ROCM_PASSES_VERIFY"] = "live" if live else "drawn"
    from rocm_passes.report import child_ledgers

    folder = tempfile.mkdtemp(prefix="rocm-passes-ledgers-")
    try:
        with child_ledgers.collected_in(folder):
            code = 1
            try:
                code = script.run()
            except SystemExit as ended:
                if ended.code:
                    raise
                code = 0
            finally:
                graphs = compiled_graphs(folder)
                _print(graphs, script.name)
                _write(graphs, json_file)
            return code or (PUT_BACK if _put_back(graphs) else 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verified(graphs: list[Ledger]) -> list[Entry]:
    return [e for g in graphs for e in g.entries if e.verification]


def _put_back(graphs: list[Ledger]) -> list[Entry]:
    return [e for e in _verified(graphs) if e.verification.get("status") == "put back"]


def _print(graphs: list[Ledger], name: str) -> None:
    found = _verified(graphs)
    click.echo()
    if not found:
        click.echo(f"{name}: no site was rewritten, so there is nothing to verify")
        return
    head = ("site", "where", "status", "contract", "error", "original's", "seconds", "remarks")
    print_table(head, map(_row, found))
    seconds = sum(float(e.verification.get("seconds", 0)) for e in found)
    wrong = _put_back(graphs)
    click.echo(f"{plural(len(found), 'site')} in {seconds:.2f} s, {len(wrong)} put back")


def _row(entry: Entry) -> tuple[str, ...]:
    found = entry.verification
    numbers = (
        f"{float(found.get(name, 0)):.3g}" for name in ("error", "original_error", "seconds")
    )
    said = (found.get("reason", ""), found.get("reproducer", ""), found.get("no_reproducer", ""))
    return (
        f"{entry.idiom} by {entry.lowering}" if entry.lowering else entry.idiom,
        entry.location or entry.module,
        str(found.get("status", "")),
        str(found.get("contract", "")),
        *numbers,
        "; ".join(map(str, filter(None, said))),
    )


def _write(graphs: list[Ledger], json_file: str | None) -> None:
    if json_file is None:
        return
    from rocm_passes.environment import document
    from rocm_passes.report.ledger import write_json

    write_json(json_file, document(graphs))
    click.echo(f"ledger written to {json_file}")
