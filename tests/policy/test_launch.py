"""The option launch="auto": Inductor's static launcher where it was measured."""

from __future__ import annotations

import pytest

from rocm_passes.policy.launch import launched_by
from rocm_passes.target import Target

H100, MI300X, CPU = (Target.named(name, triton="3.6.0") for name in ("sm_90", "gfx942", "cpu"))


@pytest.mark.parametrize(
    ("asked", "target", "expected"),
    [
        ("auto", H100, "static"),
        ("auto", MI300X, "inductor"),
        ("auto", CPU, "inductor"),
        ("inductor", H100, "inductor"),
        ("python", H100, "python"),
        ("static", MI300X, "static"),
    ],
)
def test_who_launches(asked: str, target: Target, expected: str) -> None:
    assert launched_by(asked, target) == expected
