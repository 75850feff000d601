# ruff: noqa: C408 (configs and inputs are keyword arguments, and read as such)
"""Which sites of production models go to which function of aiter, on each AMD architecture.

    python -m examples.aiter_sites                  writes docs/measured/aiter_sites.md
    python -m examples.aiter_sites vae_flux         prints the rows of one workload

No GPU is needed: models are built without weights, traced, and rewritten for a faked architecture
with a double of aiter's main branch installed. Nothing is timed and nothing computes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from examples.write_docs import between, markdown
from rocm_passes import backend, policy
from rocm_passes.bench import models
from rocm_passes.bench.workload import Workload
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.target import AMD_ARCHITECTURES, Target
from rocm_passes.tuning import ahead
from tests.doubles.aiter_double import VERSIONS, installed

PAGE = Path(__file__).resolve().parent.parent / "docs" / "measured" / "aiter_sites.md"
VERSION = VERSIONS[-1]

SDXL_VAE = replace(
    models.workload("vae_flux"),
    name="vae_sdxl",
    config={
        **models.workload("vae_flux").config,
        "latent_channels": 4,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    feed=lambda draw: dict(z=draw.normal(1, 4, 128, 128), return_dict=False),
    note="SDXL, 1024 px",
)
SDXL = Workload(
    name="sdxl_unet",
    source="UNet2DConditionModel",
    config=dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    # The kinds of layers, each once or twice.
    single=dict(layers_per_block=1, transformer_layers_per_block=1),
    block=None,
    feed=lambda draw: dict(
        sample=draw.normal(2, 4, 128, 128),
        timestep=torch.tensor(500),
        encoder_hidden_states=draw.normal(2, 77, 2048),
        added_cond_kwargs=dict(text_embeds=draw.normal(2, 1280), time_ids=draw.normal(2, 6)),
        return_dict=False,
    ),
    note="SDXL, 1024 px, guidance: a UNet of 1 layer a block",
)
WAN_VAE = replace(
    models.workload("vae_wan"),
    feed=lambda draw: dict(z=draw.normal(1, 16, 3, 60, 104), return_dict=False),
    note="Wan 2.1, 832x480, 3 latent frames",
)
BLOCKS = ("wan_block", "z_image_block", "qwen_image_block", "flux_double", "flux_single")
WORKLOADS: tuple[Workload, ...] = (
    *(models.workload(name) for name in BLOCKS),
    SDXL,
    WAN_VAE,
    *(models.workload(name) for name in ("vae_qwen_image", "vae_flux")),
    SDXL_VAE,
)

HEAD = ("workload", "idiom", "aiter", "sites", *AMD_ARCHITECTURES)
REASONS_HEAD = ("idiom", "aiter", "reason (N: a number)", "architectures", "sites")


class _Traced(Exception):
    """All architectures have been asked: nothing is to be compiled."""


@dataclass(frozen=True)
class Said:
    """What was decided of one lowering by aiter at one site. verdict: as in the ledger."""

    workload: str
    arch: str
    idiom: str
    lowering: str
    verdict: str
    reason: str


def said(workload: Workload, archs: Sequence[str] = AMD_ARCHITECTURES) -> list[Said]:
    """Every verdict on aiter, of the workload traced once."""
    found: list[Said] = []

    def asked(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        for arch in archs:
            for entry in _entries(gm, inputs, arch):
                found.extend(_verdicts(workload.name, arch, entry))
        raise _Traced

    made = workload.build("meta")
    made.module.to_empty(device="cpu")
    args, kwargs = tree_map_only(torch.Tensor, _empty, (made.args, made.kwargs))
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.compile(made.function, backend=asked, fullgraph=True)(*args, **kwargs)
    except Exception as error:
        if "_Traced" not in str(error):
            raise
    return found


def _empty(t: torch.Tensor) -> torch.Tensor:
    """Memory that nothing writes or reads."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)


