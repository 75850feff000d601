"""Five diffusion models, compiled with the backend, and what became of them.

Real diffusers classes from tiny configs with random weights, those that the tests use. No GPU is
needed and nothing is downloaded; where there is a GPU, the demo runs there. Run it from a checkout
by `make demo`, or `python -m examples.demo`.

Without a GPU all sites are rewritten that can be, to show it. Each model is then decided again with
the defaults of an AMD GPU (`--as-if`, gfx942), to show reasons. No code is generated for that. Both
ledgers are left in demo-output: ledger.json and ledger.html, and ledger-gfx942.json and .html.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch

import rocm_passes
from examples import demo_arguments
from examples.demo_arguments import SELECT
from examples.progress import Progress
from rocm_passes import Entry, Explanation
from rocm_passes.environment import document
from rocm_passes.errors import plural
from rocm_passes.report import html as report_html
from rocm_passes.report import ledger
from rocm_passes.report.text import aligned
from rocm_passes.report.text import outcome as became
from rocm_passes.target import Target
from tests.zoo import Case, case, tensors_in

#: Of printed reasons, in characters.
WIDTH = 96


@dataclass(frozen=True)
class Outcome:
    """What one model came to. Errors are relative to the float64 result, in the L2 norm."""

    name: str
    explanation: Explanation
    decided: Explanation | None
    seconds: float
    error: float
    eager_error: float
    in_eager: dict[str, int]

    @property
    def pass_seconds(self) -> float:
        return sum(g.seconds for g in self.explanation.ledgers)

    def row(self) -> dict[str, Any]:
        """As in the "models" of the JSON document and as on the HTML page."""
        return {
            "model": self.name,
            "graphs": len(self.explanation.ledgers),
            "graph_breaks": self.explanation.graph_breaks,
            "sites": len(self.explanation.sites),
            "rewritten": sum(e.outcome == "rewritten" for e in self.explanation.sites),
            "error": float(f"{self.error:.3g}"),
            "eager_error": float(f"{self.eager_error:.3g}"),
            "first_call_seconds": round(self.seconds, 2),
            "pass_seconds": round(self.pass_seconds, 3),
        }


def main(argv: Sequence[str] | None = None) -> int:
    arguments = demo_arguments.parse(argv)
    as_if = arguments.as_if
    if as_if is None:
        as_if = "" if torch.cuda.is_available() else "gfx942"
    if as_if and Target.named(as_if) is None:
        print(f"--as-if: expected an architecture such as gfx942, found {as_if!r}", file=sys.stderr)
        return 2
    # Inductor warns of complex numbers where a rotary embedding stays as it was: the ledger says
    # so.
    warnings.filterwarnings(
        "ignore", message="Torchinductor does not support code generation for complex"
    )
    started = time.perf_counter()
    dtype = getattr(torch, arguments.dtype)
    where = f"on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "on the CPU"
    select = arguments.select or ("auto" if torch.cuda.is_available() else "always")
    count = plural(len(arguments.models), "model")
    chosen = f"select={select!r}: {SELECT[select]}"
    print(f"{count} in {arguments.dtype} {where}, {chosen}\n", flush=True)
    outcomes = []
    for number, name in enumerate(arguments.models, 1):
        label = f"[{number}/{len(arguments.models)}]"
        outcome = run(case(name), dtype, select, label, as_if)
        outcomes.append(outcome)
        print(f"{told(outcome)}\n", flush=True)
    print("\n".join(aligned(_overview(outcomes))))
    with Progress("writing the ledgers"):
        files = write(outcomes, arguments.output, as_if)
    print(f"\n{time.perf_counter() - started:.0f} seconds. The ledgers of all sites:")
    print("\n".join(f"  {file}" for file in files))
    return 0


def run(
    zoo_case: Case, dtype: torch.dtype, select: str, label: str = "", as_if: str = ""
) -> Outcome:
    """Build the model, run it eagerly, in float64 and compiled, and compare. as_if: decide once
    more, as by default on that architecture.
    """
    name = zoo_case.source.partition(":")[2]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Progress(f"{label} {name}: building it, running it eagerly and in float64"):
        model = zoo_case.build(dtype).to(device)
        inputs = zoo_case.inputs(model)
        eager = zoo_case.run(model, inputs)
        reference = zoo_case.reference(model, inputs)
        in_eager = dict(zoo_case.live(model, inputs))
    with Progress(f"{label} {name}: compiling it") as compiling, torch.no_grad():
        explanation = rocm_passes.explain(
            zoo_case.function(model), *inputs[0], options={"select": select}, **inputs[1]
        )
    decided = None
    if as_if:
        with Progress(f"{label} {name}: deciding as on {as_if}"), torch.no_grad():
            options = {"as_if": as_if}
            call = zoo_case.function(model)
            decided = rocm_passes.explain(call, *inputs[0], options=options, **inputs[1])
    result = tensors_in(explanation.result)
    return Outcome(
        name,
        explanation,
        decided,
        compiling.seconds,
        error(result, reference),
        error(eager, reference),
        in_eager,
    )


def error(found: Iterable[torch.Tensor], reference: Iterable[torch.Tensor]) -> float:
    """||found - reference|| / ||reference||, over all tensors."""
    pairs = [(f.double(), r.double()) for f, r in zip(found, reference, strict=True)]
    off = sum(float((f - r).square().sum()) for f, r in pairs)
    size = sum(float(r.square().sum()) for _, r in pairs)
    return float((off / size) ** 0.5)


def write(outcomes: Sequence[Outcome], folder: Path, as_if: str = "") -> list[Path]:
    """The ledger as JSON and as an HTML page, and those of `as_if`; each site says which model it
    is of.
    """
    here = {o.name: o.explanation for o in outcomes}
    files = _written(here, folder / "ledger", "rocm-passes: the demo", [o.row() for o in outcomes])
    there = {o.name: o.decided for o in outcomes if o.decided is not None}
    if there:
        title = f"rocm-passes: the demo's models, decided as on {as_if}"
        files += _written(there, folder / f"ledger-{as_if}", title, [])
    return files


def _written(
    explanations: Mapping[str, Explanation], stem: Path, title: str, models: list[dict[str, Any]]
) -> list[Path]:
    found = document(g for e in explanations.values() for g in e.ledgers)
    names = [name for name, e in explanations.items() for _ in e.sites]
    found["sites"] = [
        {"model": name, **site} for name, site in zip(names, found["sites"], strict=True)
    ]
    found["models"] = models
    json_file, html_file = stem.with_suffix(".json"), stem.with_suffix(".html")
    ledger.write_json(str(json_file), found)
    html_file.write_text(report_html.page(found, title), encoding="utf-8")
    return [json_file, html_file]


def told(outcome: Outcome) -> str:
    """What is printed of one model."""
    seconds = (
        f"first call {outcome.seconds:.1f} s, of which the passes took {outcome.pass_seconds:.2f} s"
    )
    errors = f"error against float64: compiled {outcome.error:.2e}, eager {outcome.eager_error:.2e}"
    counted = "\n".join(aligned(_counted(outcome)))
    lines = [f"{outcome.name}: {seconds}", errors, counted, "", str(outcome.explanation)]
    if outcome.decided is not None:
        lines += ["", "by default on an AMD GPU:", *map(str, _decided(outcome.decided))]
    return "\n".join(lines)


def _decided(decided: Explanation) -> list[str]:
    """Each group of like sites, and the reason beneath."""
    groups = Counter((e.idiom, became(e), _why(e)) for e in decided.sites)
    heads = aligned([(idiom, str(count), how) for (idiom, how, _), count in groups.items()])
    return [
        line
        for head, (_, _, why) in zip(heads, groups, strict=True)
        for line in (head, textwrap.indent(textwrap.fill(why, WIDTH - 4), " " * 4))
    ]


def _why(entry: Entry) -> str:
    """What the first lowering said that can run there. (Others are not installed, say.)"""
    said = [v.reason for v in entry.verdicts if v.verdict in ("taken", "not_faster", "refused")]
    return said[0] if said else entry.reason


def _counted(outcome: Outcome) -> list[tuple[str, ...]]:
    """Elementary idioms: as counted by module hooks in an eager run, and as the ledger has them."""
    totals = ledger.totals(outcome.explanation.sites)
    rows: list[tuple[str, ...]] = [
        ("", "in eager", "in the ledger", "rewritten", "kept", "refused")
    ]
    for name in sorted({*outcome.in_eager, *totals}):
        by_outcome = totals.get(name, dict.fromkeys(ledger.OUTCOMES, 0))
        counts = [by_outcome[o] for o in ledger.OUTCOMES]
        rows.append((name, *map(str, [outcome.in_eager.get(name, 0), sum(counts), *counts])))
    return rows


def _overview(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    rows = [o.row() for o in outcomes]
    return [
        tuple(k.replace("_", " ") for k in rows[0]),
        *(tuple(map(str, r.values())) for r in rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
