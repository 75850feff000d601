"""Inductor's lowering of our operators: it allocates their outputs and launches their kernels
itself.

An operator is one node in the graph and would be one opaque call in Inductor's code: through the
dispatcher, into Python, into Triton's launcher. Where the chosen lowering does nothing but allocate
and launch Triton kernels (`Lowering.launches`), its Python runs here instead, once, over fake
tensors of the layouts that Inductor has settled on. Each launch becomes a launch in the generated
code, as for a user's own kernel. Whatever does not fit (symbolic sizes, a copy before the launch,
aiter) stays an opaque call.

Nothing of torch is patched. Private names, all there in torch 2.11 to 2.15, and what each is for
(`launcher.PRIVATE` lists them; where one is lacking, all operators stay opaque calls):

    to be asked for an operator, to allocate, the opaque call
        lowering.register_lowering, lowerings, fallback_handler
    the launch of a user's kernel
        kernel_side_table, triton_kernel_wrapper_mutation
    the compile that is under way
        V.fake_mode, V.current_node, V.graph
    an argument in memory, its layout decided
        ir.ExternKernel.realize_input, ir.as_storage_and_layout, ir.is_storage_and_layout,
        decide_layout
    a view of an argument or of an allocation
        ir.FixedLayout, ReinterpretView, TensorBox
    the name under which a written allocation is read (class Written says why)
        ir.ExternKernelAlloc, never_reuse_buffers, codegen_exact_buffer_reuse, make_buffer_free
    a second launch of a kernel without analysing it again
        ir.UserDefinedTritonKernel, MutationOutput, NoneLayout,
        InputsKernel.unwrap_storage_for_input

What raises here costs no compile: the operator stays an opaque call.
"""

# mypy: allow-untyped-calls
# (Inductor's internals are partly untyped.)

from __future__ import annotations

import copy
import functools
import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch._higher_order_ops import triton_kernel_wrap
from torch._inductor import ir
from torch._inductor.lowering import fallback_handler, lowerings, register_lowering
from torch._inductor.virtualized import V
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rocm_passes.kernels.triton import launched
from rocm_passes.kernels.triton.launch import Launch, written_down
from rocm_passes.kernels.triton.lowering import LAUNCHED_BY
from rocm_passes.kernels.triton.static_launch import StaticallyLaunched
from rocm_passes.ops.as_real import AS_REAL, why_copied
from rocm_passes.ops.computed import COMPUTED
from rocm_passes.ops.operator import OPERATORS, Call, Operator
from rocm_passes.target import triton_is_interpreted

log = logging.getLogger(__name__)

aten = torch.ops.aten

ALLOCATIONS = (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)
#: They compute nothing either.
HARMLESS = (aten._unsafe_view.default, torch.ops.prim.device.default)


class NotLaunchable(Exception):
    """Why the call stays opaque."""


_registered: set[str] = set()
_lock = threading.Lock()


def register() -> None:
    """Give Inductor a lowering for every operator of ours (once; later calls add new operators
    only).
    """
    with _lock:
        for operator in OPERATORS:
            if operator.name not in _registered and any(low.launches for low in operator.lowerings):
                for overload in operator.overloads.values():
                    lower = functools.wraps(_lower)(functools.partial(_lower, operator, overload))
                    register_lowering(overload, type_promotion_kind=None)(lower)
                _registered.add(operator.name)
        for known, own in ((COMPUTED, _computed), (AS_REAL, _as_real)):
            if known.name not in _registered:
                register_lowering(known.overload, type_promotion_kind=None)(own)
                _registered.add(known.name)


def _computed(x: ir.TensorBox, lowering: str = "") -> ir.TensorBox:
    x.realize()
    return x


def _as_real(z: ir.TensorBox, lowering: str = "") -> Any:
    """A view where it can be one: the operator's call costs the host more, and copies. The pass
    `read_parts` says which it is.
    """
    if why_copied(V.current_node) is not None:
        opaque = fallback_handler(AS_REAL.overload, add_to_fallback_set=False)
        return opaque(z, lowering)
    return fallback_handler(aten.view_as_real.default, add_to_fallback_set=False)(z)


def _lower(operator: Operator[Any], overload: Any, *args: Any, **kwargs: Any) -> Any:
    call, name = operator.bind(args, kwargs)
    lowering = operator.lowering(name)
    try:
        if lowering is None or lowering.run is None or not lowering.launches:
            raise NotLaunchable(f"lowering {name!r} calls a library")
        if V.current_node.meta.get(LAUNCHED_BY) == "python":
            raise NotLaunchable("launch='python'")
        made = _Launching(call)
        result = made.by(lowering.run)
        for kernel in made.kernels:
            launched.note(kernel, operator.name, V.current_node)
        return result
    except NotLaunchable as reason:
        log.debug("%s: an opaque call: %s", overload, reason)
    except Exception:
        # As Operator._run: what fails here must not cost the user the compile; the opaque call can
        # still work.
        log.exception("%s: its launches could not be written; it stays an opaque call", overload)
    return fallback_handler(overload, add_to_fallback_set=False)(*args, **kwargs)


