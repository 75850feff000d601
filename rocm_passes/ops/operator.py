"""Operators and lowerings: what a match becomes, and the ways to compute it.

An operator is a typed call, a plain-torch reference and a fake. It is functional, so that Inductor
may reorder and reuse buffers around it. Its last argument is the name of the lowering: what runs is
chosen at compile time and is written in the graph. A lowering stands in a file of its own under
`kernels/` and registers itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx

from rocm_passes.ops.call import Call, schema
from rocm_passes.target import Requirement, Target, triton_is_interpreted

__all__ = [
    "OPERATORS",
    "REFERENCE",
    "Call",
    "Computation",
    "Lowering",
    "Operator",
    "computation_of",
]

log = logging.getLogger(__name__)

NAMESPACE = "rocm_passes"
#: Keeps the registrations alive: a Library that is collected takes its operators with it.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

REFERENCE = "reference"

C = TypeVar("C", bound=Call)
#: One tensor, or as many as `Call.results` says.
Results = Tensor | Sequence[Tensor]


def _nothing(call: Call, target: Target) -> str | None:
    return None


def may_give_other_bits(call: Any, target: Target) -> str | None:
    """Of a lowering that promises nothing to strict numerics: most do not."""
    return "its bits may differ from those of the graph's own nodes: it may sum in another order"


def same_bits(call: Any, target: Target) -> str | None:
    """Of a lowering that gives the bits of the graph's own nodes: it moves elements, or takes the
    same steps in the same order.
    """
    return None


def needs_cpu(target: Target) -> str | None:
    return "plain torch is for CPU graphs and tests" if target.is_gpu else None


def reference_note(call: Call, target: Target) -> str | None:
    """Plain torch reproduces the roundings that a call's fields name, and no others."""
    if getattr(call, "rounds_between", False):
        return (
            "it computes in fp32 and rounds once, where the graph rounds between the steps or "
            "reorders them"
        )
    return None


@dataclass(frozen=True)
class Lowering(Generic[C]):
    """One way to compute a call. A measurement or a rule (`policy/`) decides whether it is taken.

    requires: can it run on this machine? (a reason where it can't)
    refuses: why it can't take this call, or None. The call holds fake tensors.
    note: how its rounding differs from the graph's, where it must; rewrite_numerics="strict"
    refuses it then.
    other_bits: why it may give other bits than the graph's own nodes, run one by one by ATen on the
    same device, or None where it gives theirs. rewrite_numerics="strict" takes no other.
    run: the kernel, over real tensors (an opaque call in the graph);
    launches: `run` only allocates and launches Triton kernels, so that Inductor can launch them
    itself; or
    write: the same in plain ATen nodes, `write(builder, call)`, which Inductor goes on to fuse.
    inexact: why no bound on its error follows from the graph's, or None; it needs
    rewrite_numerics="fast" then.
    """

    name: str
    requires: tuple[Requirement, ...] = ()
    refuses: Callable[[C, Target], str | None] = _nothing
    note: Callable[[C, Target], str | None] = _nothing
    run: Callable[[C], Results] | None = None
    launches: bool = False
    write: Callable[[Any, C], Any] | None = None
    inexact: Callable[[C, Target], str | None] = _nothing
    other_bits: Callable[[C, Target], str | None] = may_give_other_bits


class Computation(Generic[C]):
    """A typed call and its lowerings. Where it is no `Operator`, every lowering writes plain ATen.

    lowerings: in order of preference. The list is filled by `register`, after idioms have been
    imported.
    """

    def __init__(self, name: str, call: type[C]) -> None:
        self.name = name
        self.Call = call
        self.parameters = tuple(field.name for field in fields(call))
        self.lowerings: list[Lowering[C]] = []
        COMPUTATIONS[name] = self

    def register(
        self, lowering: Lowering[C], first: bool = False, before: str | None = None
    ) -> Lowering[C]:
        """Add a lowering behind those that there are. first: in front of them. before: in front of
        that one.
        """
        names = [low.name for low in self.lowerings]
        if lowering.name in names:
            raise ValueError(f"{self.name} has a lowering {lowering.name!r} already")
        at = 0 if first else self._end() if before is None else names.index(before)
        self.lowerings.insert(at, lowering)
        return lowering

    def lowering(self, name: str) -> Lowering[C] | None:
        return next((low for low in self.lowerings if low.name == name), None)

    def _end(self) -> int:
        return len(self.lowerings)


#: Every computation by name. `kernels.register_lowerings` looks for files of these names.
COMPUTATIONS: dict[str, Computation[Any]] = {}


def computation_of(call: Call) -> Computation[Any]:
    """The computation that has such calls."""
    return next(found for found in COMPUTATIONS.values() if found.Call is type(call))


#: Every operator of this package, in the order of definition.
OPERATORS: list[Operator[Any]] = []


