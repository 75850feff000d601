"""The norms benchmark: its shapes are those of the models, what is compiled ahead is found again,
its tables.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rocm_passes.bench import norm_cases, norms
from rocm_passes.bench.models import workload
from rocm_passes.bench.norm_cases import Case, cases
from rocm_passes.bench.norm_shapes import SHAPES, Shape, distinct
from rocm_passes.bench.workers import MARK, WorkerFailed

ROW = {
    "models": ("A", "B"),
    "shape": [1, 8, 64],
    "floor_ms": 0.1,
    "ours_ms": 0.11,
    "inductor_ms": 0.25,
}
NAMED: dict[str, Any] = {**ROW, "case": "a norm", "models": (), "shape": [], "error_vs_eager": 1.0}


def test_each_shape_is_there_once_and_positive() -> None:
    for model, shapes in SHAPES.items():
        assert shapes and max(Counter(shapes).values()) == 1, model
        assert all(2 <= len(shape) <= 4 and min(shape) > 0 for shape in shapes), model
    assert {shape for shapes in SHAPES.values() for shape in shapes} == set(distinct())


def test_a_shape_names_every_model_that_has_it() -> None:
    assert distinct()[1, 512, 24, 128] == ("Qwen-Image, 1328x1328", "FLUX.1, 1024x1024")
    assert sum(map(len, distinct().values())) == sum(map(len, SHAPES.values()))


def observed(block: str) -> set[Shape]:
    """What the RMSNorm modules of a workload's block take in, at production size and
    without data.
    """
    prepared = workload(block).build("meta")
    seen = set()
    for module in prepared.module.modules():
        if isinstance(module, nn.RMSNorm) or type(module).__name__ == "RMSNorm":
            module.register_forward_pre_hook(lambda _, args: seen.add(tuple(args[0].shape)))
    with torch.no_grad():
        prepared()
    return seen


@pytest.mark.parametrize(
    ("model", "blocks"),
    {
        "Wan 14B, 832x480, 81 frames": ("wan_block",),
        "Wan 14B, 1280x720, 81 frames": ("wan_block_720p",),
        "Z-Image, 1024x1024": ("z_image_block",),
        "FLUX.1, 1024x1024": ("flux_double", "flux_single"),
        "FLUX.2, 1024x1024": ("flux2_double", "flux2_single"),
        "HunyuanVideo, 1280x720, 129 frames": ("hunyuan_video_double", "hunyuan_video_single"),
        "LTX-Video 2B, 704x512, 161 frames": ("ltx_block",),
    }.items(),
)
def test_shapes_are_those_of_the_model(model: str, blocks: tuple[str, ...]) -> None:
    seen = set().union(*map(observed, blocks))
    # Not in these blocks: image-to-video's image tokens, and the refiners and caption features of
    # Z-Image.
    elsewhere = {
        "Wan 14B, 1280x720, 81 frames": {(1, 257, 5120)},
        "Z-Image, 1024x1024": {
            shape for shape in SHAPES["Z-Image, 1024x1024"] if 4608 not in shape
        },
    }
    assert seen == set(SHAPES[model]) - elsewhere.get(model, set())


def test_every_shape_is_one_case_and_names_tell_cases_apart() -> None:
    every = cases()
    assert Counter(case.shape for case in every if case.models) == Counter(list(distinct()))
    assert len({case.name for case in every}) == len(every)


def test_originals_take_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    monkeypatch.setattr(norm_cases, "normal", normal)
    for case in cases():
        inputs = case.inputs()
        results = case.original(*inputs)
        assert results[0].dtype == inputs[0].dtype, case.name
        if case.models:
            assert inputs[0].shape == results[0].shape == case.shape, case.name
            assert inputs[1].shape == case.shape[-1:], case.name


def test_the_slice_of_a_fused_projection_has_the_strides_of_flux_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared, found = workload("flux2_single").build("meta"), []
    for module in prepared.module.modules():
        if isinstance(module, nn.RMSNorm):
            module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        prepared()
    monkeypatch.setattr(norm_cases, "normal", lambda *shape: torch.empty(shape, device="meta"))
    (case,) = cases("a slice of a fused projection")
    ours = case.inputs()[0]
    assert len(found) == 2
    assert {(x.shape, x.stride()) for x in found} == {(ours.shape, ours.stride())}


@pytest.mark.parametrize(
    ("only", "count"),
    [("RMSNorm [1, 75600, 5120]", 1), ("FLUX.1", 3), ("GroupNorm", 4), ("no such case", 0)],
)
def test_cases_are_chosen_by_name_or_model(only: str, count: int) -> None:
    assert len(cases(only)) == count


def test_arguments() -> None:
    given = norms.parser().parse_args([])
    assert (given.json, given.table, given.eager, given.only, given.compile) == (
        None,
        None,
        False,
        "",
        None,
    )
    assert given.at_once >= 1
    words = ["--json", "a.json", "--table", "a.md", "--eager", "--only=-x", "--at-once", "0"]
    given = norms.parser().parse_args([*words, "--compile", "1", "4"])
    assert (given.json, given.table, given.eager) == (Path("a.json"), Path("a.md"), True)
    assert (given.only, given.at_once, given.compile) == ("-x", 0, [1, 4])


@pytest.mark.parametrize(
    "words", [["--table"], ["--at-once", "many"], ["--compile", "1"], ["--shapes"]]
)
def test_other_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        norms.parser().parse_args(words)
    assert "usage" in capsys.readouterr().err


def test_the_table_has_models_first_then_other_cases() -> None:
    failed = {"case": "x", "models": ("C",), "shape": [4, 5], "failed": "no memory"}
    assert norms.table([NAMED, ROW | {"case": "y"}, failed]) == (
        "| model | shape | ours ms | Inductor ms | ours over the floor | Inductor over the floor "
        "|\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| A; B | [1, 8, 64] | 0.11 | 0.25 | 1.10 | 2.50 |\n"
        "| C | [4, 5] | failed |  |  |  |\n"
        "\n"
        "| computation | ours ms | Inductor ms | ours over the floor | Inductor over the floor |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| a norm | 0.11 | 0.25 | 1.10 | 2.50 |\n"
    )


def test_a_table_has_no_empty_part() -> None:
    assert norms.table([NAMED]).count("| ---") == 5
    assert norms.table([]) == ""


def test_rows_stand_under_their_heads() -> None:
    line = norms.line(NAMED)
    assert line.split()[2:] == ["0.1000", "0.1100", "0.2500", "1.10", "2.50", "1.00"]
    assert len(line) == len(norms.HEAD)
    assert norms.line({"case": "a norm", "failed": "no memory"}).split()[2:] == [
        "FAILED",
        "no",
        "memory",
    ]


def squared(x: Tensor) -> tuple[Tensor, ...]:
    return (x * x + 1,)


def small(name: str, ours: Any = squared) -> Case:
    return Case(name, lambda: (torch.linspace(-1, 1, 24).reshape(4, 6),), squared, ours)


def test_a_wrong_result_is_not_timed() -> None:
    exact, wrong = small("exact"), small("wrong", lambda x: (squared(x)[0] * 1.001,))
    assert norms.check(exact, exact.inputs(), exact.ours(*exact.inputs())) == 1.0
    with pytest.raises(AssertionError, match="wrong: error 0"):
        norms.check(wrong, wrong.inputs(), wrong.ours(*wrong.inputs()))


def fails(x: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError("no memory")


@pytest.mark.exhaustive
def test_a_worker_compiles_its_part_for_another_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters
    from torch._inductor import config

    every = [small("first"), small("not its own", fails), small("third", fails)]
    monkeypatch.setattr(norms, "cases", lambda only: every)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # Not by monkeypatch: of an entry with an alias it would leave none behind.
    with config.patch(autotune_local_cache=True, fx_graph_cache=True):
        norms.compile_worker(0, 2, "")
        # Nothing that was timed beside other workers may be remembered.
        assert not config.autotune_local_cache
        counters.clear()
        inputs = every[0].inputs()
        torch.testing.assert_close(norms.compiled(every[0])(*inputs), squared(*inputs))
    assert json.loads(capsys.readouterr().out.removeprefix(MARK)) == {
        "compiled": 1,
        "failed": {"third": "no memory"},
    }
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 0


class Fake:
    """A worker that replies at once; that of part 1 has failed."""

    started: list[list[str]]

    def __init__(self, module: str, words: list[str], env: dict[str, str], log: Path) -> None:
        assert module == "rocm_passes.bench.norms" and log.parent.is_dir()
        self.part = int(words[1])
        self.started.append(words)

    def wait(self) -> dict[str, Any]:
        if self.part == 1:
            raise WorkerFailed("the end of its log")
        return {"compiled": 2, "failed": {"a norm": "no memory"} if self.part == 2 else {}}

    def close(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    Fake.started = []
    monkeypatch.setattr(norms, "Worker", Fake)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    return Fake.started


def test_compiling_ahead_shares_the_cases_out(
    started: list[list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    norms.compile_ahead(7, 16, "FLUX", tmp_path)
    assert started == [["--compile", str(part), "3", "--only=FLUX"] for part in range(3)]
    said = capsys.readouterr().out
    assert "a worker failed, its cases are compiled later: the end of its log" in said
    assert "a norm not compiled ahead: no memory" in said
    assert "4 of 7 cases compiled" in said


@pytest.mark.parametrize(("count", "at_once"), [(3, 16), (85, 0), (85, 1)])
def test_a_few_cases_need_no_workers(
    count: int, at_once: int, started: list[list[str]], tmp_path: Path
) -> None:
    norms.compile_ahead(count, at_once, "", tmp_path)
    assert started == []


def test_a_failed_case_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: list[list[str]],
    tmp_path: Path,
) -> None:
    def measure(case: Case, rate: float, eager: bool) -> dict[str, Any]:
        if case.name == "bad":
            raise AssertionError("error 1")
        return {
            key: value
            for key, value in NAMED.items()
            if key.endswith("_ms") or key == "error_vs_eager"
        }

    monkeypatch.setattr(norms, "cases", lambda only: [small("bad"), small("good")])
    monkeypatch.setattr(norms, "measure", measure)
    monkeypatch.setattr(norms, "copy_rate", lambda: 4e9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(SystemExit, match="1"):
        norms.main(["--json", str(tmp_path / "rows.json"), "--table", str(tmp_path / "rows.md")])
    said = capsys.readouterr().out
    assert "copy 4.00 TB/s" in said and "FAILED error 1" in said and "2 cases in" in said
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row.get("failed") for row in rows] == ["error 1", None]
    assert "| bad | failed |" in (tmp_path / "rows.md").read_text()
    assert "| good | 0.11 |" in (tmp_path / "rows.md").read_text()
