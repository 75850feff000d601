"""A program as source text: inputs, statements, outputs. It runs in its own dtypes or in
float64.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: The dtypes by the names that programs use. int and fp8 casts are values, in float64 too.
NAMES: dict[str, Any] = {
    "torch": torch,
    "F": F,
    "checkpoint": functools.partial(checkpoint, use_reentrant=False),
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "f8": torch.float8_e4m3fn,
}
WIDE = {**NAMES, "f16": torch.float64, "bf16": torch.float64, "f32": torch.float64}


@dataclass(frozen=True)
class Statement:
    """`target = expression`; a target of "" is a call for its effect."""

    target: str
    expression: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.target} = {self.expression}" if self.target else self.expression

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        return names_in(self.expression)


@functools.lru_cache(maxsize=4096)
def names_in(expression: str) -> frozenset[str]:
    """The variables (v0, x1 …) that an expression reads."""
    found = {n.id for n in ast.walk(ast.parse(expression)) if isinstance(n, ast.Name)}
    return frozenset(name for name in found if name[0] in "xv" and name[1:].isdigit())


@dataclass(frozen=True)
class Program:
    """inputs: expressions by name, drawn in their order under `torch.manual_seed(seed)`.

    kinds: what the program holds ("rms_norm", "cond", ...). mode: "graph" runs our pass over one
    traced graph, "compile" and "dynamic" go through torch.compile, "grad" with a backward pass as
    well.
    """

    seed: int
    inputs: tuple[tuple[str, str], ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    mode: str = "graph"

    @property
    def source(self) -> str:
        lines = [f"def f({', '.join(name for name, _ in self.inputs)}):"]
        lines += [f"    {s}" for s in self.statements]
        return "\n".join([*lines, f"    return ({', '.join(self.outputs)},)"])

    def draw(self, again: int = 0) -> list[Tensor]:
        """The inputs; `again` draws other values of the same kind."""
        torch.manual_seed(self.seed + 1_000_003 * again)
        scope = dict(NAMES)
        for name, expression in self.inputs:
            scope[name] = eval(expression, scope)
        return [scope[name] for name, _ in self.inputs]

    def function(self, names: Mapping[str, Any] = NAMES) -> Callable[..., Any]:
        scope = dict(names)
        source = self.source
        if names is WIDE:
            source = source.replace(".float()", ".double()").replace("c64", "c128")
        exec(compile(source, f"<program {self.seed}>", "exec"), scope)
        return scope["f"]  # type: ignore[no-any-return]

    def script(self, options: Mapping[str, Any], target: str, reason: str) -> str:
        """The program as a script that runs by itself and exits 0 when the result is right."""
        inputs = "\n".join(f"{name} = {expression}" for name, expression in self.inputs)
        args = "".join(f"{name}, " for name, _ in self.inputs)
        fake = FAKED.format(target=target) if target != "cpu" else ""
        return SCRIPT.format(
            reason=reason.splitlines()[0][:150], fake=fake, source=self.source, seed=self.seed,
            inputs=inputs,
            args=args, options=dict(options), dynamic=self.mode == "dynamic",
        )  # fmt: skip


FAKED = """
from rocm_passes.target import Target
VENDOR = "amd" if "{target}".startswith("gfx") else "nvidia"
FAKE = Target(VENDOR, "{target}", "faked", torch.__version__, "3.7.1")
Target.of_inputs = staticmethod(lambda _: FAKE)"""

SCRIPT = '''"""{reason}"""
import sys, torch, torch.nn.functional as F, rocm_passes
from torch.utils.checkpoint import checkpoint
from tests.without_codegen import without_codegen
f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
i32, i64, f8 = torch.int32, torch.int64, torch.float8_e4m3fn{fake}
{source}
torch.manual_seed({seed})
{inputs}
args = ({args})
with torch.no_grad(), without_codegen():
    want = f(*(a.clone() for a in args))
    got = torch.compile(f, backend="rocm_diffusion", options={options}, dynamic={dynamic})(*args)
print(*rocm_passes.history()[-1].entries, sep="\\n")
bad = [(i, (g.double() - w.double()).abs().max().item()) for i, (g, w) in enumerate(zip(got, want))
       if g.dtype != w.dtype or not torch.allclose(g.double(), w.double(), atol=1e-2, rtol=1e-2)]
sys.exit(f"outputs and their errors: {{bad}}" if bad else 0)
'''


def widened(t: Tensor) -> Tensor:
    """The tensor in float64 (complex128), in the very places of memory that it has."""
    if (not t.is_floating_point() and not t.is_complex()) or t.dtype is torch.float8_e4m3fn:
        return t.clone(memory_format=torch.preserve_format)
    return placed(t, torch.complex128 if t.is_complex() else torch.float64)


def placed(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy with the same strides, overlapping ones too."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    if t.numel() == 0:
        return t.detach().to(dtype or t.dtype, copy=True)
    base = t.detach().as_strided((reach,), (1,)).to(dtype or t.dtype, copy=True)
    return base.as_strided(t.shape, t.stride())


def needed(statements: Iterable[Statement], outputs: Iterable[str]) -> list[Statement]:
    """The statements that the outputs depend on, and those that are there for their effect."""
    wanted, kept = set(outputs), []
    for s in reversed(list(statements)):
        effect = not s.target or s.kind == "in place"
        if s.target in wanted or (effect and wanted & s.reads):
            kept.append(s)
            wanted |= s.reads
    return kept[::-1]
