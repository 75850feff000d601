"""What two ranks of gloo find together: one pair of processes for all of these checks."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.cli.running import REPOSITORY
from tests.suites import everything

Pair = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks' findings are, and the ledger of both: explain runs under torchrun.

    Workers of pytest-xdist share the one pair: the first of them starts it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "pair"
    with open(shared / "pair.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            _start(folder)
    failed = folder / "failed.txt"
    assert not failed.exists(), failed.read_text()
    return folder


def _start(folder: Path) -> None:
    """torchrun and both ranks are forks: each would import torch, two of them diffusers too."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    explain = ["-m", "rocm_passes", "explain", "--json", str(folder / "ledger.json")]
    worker = ["-m", "tests.distributed.worker", str(folder), *["all"] * everything()]
    forking = [sys.executable, "-m", "tests.forked"]
    done = forked.run(
        [sys.executable, *torchrun, *forking, *explain, *worker],
        cwd=REPOSITORY,
        env={
            # Operators run as their references, which takes less time than Triton's interpreter.
            **forked.without_interpreter(),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        },
        timeout=560,
    )
    (folder / "out.txt").write_text(done.stdout)
    if done.returncode != 0:
        (folder / "failed.txt").write_text(done.stderr[-5000:])


def of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The two ranks' findings of one check."""
    found = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    for each in found:
        assert "raised" not in each, each["raised"]
    return found


@pytest.mark.parametrize(
    ("name", "lowering", "by"),
    [
        # Rank 1 would take "unfold" by its own times.
        ("each_measures_otherwise", None, None),
        ("a_damaged_file_on_rank_1", None, None),
        ("different_cards", "taps", None),
    ],
)
def test_one_rank_measures_and_both_choose_alike(
    folder: Path, name: str, lowering: str | None, by: str | None
) -> None:
    found = of(folder, name)
    sites = [each["site"] for each in found]
    assert sites[0] == sites[1]
    assert sites[0][2] in ((lowering,) if lowering else ("taps", "unfold"))
    measurer = sites[0][3].split(":")[0]
    assert measurer in ("measured on rank 0", "measured on rank 1")
    assert sum(each["asked"] for each in found) == 1
    assert found[int(measurer[-1])]["asked"] == 1


def test_ranks_that_know_different_times_choose_alike(folder: Path) -> None:
    found = of(folder, "different_files")
    assert found[0]["site"] == found[1]["site"]
    assert found[0]["asked"] == found[1]["asked"] == 0


def test_a_rank_that_compiles_alone_measures(folder: Path) -> None:
    alone = of(folder, "rank_1_alone")[1]
    assert alone["site"][2:] == ["unfold", alone["site"][3]]
    assert (alone["asked"], alone["notes"]) == (1, [])


def test_different_cards_are_in_the_ledger(folder: Path) -> None:
    notes = [note for each in of(folder, "different_cards") for note in each["notes"]]
    assert any("MI300X (ranks 0), gfx942 AMD Instinct MI325X (ranks 1)" in n for n in notes)


#: Of results in bfloat16 against the same operations elsewhere rounded; of float32.
BF16, FP32 = 1e-2, 1e-6


@pytest.mark.parametrize(
    ("name", "idioms", "tolerance"),
    [
        ("tables_sliced_per_rank", ["rotary_pair"], BF16),
        ("norms_of_sharded_heads", ["qk_norm_rotary"], BF16),
        ("residuals_of_sharded_tokens", ["residual_norm_modulate"], BF16),
        ("a_padded_last_shard", ["rms_norm", "rms_norm"], BF16),
        ("a_halo_of_frames_in_front", ["conv3d"], FP32),
        ("a_halo_of_frames_on_both_sides", ["conv3d"], FP32),
        ("a_halo_of_rows", ["conv3d"], FP32),
    ],
)
def test_a_shard_is_rewritten_and_right(
    folder: Path, name: str, idioms: list[str], tolerance: float
) -> None:
    for each in of(folder, name):
        found = [(s[0], s[1]) for s in each["sites"] if s[0] != "attention"]
        assert found == [(i, "rewritten") for i in idioms]
        assert each["distance"] < tolerance