def _entries(gm: fx.GraphModule, inputs: Sequence[Any], arch: str) -> Iterator[Entry]:
    target = Target("amd", arch, arch, torch.__version__, "3.6")
    ledgers: list[Ledger] = []
    with (
        installed(VERSION, arch),
        mock.patch.object(backend.Target, "of_inputs", staticmethod(lambda _: target)),
        ahead.noting(),
    ):
        options = {"tune_seconds": 0}
        backend.rocm_diffusion(gm, inputs, options=options, listener=ledgers.append, caches=False)
    for ledger in ledgers:
        yield from ledger.entries


def _verdicts(workload: str, arch: str, entry: Entry) -> Iterator[Said]:
    for each in entry.verdicts:
        if each.lowering.startswith("aiter"):
            yield Said(workload, arch, entry.idiom, each.lowering, each.verdict, each.reason)
    # A larger fusion that was not taken has no entry; what it said of aiter stands here.
    for note in entry.considered:
        idiom, _, rest = note.partition(": ")
        for part in rest.removeprefix("left to Inductor: ").split("; "):
            name, _, reason = part.partition(": ")
            if name == "aiter":
                verdict = "not_faster" if _by_rule(reason) else "refused"
                yield Said(workload, arch, idiom, name, verdict, reason)


def _by_rule(reason: str) -> bool:
    """Is it why a rule does not take aiter, which could?"""
    rules = (rule for rule in policy.RULES if rule.lowering == "aiter" and not rule.pays)
    return any(reason.startswith(rule.reason) for rule in rules)


def rows(found: Sequence[Said]) -> list[tuple[str, ...]]:
    """One for each workload, idiom and lowering; a column for each architecture."""
    counted: dict[tuple[str, str, str], dict[str, Counter[str]]] = {}
    for each in found:
        by_arch = counted.setdefault((each.workload, each.idiom, each.lowering), {})
        by_arch.setdefault(each.arch, Counter())[_column(each.verdict)] += 1
    return [
        (
            *key,
            _sites(by_arch),
            *(_cell(by_arch.get(arch, Counter())) for arch in AMD_ARCHITECTURES),
        )
        for key, by_arch in counted.items()
    ]


def _sites(by_arch: Mapping[str, Counter[str]]) -> str:
    """How many sites were asked about: one number where all architectures have as many."""
    return " to ".join(map(str, sorted({counts.total() for counts in by_arch.values()})))


def _cell(counts: Counter[str]) -> str:
    names = ("taken", "can take", "refused")
    return ", ".join(f"{name} {counts[name]}" for name in names if counts[name]) or "-"


def _column(verdict: str) -> str:
    """not_faster: it could, and no rule or measurement says that it pays."""
    return {"taken": "taken", "able": "can take", "not_faster": "can take"}.get(verdict, "refused")


def reasons(found: Sequence[Said]) -> list[tuple[str, ...]]:
    """Refusals by reason, the most frequent first."""
    counted: Counter[tuple[str, str, str]] = Counter()
    archs: dict[tuple[str, str, str], dict[str, None]] = {}
    for each in found:
        if _column(each.verdict) == "refused":
            key = (each.idiom, each.lowering, _general(each.reason))
            counted[key] += 1
            archs.setdefault(key, {})[each.arch] = None
    return [(*key, ", ".join(archs[key]), str(n)) for key, n in counted.most_common()]


def _general(reason: str) -> str:
    """Sizes and names of architectures differ from site to site; the reason does not."""
    reason = re.sub(r"this is gfx\w+", "this is another", reason)
    reason = re.sub(r"\[[\d, ]+\]", "[N]", reason)
    return re.sub(r"(?<![\w.#])\d[\d.]*(x\d+)*", "N", reason)


def page() -> str:
    """The page with both tables made anew."""
    found = [each for workload in WORKLOADS for each in said(workload)]
    text = between(PAGE.read_text(encoding="utf-8"), "sites", markdown(HEAD, rows(found)))
    return between(text, "reasons", markdown(REASONS_HEAD, reasons(found)))


def main(argv: Sequence[str]) -> None:
    if not argv:
        PAGE.write_text(page(), encoding="utf-8")
    for name in argv:
        found = said(next(w for w in WORKLOADS if w.name == name))
        print(markdown(HEAD, rows(found)), markdown(REASONS_HEAD, reasons(found)), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
