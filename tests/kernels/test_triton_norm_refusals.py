"""What the norm kernel refuses, with the reason."""

from __future__ import annotations

import pytest
import torch

from rocm_passes.kernels.triton.norms.norm_plan import (
    MAX_WIDTH,
)
from tests.kernels.kernel_calls import fused_norm
from tests.kernels.norm_calls import add_rms_norm, normal, rms_norm

# NumPy, under the interpreter, warns of the infinities that some tests are about.
pytestmark = [pytest.mark.pairwise, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def test_refuses_integers_and_fp64() -> None:
    with pytest.raises(TypeError, match=r"x is torch\.int32"):
        rms_norm(torch.ones(2, 3, dtype=torch.int32), None, 1e-6)
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        rms_norm(torch.ones(2, 3, dtype=torch.float64), None, 1e-6)


def test_refuses_a_branch_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"branch is torch\.float64"):
        add_rms_norm(normal(2, 3), normal(2, 3).double(), None, 1e-6)


def test_refuses_an_output_dtype_that_it_cannot_store() -> None:
    with pytest.raises(TypeError, match=r"output is torch\.float64"):
        rms_norm(normal(2, 3), None, 1e-6, out_dtype=torch.float64)


def test_refuses_an_integer_weight() -> None:
    with pytest.raises(TypeError, match=r"operand is torch\.int64"):
        rms_norm(normal(2, 3), torch.ones(3, dtype=torch.int64), 1e-6)


def test_refuses_a_0d_input() -> None:
    with pytest.raises(ValueError, match="0-d"):
        rms_norm(torch.tensor(1.0), None, 1e-6)


def test_refuses_rows_that_are_too_wide() -> None:
    with pytest.raises(ValueError, match="65537 elements"):
        rms_norm(torch.empty(0, MAX_WIDTH + 1), None, 1e-6)


def test_refuses_a_branch_of_another_width() -> None:
    with pytest.raises(ValueError, match="differ in the last dimension"):
        add_rms_norm(normal(2, 3), normal(2, 1), None, 1e-6)


def test_refuses_a_gate_without_a_branch() -> None:
    with pytest.raises(ValueError, match="need a branch"):
        fused_norm(normal(2, 3), kind="rms", gate=normal(3))


def test_refuses_a_branch_weight_without_the_branchs_norm() -> None:
    with pytest.raises(ValueError, match="needs branch_eps"):
        fused_norm(normal(2, 3), kind="rms", branch=normal(2, 3), branch_weight=normal(3))


def test_refuses_three_modulations() -> None:
    with pytest.raises(ValueError, match="3 modulations"):
        fused_norm(normal(2, 3), kind="rms", modulations=[(None, None)] * 3)


def test_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kind is 'batch'"):
        fused_norm(normal(2, 3), kind="batch")  # type: ignore[arg-type]


def test_refuses_kind_none_without_a_sum() -> None:
    with pytest.raises(ValueError, match="sum alone"):
        fused_norm(normal(2, 3), kind="none", branch=normal(2, 3))


def test_refuses_a_table_that_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match="does not broadcast"):
        fused_norm(normal(2, 3), kind="rms", modulations=[(normal(4, 2, 3), None)])
