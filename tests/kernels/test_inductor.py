"""Our kernels launched by Inductor's generated code: read for an AMD GPU, without one.

On a machine with a GPU the benchmarks and the kernel tests run the same path.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from rocm_passes.kernels.triton import launched
from rocm_passes.kernels.triton.inductor import NotLaunchable, OnlyMemory
from rocm_passes.kernels.triton.launch import launch, written_down
from rocm_passes.kernels.triton.static_launch import as_a_template
from rocm_passes.ops.operator import OPERATORS
from tests import inductor_for_amd

#: By case: the kernels that the generated code launches.
LAUNCHED = {
    "norm": ["fused_norm_kernel"],
    "twice": ["fused_norm_kernel"] * 2,
    "slice": ["fused_norm_kernel"],
    "chain": ["fused_norm_kernel"],
    "rotation": ["rotary_heads_kernel"],
    "norm and rotation": ["rotary_heads_kernel"],
    "channel norm": ["channel_norm_kernel"],
    "group norm": [
        "group_norm_partials_kernel",
        "group_norm_combine_kernel",
        "group_norm_apply_kernel",
    ],
    "turned": [
        "group_norm_partials_kernel",
        "group_norm_combine_kernel",
        "group_norm_apply_kernel",
    ],
    "joined": [
        "channel_norm_kernel",
        "copy_frames_kernel",
        "group_norm_partials_kernel",
        "group_norm_combine_kernel",
        "group_norm_apply_kernel",
        "copy_frames_kernel",
    ],
    "convolution": ["conv_kernel"],
    "pad": ["pad_kernel"],
    "group norm and pad": [
        "group_norm_partials_kernel",
        "group_norm_combine_kernel",
        "group_norm_pad_kernel",
    ],
}
OPAQUE = ("by a library", "by python")
STATICALLY = "statically"


@pytest.fixture(scope="module")
def answers() -> Any:
    """In a process of its own: here the kernels are interpreted, and there torch believes
    in a GPU.
    """
    return inductor_for_amd.answers_of("tests.inductor_for_amd", *LAUNCHED, *OPAQUE, STATICALLY)


@pytest.mark.parametrize("case", LAUNCHED)
def test_launches_stand_in_the_generated_code(answers: Any, case: str) -> None:
    call = answers[case]["call"]
    assert "torch.ops.rocm_passes" not in call
    assert [
        re.sub(r"_\d+$", "", name) for name in re.findall(r"(\w+_kernel_\d+)\.run\(", call)
    ] == LAUNCHED[case]


@pytest.mark.parametrize("case", LAUNCHED)
def test_launches_are_noted_with_their_operators(answers: Any, case: str) -> None:
    """An error of a launch names them (`rewrite/launch_errors.py`)."""
    noted = answers[case]["noted"]
    assert sorted(kernel for kernel, _ in noted) == sorted(LAUNCHED[case])
    operators = {operator for _, operator in noted}
    assert operators <= {known.name for known in OPERATORS}
    assert all(launched.is_ours(kernel) for kernel, _ in noted)


@pytest.mark.parametrize("case", OPAQUE)
def test_an_opaque_call_launches_nothing_there(answers: Any, case: str) -> None:
    assert answers[case]["noted"] == []


@pytest.mark.parametrize("case", LAUNCHED)
def test_the_kernels_in_that_code_compile_as_wide_as_our_own(answers: Any, case: str) -> None:
    kernels = answers[case]["kernels"]
    assert len(kernels) == len(set(LAUNCHED[case]))
    for name, assembly in kernels.items():
        assert re.search(r"_(load|store)_dwordx4", assembly), name
        assert re.search(r"\.vgpr_spill_count:\s*0\b", assembly), name


def test_neighbours_are_not_copied_for_the_launch(answers: Any) -> None:
    """One allocation for each result: the output of `relu`, the norm's, and nothing else."""
    assert len(re.findall(r"empty_strided_cuda\(", answers["norm"]["call"])) == 2
    assert len(re.findall(r"empty_strided_cuda\(", answers["slice"]["call"])) == 2


def test_a_launch_like_an_earlier_one_has_the_same_arguments(answers: Any) -> None:
    """But for its tensors."""
    first, second = re.findall(
        r"fused_norm_kernel_\d+\.run\((.*?), stream", answers["twice"]["call"]
    )

    def numbers(arguments: str) -> list[str]:
        return ["tensor" if not a.isdigit() else a for a in arguments.split(", ")]

    assert numbers(first) == numbers(second)
    assert len(set(re.findall(r"buf\d+", second)) - set(re.findall(r"buf\d+", first))) >= 2


