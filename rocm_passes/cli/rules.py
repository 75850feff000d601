"""`rocm-passes rules`: the rules that decide where nothing was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rocm_passes import torch_version

if TYPE_CHECKING:
    from rocm_passes.policy import Rule
    from rocm_passes.target import Target


@click.command(short_help="say by which rules lowerings are chosen where nothing was measured")
@click.option(
    "--target",
    "arch",
    metavar="ARCH",
    help="Rules for gfx942, sm_90, cpu, ... Default: this machine.",
)
@click.option("--all", "every", is_flag=True, help="Print the rules of all machines.")
@click.option("--json", "as_json", is_flag=True, help="Print the rules and the bounds as JSON.")
def rules(arch: str | None, every: bool, as_json: bool) -> None:
    """Print the rules that choose lowerings on this machine, with the evidence of each.

    Of the rules for a lowering, the first whose condition holds decides. Measurements come before
    rules: `rocm-passes tune --show` prints those that are known.
    """
    if every and arch is not None:
        raise click.UsageError("rules: give --target or --all, not both")
    torch_version.check_import()
    from rocm_passes import policy

    target = None if every else _target(arch)
    found = [rule for rule in policy.RULES if target is None or rule.applies_to(target)]
    label = "all machines" if target is None else target.label
    if as_json:
        click.echo(_document(found, label))
    else:
        _print(found, label)


def _target(arch: str | None) -> Target:
    """The target of that name, as far as rules look at it, or this machine's. Raises UsageError."""
    from rocm_passes.target import Target

    found = Target.current() if arch is None else Target.named(arch)
    if found is not None:
        return found
    raise click.UsageError(
        f"rules: --target expects an architecture (gfx942, sm_90, cpu), found {arch!r}"
    )


def _document(found: Sequence[Rule], label: str) -> str:
    from rocm_passes.policy import BOUNDS, table

    rows = [table.as_dict(rule) for rule in found]
    return json.dumps(
        {"target": label, "rules": rows, "bounds": [asdict(b) for b in BOUNDS]}, indent=1
    )


def _print(found: Sequence[Rule], label: str) -> None:
    from rocm_passes.cli.tables import print_table
    from rocm_passes.errors import plural
    from rocm_passes.policy import BOUNDS, table

    print_table(table.SHORT_HEAD, map(table.short_row, found))
    click.echo()
    print_table(table.BOUND_HEAD, map(table.bound_row, BOUNDS))
    click.echo(f"\n{plural(len(found), 'rule')} for {label}, {plural(len(BOUNDS), 'bound')}")
