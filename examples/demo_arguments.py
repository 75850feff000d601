"""The demo's command line, read before torch is imported: help and errors are quick."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

#: The five of the main job: four denoisers, and the Wan VAE that decodes three latent frames.
MODELS = ("wan", "z_image", "qwen_image", "flux", "vae_wan")
#: What the demo says of each value of the option `select`.
SELECT = {
    "auto": "what is known to pay on this machine is rewritten",
    "always": "all that can be is rewritten, to show it (by default, what pays)",
    "off": "nothing is changed, sites are only reported",
    "rules": "what pays by rule is rewritten, and nothing is measured",
    "measure": "all that can be is measured, and what pays is rewritten",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked as far as this needs no torch. Exits with 2 where one is wrong."""
    parser = argparse.ArgumentParser(
        prog="rocm-passes demo", description="Five diffusion models, compiled and explained."
    )
    models = ", ".join(MODELS)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", default=list(MODELS), help=f"of {models}"
    )
    parser.add_argument(
        "--select",
        choices=SELECT,
        help="as the backend's option; default: always on a CPU, auto on a GPU",
    )
    parser.add_argument(
        "--as-if",
        metavar="ARCH",
        help="decide once more, as on this architecture; '' for not (default without a GPU: "
        "gfx942)",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--output", default="demo-output", metavar="FOLDER", type=_folder)
    found = parser.parse_args(argv)
    for name in found.models:
        if name not in MODELS:
            parser.error(f"there is no model {name!r}; there are {models}")
    return found


def _folder(name: str) -> Path:
    """A folder that files can be written into, made where it is missing: checked before minutes
    are spent.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        said = error.strerror or error
        raise argparse.ArgumentTypeError(f"cannot write into {name!r}: {said}") from error
    return folder
