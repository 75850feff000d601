"""`rocm-passes demo`: part of a checkout, in examples/demo.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from rocm_passes import torch_version

#: The checkout, where this is one.
ROOT = Path(__file__).resolve().parent.parent.parent


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="compile five tiny diffusion models and show what was done",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> int:
    """Compile five tiny diffusion models and show what was done. Its options are those of
    examples/demo.py.
    """
    if not (ROOT / "examples" / "demo.py").is_file():
        raise click.UsageError(
            "demo: it is part of a checkout of the project, and this is an installed package"
        )
    sys.path.insert(0, str(ROOT))
    # Help and wrong usage are answered before torch is imported.
    importlib.import_module("examples.demo_arguments").parse(list(arguments))
    torch_version.check_import()
    return int(importlib.import_module("examples.demo").main(list(arguments)))
