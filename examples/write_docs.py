"""Writes the parts of the documents that come from the code: `make docs-tables`.

A test says when they are stale.

`python -m examples.write_docs --demo` also runs the demo on one model, and shows in the README what
it says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rocm_passes import options, policy
from rocm_passes.policy import table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
OPTIONS, RULES = ROOT / "docs" / "options.md", ROOT / "docs" / "rules.md"
ADDING_AN_IDIOM = ROOT / "docs" / "adding-an-idiom.md"
#: A block of Python whose first line names the file that it shows.
SHOWN = re.compile(r"^```python\n# (?P<path>\S+\.py)\n.*?^```$", re.MULTILINE | re.DOTALL)
DEMO_MODEL = "wan"


def documents() -> dict[Path, str]:
    """Each document with a generated table, as it should read."""
    found = {path: between(_read(path), "options", options_table()) for path in (OPTIONS, README)}
    rules = between(_read(RULES), "rules", rules_tables())
    return {
        **found,
        ADDING_AN_IDIOM: SHOWN.sub(_shown, _read(ADDING_AN_IDIOM)),
        RULES: between(
            rules, "bounds", markdown(table.BOUND_HEAD, map(table.bound_row, policy.BOUNDS))
        ),
    }


def _shown(block: re.Match[str]) -> str:
    path = block["path"]
    return f"```python\n# {path}\n{_read(ROOT / path)}```"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def between(text: str, part: str, generated: str) -> str:
    """The text with what lies between `<!-- part: begin -->` and `<!-- part: end -->` replaced."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{generated}\n{end}{rest.partition(end)[2]}"


def options_table() -> str:
    rows = (
        (f"`{name}`", f"`{default}`", f"`{variable}`", meaning)
        for name, default, variable, meaning in options.describe()
    )
    return markdown(("option", "default", "environment variable", "meaning"), rows)


def rules_tables() -> str:
    """One table for each operator, in the order of the rules."""
    rows = [table.rule_row(rule) for rule in policy.RULES]
    parts = []
    for operator in dict.fromkeys(row[0] for row in rows):
        own = [row[1:] for row in rows if row[0] == operator]
        parts.append(f"### {operator}\n\n{markdown(table.RULE_HEAD[1:], own)}")
    return "\n\n".join(parts)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])


def demo_output() -> str:
    """What the demo prints of one model, indented as a block of code."""
    import torch

    from examples import demo

    lines = demo.told(
        demo.run(demo.case(DEMO_MODEL), torch.bfloat16, "always", as_if="gfx942")
    ).splitlines()
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
