"""Every code block of the documents is run or checked, or marked why not.

- ```python blocks are executed, in their order, in one namespace for each document.
- ```bash blocks are read: each command must exist, with the options that it is given.
- `<!-- not run: reason -->` behind a block marks one that is neither.
- Blocks that begin with `# path.py` are files of a worked example: tests/test_docs.py runs them.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

from rocm_passes import cli
from tests.without_codegen import without_codegen
from tests.zoo import case

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Indented blocks that are no code, by document.
DRAWN = {
    "README.md": "what the demo prints: tests/test_readme.py",
    "architecture.md": "diagrams",
    "adding-a-lowering.md": "a list of folders",
    "adding-an-idiom.md": "a part of registry.py: tests/test_docs.py lays the whole example",
}
MARK = re.compile(r"\s*<!-- not run: (?P<reason>\S.+?) -->", re.DOTALL)
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}[^\n]*\n)+")
#: Programs that are part of every machine that installs a package, and what is checked of them.
OTHERS = {"pip", "docker", "git", "cd"}


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    language: str
    code: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        mark = MARK.match(text, found.end())
        line = text.count("\n", 0, found.start()) + 1
        reason = mark["reason"] if mark else ""
        yield Block(document, line, found["language"], found["code"], reason)


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def test_every_block_has_a_language_or_a_reason() -> None:
    assert len(BLOCKS) > 20
    for block in BLOCKS:
        assert block.language in ("python", "bash") or block.reason, block.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_indented_blocks_are_commands_or_drawings(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for found in INDENTED.finditer(text):
        if document.name in DRAWN:
            continue
        for line in found[0].splitlines():
            check_command(line.strip())


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "bash" and not b.reason], ids=lambda b: b.name
)
def test_commands_exist(block: Block) -> None:
    for line in block.code.splitlines():
        check_command(line)


def check_command(line: str) -> None:
    words = [w for w in shlex.split(line, comments=True) if "=" not in w or w.startswith("-")]
    if not words:
        return
    program, *rest = words
    if program == "rocm-passes":
        check_ours(rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program.rpartition("/")[2] in ("python", "python3"):
        assert rest[0] == "-m" and importlib.util.find_spec(rest[1]) is not None, line
        for word in rest[2:]:
            if word.startswith(("tests/", "docs/")):
                assert (ROOT / word).exists(), line
    elif program == "torchrun":
        assert rest[0] == "--nproc-per-node", line
        if rest[2] == "-m":
            assert importlib.util.find_spec(rest[3]) is not None, line
            if rest[3] == "rocm_passes":
                check_ours(rest[4:])
    elif program == "pip":
        extras = re.search(r"\[(\w+)\]", line)
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extras is None or extras[1] in known["optional-dependencies"], line
    else:
        raise AssertionError(f"not a command that is checked: {line}")


def check_ours(words: list[str]) -> None:
    """The subcommand and the options in front of a script's name exist."""
    command = cli.commands.commands[words[0]]
    options = {o: p for p in command.params if isinstance(p, click.Option) for o in p.opts}
    if command.context_settings.get("ignore_unknown_options"):
        return
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            # A script's name: what follows is the script's.
            return
        assert word in options, (words, sorted(options))
        if word == "-m":
            return
        if not options[word].is_flag:
            next(rest)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_states)


def names(document: Path) -> dict[str, Any]:
    """What the documents' code takes for given: a model, its input, a pipeline."""
    return {
        "__name__": document.stem,
        "torch": torch,
        "model": Denoiser(),
        "transformer": Denoiser(),
        "x": torch.randn(2, 16),
    }


@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if any(b.language == "python" for b in blocks(d))],
    ids=lambda d: d.name,
)
def test_python_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    given = names(document)
    with torch.no_grad(), without_codegen():
        for block in blocks(document):
            if block.language != "python" or block.reason or is_a_file(block):
                continue
            if "pipe" in block.code and "pipe" not in given:
                given["pipe"] = case("vae_image").build(torch.float32)
            if "rocm_passes." in block.code:
                exec("import rocm_passes", given)
            exec(compile(block.code, block.name, "exec"), given)
        compiled = given["model"]
        assert isinstance(compiled, nn.Module) and compiled(given["x"]).shape == (2, 16)


def is_a_file(block: Block) -> bool:
    return re.match(r"# \S+\.py\n", block.code) is not None


def test_marks_have_reasons_and_stand_behind_blocks() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        marked = sum(bool(block.reason) for block in blocks(document))
        assert text.count("<!-- not run:") == marked, document.name
