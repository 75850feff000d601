"""A zoo case: one real model class from a tiny config, with random weights, and the inputs to run
it on.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from rocm_passes.bench.inputs import Draw, randomise, tensors_in

from .counting import count_idioms
from .reference import in_float64

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """How to make, feed and judge one model.

    `source` is "package:Class"; `feed` turns a Draw into the keyword arguments of `entry`.
    `expected` counts the elementary idioms of one eager call, derived by hand from the config
    (None: not derived); `dead` counts those among them whose result nothing uses: AOTAutograd
    removes them, so that no compiled graph has them. `one_graph` says whether
    torch.compile(fullgraph=True) works; `breaks` says why not. `warm_up` asks for one eager call
    before compiling (a cache that Dynamo cannot fill).
    """

    name: str
    source: str
    config: Mapping[str, Any]
    feed: Callable[[Draw], dict[str, Any]]
    entry: str = "forward"
    expected: Mapping[str, int] | None = None
    dead: Mapping[str, int] = field(default_factory=dict)
    one_graph: bool = True
    breaks: str = ""
    warm_up: bool = False

    def build(self, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> nn.Module:
        """The model in eval mode, loaded in `dtype` as production loads it.

        It is saved in float32 and read back by from_pretrained, so that modules which their class
        keeps in float32, and buffers computed on construction, have the dtypes that users get.
        """
        library, _, class_name = self.source.partition(":")
        cls = getattr(importlib.import_module(library), class_name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _construct(cls, self.config)
            randomise(model)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                loaded: nn.Module = cls.from_pretrained(folder, **_dtype_argument(library, dtype))
        return loaded.eval()

    def inputs(self, model: nn.Module, seed: int = 1) -> Inputs:
        """Arguments for `entry`: floating tensors in the dtype of most of the model's parameters,
        all on the device of its first.
        """
        device = next(model.parameters()).device
        kwargs = self.feed(Draw(seed, main_dtype(model)))
        return (), tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), kwargs)

    def function(self, model: nn.Module) -> Callable[..., Any]:
        """What to call or to compile: the model itself, or its method named by `entry`."""
        return model if self.entry == "forward" else getattr(model, self.entry)

    def run(self, model: nn.Module, inputs: Inputs | None = None) -> list[torch.Tensor]:
        """One call without gradients; every tensor in the result."""
        args, kwargs = inputs or self.inputs(model)
        with torch.no_grad():
            return tensors_in(self.function(model)(*args, **kwargs))

    def count(self, model: nn.Module, inputs: Inputs | None = None) -> Counter[str]:
        """The elementary idioms of one eager call, dead ones included."""
        args, kwargs = inputs or self.inputs(model)
        return count_idioms(model, args, kwargs, entry=self.entry)

    def live(self, model: nn.Module, inputs: Inputs | None = None) -> Counter[str]:
        """The idioms that a compiled graph can show: counted in eager, less the dead ones."""
        return self.count(model, inputs) - Counter(self.dead)

    def reference(self, model: nn.Module, inputs: Inputs | None = None) -> list[torch.Tensor]:
        """The outputs of the same weights and inputs with every operation done in float64."""
        args, kwargs = inputs or self.inputs(model)
        return tensors_in(in_float64(model, args, kwargs, entry=self.entry))


def main_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that most parameter elements have (some modules are kept in float32)."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0]


def _construct(cls: Any, config: Mapping[str, Any]) -> Any:
    config_class = getattr(cls, "config_class", None)
    return cls(**config) if config_class is None else cls(config_class(**config))


def _dtype_argument(library: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
    return {"dtype": dtype} if library == "transformers" else {"torch_dtype": dtype}
