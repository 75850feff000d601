"""What would be measured on AMD GPUs that are not here: each site's candidates, and their code.

    python -m rocm_passes.bench.amd_sites [--only wan_block,vae_wan] [--archs gfx942,gfx1100]
        [--json FILE] [--out docs/measured/amd_candidates.md]

Models of production size are traced on the meta device. Sites are found and cut out as in a
compile for the architecture, and Inductor generates the code of every candidate: launches, and the
bytes that they read and write, are counted. Nothing runs, so nothing is timed. `--json` keeps what
was found; a model and an architecture that it has are not generated again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from rocm_passes.bench import faked_amd
from rocm_passes.bench.amd_models import MODELS, Graph
from rocm_passes.fx.builder import fake_mode_of
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy import layout
from rocm_passes.registry import IDIOMS, PREPARE
from rocm_passes.report.ledger import Ledger
from rocm_passes.rewrite.cut import Cut, cut
from rocm_passes.rewrite.match import Context, Idiom, Match
from rocm_passes.rewrite.measuring import Answer, CompiledSite, Measuring, doubtful
from rocm_passes.rewrite.neighbourhood import Neighbourhood, NotCut
from rocm_passes.rewrite.plan import Plan
from rocm_passes.rewrite.sources import Sources
from rocm_passes.rewrite.work import Work
from rocm_passes.target import AMD_ARCHITECTURES, Target
from rocm_passes.tuning.consulted import INDUCTOR
from rocm_passes.tuning.inductor_code import generated


@dataclass
class Row:
    """A distinct call. codes: launches and bytes of each candidate. failed: why others have none.
    note: why it is not measured, or "".
    """

    site: str
    count: int
    codes: dict[str, tuple[int, int]]
    failed: dict[str, str]
    note: str = ""


class Listing(Measuring):
    """Lists the candidates of every site that it is asked about, and leaves the choice to rules."""

    def __init__(
        self, work: Work, target: Target, options: Options, preserved: tuple[str, ...]
    ) -> None:
        super().__init__(work.graph, target, options, preserved, work.channels_last)
        self.rows: dict[str, Row] = {}
        self._sources = Sources(work.graph)

    def ask(self, idiom: Idiom, site: Match, able: Sequence[Lowering[Any]]) -> Answer:
        names = doubtful(idiom, site.values(), able, self.target)
        if names:
            wanted = [low for low in able if low.name in names]
            try:
                self._list(self._cut(idiom, site, wanted))
            except NotCut as reason:
                self._note(idiom, site, f"not measured: {reason}")
        else:
            self._note(idiom, site, "beyond doubt by rule")
        return Answer(None)

    def convolution(self, idiom: Idiom, site: Match, able: Sequence[Lowering[Any]]) -> None:
        """A convolution is measured by itself, without neighbours."""
        nodes = sorted(site.nodes, key=list(self.graph.nodes).index)
        alone = Neighbourhood(site, nodes, nodes, self._sources)
        try:
            made = cut(alone, idiom.name, self.preserved, self.channels_last)
        except NotCut as reason:
            self._note(idiom, site, f"no code: {reason}")
            return
        self._list(CompiledSite(made, idiom, able, self.options.launch))

    def _list(self, site: CompiledSite) -> None:
        if site.key in self.rows:
            self.rows[site.key].count += 1
            return
        codes, failed = counted(site.cut, site.idiom, site.able, self.options.launch)
        self.rows[site.key] = Row(site.key.rpartition(" ")[0], 1, codes, failed)

    def _note(self, idiom: Idiom, site: Match, note: str) -> None:
        value = site.outputs[0].meta["val"]
        size = "x".join(map(str, value.shape))
        name = f"{idiom.name} {str(value.dtype).removeprefix('torch.')} {size}"
        row = self.rows.setdefault(name, Row(name, 0, {}, {}, note))
        row.count += 1


def counted(
    made: Cut, idiom: Idiom, able: Iterable[Lowering[Any]], launch: str
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Launches and bytes of Inductor's own code and of each lowering; why others have none."""
    codes: dict[str, tuple[int, int]] = {}
    failed: dict[str, str] = {}
    graphs: dict[str, Callable[[], fx.GraphModule]] = {INDUCTOR: made.original}
    for low in able:
        graphs[low.name] = lambda low=low: made.rewritten(low, idiom.operator, launch)
    for name, graph in graphs.items():
        try:
            code = generated(graph())
            codes[name] = (code.launches, code.bytes)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return codes, failed


