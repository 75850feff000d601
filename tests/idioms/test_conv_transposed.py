"""Transposed convolutions: each has an entry; those that do not overlap are exact algebra."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.idioms.convolution import conv_transposed
from rocm_passes.ops.conv_transposed import CONV_TRANSPOSED, ConvTransposed
from rocm_passes.options import Options
from rocm_passes.policy import verdict
from rocm_passes.target import Target
from rocm_passes.tuning import budget
from rocm_passes.tuning import measure as measuring
from tests.accuracy import assert_no_worse
from tests.rewriting import Rewritten, rewrite
from tests.zoo.traced import passed

BF16 = torch.bfloat16
CONVOLUTION = torch.ops.aten.convolution.default
H200 = Target("nvidia", "sm_90", "H200", "2.13", "3.6")


def draw(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def convolve(x: Tensor, w: Tensor, bias: Tensor | None, **parameters: Any) -> Tensor:
    function = F.conv_transpose2d if x.dim() == 4 else F.conv_transpose3d
    return function(x, w, bias, **parameters)


def run(lowering: str, x: Tensor, w: Tensor, bias: Tensor | None, **parameters: Any) -> Rewritten:
    options = {"lowering": {"conv_transposed": lowering}}
    return rewrite(lambda *args: convolve(*args, **parameters), x, w, bias, options=options)


CASES = [
    ("product", (1, 6, 2, 3, 4), (6, 1, 1, 1, 2), {"stride": (1, 1, 2), "groups": 6}),
    ("product", (2, 6, 2, 3, 4), (6, 1, 2, 1, 1), {"stride": (2, 1, 1), "groups": 6}),
    ("product", (1, 6, 3, 4), (6, 2, 2, 3), {"stride": (2, 3), "groups": 6}),
    ("product", (1, 6, 3, 4), (6, 1, 1, 2), {"stride": (1, 2), "groups": 6, "dilation": (3, 1)}),
    ("matmul", (2, 6, 2, 3, 4), (6, 5, 2, 1, 2), {"stride": (2, 1, 2)}),
    ("matmul", (1, 6, 3, 4), (6, 5, 2, 2), {"stride": 2}),
]


@pytest.mark.pairwise
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(("lowering", "shape", "kernel", "parameters"), CASES)
def test_exact(
    lowering: str,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    parameters: dict[str, Any],
    dtype: torch.dtype,
    bias: bool,
) -> None:
    out = kernel[1] * parameters.get("groups", 1)
    x, w = draw(*shape, dtype=dtype), draw(*kernel, dtype=dtype, seed=1)
    added = draw(out, dtype=dtype, seed=2) if bias else None
    seen = run(lowering, x, w, added, **parameters)
    site = seen.only()
    assert (site.idiom, site.lowering) == ("conv_transposed", lowering), site.reason
    assert CONVOLUTION not in seen.targets()
    given = (x, w, added)
    exact = convolve(*(None if t is None else t.double() for t in given), **parameters)
    assert_no_worse(seen.result, convolve(*given, **parameters), exact)


@pytest.mark.parametrize(
    ("lowering", "kernel", "parameters", "reason"),
    [
        ("matmul", (6, 5, 4, 4), {"stride": 2, "padding": 1}, "outputs overlap"),
        ("matmul", (6, 5, 2, 2), {"stride": 3}, "outputs overlap"),
        ("matmul", (6, 5, 2, 2), {"stride": 2, "padding": 1}, "it has padding"),
        ("matmul", (6, 5, 2, 2), {"stride": 2, "output_padding": 1}, "it has padding"),
        ("matmul", (6, 5, 2, 2), {"stride": 2, "dilation": 2}, "dilation=(2, 2)"),
        ("matmul", (6, 5, 2, 2), {"stride": 2, "groups": 2}, "groups=2"),
        ("product", (6, 5, 2, 2), {"stride": 2}, "it sums over channels"),
        ("product", (6, 1, 2, 2), {"stride": 1, "groups": 6}, "outputs overlap"),
    ],
)
def test_refused(
    lowering: str, kernel: tuple[int, ...], parameters: dict[str, Any], reason: str
) -> None:
    seen = run(lowering, draw(1, 6, 3, 4), draw(*kernel, seed=1), None, **parameters)
    assert seen.only().outcome == "refused" and reason in seen.only().reason
    assert CONVOLUTION in seen.targets()


def test_symbolic_sizes_are_refused() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        return F.conv_transpose2d(x, w, stride=2)

    options = {"lowering": {"conv_transposed": "matmul"}}
    seen = rewrite(fn, draw(1, 6, 3, 4), draw(6, 5, 2, 2), options=options, dynamic=True)
    assert "symbolic" in seen.only().reason


def test_one_that_stays_has_an_entry() -> None:
    options = {"select": "auto"}
    seen = rewrite(
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
        draw(1, 6, 3, 4),
        draw(6, 5, 4, 4),
        options=options,
    )
    assert (seen.only().idiom, seen.only().outcome) == ("conv_transposed", "kept")
    assert seen.only().parameters["kernel"] == [4, 4]


def call(**changes: Any) -> ConvTransposed:
    x, w = (torch.empty(s, dtype=BF16, device="meta") for s in ((1, 64, 512, 512), (64, 64, 2, 2)))
    return replace(ConvTransposed(x, w, None, [2], [0], [1], True, [0], 1), **changes)


def test_the_default() -> None:
    """Products on a GPU; a matrix product where it was measured."""
    for name, expected in (("product", True), ("matmul", False), ("direct", False)):
        assert verdict("conv_transposed", name, call(), H200).pays is expected
    cpu = Target("cpu", "", "CPU", "2.13", None)
    assert not verdict("conv_transposed", "product", call(), cpu).pays


def test_a_matrix_product_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BUDGET", budget.Budget())
    times = measuring.Measured({"matmul": 1.0, "direct": 3.0}, {"matmul": 0, "direct": 0})
    monkeypatch.setattr(measuring, "measure", lambda *_: times)
    options = Options(choices=str(tmp_path / "c.json"))
    able = [low for low in CONV_TRANSPOSED.lowerings if low.name != "product"]
    small = call(x=torch.empty(1, 64, 4, 4, dtype=BF16, device="meta"))
    assert conv_transposed.measured(able, small, H200, options) is None
    assert conv_transposed.measured(CONV_TRANSPOSED.lowerings, call(), H200, options) is None
    found = conv_transposed.measured(able, call(), H200, options)
    assert found is not None and found[0].name == "matmul"


def test_it_is_timed_over_random_tensors() -> None:
    c = call(x=torch.empty(1, 64, 4, 4), weight=torch.empty(64, 8, 2, 2))
    able = [low for low in CONV_TRANSPOSED.lowerings if low.name != "product"]
    found = measuring.measure(able, c)
    assert set(found.ms) == {"matmul", "direct"} and not found.skipped


def test_a_call_s_key_and_work() -> None:
    assert call().key() == "conv_transposed bfloat16 x 1x64x512x512 w 64x64x2x2 stride 2x2"
    assert call().flops() == 2 * 64 * 512 * 512 * 64 * 4
    assert call().tensors_mib() == (64 * 512 * 512 + 64 * 1024 * 1024) * 2 / 2**20
    different = [call(), call(stride=[2, 1]), call(padding=[1]), call(groups=2), call(dilation=[2])]
    assert len({c.key() for c in different}) == len(different)


@pytest.mark.model("vae_cosmos")
@pytest.mark.model("vae_cosmos")
def test_cosmos_s_inverse_haar_transform() -> None:
    """14 transposed convolutions for each of two levels; on a GPU all are pointwise products."""
    seen = passed("vae_cosmos", target=H200, idioms="conv_transposed", tune_seconds=0)
    found = [(e.idiom, e.lowering) for e in seen.sites]
    assert found == [("conv_transposed", "product")] * 28
