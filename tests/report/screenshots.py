"""Takes the screenshots of the documents: `python -m tests.report.screenshots`.

The ledgers are those of examples/wan.py and examples/sdxl.py with tiny pipelines, decided as on
gfx942. Needs Chromium.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from PIL import Image

from examples import sdxl, wan
from tests.report.browser import Browser, browser

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
EXAMPLES = {"wan": wan.main, "sdxl": sdxl.main}
WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
#: Enough for text on one background, and small files.
COLOURS = 64
#: As a person sees it who has opened one group with a drawing.
OPENED = """(() => {
  select('');
  const drawn = [...document.querySelectorAll('details.group')]
    .filter((g) => g.querySelectorAll('.pair')[0]?.children.length === 2);
  const group = drawn[0] || document.querySelector('details.group');
  group.open = true;
  group.scrollIntoView();
})()"""


def names() -> list[str]:
    return [f"{e}-{w}-{s}.png" for e in EXAMPLES for w in WIDTHS for s in SCHEMES]


def take(tab: Browser, page: Path, example: str, folder: Path) -> None:
    """The overview at each width and in each colour scheme, and an opened group."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            tab.open(page, width, scheme, height=860)
            _shot(tab, folder / f"{example}-{width}-{scheme}.png")
    tab.open(page, WIDTHS[0], "light", height=860)
    for _ in range(2):
        # Groups above it get their true heights when they are first laid out.
        tab.evaluate(f"{OPENED}; new Promise(r => setTimeout(r, 100))")
    _shot(tab, folder / f"{example}-group.png")


def _shot(tab: Browser, file: Path) -> None:
    tab.screenshot(file)
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


def main(examples: Iterable[str]) -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as tab:
        os.chdir(folder)
        for name in examples:
            page = Path(folder) / f"{name}.html"
            EXAMPLES[name](["--tiny", "--as-if", "gfx942", "--html", str(page)])
            take(tab, page, name, IMAGES)


if __name__ == "__main__":
    main(sys.argv[1:] or EXAMPLES)
