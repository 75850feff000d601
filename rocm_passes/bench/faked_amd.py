"""A GPU of AMD's that is not here: torch, Inductor and Triton believe in it, and nothing runs.

Graphs over fake tensors are lowered to Inductor's code for it. It stands on torch's private parts.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from rocm_passes.target import Target

#: (lanes of a warp, compute units, registers of one, bytes of shared memory) by architecture.
_MACHINES = {
    "gfx942": (64, 304, 65536, 65536),
    "gfx950": (64, 256, 65536, 163840),
    "gfx1100": (32, 96, 65536, 65536),
    "gfx1201": (32, 64, 65536, 65536),
}


def target(arch: str) -> Target:
    """As the backend would describe it, with this machine's torch and Triton."""
    here = Target.of_device("cpu")
    return Target("amd", arch, arch, here.torch_version, here.triton_version)


@contextlib.contextmanager
def device(arch: str) -> Iterator[None]:
    """Meanwhile there is one GPU of that architecture."""
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime import triton_helpers
    from torch._subclasses import fake_tensor

    properties = _properties(arch)
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_, **__: properties,
        "get_device_capability": lambda *_, **__: (9, 4),
        "_lazy_init": lambda: None,
    }
    interface: dict[str, Any] = {
        "is_available": staticmethod(lambda: True),
        "current_device": staticmethod(lambda: 0),
        "get_device_properties": staticmethod(lambda *_: properties),
        "get_compute_capability": staticmethod(lambda *_: arch),
        "raise_if_triton_unavailable": staticmethod(lambda *_: None),
    }
    active = triton.runtime.driver._active
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda *_: None))
        stack.enter_context(mock.patch.object(torch.version, "hip", "6.4"))
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in interface.items():
            stack.enter_context(mock.patch.object(CudaInterface, name, value, create=True))
        for name in ("get_device_properties", "current_device"):
            stack.enter_context(mock.patch.object(CudaInterface.Worker, name, interface[name]))
        triton.runtime.driver.set_active(_Driver(arch))
        _forget()
        try:
            yield
        finally:
            triton.runtime.driver.set_active(active)
            _forget()


def _forget() -> None:
    """torch asks once a process whether a device runs Triton."""
    from torch.utils import _triton

    for name in ("has_triton", "has_triton_package"):
        clear = getattr(getattr(_triton, name, None), "cache_clear", None)
        if clear is not None:
            clear()


def _properties(arch: str) -> types.SimpleNamespace:
    lanes, units, registers, shared = _MACHINES[arch]
    return types.SimpleNamespace(
        name=arch,
        gcnArchName=arch,
        major=9,
        minor=4,
        multi_processor_count=units,
        warp_size=lanes,
        regs_per_multiprocessor=registers,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=shared,
        L2_cache_size=2**22,
        total_memory=2**37,
    )


class _Driver:
    """As much of Triton's driver as generating code needs."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("hip", self._arch, _MACHINES[self._arch][0])

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_benchmarker(self) -> None:
        return None
