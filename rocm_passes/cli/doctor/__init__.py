"""`rocm-passes doctor`: what this machine is, what will be used on it, and what is wrong
with it.
"""

from __future__ import annotations

import json
import shutil

import click

from rocm_passes.cli.doctor import collect, diagnosis, text
from rocm_passes.cli.tables import print_table


@click.command(short_help="say what this machine is, and what is wrong with it")
@click.option(
    "--lowerings", is_flag=True, help="Also list every lowering, and why some cannot run here."
)
@click.option(
    "--report", is_flag=True, help="Print everything as Markdown, to paste into an issue."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def doctor(context: click.Context, lowerings: bool, report: bool, as_json: bool) -> None:
    """Say what this machine is, what the backend will use on it, and what is wrong with it.

    Exit code: 0 where the backend will work, 1 where it will work with warnings, 2 where it will
    not work.
    """
    if report and as_json:
        raise click.UsageError("doctor: give --report or --json, not both")
    machine = collect.this_machine()
    findings = diagnosis.diagnose(machine)
    if as_json:
        click.echo(json.dumps(text.document(machine, findings), indent=1))
    elif report:
        click.echo(text.report(machine, findings))
    else:
        if lowerings:
            _print_lowerings(text.lowering_rows(machine))
        click.echo(
            text.summary(machine, findings, max(60, shutil.get_terminal_size((100, 24)).columns))
        )
    context.exit(diagnosis.exit_code(findings))


def _print_lowerings(rows: list[tuple[str, str, str]]) -> None:
    print_table(("idiom", "lowering", "here"), rows)
