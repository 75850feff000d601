"""`rocm_passes.explain(model, *args)`: compile afresh, run once, and show the ledger."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rocm_passes.backend import rocm_diffusion
from rocm_passes.environment import document
from rocm_passes.errors import plural
from rocm_passes.report.changes import Change
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.report.shown import Shown
from rocm_passes.report.text import table


@dataclass(frozen=True)
class Explanation(Shown):
    """What the backend found and did in one call of a model.

    print() shows it as text, the last line of a notebook's cell as a page, and `save` writes it.

    ledgers: one per compiled graph. result: what the compiled callable returned, untouched.
    graph_breaks: how often Dynamo had to break off; break_reasons: why, each reason once.
    """

    ledgers: tuple[Ledger, ...]
    result: Any
    graph_breaks: int = 0
    break_reasons: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[Entry, ...]:
        return tuple(e for g in self.ledgers for e in g.entries)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What passes over the whole graph did outside of the sites."""
        return tuple(c for g in self.ledgers for c in g.changes)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON form (docs/ledger.md)."""
        return {
            **document(self.ledgers),
            "graph_breaks": self.graph_breaks,
            "break_reasons": list(self.break_reasons),
        }

    def __str__(self) -> str:
        graphs = plural(len(self.ledgers), "graph")
        breaks = plural(self.graph_breaks, "graph break")
        whole = [reason.replace("\n", "\n      ") for reason in self.break_reasons]
        reasons = "".join(f"\n  break: {reason}" for reason in whole)
        return f"{table(self.ledgers)}\n{graphs}, {breaks}{reasons}"


def explain(
    model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Explanation:
    """Compile `model` with the backend, past every cache, call it once on the arguments, and
    report.

    model: a module, a function, or something compiled already, by torch.compile, by
    module.compile() or in parts (diffusers' compile_repeated_blocks). What was compiled is compiled
    anew, in the same parts, with the backend and with the `options` given here, whatever it had
    been compiled with; afterwards it is as it was. To explain compiled code exactly as a program
    set it up, run the program: `rocm-passes explain`.

    A warm cache would leave nothing to report, since the passes don't run on a hit. Like
    torch._dynamo.explain this resets Dynamo, so whatever the process had compiled compiles again
    when next used. Raises OptionError (inside Dynamo's BackendCompilerFailed) on a wrong option,
    and whatever the model raises.
    """
    found: list[Ledger] = []
    backend = functools.partial(
        rocm_diffusion, options=options, listener=found.append, caches=False
    )
    torch._dynamo.reset()
    before = _graph_breaks()
    try:
        with _compiled(_original(model), backend) as call:
            result = call(*args, **kwargs)
    finally:
        torch._dynamo.reset()
    breaks = _graph_breaks() - before
    reasons = tuple(dict.fromkeys(reason.strip() for reason in breaks))
    return Explanation(tuple(found), result, breaks.total(), reasons)


def _original(model: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile was given, where `model` is its result."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(
            model, "_torchdynamo_orig_callable", None
        )
        if inner is None:
            return model
        model = inner


@contextlib.contextmanager
def _compiled(
    model: Callable[..., Any], backend: Callable[..., Any]
) -> Iterator[Callable[..., Any]]:
    """The model compiled with the backend: in the parts that had been compiled by themselves, else
    whole.
    """
    parts = list(_parts(model)) if isinstance(model, nn.Module) else []
    if not parts:
        yield torch.compile(model, backend=backend)
        return
    theirs = [getattr(module, attribute) for module, attribute, _ in parts]
    try:
        for module, attribute, original in parts:
            setattr(module, attribute, torch.compile(original, backend=backend))
        yield model
    finally:
        for (module, attribute, _), compiled in zip(parts, theirs, strict=True):
            setattr(module, attribute, compiled)


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """Modules that were compiled by themselves, the attribute with the compiled code, and its
    source.
    """
    for module in model.modules():
        if isinstance(module, torch._dynamo.OptimizedModule):
            # Not the module: as an attribute it would become a submodule.
            yield module, "forward", module._orig_mod.__call__
        elif module._compiled_call_impl is not None:
            yield module, "_compiled_call_impl", module._call_impl


def _graph_breaks() -> Counter[str]:
    return Counter(torch._dynamo.utils.counters["graph_break"])