def test_a_norm_across_sharded_channels_is_refused_with_its_reason(folder: Path) -> None:
    for each in of(folder, "norms_across_sharded_channels"):
        norms = [s for s in each["sites"] if s[0] == "rms_norm"]
        assert [s[1] for s in norms] == ["refused", "refused"]
        assert all("its rows are sharded over ranks, whose means all_reduce" in s[3] for s in norms)
        assert {s[1] for s in each["sites"] if s[0].startswith("rotary")} == {"rewritten"}
        assert each["distance"] < BF16


def test_frames_of_a_neighbour_are_read_from_their_own_tensor(folder: Path) -> None:
    """Rank 0 has no neighbour in front: its zeros are the convolution's own."""
    assert [f["pieces"] for f in of(folder, "a_halo_of_frames_in_front")] == [1, 2]
    for each in of(folder, "a_halo_of_frames_on_both_sides"):
        assert each["pieces"] in (2, 3) and each["halo"] is None


def test_rows_of_neighbours_are_copied_and_the_ledger_says_so(folder: Path) -> None:
    for each in of(folder, "a_halo_of_rows"):
        assert each["pieces"] == 1
        assert each["halo"].startswith("3 tensors joined along the height are copied together")


@pytest.mark.parametrize(
    "name",
    [
        "ulysses_of_a_pipeline",
        pytest.param("ulysses_after_compile_pipeline", marks=pytest.mark.exhaustive),
        "ulysses_after_the_first_call",
        pytest.param("ulysses_of_flux", marks=pytest.mark.exhaustive),
        "fsdp_before_compile_pipeline",
        "fsdp_after_compile_pipeline",
    ],
)
def test_a_parallel_model_is_compiled_and_right(folder: Path, name: str) -> None:
    for each in of(folder, name):
        assert len(each["compiled"]) == 1, each["report"]
        assert each["distance"] < FP32
        assert "qk_norm_rotary" in each["rewritten"]
        assert "residual_norm_modulate" in each["rewritten"]


@pytest.mark.parametrize(
    "name",
    [
        "ulysses_of_a_pipeline",
        pytest.param("ulysses_of_flux", marks=pytest.mark.exhaustive),
    ],
)
def test_q_and_k_are_sites_of_their_own_with_ulysses(folder: Path, name: str) -> None:
    for each in of(folder, name):
        assert each["rewritten"].count("qk_norm_rotary") in (2, 4)


def test_the_report_says_what_breaks_a_graph(folder: Path) -> None:
    for each in of(folder, "fsdp_before_compile_pipeline"):
        assert "FSDP gathers its weights before a call" in each["report"]
    for each in of(folder, "a_whole_model_with_ulysses"):
        assert "context parallelism splits and gathers tokens within it" in each["report"]


def test_the_ledger_of_both_ranks_is_one(folder: Path) -> None:
    found = json.loads((folder / "ledger.json").read_text())
    ranks = [g["ranks"] for g in found["graphs"]]
    assert ranks.count([0, 1]) > len(ranks) / 2
    # Shapes of their own: the padded shard, the halo at an end; and what one rank compiled alone.
    alone = [g["graph"] for g in found["graphs"] if len(g["ranks"]) == 1]
    assert alone and all(name.endswith(("of rank 0", "of rank 1")) for name in alone)
    said = (folder / "out.txt").read_text()
    assert "on ranks 0-1, of which" in said and said.count("graphs compiled by") == 1


@pytest.mark.exhaustive
def test_the_benchmark_of_several_gpus_runs_on_two_processes(folder: Path) -> None:
    both = of(folder, "the_benchmark_of_several_gpus")
    assert both[0]["rows"] == both[1]["rows"]
    rows = {(r["case"], r["split"]): r for r in both[0]["rows"]}
    # Plain SDPA gives no log-sum-exp, by which a ring adds up.
    assert "return_lse" in rows.pop(("wan_1.3b", "ring"))["failed"]
    assert set(rows) == {
        ("wan_1.3b", "one"),
        ("wan_1.3b", "ulysses"),
        ("wan_decoder", "one"),
        ("wan_decoder", "rows"),
    }
    for row in rows.values():
        assert row["failed"] == "" and set(row["ms"]) == {"eager", "ours"}
        assert row["difference"]["ours"] < FP32
    assert both[0]["table"].count("\n") == 6
