"""Writes the parts of the documents that come from the code: `make docs`. A test says when they are stale.

`python -m examples.write_docs --demo` also runs the demo on one model, and shows in the README what it says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rocm_passes import options

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DEMO_MODEL = "wan"


def documents() -> dict[Path, str]:
    """Each document with a generated table, as it should read."""
    paths = (ROOT / "docs" / "options.md", README)
    return {path: between(path.read_text(encoding="utf-8"), "options", options_table()) for path in paths}


def between(text: str, part: str, generated: str) -> str:
    """The text with what lies between `<!-- part: begin -->` and `<!-- part: end -->` replaced."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{generated}\n{end}{rest.partition(end)[2]}"


def options_table() -> str:
    rows = [
        f"| `{name}` | `{default}` | `{variable}` | {meaning} |"
        for name, default, variable, meaning in options.describe()
    ]
    return "\n".join(["| option | default | environment variable | meaning |", "|---|---|---|---|", *rows])


def demo_output() -> str:
    """What the demo prints of one model, indented as a block of code."""
    import torch

    from examples import demo

    lines = demo.told(demo.run(demo.case(DEMO_MODEL), torch.bfloat16, "always")).splitlines()
    return "\n".join(["", *(f"    {line}".rstrip() for line in lines), ""])


def main(argv: Sequence[str]) -> None:
    printed = demo_output() if "--demo" in argv else None
    written = documents()
    if printed is not None:
        written[README] = between(written[README], "demo", printed)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
