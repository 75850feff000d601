"""The passes ahead of any compile: which calls would be measured, noted without measuring or
compiling.

    with ahead.noting() as noted:
        vae.decode(latents)         # compiled with this backend: passes run, the decode is eager
    noted.calls                     # to be measured later, when nothing else uses the GPU

Times that are measured while other work runs on the GPU, a compile's first calls or another
process, are noise; and several processes can note their calls at once, for one that measures them
all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch.utils._python_dispatch import _disable_current_modes

from rocm_passes.fx.nodes import dtype_name
from rocm_passes.ops.operator import COMPUTATIONS, Lowering, computation_of
from rocm_passes.tuning.measure import Convolution, real_tensors


@dataclass(frozen=True)
class Call:
    """A call to measure: its key in the store, the names of the lowerings that can take it, its
    arguments.

    call: with tensors on the meta device, of which only shape and dtype count.
    """

    key: str
    able: tuple[str, ...]
    call: Convolution

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "computation": computation_of(self.call).name,
            "able": self.able,
            "call": {k: _plain(v) for k, v in self.call.arguments().items()},
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Call:
        arguments = {str(k): _restored(v) for k, v in document["call"].items()}
        call = COMPUTATIONS[document["computation"]].Call(**arguments)
        return Call(str(document["key"]), tuple(document["able"]), call)


class Noted:
    """The calls met so far, each once."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    @property
    def calls(self) -> list[Call]:
        return list(self._calls.values())

    def add(self, call: Call) -> None:
        self._calls.setdefault(call.key, call)

    def dumps(self) -> str:
        return json.dumps([c.to_dict() for c in self.calls])

    @staticmethod
    def loads(*texts: str) -> Noted:
        """The calls of all these dumps together."""
        noted = Noted()
        for text in texts:
            for document in json.loads(text):
                noted.add(Call.from_dict(document))
        return noted


_NOTED: Noted | None = None


def active() -> bool:
    return _NOTED is not None


@contextmanager
def noting() -> Iterator[Noted]:
    """For its time, in every thread, the backend runs its passes and compiles nothing."""
    global _NOTED
    before, _NOTED = _NOTED, Noted()
    try:
        yield _NOTED
    finally:
        _NOTED = before


def is_noting() -> bool:
    """Are calls noted, to be measured later?"""
    return _NOTED is not None


def note(key: str, able: Sequence[Lowering[Any]], call: Convolution) -> bool:
    """Note a call whose times are wanted; False where nobody is noting."""
    if _NOTED is None:
        return False
    if call.has_numbers():
        with real_tensors():
            meta = type(call)(**{k: _as_meta(v) for k, v in call.arguments().items()})
        _NOTED.add(Call(key, tuple(low.name for low in able), meta))
    return True


def run_passes(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    pipeline: Callable[[fx.Graph], None],
    patch: Mapping[str, Any],
    decompositions: Any = None,
) -> Callable[..., Any]:
    """The backend's work up to its passes, on the graphs that Inductor would get; the result runs
    in eager.
    """

    def instead_of_inductor(graph_module: fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        # AOTAutograd's fake mode is active here, and Inductor turns it off before its passes:
        # they compute with real tensors, such as the indices of an upsampling.
        with _disable_current_modes():
            pipeline(graph_module.graph)
        return make_boxed_func(graph_module.forward)

    compile_fx(
        gm,
        list(example_inputs),
        inner_compile=instead_of_inductor,
        config_patches={**patch, "force_disable_caches": True},
        decompositions=decompositions,
    )
    forward: Callable[..., Any] = gm.forward
    return forward


def _as_meta(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_as_meta(v) for v in value)
    if isinstance(value, torch.Tensor):
        return torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": list(value.shape), "dtype": dtype_name(value.dtype)}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    dtype = getattr(torch, value["dtype"])
    return torch.empty(value["tensor"], dtype=dtype, device="meta") if "tensor" in value else dtype