class Operator(Computation[C]):
    """`torch.ops.rocm_passes.<name>`.

    reference: plain torch, any device; it runs on CPU tensors and wherever a kernel fails.
    fake: gives the shapes, dtypes and strides that every lowering returns.
    refuses: why the reference can't take a call, or None.
    other_bits: of the reference, as `Lowering` has it.
    results: how many tensors it may return. There is one overload for each number, `default` for
    the first: a schema with `Tensor[]` crashes under `cpp_wrapper` where the list has one tensor
    (torch 2.13).
    """

    def __init__(
        self,
        name: str,
        call: type[C],
        reference: Callable[[C], Results],
        fake: Callable[[C], Results],
        results: Sequence[int] = (1,),
        refuses: Callable[[C, Target], str | None] = _nothing,
        other_bits: Callable[[C, Target], str | None] = may_give_other_bits,
    ) -> None:
        super().__init__(name, call)
        self.reference = reference
        plain = Lowering(
            REFERENCE,
            requires=(needs_cpu,),
            refuses=refuses,
            note=reference_note,
            other_bits=other_bits,
        )
        self.lowerings.append(plain)
        self._failed: set[str] = set()
        self._fake = fake
        self.overloads = {count: self._define(count, "default" if i == 0 else f"of{count}")
                          for i, count in enumerate(results)}  # fmt: skip
        self.overload = next(iter(self.overloads.values()))
        OPERATORS.append(self)

    def _define(self, count: int, overload: str) -> Any:
        full = self.name if overload == "default" else f"{self.name}.{overload}"
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
        _LIBRARY.define(full + schema(self.Call, count, "lowering", REFERENCE), tags=tags)

        def run(*args: Any, **kwargs: Any) -> Any:
            return _returned(self._run(*self.bind(args, kwargs)), count)

        def fake(*args: Any, **kwargs: Any) -> Any:
            call = self.bind(args, kwargs)[0]
            self._check_devices(call)
            return _returned(self._fake(call), count)

        _LIBRARY.impl(full, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{full}", fake, lib=_LIBRARY)
        return getattr(getattr(getattr(torch.ops, NAMESPACE), self.name), overload)

    def _end(self) -> int:
        return len(self.lowerings) - 1

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[C, str]:
        """The arguments of the torch operator as a call, and the name of its lowering."""
        if not kwargs and len(args) == len(self.parameters) + 1:
            return self.Call(*args[:-1]), args[-1]
        names = (*self.parameters, "lowering")
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        lowering = given.pop("lowering", REFERENCE)
        return self.Call(**given), lowering

    def call_of(self, node: fx.Node) -> C:
        """The call that a node of this operator makes, with graph nodes as fields."""
        return self.bind(node.args, node.kwargs)[0]

    def lowering_of(self, node: fx.Node) -> str:
        return self.bind(node.args, node.kwargs)[1]

    def write(self, b: Any, call: C, lowering: str) -> Any:
        """Write the operator's node with a builder; gives its result, or a list of several."""
        own = call.prepared(b)
        made = b(self.overloads[own.results], *own.arguments().values(), lowering)
        results = [made] if own.results == 1 else [b.item(made, i) for i in range(own.results)]
        found = call.finished(b, results)
        return found[0] if len(found) == 1 else found

    def update(self, node: fx.Node, **changes: Any) -> None:
        """Change arguments of a node of this operator in place. The result's shape and dtype must
        stay.
        """
        call, lowering = self.bind(node.args, node.kwargs)
        node.args = (*replace(call, **changes).arguments().values(), lowering)
        node.kwargs = {}

    def _check_devices(self, call: C) -> None:
        """A kernel would read memory that it cannot reach, and count as broken from then on."""
        devices = {t.device for t in call.tensors()}
        if len(devices) > 1:
            named = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"rocm_passes::{self.name}: its tensors lie on {named}; one is needed")

    def _run(self, call: C, name: str) -> Results:
        self._check_devices(call)
        lowering = self.lowering(name)
        no_kernel = lowering is None or lowering.run is None or name in self._failed
        if no_kernel or not (triton_is_interpreted() or any(t.is_cuda for t in call.tensors())):
            return self.reference(call)
        assert lowering is not None and lowering.run is not None
        try:
            return lowering.run(call)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception:
            # A kernel that does not build on the user's machine must not cost them the run; it is
            # said once.
            self._failed.add(name)
            log.exception(
                "rocm_passes::%s: the %s kernel failed; this process goes on with plain torch",
                self.name,
                name,
            )
            return self.reference(call)


def _returned(found: Results, count: int) -> Any:
    """As the schema has it: a tensor, or a tuple of several."""
    if isinstance(found, Tensor):
        return found
    return found[0] if count == 1 else tuple(found)
