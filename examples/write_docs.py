"""Writes the parts of the documents that come from the code. `make docs`; a test says when they are out of date."""

from __future__ import annotations

from pathlib import Path

from rocm_passes import options

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"


def documents() -> dict[Path, str]:
    """Each document with a generated part, as it should read."""
    found = {}
    for path in (ROOT / "docs" / "options.md", ROOT / "README.md"):
        head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        found[path] = f"{head}{BEGIN}\n{options_table()}\n{END}{rest.partition(END)[2]}"
    return found


def options_table() -> str:
    rows = [
        f"| `{name}` | `{default}` | `{variable}` | {meaning.replace('|', chr(92) + '|')} |"
        for name, default, variable, meaning in options.describe()
    ]
    return "\n".join(["| option | default | environment variable | meaning |", "|---|---|---|---|", *rows])


def main() -> None:
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