class _Launching:
    """One call: Inductor's tensors beside the fake ones that the kernel's Python sees."""

    def __init__(self, call: Call) -> None:
        if triton_is_interpreted():
            raise NotLaunchable("Triton's kernels are interpreted")
        self._owners: dict[int, tuple[ir.TensorBox, Tensor]] = {}
        with V.fake_mode:
            self._call = type(call)(**{k: _map(self._fake, v) for k, v in call.arguments().items()})

    def by(self, run: Any) -> Any:
        with V.fake_mode, OnlyMemory() as memory, written_down() as launches:
            result = run(self._call)
        self._allocated = memory.allocated
        self.kernels = [launch.kernel.__name__ for launch in launches]
        for launch in launches:
            self._write(launch)
        for storage in {_storage(t): None for t in _tensors(result)}:
            self._finish(storage)
        result = _map(self._box, result)
        return result if isinstance(result, ir.IRNode) or self._call.results > 1 else result[0]

    def _finish(self, storage: int) -> None:
        """From here on an allocation is known as what its kernels have written."""
        if storage in self._allocated and storage in self._owners:
            box, whole = self._owners[storage]
            self._owners[storage] = (ir.TensorBox.create(Written(box)), whole)

    def _fake(self, box: Any) -> Tensor:
        if not isinstance(box, ir.TensorBox):
            raise NotLaunchable(f"an argument is {type(box).__name__}")
        box, layout = _settled(box)
        if layout.device.type != "cuda":
            raise NotLaunchable(f"a tensor lies on {layout.device}")
        fake = torch.empty_strided(
            _integers(layout.size),
            _integers(layout.stride),
            dtype=layout.dtype,
            device=layout.device,
        )
        self._owners[_storage(fake)] = (box, fake)
        return fake

    def _write(self, launch: Launch) -> None:
        tensors = {n: self._box(t) for n, t in launch.arguments.items() if isinstance(t, Tensor)}
        constants = {n: v for n, v in launch.arguments.items() if n not in tensors}
        grid = [(*launch.grid, 1, 1)[:3]]
        known = _KNOWN.setdefault(V.graph, {})
        key = (launch.kernel, launch.num_warps, _kinds(launch.arguments), _aliases(tensors))
        if key in known:
            _launch_again(*known[key], grid, tensors)
            return
        table = triton_kernel_wrap.kernel_side_table
        lowerings[torch.ops.higher_order.triton_kernel_wrapper_mutation](
            kernel_idx=table.add_kernel(_with_warps(launch.kernel, launch.num_warps)),
            constant_args_idx=table.add_constant_args(constants),
            grid=grid,
            tma_descriptor_metadata={},
            kwargs=tensors,
        )
        made: Any = V.graph.operations[-1]
        if V.current_node.meta.get(LAUNCHED_BY) == "static" and not V.graph.cpp_wrapper:
            made.__class__ = StaticallyLaunched
        buffers = {box.get_name(): name for name, box in tensors.items()}
        written = [buffers[box.get_name()] for box in made.mutable_args]
        for name in written:
            if _storage(launch.arguments[name]) not in self._allocated:
                raise NotLaunchable(
                    f"{launch.kernel.__name__} seems to write to its argument {name}"
                )
        known[key] = made, written

    def _box(self, t: Tensor) -> ir.TensorBox:
        """Inductor's tensor for a fake one: an argument, an allocation, or a view of either."""
        key = _storage(t)
        if key not in self._owners:
            fresh = self._allocated[key]
            allocate = lowerings[aten.empty_strided.default]
            sizes, strides = [_symbolic(fresh.shape), _symbolic(fresh.stride())]
            box = allocate(sizes, strides, dtype=fresh.dtype, device=fresh.device)
            self._owners[key] = (box, fresh)
        box, whole = self._owners[key]
        if t.dtype is not whole.dtype:
            raise NotLaunchable(f"{whole.dtype} is read as {t.dtype}")
        if (t.shape, t.stride(), t.storage_offset()) == (
            whole.shape,
            whole.stride(),
            whole.storage_offset(),
        ):
            return box
        storage, layout = ir.as_storage_and_layout(box)
        offset = layout.offset + t.storage_offset()
        view = ir.FixedLayout(
            layout.device, layout.dtype, _symbolic(t.shape), _symbolic(t.stride()), offset
        )
        return ir.TensorBox(ir.ReinterpretView(data=storage, layout=view))


#: By graph, then by kernel, warps and arguments: a launch that Inductor has analysed, and the names
#: it writes.
_KNOWN: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Any, list[str]]]] = (
    weakref.WeakKeyDictionary()
)


