"""Every specialisation of the Triton kernels goes through Triton's compiler for AMD, without a GPU.

    python -m tests.kernels.specialisations                 every two choices of a call meet
    python -m tests.kernels.specialisations --coarse        in fewer calls (see `Covering`)
    python -m tests.kernels.specialisations --only rotary   one operator's, and others' so named
    python -m tests.kernels.specialisations --assembly      some are compiled to the end
    python -m tests.kernels.specialisations --faulty        kernels that must fail

In the interpreter a kernel's Python runs for the values of one call. The compiler takes both sides
of a branch on a value, and makes a constexpr of an integer that is 1. What fails only there is
found here. Prints a JSON object for each failure, then one for each operator and each kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rocm_passes import registry  # noqa: F401  (registers every lowering)
from rocm_passes.kernels.triton.launch import Launch, written_down
from rocm_passes.ops.operator import OPERATORS, Operator
from rocm_passes.target import Target, triton_version
from tests.kernels import faulty_kernels
from tests.kernels.covering import Covering
from tests.kernels.structures import CALLS


def triton_at_least(*wanted: int) -> bool:
    numbers = (triton_version() or "0").split("+")[0].split(".")[: len(wanted)]
    return tuple(map(int, numbers)) >= wanted


#: One with waves of 64 lanes, and one with waves of 32.
ARCHITECTURES = ("gfx942", "gfx1201")
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
}  # fmt: skip
#: Triton 3.6 fails on these with an assertion (TritonAMDGPUConvertToBufferOps) where it is told
#: that their tensors lie below 2 GiB: they choose between pointers by a value. They are compiled
#: without being told, as `bench.conv_isa` does; Triton 3.7 is told.
NOT_TOLD = () if triton_at_least(3, 7) else ("conv_kernel",)
#: Their lowerings are asked about the graph's own spelling, of which these calls know nothing.
SPELLED = ("rotary", "rotary_pair", "qk_norm_rotary")


@dataclass(frozen=True)
class Specialisation:
    """What Triton compiles for a launch: the arguments' types, constexprs, and what divides by 16.

    pointers: positions of those below 2 GiB, whose offsets AMD's backend may hold in 32 bits.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    pointers: tuple[int, ...]
    warps: int
    arch: str

    @staticmethod
    def of(launch: Launch, arch: str, from_python: bool = False) -> Specialisation:
        """from_python: Triton's own launcher specialises nothing that a kernel names for that;
        Inductor does so all the same.
        """
        signature, constexprs, divisible, pointers = [], [], [], []
        told = launch.kernel.fn.__name__ not in NOT_TOLD
        for i, parameter in enumerate(launch.kernel.params):
            value = launch.arguments[parameter.name]
            kind = _kind(value)
            plain = from_python and parameter.do_not_specialize
            if parameter.is_constexpr or (value is not True and kind == "i32" and value == 1
                                          and not plain):  # fmt: skip
                kind = "constexpr"
                constexprs.append((parameter.name, value))
            elif not plain and _divides(value):
                divisible.append(i)
            if told and isinstance(value, Tensor) and value.numel() * value.itemsize < 2**31:
                pointers.append(i)
            signature.append((parameter.name, kind))
        return Specialisation(
            launch.kernel, tuple(signature), tuple(constexprs), tuple(divisible), tuple(pointers),
            launch.num_warps, arch,
        )  # fmt: skip

    def compile(self, to_the_end: bool = False) -> None:
        """Through Triton's front end and the first passes, or to assembly. Raises what they
        raise.
        """
        import triton
        from triton._C.libtriton import ir
        from triton.backends.compiler import GPUTarget
        from triton.compiler.compiler import make_backend

        wave = 64 if self.arch.startswith("gfx9") else 32
        target = GPUTarget("hip", self.arch, wave)
        given = {"num_warps": max(1, self.warps // 2) if wave == 64 else self.warps}
        source = self._source()
        if to_the_end:
            triton.compile(source, target=target, options=given)
            return
        # As triton.compile begins, in Triton 3.6 and 3.7.
        backend = make_backend(target)
        options = backend.parse_options(given)
        stages: dict[str, Any] = {}
        backend.add_stages(stages, options, source.language)
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        functions = backend.get_codegen_implementation(options)
        module = source.make_ir(target, options, functions, backend.get_module_map(), context)
        stages["ttir"](module, {})

    def _source(self) -> Any:
        from triton.compiler import ASTSource

        attributes = {(i,): [["tt.divisibility", 16]] for i in self.divisible}
        for i in self.pointers:
            attributes.setdefault((i,), []).append(["tt.pointer_range", 32])
        return ASTSource(self.kernel, dict(self.signature), dict(self.constexprs), attributes)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def _divides(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.storage_offset() * value.itemsize % 16 == 0
    return isinstance(value, int) and value % 16 == 0


class Found:
    """What calls of operators launch: each specialisation, and the first call that has it."""

    def __init__(self) -> None:
        self.calls: dict[Specialisation, str] = {}
        #: By operator: how many calls were made, and how many of them refused, for what.
        self.made: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = defaultdict(Counter)

    def search(self, operator: Operator[Any], together: int, coarse: bool) -> None:
        pick = Covering(together, coarse)
        while pick.begin():
            arch = pick("architecture", *ARCHITECTURES)
            from_python = pick("launched by", "Inductor", "Python") == "Python"
            launches, refused = _launches(operator, pick, arch)
            self.made[operator.name] += 1
            if refused is not None:
                self.refused[operator.name][refused] += 1
            for launch in launches:
                made = Specialisation.of(launch, arch, from_python)
                self.calls.setdefault(made, f"{operator.name}: {pick.said()}")

    def constexprs(self) -> dict[str, dict[str, list[str]]]:
        """By kernel: the values that each of its flags and names had."""
        found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for made in self.calls:
            of = found[_name(made)]
            for name, value in made.constexprs:
                if isinstance(value, bool | str):
                    of[name].add(str(value))
        return {k: {n: sorted(v) for n, v in of.items()} for k, of in found.items()}


def _launches(
    operator: Operator[Any], pick: Covering, arch: str
) -> tuple[list[Launch], str | None]:
    """Of one call; or none, and why the lowering refuses it."""
    lowering, call = operator.lowering("triton"), CALLS[operator.name](pick)
    target = Target.named(arch, triton=triton_version() or "unknown")
    assert target is not None and lowering is not None and lowering.run is not None
    if operator.name not in SPELLED:
        refused = lowering.refuses(call, target)
        if refused is not None:
            return [], refused
    # A convolution's tile is that of the device.
    with mock.patch.object(Target, "of_device", lambda device: target), written_down() as launches:
        try:
            lowering.run(call)
        except (ValueError, TypeError) as error:
            return [], str(error)
    return launches, None


def with_triton() -> Iterator[Operator[Any]]:
    for operator in OPERATORS:
        # aiter's own kernels have a lowering of that name too, which launches nothing itself.
        if any(low.name == "triton" and low.launches for low in operator.lowerings):
            yield operator


def _name(made: Specialisation) -> str:
    return str(made.kernel.fn.__name__)


def failures(found: Found, assembly: bool) -> Iterator[dict[str, str]]:
    """assembly: one specialisation of each kernel goes to the end, on the architectures in turn."""
    to_the_end: dict[str, Specialisation] = {}
    for made in found.calls if assembly else ():
        if made.arch == ARCHITECTURES[len(to_the_end) % len(ARCHITECTURES)]:
            to_the_end.setdefault(_name(made), made)
    for made, call in found.calls.items():
        try:
            made.compile(to_the_end.get(_name(made)) is made)
        except Exception as error:
            said = f"{type(error).__name__}: {error.__cause__ or error}"
            yield {"kernel": _name(made), "arch": made.arch, "call": call, "failed": said}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.specialisations")
    parser.add_argument("--together", type=int, default=2, help="choices that meet")
    parser.add_argument("--coarse", action="store_true")
    parser.add_argument("--only", action="append", help="operators")
    parser.add_argument("--assembly", action="store_true")
    parser.add_argument("--faulty", action="store_true")
    options = parser.parse_args(argv)
    found = Found()
    if options.faulty:
        for launch in faulty_kernels.launches():
            found.calls[Specialisation.of(launch, ARCHITECTURES[0])] = "faulty"
    else:
        for operator in with_triton():
            if options.only is None or operator.name in options.only:
                found.search(operator, options.together, options.coarse)
    for failed in failures(found, options.assembly):
        print(json.dumps(failed), flush=True)
    for name, count in found.made.items():
        print(json.dumps({"operator": name, "calls": count, "refused": found.refused[name]}))
    counts = Counter(map(_name, found.calls))
    for name, of in found.constexprs().items():
        print(json.dumps({"kernel": name, "specialisations": counts[name], "constexprs": of}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