def test_what_turns_a_result_is_tiled(answers: Any) -> None:
    """Inductor sees the layout in which our kernel wrote: its copy goes over channels and over
    pixels.
    """
    (sizes,) = re.findall(
        r"triton_poi_fused_\d+\.run\(buf\d+, buf\d+, (.*?), stream", answers["turned"]["call"]
    )
    assert sizes == "128, 65536"


def test_a_result_behind_other_frames_is_written_where_it_belongs(answers: Any) -> None:
    """One allocation for each whole video (and the statistics'), channels-last; and none for the
    norm alone.
    """
    allocated = re.findall(
        r"empty_strided_cuda\(\((.*?)\), \((.*?)\), torch.bfloat16", answers["joined"]["call"]
    )
    assert allocated == [("1, 96, 6, 60, 104", "3594240, 1, 599040, 9984, 96")] * 2


def test_a_padded_tensor_is_written_once_in_the_layout_that_was_asked_for(answers: Any) -> None:
    """One allocation for what is padded, as it comes, and one for the result, channels-last."""
    allocated = re.findall(r"empty_strided_cuda\(\((.*?)\), \((.*?)\), ", answers["pad"]["call"])
    assert [sizes for sizes, _ in allocated] == ["1, 256, 5, 32, 32", "1, 256, 11, 66, 66"]
    assert [strides.split(", ")[1] for _, strides in allocated] == ["5120", "1"]


@pytest.mark.parametrize("case", OPAQUE)
def test_a_librarys_lowering_stays_one_call_and_so_does_launch_python(
    answers: Any, case: str
) -> None:
    assert "torch.ops.rocm_passes.rms_norm.default" in answers[case]["call"]
    assert answers[case]["kernels"] == {}


def test_the_static_launcher_takes_our_kernels_where_it_is_asked_for(answers: Any) -> None:
    """With no option of Inductor's: in the processes that compile kernels none is set."""
    assert answers[STATICALLY]["static"] == [True]
    assert answers["twice"]["static"] == [False]
    launches = [
        re.findall(r"(\w+_kernel_\d+)\.run\((.*?)\)", answers[case]["call"])
        for case in (STATICALLY, "twice")
    ]
    assert len(launches[0]) == 2 and launches[0] == launches[1]


def test_a_definition_in_another_form_is_left_as_it_is() -> None:
    body = (
        "async_compile.triton('norm_kernel', '''\ndef norm_kernel(): pass"
        "\n''', device_str='cuda')\n"
    )
    said = as_a_template("norm_kernel_0", body)
    assert said.index("def norm_kernel") < said.index("norm_kernel.heuristic_type = ")
    assert said.endswith("\n''', device_str='cuda')\n")
    other = "async_compile.triton(source)"
    assert as_a_template("norm_kernel_0", other) == other


def test_every_triton_lowering_launches() -> None:
    # aiter_conv's "triton" is aiter's own Python function.
    ours = [o for o in OPERATORS if o.name != "aiter_conv"]
    triton = [(o.name, low) for o in ours for low in o.lowerings if low.name == "triton"]
    assert triton
    assert [name for name, low in triton if not low.launches] == []


def test_computing_before_the_launch_is_refused() -> None:
    x = torch.ones(3, 4)
    with OnlyMemory() as memory:
        x.view(4, 3), x.unbind(), torch.empty_like(x)
        assert len(memory.allocated) == 1
        for compute in (x.t().contiguous, x.double, x.neg):
            with pytest.raises(NotLaunchable, match="before the launch"):
                compute()


def test_written_down_launches_run_nothing() -> None:
    class Kernel:
        arg_names = ("x_ptr", "n", "BLOCK")

        def __getitem__(self, grid: object) -> Any:
            raise AssertionError("it was launched")

    x = torch.ones(2)
    with written_down() as launches:
        launch(Kernel(), (7,), x, 2, BLOCK=16, num_warps=4)
    (only,) = launches
    assert (only.grid, only.num_warps) == ((7,), 4)
    assert only.arguments == {"x_ptr": x, "n": 2, "BLOCK": 16}
    with pytest.raises(AssertionError, match="it was launched"):
        launch(Kernel(), (7,), x, 2, BLOCK=16, num_warps=4)
