from __future__ import annotations

import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.errors import RocmPassesError
from rocm_passes.kernels.aiter import contract, group_norm, installation, rms_norm
from tests.doubles.aiter_double import VERSIONS, absent, broken, installed, unrelated


def test_absent() -> None:
    with absent():
        found = installation.find()
        assert (found.status, found.version, found.features) == ("absent", None, frozenset())
        assert "not installed" in found.detail and "amd-aiter" in found.detail
        assert installation.unmet("gfx942") == found.detail


def test_the_unrelated_package_of_that_name_is_told_apart_without_being_imported() -> None:
    with unrelated():
        found = installation.find()
        assert found.status == "unrelated"
        assert "another project" in found.detail
        assert installation.unmet("gfx942") == found.detail
        assert "aiter" not in sys.modules


def test_a_failing_import_is_told_in_its_own_words() -> None:
    error = RuntimeError("ROCm version file not found")
    with broken(error), mock.patch.object(installation, "ROCM_BUILD", True):
        found = installation.find()
        assert found.status == "broken"
        assert "RuntimeError: ROCm version file not found" in found.detail
        assert installation.unmet("gfx942") == found.detail


def test_an_exit_during_import_does_not_end_the_process() -> None:
    with broken(SystemExit("no compiler")):
        assert "SystemExit: no compiler" in installation.find().detail


def test_triton_only_mode_counts_as_broken() -> None:
    with installed(own_files=True):
        (folder,) = __import__("aiter").__path__
        with open(f"{folder}/__init__.py", "w") as file:
            file.write("AITER_TRITON_ONLY = True\n")
        for name in [name for name in sys.modules if name.split(".")[0] == "aiter"]:
            del sys.modules[name]
        installation.reset()
        found = installation.find()
        assert found.status == "broken" and "AITER_TRITON_ONLY" in found.detail


@pytest.mark.parametrize("version", VERSIONS)
def test_features_are_read_off_the_signatures(version: str) -> None:
    numbers = tuple(map(int, version.split(".")))
    with installed(version):
        found = installation.find()
    assert (found.status, found.version) == ("usable", version)
    for feature, since in (
        ("rmsnorm2d_fwd", (0, 1, 9)),
        ("rope_cached_2c_fwd", (0, 1, 9)),
        ("layernorm2d_fwd", (0, 1, 9)),
        ("hip_rms_norm", (0, 1, 12)),
        ("fused_qk_norm_rope_1way", (0, 1, 15)),
        ("gemma_norm_keyword", (0, 1, 17)),
        ("opus", (0, 1, 18)),
        ("groupnorm_run", (0, 1, 20)),
    ):
        assert (feature in found.features) == (numbers >= since), feature
    assert ("functional_groupnorm" in found.features) == ((0, 1, 12) <= numbers <= (0, 1, 18))


def test_an_unknown_signature_is_not_called() -> None:
    with installed(own_files=True):
        (folder,) = __import__("aiter").__path__
        with open(f"{folder}/ops/rope.py", "w") as file:
            file.write(
                "def rope_cached_fwd(output, input, cos, sin):\n    raise NotImplementedError\n"
            )
        installation.reset()
        assert "rope_cached_fwd" not in installation.find().features


def test_the_answer_is_remembered_until_reset() -> None:
    with installed("0.1.18"):
        assert installation.find() is installation.find()
    assert installation.find().version != "0.1.18"


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("0.1.17", (0, 1, 17), True),
        ("0.1.20.post1", (0, 1, 17), True),
        ("0.1.9", (0, 1, 17), False),
        ("v0.2", (0, 1, 17), True),
        ("0.1.17+rocm7.2", (0, 1, 17), True),
        ("unknown", (0, 1, 17), False),
        (None, (0, 1, 17), False),
    ],
)
def test_versions_compare_by_number(
    version: str | None, wanted: tuple[int, ...], expected: bool
) -> None:
    assert installation.Installation("usable", version, "").at_least(*wanted) is expected


def test_unmet_without_rocm() -> None:
    with installed(), mock.patch.object(installation, "ROCM_BUILD", False):
        assert "not a ROCm build" in (installation.unmet("gfx942") or "")


def test_unmet_without_a_gpu() -> None:
    with installed():
        assert "no AMD GPU" in (installation.unmet(None) or "")


def test_unmet_on_another_architecture() -> None:
    with installed():
        assert "gfx906" in (installation.unmet("gfx906") or "")


@pytest.mark.parametrize("arch", installation.ARCHITECTURES)
def test_met(arch: str) -> None:
    with installed(arch=arch):
        assert installation.unmet(arch) is None


def test_a_refused_call_raises_an_error_of_ours() -> None:
    with absent(), pytest.raises(contract.AiterContractError, match="not installed") as caught:
        rms_norm.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-6, round_before_weight=False)
    assert isinstance(caught.value, RocmPassesError) and isinstance(caught.value, ValueError)


def test_host_memory_is_refused_by_the_real_aiter() -> None:
    with installed(), mock.patch.object(contract, "DEVICE_TYPES", frozenset({"cuda"})):
        reason = rms_norm.refusal(torch.ones(2, 8), torch.ones(8), round_before_weight=False)
    assert reason is not None and "x is on cpu" in reason


def test_tensors_on_two_devices_are_refused() -> None:
    with installed(), mock.patch.object(contract, "DEVICE_TYPES", frozenset({"cpu", "meta"})):
        weight = torch.ones(8, device="meta")
        reason = rms_norm.refusal(torch.ones(2, 8), weight, round_before_weight=False)
    assert reason == "weight is on meta and x on cpu"


def test_sparse_tensors_are_refused() -> None:
    with installed():
        x = torch.ones(2, 8).to_sparse()
        reason = rms_norm.refusal(x, torch.ones(8), round_before_weight=False)
    assert reason is not None and "sparse" in reason


def test_nothing_runs_under_a_fake_tensor_mode() -> None:
    with (
        installed(),
        FakeTensorMode(),
        pytest.raises(contract.AiterContractError, match="FakeTensorMode"),
    ):
        group_norm.group_norm(torch.ones(1, 4, 8), 2, torch.ones(4), torch.ones(4), 1e-5)


def test_symbolic_sizes_are_refused() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    x, weight = torch.ones(6, 8), torch.ones(8)
    with installed(), FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False) as mode:
        reason = rms_norm.refusal(mode.from_tensor(x), weight, round_before_weight=False)
    assert reason is not None and "symbolic" in reason


def test_fake_tensors_get_the_answer_of_real_ones() -> None:
    with installed(), FakeTensorMode():
        for hidden, expected in ((768, None), (769, "hidden size 769 is odd")):
            x, weight = torch.ones(2, hidden).half(), torch.ones(hidden).half()
            reason = rms_norm.refusal(x, weight, round_before_weight=False)
            assert reason is None if expected is None else expected in (reason or "")


def test_the_double_leaves_no_trace() -> None:
    before = {name for name in sys.modules if name.split(".")[0] == "aiter"}
    status = installation.find().status
    with installed():
        assert installation.find().version == "0.1.20"
    assert {name for name in sys.modules if name.split(".")[0] == "aiter"} == before
    assert installation.find().status == status
    assert sorted(contract.DEVICE_TYPES) == ["cuda"]
