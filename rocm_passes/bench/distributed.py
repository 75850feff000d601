"""Denoisers and a decoder on several GPUs: eager, plain Inductor and this backend in one run.

    torchrun --nproc-per-node N -m rocm_passes.bench.distributed [--only NAME,NAME]
        [--splits SPLIT,SPLIT] [--layers N] [--rounds N] [--docs docs/measured/distributed.md]
        [--json FILE] [--tiny]

A case is a model at production size with random weights, and a split of it over the ranks:

    one        no split: each rank computes the whole, for scaling and as the reference
    ulysses    diffusers' context parallelism, heads for tokens
    ring       diffusers' context parallelism, k and v gathered
    fsdp       fully_shard of each block
    rows       of a decoder: rows of each frame, a row of either neighbour before each convolution

A time is the slowest rank's median; each call begins at a barrier. The forms are timed one by one,
there and back, each alone in Dynamo's caches: of two that are compiled, each call of a block would
first try the other's guards, which costs the host up to a millisecond.
`difference` is the distance from eager's unsplit result, relative to its norm. Rows of other cases
that stand in --json stay, so that cases can be run one by one. --tiny: small configs, on the CPU
with gloo; its times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rocm_passes import compile_pipeline, history
from rocm_passes.bench.distributed_cases import CASES, Case
from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.inputs import tensors_in
from rocm_passes.bench.rows import mine, split_rows
from rocm_passes.bench.scaling import markdown
from rocm_passes.diffusers_pipeline.cover import declared_blocks
from rocm_passes.report.ledger import Ledger

FORMS = ("eager", "inductor", "ours")
SPLITS = ("one", "ulysses", "ring", "fsdp", "rows")


@dataclass
class Row:
    """One case in one split. ms, difference: by form; failed: why there are none."""

    case: str
    split: str
    ranks: int
    ms: dict[str, float] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)
    device: str = ""
    failed: str = ""


def split_model(model: nn.Module, split: str, tiny: bool) -> None:
    """Split in place. Raises what diffusers or torch raise where they can't."""
    if split in ("ulysses", "ring"):
        from diffusers import ContextParallelConfig

        degree = {f"{split}_degree": dist.get_world_size()}
        if split == "ring" and not tiny:
            # Ring attention adds up parts by their log-sum-exp, which plain SDPA does not return.
            model.set_attention_backend("_native_flash")  # type: ignore[operator]
        with _counted(tiny):
            model.enable_parallelism(config=ContextParallelConfig(**degree))  # type: ignore[operator]
    elif split == "fsdp":
        _shard(model, "cpu" if tiny else "cuda")
    elif split == "rows":
        split_rows(model)


def _counted(tiny: bool) -> AbstractContextManager[Any]:
    """diffusers places ranks on accelerators; a machine for --tiny has none."""
    if not tiny:
        return nullcontext()
    return mock.patch.object(torch.accelerator, "device_count", dist.get_world_size)


def _shard(model: nn.Module, device: str) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    for block in declared_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def compiled(model: nn.Module, form: str) -> None:
    """In place, by blocks where the model has them."""
    if form == "ours":
        compile_pipeline(model)
    elif form == "inductor":
        # Not by compile_repeated_blocks, which finds no block that fully_shard has renamed.
        for block in declared_blocks(model) or [model]:
            block.compile(dynamic=False)


class Subject:
    """A case in one split and one form, on this rank."""

    def __init__(self, case: Case, split: str, form: str, given: argparse.Namespace) -> None:
        self.model, self.inputs = case.build(given.device, given.dtype, given.tiny, given.layers)
        if split != "one":
            split_model(self.model, split, given.tiny)
        compiled(self.model, form)
        if split == "rows":
            self.inputs = {k: mine(v) for k, v in self.inputs.items()}

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return tensors_in(self.model(**self.inputs))[0]


def measured(case: Case, split: str, given: argparse.Namespace, reference: Tensor | None) -> Row:
    """The row of this rank's group; the same on all ranks."""
    row = Row(case.name, split, dist.get_world_size(), device=given.card)
    times: dict[str, list[float]] = {form: [] for form in given.forms}
    for form in (*given.forms, *reversed(given.forms)):
        before = len(history())
        try:
            subject = Subject(case, split, form, given)
            result = _warmed(subject, given.warm)
        except Exception as error:
            # Of shapes and installations, so on every rank alike.
            row.failed = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return row
        times[form] += [_timed(subject, given.device) for _ in range(given.rounds)]
        if reference is not None:
            whole = reference if split != "rows" else _own_rows(reference)
            row.difference[form] = _slowest(distance(result, whole))
        row.sites = _rewritten(history()[before:]) or row.sites
        del subject, result
        _forget(given.device)
    row.ms = {form: _slowest(statistics.median(found)) for form, found in times.items()}
    return row


