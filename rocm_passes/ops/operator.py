"""An operator of ours: schema, fake, plain-torch reference, and the lowerings that can compute it.

Operators are functional, so that Inductor may reorder and re-use buffers around them, and they take the name
of the lowering as their last argument: what runs is written in the graph, chosen at compile time.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rocm_passes.target import Requirement, Target, triton_is_interpreted

log = logging.getLogger(__name__)

NAMESPACE = "rocm_passes"
#: Keeps the registrations alive: a Library that is collected takes its operators with it.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

REFERENCE = "reference"

#: Every operator of this package, in the order of definition.
OPERATORS: list[Operator] = []


class Verdict(NamedTuple):
    """Does a lowering pay on this machine, and how do we know?"""

    pays: bool
    reason: str


def _accepts_all(**_: Any) -> str | None:
    return None


def _unknown(_: Target, **__: Any) -> Verdict:
    return Verdict(False, "it has not been measured to pay on this machine")


def needs_cpu(target: Target) -> str | None:
    return "plain torch is for CPU graphs and tests" if target.is_gpu else None


def reference_pays(_: Target, **__: Any) -> Verdict:
    return Verdict(False, "on a CPU, Inductor's fused code is faster than one operator in plain torch")


def measured(target: Target) -> str:
    """Where the kernels' times come from, as seen from the target."""
    return (
        "measured on an H200"
        if target.vendor == "nvidia"
        else "rule from an H200, not measured on this machine"
    )


@dataclass(frozen=True)
class Lowering:
    """One way to compute an operator or, for a site with no operator of ours, to spell it in plain ATen.

    requires: can it run on this machine? (a reason where it can't)
    refuses: can it take this call? Given the call's arguments by name, tensors as fake tensors.
    note: how its rounding differs from the graph's, where it must; rewrite_numerics="strict" refuses it then.
    pays: is it known to beat Inductor's own code here?
    run: the kernel, over real tensors (an opaque call in the graph);
    launches: `run` only allocates and launches Triton kernels, so that Inductor can launch them itself; or
    write: the same in plain ATen nodes, `write(b, **arguments)`, which Inductor goes on to fuse.
    """

    name: str
    requires: tuple[Requirement, ...] = ()
    refuses: Callable[..., str | None] = _accepts_all
    note: Callable[..., str | None] = _accepts_all
    pays: Callable[..., Verdict] = _unknown
    run: Callable[..., Any] | None = None
    launches: bool = False
    write: Callable[..., Any] | None = None


class Operator:
    """`torch.ops.rocm_passes.<name>`.

    schema: without the trailing `lowering` argument, e.g. "(Tensor x, float eps) -> Tensor".
    reference: plain torch, any device; it runs on CPU tensors and wherever a kernel fails.
    fake: gives the shapes, dtypes and strides that every lowering returns.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        lowerings: Sequence[Lowering],
    ) -> None:
        self.name = name
        self.reference = reference
        self.lowerings = (*lowerings, Lowering(REFERENCE, requires=(needs_cpu,), pays=reference_pays))
        self.parameters = tuple(inspect.signature(reference).parameters)
        self._by_name = {lowering.name: lowering for lowering in self.lowerings}
        self._defaults: dict[str, Any] = {}
        self._failed: set[str] = set()
        head, result = schema.rsplit("->", 1)
        full = f"{name}{head.rstrip()[:-1]}, str lowering='{REFERENCE}') ->{result}"
        _LIBRARY.define(full, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
        _LIBRARY.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{NAMESPACE}::{name}", lambda *a, **k: fake(*self.bind(a, k)[0]), lib=_LIBRARY
        )
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        self._defaults = {
            a.name: a.default_value for a in self.overload._schema.arguments if a.has_default_value()
        }
        OPERATORS.append(self)

    def lowering(self, name: str) -> Lowering | None:
        return self._by_name.get(name)

    def call(self, b: Any, lowering: Lowering, arguments: Mapping[str, Any]) -> Any:
        """Write the operator's node with a builder."""
        return b(self.overload, *[arguments[p] for p in self.parameters], lowering.name)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], str]:
        """A call's arguments in order, and the name of its lowering."""
        if not kwargs and len(args) == len(self.parameters) + 1:
            return list(args[:-1]), args[-1]
        names = (*self.parameters, "lowering")
        bound = dict(zip(names, args, strict=False)) | dict(kwargs)
        values: list[Any] = [bound.get(n, self._defaults.get(n)) for n in names]
        return values[:-1], str(values[-1])

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        values, name = self.bind(args, kwargs)
        lowering = self._by_name.get(name)
        no_kernel = lowering is None or lowering.run is None or name in self._failed
        if no_kernel or (not _on_gpu(values) and not triton_is_interpreted()):
            return self.reference(*values)
        assert lowering is not None and lowering.run is not None
        try:
            return lowering.run(*values)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception:
            # A kernel that does not build on the user's machine must not cost them the run; it is said once.
            self._failed.add(name)
            log.exception(
                "rocm_passes::%s: the %s kernel failed; this process goes on with plain torch",
                self.name,
                name,
            )
            return self.reference(*values)


def _on_gpu(values: Sequence[Any]) -> bool:
    """Does an argument, or a tensor of a list among them, lie on a GPU?"""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_cuda:
                return True
        elif isinstance(value, list) and _on_gpu(value):
            return True
    return False
