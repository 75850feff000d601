"""The kernels that a channels-last conv3d's 2-D convolutions get in Inductor's code, for a GPU that
is not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._prims_common import make_channels_last_strides_for

from rocm_passes.fx.builder import Eager
from rocm_passes.ops.conv3d import CONV3D, Conv3d
from tests import inductor_for_amd as amd

OUT, C = 24, 16
WEIGHT = ((OUT, C, 3, 3, 3), torch.bfloat16)
#: Frames, and zero frames in front, by lowering.
CALLS = {"taps": (6, 0), "taps_tiled": (6, 0), "conv2d": (1, 2), "unfold": (6, 0)}


def written(name: str) -> Callable[[Tensor, Tensor], Any]:
    (lowering,) = [low for low in CONV3D.lowerings if low.name == name]
    assert lowering.write is not None
    write = lowering.write

    def function(x: Tensor, weight: Tensor) -> Any:
        ones, zeros = (1, 1, 1), (CALLS[name][1], 0)
        call = Conv3d(
            (x * 2,), weight, None, zeros, ones, (1, 1), ones, groups=1, channels_last=True
        )
        return write(Eager(), call)

    return function


def main() -> None:
    # Asking for a layout copies, which a fake tensor of a device that is not there cannot.
    with amd.device(), mock.patch.object(torch.Tensor, "copy_", lambda self, *_: self):
        metas = {
            name: ((1, C, frames, 20, 24), torch.bfloat16) for name, (frames, _) in CALLS.items()
        }
        codes = {
            name: amd.call_of(amd.code_for(written(name), metas[name], WEIGHT)) for name in CALLS
        }
    print(json.dumps(codes))


@pytest.fixture(scope="module")
def codes() -> Any:
    """The generated code of each lowering; in a process of its own, where torch believes in
    a GPU.
    """
    return amd.answers_of("tests.ops.test_conv3d_code")


@pytest.mark.parametrize(
    ("name", "count", "kernel"),
    [
        ("taps", 3, (OUT, C, 3, 3)),
        ("taps_tiled", 12, (OUT, C, 3, 3)),
        ("conv2d", 1, (OUT, C, 3, 3)),
        ("unfold", 1, (OUT, 3 * C, 3, 3)),
    ],
)
def test_kernels_are_dense_and_written_once(
    codes: Any, name: str, count: int, kernel: tuple[int, ...]
) -> None:
    """A library copies any other one, at each call."""
    code, dense = codes[name], make_channels_last_strides_for(kernel)
    operand = r"(reinterpret_tensor\(\w+, \([^)]*\), \([^)]*\), \d+\)|\w+)"
    given = re.findall(rf"extern_kernels\.convolution\({operand}, {operand}, stride", code)
    assert len(given) == count
    for _, weight in given:
        assert (
            f"{kernel}, {dense}" in weight
            or f"{weight} = empty_strided_cuda({kernel}, {dense}" in code
        )
    assert code.count(".run(weight_1,") == 1


if __name__ == "__main__":
    main()
