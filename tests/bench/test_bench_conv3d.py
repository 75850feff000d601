"""The Conv3d benchmark: calls in words and as built, what its verdict says, and its uncompiled half
on the CPU.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rocm_passes.bench import conv3d, conv3d_choices
from rocm_passes.bench.conv3d_built import Call, built, compiled
from rocm_passes.bench.conv3d_calls import CALLS
from rocm_passes.idioms.convolution import conv3d as idiom
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.rewrite.choose import choose
from rocm_passes.target import Target
from rocm_passes.tuning import ahead
from tests import forked

WHOLE = [text for texts in CALLS.values() for text in texts]
H200 = Target("nvidia", "sm_90", "H200", "2.11.0", "3.6")


def test_a_call_is_read_from_words() -> None:
    found = Call.of("384-768 3x1x1 2+1f 60x104")
    assert found == Call(384, 768, (3, 1, 1), 2, 1, 60, 104)
    assert found.gib(torch.bfloat16) == 3 * 60 * 104 * (384 + 768) * 2 / 2**30


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4-6 3x3x3 2z+1f 60x104", Call(4, 6, (3, 3, 3), 0, 1, 60, 104, zeros=2)),
        ("4-6 3x3x3 1z+1+4f 60x104", Call(4, 6, (3, 3, 3), 1, 4, 60, 104, zeros=1)),
        ("4-6 1x3x3 16f 88x160", Call(4, 6, (1, 3, 3), 0, 16, 88, 160)),
        ("4-6 3x1x1/2x1x1 1+4f 60x104", Call(4, 6, (3, 1, 1), 1, 4, 60, 104, stride=(2, 1, 1))),
        ("4-6 1x2x2/1x2x2 21f 60x104", Call(4, 6, (1, 2, 2), 0, 21, 60, 104, stride=(1, 2, 2))),
    ],
)
def test_zero_frames_and_strides_are_read_from_words(text: str, found: Call) -> None:
    assert Call.of(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "384-384 3x3x3 2+1f",
        "384 3x3x3 2+1f 60x104",
        "4-4 3x3x3 2z 8x8",
        "4-4 3x3x3 1+2z+1f 8x8",
        "4-4 3x3x3/2 3f 8x8",
        "",
    ],
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='is no call; one is written as "384-384 3x3x3'):
        Call.of(text)


def test_a_stride_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="has a stride of 0"):
        Call.of("4-4 3x1x1/0x1x1 1+4f 8x8")


def test_fewer_frames_than_the_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match="has 2 frames, fewer than its kernel"):
        Call.of("4-4 3x3x3 1z+1f 8x8")


def test_every_listed_call_can_be_read_and_is_listed_once() -> None:
    assert len({Call.of(text) for text in WHOLE}) == len(WHOLE)
    assert set(conv3d.SAMPLE) <= set(WHOLE)


@pytest.mark.parametrize(
    ("text", "front", "padding"),
    [
        ("4-6 3x3x3 2+2f 5x7", 0, (1, 1)),
        ("4-6 3x3x3 2z+1f 5x7", 2, (1, 1)),
        ("4-6 3x3x3 1z+1+2f 5x7", 1, (1, 1)),
        ("4-6 3x1x1/2x1x1 1+4f 5x7", 0, (0, 0)),
        ("4-6 1x3x3 2f 5x7", 0, (1, 1)),
    ],
)
def test_a_call_is_the_convolution_that_its_words_say(
    text: str, front: int, padding: tuple[int, int]
) -> None:
    call = Call.of(text)
    torch.manual_seed(0)
    run, inputs = built(call, False, torch.float64, "cpu")
    assert [x.shape[2] for x in inputs] == [n for n in (call.cached, call.frames) if n]
    torch.manual_seed(0)
    weight = torch.randn(6, 4, *call.kernel).double() / (4 * torch.Size(call.kernel).numel()) ** 0.5
    bias = torch.randn(6).double()
    zeros = torch.zeros(1, 4, front, 5, 7, dtype=torch.float64)
    video = torch.cat([zeros, *inputs[:-1], F.silu(inputs[-1])], 2)
    meant = F.conv3d(video, weight, bias, call.stride, (0, *padding)) + 1
    torch.testing.assert_close(run(*inputs), meant)


def test_a_patch_embedding_reads_the_input_itself() -> None:
    call = Call.of("4-6 1x2x2/1x2x2 3f 6x8")
    torch.manual_seed(0)
    run, (x,) = built(call, False, torch.float64, "cpu")
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4, 1, 2, 2).double() / 4, torch.randn(6).double()
    rows = x.reshape(4, 3, 3, 2, 4, 2).permute(1, 2, 4, 0, 3, 5).reshape(36, 16)
    meant = (
        (rows @ weight.reshape(6, 16).T + bias + 1).reshape(1, 3, 3, 4, 6).permute(0, 4, 1, 2, 3)
    )
    torch.testing.assert_close(run(x), meant)


@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
def test_the_inputs_lie_as_the_layout_says(layout: str) -> None:
    _, inputs = built(
        Call.of("4-6 3x3x3 2+2f 5x7"), layout == "channels_last", torch.float32, "cpu"
    )
    last = [x.is_contiguous(memory_format=torch.channels_last_3d) for x in inputs]
    assert last == [layout == "channels_last"] * 2


@pytest.mark.parametrize(
    ("text", "lowering"),
    [
        ("192-384 1x1x1 2f 180x320", "matmul"),
        ("16-5120 1x2x2/1x2x2 21f 60x104", "matmul"),
        ("512-512 1x3x3 16f 88x160", "conv2d"),
        ("384-384 3x3x3 2z+1f 60x104", "conv2d"),
    ],
)
def test_rules_choose_for_a_gpu(text: str, lowering: str) -> None:
    call = Call.of(text)
    # Without measuring, which would time these calls on the CPU.
    options = Options(layout=call.layout("nvidia"), tune_seconds=0)
    site = conv3d_choices.site(call, torch.bfloat16, options, H200)
    found = choose(idiom.IDIOM, site, H200, options).lowering
    assert found is not None
    assert found.name == lowering
    # A transformer is no convolutional network, and a VAE is one whose 1x1x1 convolutions follow
    # the others.
    assert site.values().channels_last is (lowering != "matmul" or "1x1x1" in text)


@pytest.mark.parametrize(
    ("vendor", "layout"), [("amd", "as_is"), ("cpu", "as_is"), ("nvidia", "channels_last")]
)
def test_a_vae_s_layout_is_the_vendor_s(vendor: str, layout: str) -> None:
    assert Call.of("4-6 1x1x1 2f 5x7").layout(vendor) == layout


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("4-6 3x3x3 2+2f 5x7", "x 1x4x2x5x7 + 1x4x2x5x7 w 6x4x3x3x3 pad 1x1"),
        ("4-6 3x3x3 1z+1+2f 5x7", "x 1x4x1x5x7 + 1x4x2x5x7 w 6x4x3x3x3 pad 1x1 zero frames 1x0"),
        ("4-6 3x3x3 3f 5x7", "x 1x4x3x5x7 w 6x4x3x3x3 pad 1x1"),
        ("4-6 3x1x1/2x1x1 1+4f 5x7", "x 1x4x1x5x7 + 1x4x4x5x7 w 6x4x3x1x1 stride 2x1x1"),
    ],
)
def test_the_site_is_the_one_that_the_backend_measures(
    monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    monkeypatch.setattr(bounds, "WORTH_MEASURING", replace(bounds.WORTH_MEASURING, value=0))
    call = Call.of(text)
    torch._dynamo.reset()
    with torch.no_grad(), ahead.noting() as noted:
        run, inputs = compiled(call, "auto", "auto", torch.bfloat16, "cpu")
        run(*inputs)
    (met,) = noted.calls
    site = conv3d_choices.site(
        call, torch.bfloat16, Options(layout="as_is"), Target.of_device("cpu")
    )
    assert site.values().key() == met.key == f"conv3d bfloat16 {key}"


def again(
    unbound: str | None, chosen: str | None = None, by: str = "measurement", **ms: float
) -> dict[str, Any]:
    row = {"call": f"call {unbound}", "chosen": chosen or unbound, "unbound": unbound, "by": by}
    return {
        **row,
        **({"again": ms, "ms": {}} if by == "measurement" else {"ms": ms}),
        "bound_mib": 512,
    }


def timed(**ms: float) -> dict[str, Any]:
    return {
        "call": f"call {ms}",
        "said": "it",
        "ms": {k.replace("_", " ", 1): v for k, v in ms.items()},
    }


@pytest.mark.parametrize(
    ("row", "ratio"),
    [
        (again("taps", taps=2.0, direct=2.0), 1.0),
        (again("taps", taps=2.2, direct=2.0), 1.1),
        (again(None, taps=2.2, direct=2.0), None),
        (again("taps"), None),
        (again("conv2d", by="rule", conv2d=3.0, matmul=2.0), 1.5),
        (again(None, by="rule", conv2d=3.0), None),
        (timed(auto_auto=3.0, taps_as_is=2.0, Inductor=4.0), 1.5),
        (timed(taps_as_is=2.0), None),
        ({"call": "too small"}, None),
    ],
)
def test_the_chosen_one_is_held_against_the_best(row: dict[str, Any], ratio: float | None) -> None:
    assert conv3d.away(row) == (None if ratio is None else pytest.approx(ratio))


def test_the_verdict_names_the_worst_and_counts_each_kind() -> None:
    rows = [again("taps", taps=2.0, direct=3.0), again("direct", taps=2.0, direct=2.5)]
    rows += [again("conv2d", by="rule", conv2d=1.0, direct=1.5)]
    said = "2 of 3 choices within 3% of the best (by measurement 1 of 2, by rule 1 of 1); "
    assert conv3d.verdict(rows) == said + "the worst, call direct, is 1.250 of it"
    rows.append(again("taps", "direct", taps=2.0, direct=2.5))
    assert conv3d.verdict(rows).endswith(
        "; the memory bound changes 1 choices: {'call taps': 1.25}"
    )


def test_the_verdict_counts_what_has_no_choice() -> None:
    rows = [again("taps", taps=2.0, direct=3.0), again(None, by="rule", direct=1.0)]
    assert conv3d.verdict(rows).endswith("; 1 calls left to Inductor or not measured")
    assert conv3d.verdict(rows[1:]) == conv3d.verdict([]) == "no call has a choice to judge"


def test_the_verdict_of_compiled_ways_has_no_kinds() -> None:
    rows = [timed(auto_auto=3.0, taps_as_is=2.0)]
    assert conv3d.verdict(rows).startswith("0 of 1 choices within 3% of the best; the worst, ")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            again("taps", "direct", taps=2.0, direct=2.5),
            "[taps; within 512 MiB direct, 1.250 of that]",
        ),
        (again("taps", taps=2.0, direct=2.5), "[taps]"),
        (again("conv2d", by="rule", conv2d=2.0), "[conv2d, by rule]"),
        (again(None, by="rule", direct=2.0), "[left to Inductor, by rule]"),
        (timed(auto_auto=2.0), "[it]"),
    ],
)
def test_a_row_says_what_is_chosen_and_what_the_memory_bound_costs(
    row: dict[str, Any], said: str
) -> None:
    assert conv3d.line(row).endswith(said)


def test_the_table_has_every_lowering_of_each_call() -> None:
    rows = [
        again("direct", direct=1.25, taps=1.0)
        | {"call": WHOLE[0], "mib": {"direct": 3, "taps": 40}},
        again("matmul", by="rule", matmul=1.0, conv2d=2.0) | {"call": WHOLE[-1]},
    ]
    text = conv3d.table(rows)
    assert f"| {WHOLE[0]} |  |  |  | 1.25, 3 | 1, 40 |  |  |  | direct | 1.250 |" in text
    assert f"| {WHOLE[-1]} | 1, 0 | 2, 0 |  |  |  |  |  |  | matmul, by rule | 1.000 |" in text
    assert (
        "| call | matmul | conv2d | triton | direct | taps | taps_tiled | unfold | tiled | chosen "
        "| over the best |" in text
    )
    assert text.count("###") == 2


def test_the_table_has_aiter_s_columns_where_it_was_measured() -> None:
    rows = [again("aiter_triton", aiter_triton=1.0, direct=2.0) | {"call": WHOLE[0]}]
    assert "| call | matmul | conv2d | triton | aiter_triton | direct | taps |" in (
        text := conv3d.table(rows)
    )
    assert f"| {WHOLE[0]} |  |  |  | 1, 0 | 2, 0 |  |" in text and "aiter_flydsl" not in text


#: Calls, how each is chosen, and the lowerings that have times.
TRIED = {
    "4-4 3x3x3 2+1f 8x8": ("rule", "direct", {"taps", "direct", "unfold"}),
    "8-4 1x1x1 3f 8x8": ("rule", None, {"matmul", "conv2d", "direct"}),
    "4-8 1x2x2/1x2x2 3f 8x8": ("rule", None, {"matmul", "conv2d", "direct"}),
    "4-4 1x3x3 3f 8x8": ("rule", "direct", {"conv2d", "direct"}),
    "4-4 3x3x3 2z+1f 8x8": ("rule", "conv2d", {"conv2d", "taps", "direct", "unfold"}),
    "4-4 3x1x1/2x1x1 1+4f 8x8": ("rule", "direct", {"taps", "taps_tiled", "direct", "unfold"}),
    "32-32 3x3x3 2+1f 140x140": ("measurement", None, {"taps", "direct", "unfold"}),
}


@pytest.mark.exhaustive
def test_every_call_has_a_choice_and_the_times_of_all_lowerings(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    ran = forked.run(
        [sys.executable, "-m", "rocm_passes.bench.conv3d", "--device", "cpu", "--all", "--dtype",
        "float32", "--out",
         str(out), "--calls", ";".join(TRIED)],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(out.read_text())
    assert [row["call"] for row in rows] == list(TRIED)
    for row, (by, chosen, able) in zip(rows, TRIED.values(), strict=True):
        assert row["by"] == by
        assert set(row["ms"]) == able
        assert "again" not in row or by == "measurement"
        if by == "rule":
            assert row["chosen"] == row["unbound"] == chosen
    measured = rows[-1]
    assert measured["key"].startswith(
        "conv3d float32 x 1x32x2x140x140 + 1x32x1x140x140 w 32x32x3x3x3 pad 1x1"
    )
    assert set(measured["again"]) == set(measured["ms"])
    assert measured["chosen"] in measured["ms"]
    assert " of 5 choices within 3% of the best (by measurement " in ran.stdout
    assert "; 2 calls left to Inductor or not measured" in ran.stdout


def test_without_times_a_choice_by_rule_is_not_measured(tmp_path: Path) -> None:
    options = Options(choices=str(tmp_path / "choices.json"))
    row = conv3d_choices.row(
        "4-4 3x3x3 2z+1f 8x8", torch.float32, options, Target.of_device("cpu"), times=False
    )
    assert (row["chosen"], row["by"]) == ("conv2d", "rule")
    assert "ms" not in row
    assert not Path(options.choices).exists()
