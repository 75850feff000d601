"""What verification skips or reduces, each with its reason; and what it compares."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rocm_passes.report.ledger import Entry
from rocm_passes.rewrite import extraction, reproducer, verify
from rocm_passes.rewrite.program import (
    Input,
    Program,
    Ref,
    Result,
    Step,
    Unverifiable,
    reduced,
    run,
)
from tests.rewriting import rewrite

aten = torch.ops.aten
OPTIONS = {"verify": True, "lowering": "rms_norm=reference"}


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (16,), None, 1e-6)


def only(fn: Any, *args: Any, **options: Any) -> Entry:
    return rewrite(fn, *args, options={**OPTIONS, **options}, codegen=False).only()


def test_a_large_site_is_verified_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LIMIT_BYTES", {"cpu": 2**16})
    entry = only(norm, torch.randn(1, 1000, 16))
    assert entry.verification["status"] == "held"
    found = entry.verification["reason"]
    assert found.startswith("size 1000 reduced to ") and 2 <= int(found.split()[-1]) < 100


def test_a_large_site_without_such_a_size_is_skipped_and_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "LIMIT_BYTES", {"cpu": 2**8})
    entry = only(norm, torch.randn(4, 16))
    assert (entry.outcome, entry.verification["status"]) == ("rewritten", "skipped")
    assert "no size can be reduced" in entry.verification["reason"]


def test_a_site_is_skipped_whose_sources_are_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "EXPANSIONS", 0)
    entry = only(norm, torch.randn(4, 16))
    assert entry.verification["status"] == "skipped"
    assert "no common source within 0 nodes" in entry.verification["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(Unverifiable, match="no such device in this process"):
        verify.limit(torch.device("cuda"))


def test_the_bits_of_a_float_have_no_meaning_in_float64() -> None:
    step = Step("y", aten.view.dtype, (Ref("x"), torch.int32), {})
    assert run([step], ["y"], {"x": torch.ones(2)})[0].dtype == torch.int32
    with pytest.raises(Unverifiable, match="reads the bits of a float"):
        run([step], ["y"], {"x": torch.ones(2)}, wide=True)


def test_a_convolution_that_is_less_exact_on_purpose_is_skipped() -> None:
    conv = torch.nn.Conv3d(2, 2, 3)
    entry = only(conv, torch.randn(1, 2, 3, 4, 4), conv_dtype="bf16", lowering="conv3d=direct")
    assert entry.outcome == "rewritten" and entry.verification["status"] == "skipped"
    assert entry.verification["reason"] == "conv_dtype='bf16' makes it less exact than the graph"


def test_symbolic_sizes_are_those_of_the_example() -> None:
    seen = rewrite(norm, torch.randn(6, 16), options=OPTIONS, dynamic=True, codegen=False)
    assert seen.only().verification["status"] == "held"


def small(**changes: Any) -> Program:
    """y = x + x, replaced by y = 2 x."""
    made = Program(
        inputs=(Input("x", (4, 6), (6, 1)),),
        constants={},
        original=(Step("y", aten.add.Tensor, (Ref("x"), Ref("x")), {}),),
        replacement=(Step("z", aten.mul.Tensor, (Ref("x"), 2), {}),),
        outputs=("y",),
        results=("z",),
        expected=(Result(torch.float32, (6, 1), False),),
        bytes=4 * 6 * 24,
        device=torch.device("cpu"),
    )
    return replace(made, **changes)


def judged(found: Program, strict: bool = False) -> verify.Verdict:
    return verify.judged(found, [verify.drawn(found, 0)], strict, "drawn")


def test_equal_bits_are_the_exact_contract_and_others_the_close_one() -> None:
    assert judged(small()).contract == verify.EXACT
    rounded = (
        Step("a", aten.mul.Tensor, (Ref("x"), 6.0), {}),
        Step("z", aten.div.Tensor, (Ref("a"), 3.0), {}),
    )
    assert judged(small(replacement=rounded)).contract == verify.CLOSE
    strict = judged(small(replacement=rounded), strict=True)
    assert strict.status == verify.WRONG and "rewrite_numerics='strict' promises" in strict.reason


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((Step("z", aten.clone.default, (Ref("x"),), {}),), "its error against float64 is"),
        (
            (Step("z", aten.mul.Tensor, (Ref("x"), math.inf), {}),),
            "it is not finite where the original is",
        ),
        (
            (Step("z", aten.sum.dim_IntList, (Ref("x"), [1]), {}),),
            "its shape is [4], the original's [4, 6]",
        ),
        ((Step("z", aten.mul_.Tensor, (Ref("x"), 2), {}),), "it writes into its input x"),
        ((Step("z", aten.mm.default, (Ref("x"), Ref("x")), {}),), "it raised RuntimeError"),
    ],
)
def test_what_is_wrong_is_said(steps: tuple[Step, ...], says: str) -> None:
    found = judged(small(replacement=steps))
    assert found.status == verify.WRONG and says in found.reason


def test_memory_that_the_original_does_not_share_is_wrong_for_our_operators_alone() -> None:
    viewed = (Step("z", aten.view.default, (Ref("x"), [4, 6]), {}),)
    same = (Step("y", aten.clone.default, (Ref("x"),), {}),)
    ours = small(original=same, replacement=viewed)
    assert "it shares memory with an input" in judged(ours).reason
    theirs = replace(ours, expected=(Result(torch.float32, (6, 1), True),))
    assert judged(theirs).contract == verify.EXACT


def test_multiples_of_the_reduced_size_follow_it() -> None:
    found = reduced(
        small(
            inputs=(Input("x", (2, 100, 6), (600, 6, 1)),),
            original=(Step("y", aten.view.default, (Ref("x"), [200, 6]), {}),),
            bytes=1000,
        ),
        limit=100,
    )
    assert found.inputs[0].shape == (2, 10, 6) and found.inputs[0].strides == (60, 6, 1)
    assert found.original[0].args[1] == [20, 6]


def test_a_reproducer_is_refused_with_a_reason() -> None:
    with pytest.raises(reproducer.NotWritable, match="reads constants"):
        reproducer.text(small(constants={"c": torch.ones(1)}), "title")
    many = tuple(Step(f"y{i}", aten.add.Tensor, (Ref("x"), Ref("x")), {}) for i in range(400))
    with pytest.raises(reproducer.NotWritable, match="lines, and 40 are too many"):
        reproducer.text(small(original=(*many, *small().original)), "title")
    strange = (Step("z", len, (Ref("x"),), {}),)
    with pytest.raises(reproducer.NotWritable, match="it calls"):
        reproducer.text(small(replacement=strange), "title")


def test_a_reproducer_of_a_right_replacement_exits_with_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = reproducer.text(small(), "y = x + x")
    with pytest.raises(SystemExit) as ended:
        exec(compile(source, "reproducer", "exec"), {})
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("errors:      0, 0") == len(verify.TRIALS)
