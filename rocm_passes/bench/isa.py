"""What our Triton kernels become on AMD's GPUs: compiled here, with no GPU, and read from the
assembly.

    python -m rocm_passes.bench.isa                         print the table
    python -m rocm_passes.bench.isa --write docs/kernels.md put it between the file's markers
    python -m rocm_passes.bench.isa --json                  one JSON object a line
    python -m rocm_passes.bench.isa --ones                  what integers that are 1 compile to

This shows what the compiler did, not how fast it runs: registers, spills, width of memory accesses,
LDS and the occupancy that the registers allow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rocm_passes.bench.isa_examples import IsaExample, examples
from rocm_passes.target import AMD_ARCHITECTURES

BEGIN, END = "<!-- isa table: begin -->", "<!-- isa table: end -->"

WIDE = re.compile(r"^\s+(?:global|buffer|flat)_(?:load|store)_(?:dwordx4|b128)\b", re.MULTILINE)
MEMORY = re.compile(r"^\s+(?:global|buffer|flat)_(?:load|store)_\w+", re.MULTILINE)
FP64 = re.compile(r"^\s+v_\w+_f64\b", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture. registers: VGPRs a lane; occupancy: waves a SIMD that they
    allow.
    """

    kernel: str
    shape: str
    arch: str
    warps: int
    registers: int
    spills: int
    scratch_bytes: int
    lds_bytes: int
    occupancy: int
    wide_accesses: int
    memory_accesses: int
    fp64_instructions: int


def integers(example: IsaExample) -> tuple[str, ...]:
    """The integer arguments, which a launch makes constexprs of where they are 1."""
    return tuple(name for name, kind in example.signature.items() if kind in ("i32", "i64"))


def with_ones(example: IsaExample, names: Collection[str]) -> IsaExample:
    """The example as a launch specialises it where the named integer arguments are 1."""
    return dataclasses.replace(
        example,
        label=f"{example.label}; 1 for {', '.join(names)}",
        signature={n: "constexpr" if n in names else kind for n, kind in example.signature.items()},
        constexprs={**example.constexprs, **dict.fromkeys(names, 1)},
    )


def specialised_to_one() -> Iterator[IsaExample]:
    """Each kernel with all its integer arguments 1, and the first example of each with one at a
    time.
    """
    seen = set()
    for example in examples():
        names = integers(example)
        if names:
            yield with_ones(example, names)
        if len(names) > 1 and example.kernel not in seen:
            yield from (with_ones(example, (name,)) for name in names)
        seen.add(example.kernel)


def compile_example(example: IsaExample, arch: str) -> Compiled:
    """Compile for an AMD architecture, pointers and sizes divisible by 16 as in production."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    wave = 64 if arch.startswith("gfx9") else 32
    warps = max(1, example.num_warps // 2) if wave == 64 else example.num_warps
    arguments = list(example.kernel.arg_names)
    attributes = {
        (i,): [["tt.divisibility", 16]]
        + ([["tt.pointer_range", 32]] if kind.startswith("*") else [])
        for i, kind in enumerate(example.signature[name] for name in arguments)
        if kind.startswith("*") or kind in ("i32", "i64")
    }
    source = ASTSource(
        fn=example.kernel,
        signature={name: example.signature[name] for name in arguments},
        constexprs=dict(example.constexprs),
        attrs=attributes,
    )
    built = triton.compile(
        source, target=GPUTarget("hip", arch, wave), options={"num_warps": warps}
    )
    assembly = built.asm["amdgcn"]
    return Compiled(
        kernel=example.kernel.fn.__name__,
        shape=example.label,
        arch=arch,
        warps=warps,
        registers=number_in(r"\.vgpr_count:\s*(\d+)", assembly),
        spills=number_in(r"\.vgpr_spill_count:\s*(\d+)", assembly),
        scratch_bytes=number_in(r"; ScratchSize: (\d+)", assembly),
        lds_bytes=int(built.metadata.shared),
        occupancy=number_in(r"; Occupancy:\s*(\d+)", assembly),
        wide_accesses=len(WIDE.findall(assembly)),
        memory_accesses=len(MEMORY.findall(assembly)),
        fp64_instructions=len(FP64.findall(assembly)),
    )


def number_in(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the assembly does not say {pattern!r}: has Triton's output changed?")
    return int(found[1])


def table(rows: Sequence[Compiled]) -> str:
    """Markdown, one row a kernel, shape and architecture."""
    head = (
        "kernel",
        "shape",
        "arch",
        "warps",
        "VGPRs",
        "spills",
        "LDS bytes",
        "waves/SIMD",
        "16-byte accesses",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        wide = f"{r.wide_accesses} of {r.memory_accesses}"
        cells = (
            r.kernel,
            r.shape,
            r.arch,
            r.warps,
            r.registers,
            r.spills,
            r.lds_bytes,
            r.occupancy,
            wide,
        )
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def write_table(path: Path, rows: Sequence[Compiled], triton_version: str) -> None:
    """Put the table between the markers of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{path}: expected the markers {BEGIN} and {END}, found neither or one")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    body = f"{BEGIN}\nCompiled by Triton {triton_version}.\n\n{table(rows)}\n{END}"
    path.write_text(before + body + after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rocm_passes.bench.isa", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--arch", action="append", choices=AMD_ARCHITECTURES, help="only these architectures"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table between the markers of FILE"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--ones",
        action="store_true",
        help="the kernels as launches specialise them to integers that are 1",
    )
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error(
            "TRITON_INTERPRET=1 is set: kernels are interpreted then, not compiled; unset it"
        )
    import triton

    chosen = list(specialised_to_one() if options.ones else examples())
    rows = [compile_example(e, arch) for e in chosen for arch in options.arch or AMD_ARCHITECTURES]
    if options.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row)))
    elif options.write:
        write_table(options.write, rows, triton.__version__)
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
