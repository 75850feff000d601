"""The convolution kernel compiled for AMD's architectures, in the tiles that they get."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from rocm_passes.bench import conv_isa as isa
from tests import forked, suites

#: Without matrix instructions for fp32.
RDNA = ("gfx1100", "gfx1201")
#: LDS of a workgroup that every one of these architectures has.
LDS_BYTES = 65536


def printed(*options: str) -> str:
    """In a process of its own: here the kernels are interpreted."""
    command = [sys.executable, "-m", "rocm_passes.bench.conv_isa", *options]
    done = forked.run(command, env=forked.without_interpreter())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    chosen = [word for arch in suites.architectures() for word in ("--arch", arch)]
    return [json.loads(line) for line in printed("--json", *chosen).splitlines()]


def named(row: dict[str, Any]) -> str:
    return f"{row['shape']} on {row['arch']}"


def test_every_call_on_every_architecture(compiled: list[dict[str, Any]]) -> None:
    assert len({named(r) for r in compiled}) == len(isa.SHAPES) * len(suites.architectures())


@pytest.mark.parametrize("figure", ["spills", "scratch_bytes", "fp64_instructions"])
def test_none(compiled: list[dict[str, Any]], figure: str) -> None:
    assert [(named(r), r[figure]) for r in compiled if r[figure]] == []


def test_matrix_instructions(compiled: list[dict[str, Any]]) -> None:
    """MFMA or WMMA wherever the architecture has them for the dtype."""
    without = [named(r) for r in compiled if not r["matrix_instructions"]]
    assert without == [
        named(r) for r in compiled if r["arch"] in RDNA and r["shape"].endswith("fp32")
    ]


def test_wide_loads(compiled: list[dict[str, Any]]) -> None:
    """Without the hint that offsets fit into 31 bits, which launches by Inductor do not give."""
    assert [named(r) for r in compiled if r["wide_loads"] < 2] == []


def test_the_lds_suffices(compiled: list[dict[str, Any]]) -> None:
    assert [(named(r), r["lds_bytes"]) for r in compiled if r["lds_bytes"] > LDS_BYTES] == []


def test_two_waves_hide_latency(compiled: list[dict[str, Any]]) -> None:
    """A matrix product keeps its sums in registers: two waves a SIMD are enough."""
    assert [(named(r), r["occupancy"]) for r in compiled if r["occupancy"] < 2] == []


def test_integers_that_are_one_compile() -> None:
    """A launch makes a constexpr of an integer that is 1: what only values can do fails then."""
    assert printed("--ones", "all") == ""


@pytest.mark.exhaustive
def test_each_integer_that_is_one_alone_compiles() -> None:
    assert printed("--ones", "each") == ""


def test_the_checks_can_fail() -> None:
    """The patterns do find what they look for."""
    lines = ("v_mfma_f32_16x16x16_bf16 a[0:3]", "v_wmma_f32_16x16x16_bf16 v[0:7]", "v_fma_f32 v0")
    assembly = "".join(f"\t{line}\n" for line in lines)
    assert len(isa.MATRIX.findall(assembly)) == 2
    loads = ("global_load_dwordx4 v[0:3]", "buffer_load_b128 v[0:3]", "global_load_ushort v0")
    assert len(isa.WIDE_LOAD.findall("".join(f"\t{line}\n" for line in loads))) == 2


def test_the_table() -> None:
    row = isa.Compiled("96-96 bf16", "gfx942", "128x64x32", 4, 136, 0, 0, 14336, 3, 36, 9, 0)
    assert isa.table([row]).splitlines()[2] == (
        "| 96-96 bf16 | gfx942 | 128x64x32 | 4 | 136 | 0 | 14336 | 3 | 36 | 9 |"
    )
