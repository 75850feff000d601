"""The kernels compiled for AMD's architectures: no spills, no scratch, no fp64, 16-byte
accesses.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import triton

from rocm_passes.bench import isa
from tests import forked, suites

DOCS = Path(__file__).parents[2] / "docs" / "kernels.md"


#: Compiles each example (by its number) for an architecture: what it is given, as JSON.
PROGRAM = """
import dataclasses, json, sys
from rocm_passes.bench import isa
examples = list(isa.examples())
for number, arch in json.loads(sys.argv[1]):
    print(json.dumps(dataclasses.asdict(isa.compile_example(examples[number], arch))))
"""


def chosen() -> list[tuple[int, str]]:
    """Every example on every architecture. In the fast suite each example on one of them, and each
    kernel on all.
    """
    architectures = suites.architectures()
    by_kernel = defaultdict(list)
    for number, example in enumerate(isa.examples()):
        by_kernel[example.kernel].append(number)
    if suites.everything():
        return list(itertools.product(itertools.chain(*by_kernel.values()), architectures))
    return [
        (numbers[place % len(numbers)], architectures[place % len(architectures)])
        for numbers in by_kernel.values()
        for place in range(max(len(numbers), len(architectures)))
    ]


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """In a process of its own: here the kernels are interpreted."""
    done = forked.run(
        [sys.executable, "-c", PROGRAM, json.dumps(chosen())], env=forked.without_interpreter()
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_examples_name_every_argument() -> None:
    for example in isa.examples():
        assert list(example.signature) == list(example.kernel.arg_names)
        constexprs = {name for name, kind in example.signature.items() if kind == "constexpr"}
        assert constexprs == set(example.constexprs)


def named(row: dict[str, Any]) -> str:
    return f"{row['kernel']} {row['shape']} on {row['arch']}"


def test_every_kernel_on_every_architecture(compiled: list[dict[str, Any]]) -> None:
    kernels = {r["kernel"] for r in compiled}
    assert len(kernels) >= 5
    for kernel in kernels:
        assert {r["arch"] for r in compiled if r["kernel"] == kernel} == set(suites.architectures())
    examples = {(r["kernel"], r["shape"]) for r in compiled}
    assert examples == {(e.kernel.fn.__name__, e.label) for e in isa.examples()}


@pytest.mark.parametrize("figure", ["spills", "scratch_bytes", "fp64_instructions"])
def test_none(compiled: list[dict[str, Any]], figure: str) -> None:
    assert [(named(r), r[figure]) for r in compiled if r[figure]] == []


def test_wide_memory_accesses(compiled: list[dict[str, Any]]) -> None:
    assert [named(r) for r in compiled if r["memory_accesses"] and not r["wide_accesses"]] == []


def test_occupancy_allows_latency_to_be_hidden(compiled: list[dict[str, Any]]) -> None:
    """At least three waves a SIMD: a memory-bound kernel with fewer waits on its own loads."""
    assert [(named(r), r["occupancy"]) for r in compiled if r["occupancy"] < 3] == []


def test_the_checks_can_fail() -> None:
    """The patterns do find what they look for."""
    lines = [
        "global_load_dwordx4 v[0:3]",
        "buffer_store_b128 v[0:3]",
        "global_load_ushort v0",
        "v_fma_f64 v[0:1]",
    ]
    assembly = "".join(f"\t{line}\n" for line in lines)
    assert len(isa.WIDE.findall(assembly)) == 2
    assert len(isa.MEMORY.findall(assembly)) == 3
    assert len(isa.FP64.findall(assembly)) == 1
    with pytest.raises(RuntimeError, match="has Triton's output changed"):
        isa.number_in(r"\.vgpr_count:\s*(\d+)", assembly)


def test_the_table_in_the_docs_is_what_the_compiler_gives(compiled: list[dict[str, Any]]) -> None:
    """Compared where the table's own compiler is installed: another allocates other registers."""
    page = DOCS.read_text(encoding="utf-8")
    made_by = re.search(r"Compiled by Triton (\S+)\.\n", page)
    assert made_by is not None
    if made_by[1] != triton.__version__:
        pytest.skip(f"the table is Triton {made_by[1]}'s, and this is {triton.__version__}")
    table = isa.table([isa.Compiled(**r) for r in compiled])
    wanted = [table] if suites.everything() else table.splitlines()
    assert [part for part in wanted if part not in page] == [], (
        "docs/kernels.md is out of date: python -m rocm_passes.bench.isa --write docs/kernels.md"
    )


def test_writing_needs_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="expected the markers"):
        isa.write_table(page, [], "3.9")
    page.write_text(f"before {isa.BEGIN} old {isa.END} after")
    isa.write_table(page, [], "3.9")
    assert page.read_text().startswith("before ") and page.read_text().endswith(" after")
    assert "Compiled by Triton 3.9" in page.read_text() and " old " not in page.read_text()


def test_refuses_to_run_interpreted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        isa.main([])
    assert "TRITON_INTERPRET=1 is set" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_integers_that_are_one_compile() -> None:
    """A launch makes a constexpr of an integer that is 1: what only values can do fails to compile
    then.
    """
    command = [
        sys.executable,
        "-m",
        "rocm_passes.bench.isa",
        "--ones",
        "--json",
        "--arch",
        "gfx942",
    ]
    done = forked.run(command, env=forked.without_interpreter())
    assert done.returncode == 0, done.stderr
    compiled = {json.loads(line)["kernel"] for line in done.stdout.splitlines()}
    assert compiled == {e.kernel.fn.__name__ for e in isa.examples()}
    with_two = next(e for e in isa.examples() if len(isa.integers(e)) > 1)
    alone = {e.label for e in isa.specialised_to_one() if e.kernel is with_two.kernel}
    assert {f"{with_two.label}; 1 for {name}" for name in isa.integers(with_two)} < alone
