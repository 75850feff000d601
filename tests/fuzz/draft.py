"""A program being written: each statement is run as it is said, so that shapes and dtypes are
known.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tests.fuzz.program import NAMES, Program, Statement

T = TypeVar("T")
MOST_ELEMENTS = 4096
DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
FLOATS = frozenset(DTYPES)


class Unfit(Exception):
    """A statement does not run on these values, or gives none that a comparison can use."""


class Draft:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.inputs: dict[str, str] = {}
        self.statements: list[Statement] = []
        self.kinds: list[str] = []
        #: Outputs, whatever else the program returns.
        self.returned: list[str] = []
        self.values: dict[str, Tensor] = {}
        self.mode = "graph"
        torch.manual_seed(seed)
        self._scope = dict(NAMES)
        #: Every size is this one, where it is not None.
        self.square: int | None = None
        self.dtype = "f32"

    # -- choices
    # ------------------------------------------------------------------------------------------
    def one(self, *options: T) -> T:
        return self.random.choice(options)

    def maybe(self, probability: float) -> bool:
        return self.random.random() < probability

    def size(self, *options: int) -> int:
        return self.square or self.random.choice(options)

    # -- statements
    # ------------------------------------------------------------------------------------------
    def input(self, expression: str) -> str:
        name = f"x{len(self.inputs)}"
        self._scope[name] = eval(expression, self._scope)
        self.values[name] = self._scope[name]
        self.inputs[name] = expression
        return name

    def tensor(
        self, shape: Sequence[int], dtype: str | None = None, scale: float = 1.0, add: float = 0.0
    ) -> str:
        """An input of normally distributed values."""
        text = f"torch.randn({', '.join(map(str, shape))})"
        if scale != 1.0:
            text += f" * {scale}"
        if add:
            text += f" + {add}"
        if (dtype or self.dtype) != "f32":
            text = f"({text}).to({dtype or self.dtype})"
        return self.input(text)

    def say(self, expression: str, kind: str = "") -> str:
        """v = expression. Raises Unfit where it does not run."""
        name = f"v{len(self.statements)}"
        try:
            with torch.no_grad():
                found = eval(expression, self._scope)
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError) as error:
            raise Unfit(f"{expression}: {error}") from error
        if not isinstance(found, Tensor) or found.numel() > MOST_ELEMENTS:
            raise Unfit(expression)
        if found.dtype in FLOATS and not (
            found.isfinite().all() and bool((found.abs() < 1e4).all())
        ):
            raise Unfit(f"{expression}: not finite, or large")
        self._scope[name] = self.values[name] = found
        self.statements.append(Statement(name, expression, kind))
        return name

    def attempt(self, write: Callable[[], str]) -> str | None:
        """What `write` says, or None, with nothing said, where a statement of it does not run."""
        inputs, said = dict(self.inputs), len(self.statements)
        try:
            return write()
        except Unfit:
            self.forget(inputs, said)
            return None

    def forget(self, inputs: dict[str, str], said: int) -> None:
        for s in self.statements[said:]:
            del self.values[s.target], self._scope[s.target]
        for name in self.inputs.keys() - inputs.keys():
            del self.values[name], self._scope[name]
        self.inputs = inputs
        del self.statements[said:]

    # -- reading
    # ------------------------------------------------------------------------------------------
    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def dtype_of(self, name: str) -> str:
        return DTYPES.get(self.values[name].dtype, "")

    def floats(self) -> list[str]:
        return [n for n, v in self.values.items() if v.dtype in FLOATS and v.numel() > 0]

    def variables(self, rank: int | None = None) -> list[str]:
        """Values of floats that statements or the user's arguments gave, the latest last."""
        return [n for n in self.floats() if rank is None or self.values[n].dim() == rank]

    def program(self, outputs: Sequence[str]) -> Program:
        return Program(
            self.seed, tuple(self.inputs.items()), tuple(self.statements), tuple(outputs),
            tuple(self.kinds),
            self.mode,
        )  # fmt: skip