def _rewritten(graphs: Sequence[Ledger]) -> dict[str, int]:
    """Sites by idiom."""
    return dict(Counter(e.idiom for g in graphs for e in g.entries if e.outcome == "rewritten"))


def _forget(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _own_rows(reference: Tensor) -> Tensor:
    return mine(reference)


def _warmed(subject: Callable[[], Tensor], calls: int) -> Tensor:
    for _ in range(calls):
        result = subject()
    return result


def _timed(work: Callable[[], Tensor], device: torch.device) -> float:
    """Milliseconds of one call, between barriers."""
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def _slowest(value: float) -> float:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return float(max(found))


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to what is expected."""
    a, b = found.float(), expected.float()
    return float(((a - b).norm() / b.norm()).item())


HEAD = (
    "case", "split", "ranks", "card", "eager ms", "Inductor ms", "ours ms", "Inductor / ours",
    "scaling of Inductor", "scaling of ours", "difference eager", "Inductor", "ours",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Scaling: the time of one GPU over that of all, of the same form."""
    whole = {row.case: row.ms for row in rows if row.split == "one"}
    return markdown(HEAD, [_cells(row, whole.get(row.case, {})) for row in rows])


def _cells(row: Row, one: dict[str, float]) -> Sequence[str]:
    named = (row.case, row.split, str(row.ranks), row.device)
    if row.failed:
        return (*named, f"not run: {row.failed}", *[""] * (len(HEAD) - 5))
    gain = row.ms["inductor"] / row.ms["ours"] if {"inductor", "ours"} <= row.ms.keys() else None
    scaling = [one[f] / row.ms[f] if f in one and f in row.ms else None for f in FORMS[1:]]
    return (
        *named,
        *(_number(row.ms.get(f), ".2f") for f in FORMS),
        *(_number(n, ".3f") for n in (gain, *scaling)),
        *(_number(row.difference.get(f), ".1e") for f in FORMS),
    )


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def filled(text: str, rows: Sequence[Row]) -> str:
    """The document with this run's table."""
    begin, end = "<!-- distributed: begin -->", "<!-- distributed: end -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table(rows)}\n{end}{rest.partition(end)[2]}"


def run(given: argparse.Namespace) -> list[Row]:
    cases = [c for c in CASES if not given.only or c.name in given.only]
    rows = [row for row in kept(given.json) if row.case not in {c.name for c in cases}]
    for case in cases:
        reference = None
        for split in (s for s in case.splits if s in given.splits):
            if split == "one":
                reference = _reference(case, given)
            rows.append(measured(case, split, given, reference))
            if dist.get_rank() == 0:
                print(table(rows[-1:]), flush=True)
                # Now, not at the end: a later case may take the run with it.
                write(rows, given)
            _forget(given.device)
    return rows


def kept(file: Path | None) -> list[Row]:
    """The rows that an earlier run wrote."""
    if file is None or not file.exists():
        return []
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def write(rows: Sequence[Row], given: argparse.Namespace) -> None:
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    if given.docs is not None:
        given.docs.write_text(filled(given.docs.read_text(encoding="utf-8"), rows))


def _reference(case: Case, given: argparse.Namespace) -> Tensor:
    return Subject(case, "one", "eager", given)().clone()


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda w: w.split(","), default=[])
    parser.add_argument("--splits", type=lambda w: w.split(","), default=list(SPLITS))
    parser.add_argument("--forms", type=lambda w: w.split(","), default=list(FORMS))
    parser.add_argument("--layers", type=int, help="blocks of each model; default: by case")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm", type=int, default=3, help="calls before any is timed")
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    given.device = torch.device("cpu") if given.tiny else torch.device("cuda", local)
    given.dtype = torch.float32 if given.tiny else torch.bfloat16
    given.card = "CPU" if given.tiny else torch.cuda.get_device_name(local)
    return given


def main() -> None:
    raise_on_compile_error()
    given = parse()
    if given.device.type == "cuda":
        torch.cuda.set_device(given.device)
    dist.init_process_group("gloo" if given.tiny else "nccl")
    rows = run(given)
    if dist.get_rank() == 0:
        print(table(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
