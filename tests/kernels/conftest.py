"""On a machine with a GPU the kernel tests run there: arguments go over, strides and all, results come back.

Without one the kernels run on the same CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

KERNELS = (
    "fused_norm",
    "rms_norm",
    "add_rms_norm",
    "channel_norm",
    "group_norm",
    "rotary",
    "rotary_pair",
    "qk_norm_rotary",
)


@pytest.fixture(autouse=True)
def on_the_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available() or "test_triton" not in request.module.__name__:
        return
    for name in KERNELS:
        if callable(getattr(request.module, name, None)):
            monkeypatch.setattr(request.module, name, _over_there(getattr(request.module, name)))


def _over_there(kernel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        storages: dict[int, torch.UntypedStorage] = {}

        def there(value: Any) -> Any:
            return _moved(value, "cuda", storages) if _is_on(value, "cpu") else value

        there_args, there_kwargs = pytree.tree_map(there, (args, kwargs))
        result = kernel(*there_args, **there_kwargs)
        for value in pytree.tree_leaves((args, kwargs)):
            if _is_on(value, "cpu") and value.untyped_storage().nbytes():
                # What the kernel wrote into an out= argument.
                storage = value.untyped_storage()
                storage.copy_(storages[storage.data_ptr()].cpu(), False)
        back: dict[int, torch.UntypedStorage] = {}
        return pytree.tree_map(lambda v: _moved(v, "cpu", back) if _is_on(v, "cuda") else v, result)

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
