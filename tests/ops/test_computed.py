"""Parts computed one after another: the operator alone, and in Inductor's code for an AMD GPU,
without one.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.ops.computed import COMPUTED
from tests import inductor_for_amd as amd

aten = torch.ops.aten


def _sum(x: Tensor, w: Tensor) -> Tensor:
    """Of two matrix products, as a tile is of convolutions."""
    return aten.add.Tensor(aten.mm.default(x, w), aten.mm.default(x, aten.t.default(w)))


def plain(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return aten.cat.default([_sum(a, w), _sum(b, w)], 0)


def computed(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    first = COMPUTED.overload(_sum(a, w))
    return aten.cat.default([first, COMPUTED.overload(_sum(b, w))], 0)


CASES = {"plain": plain, "computed": computed}
METAS = [((4096, 256), torch.bfloat16), ((4096, 256), torch.bfloat16), ((256, 256), torch.bfloat16)]


def main() -> None:
    with amd.device():
        print(
            json.dumps(
                {name: amd.call_of(amd.code_for(case, *METAS)) for name, case in CASES.items()}
            )
        )


@pytest.fixture(scope="module")
def calls() -> Any:
    """The generated code of each case; in a process of its own, where torch believes in a GPU."""
    return amd.answers_of("tests.ops.test_computed")


def _steps(call: str) -> list[str]:
    return re.findall(r"extern_kernels\.(mm)\(|triton_(poi)\w*\.run\(", call)


def test_each_part_is_computed_before_what_comes_next(calls: Any) -> None:
    steps = ["".join(found) for found in _steps(calls["computed"])]
    assert steps == ["mm", "mm", "poi", "mm", "mm", "poi"]
    assert "torch.ops.rocm_passes" not in calls["computed"]


def test_without_it_one_kernel_computes_all_parts(calls: Any) -> None:
    """If this fails, Inductor has learnt it, and the operator may go."""
    assert ["".join(found) for found in _steps(calls["plain"])] == ["mm", "mm", "mm", "mm", "poi"]


def test_parts_are_written_in_their_places(calls: Any) -> None:
    """The whole is allocated once, and both kernels write to views of it."""
    (whole,) = re.findall(r"(\w+) = empty_strided_cuda\(\(8192, 256\)", calls["computed"])
    views = re.findall(
        rf"(\w+) = reinterpret_tensor\({whole}, \(4096, 256\), \(256, 1\), (\d+)\)",
        calls["computed"],
    )
    assert [int(offset) for _, offset in views] == [0, 4096 * 256]
    for view, _ in views:
        assert re.search(rf"triton_poi\w*\.run\([^)]*\b{view}\b", calls["computed"])


@pytest.mark.parametrize("strides", [(12, 4, 1), (1, 2, 6), (24, 8, 2)])
def test_it_returns_its_input_in_memory_of_its_own(strides: tuple[int, ...]) -> None:
    x = torch.randn(48).as_strided((2, 3, 4), strides)
    got = COMPUTED.overload(x)
    assert torch.equal(got, x)
    assert got.data_ptr() != x.data_ptr()
    with FakeTensorMode() as mode:
        fake = COMPUTED.overload(mode.from_tensor(x))
    assert (fake.shape, fake.stride(), fake.dtype) == (got.shape, got.stride(), got.dtype)


if __name__ == "__main__":
    main()
