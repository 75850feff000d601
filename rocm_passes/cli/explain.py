"""`rocm-passes explain`: run a script past the caches and show the ledger of what it compiled."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rocm_passes import torch_version
from rocm_passes.cli import ranks
from rocm_passes.cli.script import Script, ScriptCommand, check_writable, hint_at_misplaced
from rocm_passes.errors import plural

if TYPE_CHECKING:
    from rocm_passes.report.ledger import Ledger

#: Read when torch is imported, here and in child processes: a cache hit would leave nothing to
#: report.
NO_CACHES = "TORCHINDUCTOR_FORCE_DISABLE_CACHES"


@click.command(cls=ScriptCommand, short_help="run a script and show what was done in it")
@click.option("--json", "json_file", metavar="FILE", help="Write the ledger as JSON.")
@click.option("--html", "html_file", metavar="FILE", help="Write the ledger as one HTML page.")
@click.option("--all", "every_site", is_flag=True, help="Print every site on a line of its own.")
@click.option(
    "-m", "module", metavar="MODULE", help="Run a module, as python -m does; it ends the options."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def explain(
    json_file: str | None,
    html_file: str | None,
    every_site: bool,
    module: str | None,
    words: tuple[str, ...],
) -> int:
    """Run a script as Python would, then print the ledger of all that it compiled with the backend.

    Inductor's caches are off meanwhile, so that the passes run. The script keeps its arguments, its
    exit code and its traceback. Processes that it starts (multiprocessing, torchrun) are in the
    ledger too. Under torchrun (torchrun ... -m rocm_passes explain SCRIPT) rank 0 shows the ledger
    of all ranks; what they have alike stands there once.
    """
    torch_version.check()
    script = Script.find(module, words)
    check_writable(json_file, html_file)
    hint_at_misplaced("explain", ("--json", "--html", "--all"), script.arguments)
    switch_caches_off()
    from rocm_passes.report import child_ledgers

    folder = tempfile.mkdtemp(prefix="rocm-passes-ledgers-")
    try:
        with child_ledgers.collected_in(folder):
            failed = True
            try:
                code = script.run()
                failed = code != 0
                return code
            except SystemExit as ended:
                failed = ended.code not in (None, 0)
                raise
            finally:
                graphs = on_all_ranks(compiled_graphs(folder), failed)
                if graphs is not None:
                    _print(graphs, script.name, every_site)
                    _write(graphs, script.name, json_file, html_file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def switch_caches_off() -> None:
    os.environ[NO_CACHES] = "1"
    if "torch" in sys.modules:
        from torch._inductor import config

        config.force_disable_caches = True
    # torch says so itself when the caches are off; here they are off on purpose.
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")


def compiled_graphs(folder: str) -> list[Ledger]:
    """What this process compiled, then what its children did, ranks of theirs as one. Without torch
    nothing was compiled.
    """
    from rocm_passes.report import child_ledgers
    from rocm_passes.report.folding import folded
    from rocm_passes.report.ledger import Ledger, history

    children = [Ledger.from_dict(found) for found in child_ledgers.read(folder)]
    by_rank: dict[int, list[Ledger]] = {}
    for graph in children:
        for rank in graph.ranks:
            by_rank.setdefault(rank, []).append(graph)
    return [*history(), *(g for g in children if not g.ranks), *folded(by_rank)]


def on_all_ranks(mine: list[Ledger], failed: bool) -> list[Ledger] | None:
    """Under torchrun: what all ranks compiled, on rank 0, and None on the others, which hand their
    ledgers over. Otherwise what this process has.

    failed: the script did here. The other ranks may wait for this one then, and torchrun ends them
    once it has ended.
    """
    place = ranks.of_this_process()
    if place is None:
        return mine
    from rocm_passes.report.folding import folded, named
    from rocm_passes.report.ledger import Ledger

    seconds = ranks.SECONDS_OF_FAILED if failed else ranks.SECONDS
    found = ranks.gathered("ledgers", [g.to_dict() for g in mine], place, seconds)
    if found is None:
        return None
    missing = [rank for rank, graphs in enumerate(found) if graphs is None]
    if missing:
        click.echo(f"{named(missing)} handed over no ledger in {seconds:g} s", err=True)
    return folded(
        {
            rank: [Ledger.from_dict(g) for g in graphs]
            for rank, graphs in enumerate(found)
            if graphs is not None
        }
    )


def _print(graphs: list[Ledger], name: str, every_site: bool) -> None:
    from rocm_passes.report.folding import summary
    from rocm_passes.report.text import every_site as all_of_them
    from rocm_passes.report.text import table

    click.echo()
    if graphs:
        click.echo(all_of_them(graphs) if every_site else table(graphs))
        where = summary(graphs)
        click.echo(f"{plural(len(graphs), 'graph')} compiled by {name}{where and ' ' + where}")
    else:
        click.echo(f"{name} compiled nothing with torch.compile(..., backend='rocm_diffusion')")
    sys.stdout.flush()


def _write(graphs: list[Ledger], name: str, json_file: str | None, html_file: str | None) -> None:
    if json_file is None and html_file is None:
        return
    from rocm_passes.environment import document
    from rocm_passes.report import html as report_html
    from rocm_passes.report.ledger import write_json

    found = document(graphs)
    if json_file is not None:
        write_json(json_file, found)
        click.echo(f"ledger written to {json_file}")
    if html_file is not None:
        Path(html_file).write_text(report_html.page(found, name), encoding="utf-8")
        click.echo(f"page written to {html_file}")
    sys.stdout.flush()
