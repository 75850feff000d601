"""The command `rocm-passes`: one file a subcommand. Nothing here imports torch before a subcommand
runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from rocm_passes import __version__
from rocm_passes.cli import bench, bisect, demo, doctor, explain, rules, tune, verify
from rocm_passes.errors import RocmPassesError, nearest

WRONG_USAGE = 2
INTERRUPTED = 130


class Commands(click.Group):
    """The subcommands. A name that is none of them is answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self.commands:
            ctx.fail(f"there is no command {name!r}{nearest(name, self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rocm-passes")
def commands() -> None:
    """Look at what torch.compile(model, backend="rocm_diffusion") does, and at where it runs."""


for _command in (
    *(doctor.doctor, explain.explain, tune.tune, rules.rules),
    *(verify.verify, bisect.bisect, demo.demo, bench.bench),
):
    commands.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 2 on wrong usage and on errors that this package
    raises.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = commands.main(words, prog_name="rocm-passes", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except RocmPassesError as error:
        click.echo(f"rocm-passes: {error}", err=True)
        return WRONG_USAGE
    return code if isinstance(code, int) else 0
