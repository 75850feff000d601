"""The benchmarks' workloads have production shapes; checked on the meta device, where nothing is
computed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from rocm_passes.bench.models import WORKLOADS, production, workload
from rocm_passes.bench.workload import Workload

# The first tensor that goes in, and the first that comes out.
SHAPES = {
    "wan_block": ((1, 32760, 5120), (1, 32760, 5120)),
    "wan_block_720p": ((1, 75600, 5120), (1, 75600, 5120)),
    "z_image_block": ((1, 4608, 3840), (1, 4608, 3840)),
    "qwen_image_block": ((1, 4096, 3072), (1, 512, 3072)),
    "flux_double": ((1, 4096, 3072), (1, 512, 3072)),
    "flux_single": ((1, 4096, 3072), (1, 512, 3072)),
    "flux2_double": ((1, 4096, 6144), (1, 512, 6144)),
    "flux2_single": ((1, 4608, 6144), (1, 4608, 6144)),
    "hunyuan_video_double": ((1, 118800, 3072), (1, 118800, 3072)),
    "hunyuan_video_single": ((1, 118800, 3072), (1, 118800, 3072)),
    "ltx_block": ((2, 7392, 2048), (2, 7392, 2048)),
    "vae_wan": ((1, 16, 5, 60, 104), (1, 3, 17, 480, 832)),
    "vae_wan_720p": ((1, 16, 5, 90, 160), (1, 3, 17, 720, 1280)),
    "vae_wan22": ((1, 48, 5, 44, 80), (1, 3, 17, 704, 1280)),
    "vae_qwen_image": ((1, 16, 1, 166, 166), (1, 3, 1, 1328, 1328)),
    "vae_flux": ((1, 16, 128, 128), (1, 3, 1024, 1024)),
    "vae_hunyuan_video": ((1, 16, 5, 32, 32), (1, 3, 17, 256, 256)),
    "vae_cogvideox": ((1, 16, 5, 60, 90), (1, 3, 17, 480, 720)),
    "vae_ltx": ((1, 128, 9, 16, 22), (1, 3, 65, 512, 704)),
}


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("item", WORKLOADS, ids=lambda w: w.name)
def test_workload_has_its_production_shape(item: Workload) -> None:
    prepared = item.build("meta")
    with torch.no_grad():
        out = _tensors(prepared())
    first = _tensors((prepared.args, prepared.kwargs))[0]
    assert (tuple(first.shape), tuple(out[0].shape)) == SHAPES[item.name]
    assert first.dtype == out[0].dtype == torch.bfloat16


def test_wan_block_keeps_in_float32_what_production_keeps() -> None:
    prepared = workload("wan_block").build("meta")
    dtypes = {name: parameter.dtype for name, parameter in prepared.module.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "scale_shift_table",
        "norm2.weight",
        "norm2.bias",
    }
    rotary = _tensors(prepared.args)[-2:]
    assert {table.dtype for table in rotary} == {torch.float32}


def test_production_gives_the_full_size_config() -> None:
    config = production("wan_block")
    assert config["num_layers"] == 40
    assert config["num_attention_heads"] * config["attention_head_dim"] == 5120


def test_an_unknown_workload_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(KeyError, match="no workload 'wam'; there are wan_block, "):
        workload("wam")