def sites_of(graph: fx.Graph, target: Target, preserved: tuple[str, ...]) -> list[Row]:
    """Every distinct site of a post-grad graph."""
    _on_the_gpu(graph)
    options = Options(tune_seconds=0, choices="/dev/null")
    context = Context(options, target)
    mode = fake_mode_of(graph)
    assert mode is not None, "a graph without tensors"
    ledger = Ledger("listed")
    last = layout.channels_last(graph, options, target)
    work = Work(graph, mode, context, ledger, frozenset(i.name for i in IDIOMS), last)
    for each in PREPARE:
        if each.applies(work):
            each.run(work)
    listing = Listing(work, target, options, preserved)
    plan = Plan(graph, context, ledger, listing)
    for idiom in IDIOMS:
        plan.consider(replace(idiom, measured=_unknown) if idiom.measured else idiom)
    for decision in plan.decisions:
        if decision.idiom.measured is not None and len(decision.choice.verdicts) > 1:
            able = [v.lowering for v in decision.choice.verdicts if v.verdict in ("able", "taken")]
            able += [v.lowering for v in decision.choice.verdicts if v.verdict == "not_faster"]
            wanted = [low for low in decision.idiom.lowerings if low.name in able]
            listing.convolution(decision.idiom, decision.match, wanted)
    return list(listing.rows.values())


def _unknown(*_: Any) -> None:
    """Of convolutions nothing is known: rules decide."""


def _on_the_gpu(graph: fx.Graph) -> None:
    """Move a graph of the meta device to the GPU that is believed in."""
    mode = fake_mode_of(graph)
    gpu = torch.device("cuda", 0)

    def moved(found: Any) -> Any:
        if isinstance(found, FakeTensor) and found.device.type == "meta":
            assert mode is not None
            with mode:
                return torch.empty_strided(
                    found.shape, found.stride(), dtype=found.dtype, device=gpu
                )
        if isinstance(found, (list, tuple)):
            return type(found)(moved(each) for each in found)
        return found

    for node in graph.nodes:
        node.meta["val"] = moved(node.meta.get("val"))
        device = node.kwargs.get("device")
        if device is not None and torch.device(device).type == "meta":
            node.kwargs = {**node.kwargs, "device": gpu}


def found_in(graphs: Iterable[Graph], arch: str) -> list[Row]:
    """The sites of a model's graphs for an architecture."""
    with faked_amd.device(arch):
        rows: list[Row] = []
        for graph, preserved in graphs:
            rows += sites_of(_copy(graph), faked_amd.target(arch), preserved)
    return rows


def _copy(graph: fx.Graph) -> fx.Graph:
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    fx.GraphModule(graph.owning_module or torch.nn.Module(), made)
    return made


def table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """The page: a table for each model. Architectures with the same rows share it."""
    lines = [HEAD.format(missing="" if "vae_wan" in results else WITHOUT_VAE)]
    for name, by_arch in results.items():
        groups: dict[str, list[str]] = {}
        for arch, rows in by_arch.items():
            groups.setdefault(json.dumps(rows), []).append(arch)
        for text, archs in groups.items():
            lines += [f"## {name}: {', '.join(archs)}", "", *_rows(json.loads(text)), ""]
    return "\n".join(lines).rstrip() + "\n"


WITHOUT_VAE = """
Not on this page: the decode of Wan's VAE (`--only vae_wan`). It did not end within 15 minutes on a
loaded machine, and a build of torch without GPUs cannot run the views of the channel norm's launch.
"""
HEAD = """# What would be measured on AMD

`python -m rocm_passes.bench.amd_sites` wrote this page on a machine without a GPU. Nothing was
timed. For each distinct site of a model: how often it occurs, and for each candidate that would be
compared on the user's GPU the launches and MiB (read and written, as Inductor's scheduler counts
them) of the generated code. `inductor` is the site left alone, with the neighbours that are fused
with it; convolutions stand by themselves. Launches of a kernel of this package are counted as
Inductor's; MiB of such a kernel are its arguments'. aiter is not installed here: where it is, its
lowerings are candidates too. "no code": a build of torch without GPUs cannot copy between fake
tensors of one, which Inductor does where a model assigns to slices (Wan's rotation).
{missing}"""


def _rows(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    made = ["| site | times | candidates: launches, MiB |", "|---|---|---|"]
    for row in rows:
        codes = [
            f"{n}: {launches}, {moved / 2**20:.1f}" for n, (launches, moved) in row["codes"].items()
        ]
        codes += [f"{n}: no code ({why})" for n, why in row["failed"].items()]
        said = "; ".join(codes) or row["note"]
        made.append(f"| {row['site']} | {row['count']} | {said} |")
    return made


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--only", default=",".join(MODELS))
    made.add_argument("--archs", default=",".join(AMD_ARCHITECTURES))
    made.add_argument("--json", type=Path)
    made.add_argument("--out", type=Path)
    given = made.parse_args()
    kept = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for name in given.only.split(","):
        archs = [a for a in given.archs.split(",") if a not in kept.setdefault(name, {})]
        graphs = MODELS[name]() if archs else []
        for arch in archs:
            kept[name][arch] = [asdict(row) for row in found_in(graphs, arch)]
            if given.json:
                given.json.write_text(json.dumps(kept, indent=1))
    page = table(kept)
    if given.out:
        given.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