def _launch_again(
    first: Any, written: list[str], grid: Any, tensors: dict[str, ir.TensorBox]
) -> None:
    """The launch `first` with other tensors.

    Inductor finds out what a kernel writes from its Triton IR, at each launch, which takes tenths
    of a second. Launches with the same `_kinds` and `_aliases` differ in their tensors and their
    grid only.
    """
    unwrap, realize = ir.InputsKernel.unwrap_storage_for_input, ir.ExternKernel.realize_input
    inputs = {name: unwrap(realize(box)) for name, box in tensors.items()}
    nothing = ir.NoneLayout(device=first.get_device())
    again = copy.copy(first)
    kwargs = {**first.kwargs, **inputs}
    ir.ExternKernel.__init__(again, None, nothing, [*inputs.values()], first.constant_args, kwargs)
    again.ordered_kwargs_for_cpp_kernel = first.ordered_kwargs_for_cpp_kernel
    again.grid = grid
    again.kernel_args = {**first.kwargs, **tensors}
    again.mutable_args = [tensors[name] for name in written]
    again.mutation_outputs = [ir.MutationOutput(nothing, box, again) for box in again.mutable_args]
    V.graph.register_operation(again)


def _kinds(arguments: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What an analysis of a launch can depend on: a tensor's dtype, the value of anything else."""
    return tuple((n, v.dtype if isinstance(v, Tensor) else v) for n, v in arguments.items())


def _aliases(tensors: dict[str, ir.TensorBox]) -> tuple[int, ...]:
    """For each tensor the place of the first that lies in the same buffer."""
    names = [box.get_name() for box in tensors.values()]
    return tuple(names.index(name) for name in names)


class Written(ir.ExternKernelAlloc):
    """An allocation under a new name, once its kernels have written it; nothing runs.

    Inductor takes a tensor that a kernel writes for one that is mutated, and its choice of tiles
    does not see the reads of those (tiling_utils.extract_normalized_read_writes looks them up by
    the name from before the mutation): what then read our result and turned it ran at a tenth of
    the memory's rate.
    """

    #: For the count of bytes (tuning/inductor_code.py), which must not need Triton.
    moves_nothing = True

    def __init__(self, box: ir.TensorBox) -> None:
        memory = self.realize_input(box)
        self._memory = self.unwrap_storage_for_input(memory)
        super().__init__(memory.get_layout(), [self._memory])
        # The memory passes to the new name; Inductor must not hand it out once the old one is used
        # no more.
        V.graph.never_reuse_buffers.add(self._memory.get_name())

    def codegen(self, wrapper: Any) -> None:
        forget = f"; {wrapper.make_buffer_free(self._memory)}"
        old, new = self._memory.get_name(), self.get_name()
        wrapper.writeline(wrapper.codegen_exact_buffer_reuse(old, new, forget))


class OnlyMemory(TorchDispatchMode):
    """Allocations and views pass, and allocations are noted by storage; anything that computes is
    refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocated: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in (*ALLOCATIONS, *HARMLESS) and not func.is_view:
            raise NotLaunchable(f"it calls {func} before the launch")
        result = func(*args, **(kwargs or {}))
        if func in ALLOCATIONS:
            self.allocated[_storage(result)] = result
        return result


def _settled(box: ir.TensorBox) -> tuple[ir.TensorBox, ir.Layout]:
    """The tensor in memory, its layout final: as Inductor would choose it, were nobody to ask."""
    realized = ir.ExternKernel.realize_input(box)
    if not ir.is_storage_and_layout(realized):
        raise NotLaunchable(f"an argument is {type(realized).__name__}")
    storage: Any = ir.as_storage_and_layout(realized, freeze=False)[0]
    storage.data.decide_layout()
    _, layout = ir.as_storage_and_layout(realized)
    return ir.TensorBox(realized), layout


def _integers(sizes: Sequence[Any]) -> list[int]:
    if not all(isinstance(s, int | sympy.Integer) for s in sizes):
        raise NotLaunchable("its sizes are symbolic")
    return [int(s) for s in sizes]


def _symbolic(sizes: Sequence[int]) -> list[sympy.Integer]:
    return [sympy.Integer(s) for s in sizes]


def _storage(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _map(change: Any, value: Any) -> Any:
    """`change` applied to the tensors in an argument or a result."""
    leaf = (Tensor, ir.IRNode)
    return pytree.tree_map(
        lambda v: change(v) if isinstance(v, leaf) else v,
        value,
        is_leaf=lambda v: isinstance(v, leaf),
    )


@functools.cache
def _with_warps(kernel: Any, num_warps: int) -> Any:
    """The kernel with a launch option, as Inductor takes it: an autotuner of one configuration."""
    import triton

    return triton.autotune(configs=[triton.Config({}, num_warps=num_warps)], key=[])(kernel)
