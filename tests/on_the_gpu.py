"""On a machine with a GPU Triton kernels run there: arguments go over, strides and all, results
come back.

Without one they run on the same CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rocm_passes.ops.operator import Call, Lowering


def where_kernels_run(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The function over CPU tensors, computed where Triton's kernels run."""
    return over_there(kernel) if torch.cuda.is_available() else kernel


def run_where_kernels_run(lowering: Lowering[Any], call: Call) -> Any:
    """What the lowering runs for a call over CPU tensors, computed where Triton's kernels run."""
    assert lowering.run is not None
    run = lowering.run
    return where_kernels_run(lambda **arguments: run(type(call)(**arguments)))(**call.arguments())


def over_there(kernel: Callable[..., Any], device: str = "cuda") -> Callable[..., Any]:
    """The function over CPU tensors, computed on the device; tensors that it writes to are copied
    back, too.
    """

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        storages: dict[int, torch.UntypedStorage] = {}

        def there(value: Any) -> Any:
            return _moved(value, device, storages) if _is_on(value, "cpu") else value

        there_args, there_kwargs = pytree.tree_map(there, (args, kwargs))
        result = kernel(*there_args, **there_kwargs)
        given = [
            v.untyped_storage() for v in pytree.tree_leaves((args, kwargs)) if _is_on(v, "cpu")
        ]
        here = {storage.data_ptr(): storage for storage in given if storage.nbytes()}
        for address, storage in here.items():
            # What the kernel wrote into an out= argument.
            storage.copy_(storages[address].cpu(), False)
        # A result that lies in an argument's memory does so here, too.
        back = {storages[s.data_ptr()].data_ptr(): s for s in here.values()}
        return pytree.tree_map(lambda v: _moved(v, "cpu", back) if _is_on(v, device) else v, result)

    return call


def _is_on(value: object, device: str) -> bool:
    return isinstance(value, Tensor) and value.device.type == device


def _moved(x: Tensor, device: str, storages: dict[int, torch.UntypedStorage]) -> Tensor:
    """The same view of the same memory on another device: strides, offset and aliasing included."""
    storage = x.untyped_storage()
    if storage.data_ptr() not in storages:
        storages[storage.data_ptr()] = storage.to(device=torch.device(device))
    empty = torch.empty(0, dtype=x.dtype, device=device)
    return empty.set_(storages[storage.data_ptr()], x.storage_offset(), x.size(), x.stride())
