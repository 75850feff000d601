"""Five diffusion models, compiled with the backend, and what became of them.

Real diffusers classes from tiny configs with random weights, those that the tests use: no GPU, no
download. Run from a checkout by `make demo`, or `python -m examples.demo`. Leaves ledger.json and
ledger.html in demo-output.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch

import rocm_passes
from examples.progress import Progress
from rocm_passes import Explanation
from rocm_passes.environment import document
from rocm_passes.options import SELECT
from rocm_passes.report import html as report_html
from rocm_passes.report import ledger
from rocm_passes.report.text import aligned
from tests.zoo import DEMO, Case, case, tensors_in


@dataclass(frozen=True)
class Outcome:
    """What one model came to. Errors are relative to the float64 result, in the L2 norm."""

    name: str
    explanation: Explanation
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
    arguments = _arguments(argv)
    # Inductor warns of complex numbers where a rotary embedding stays as it was: the ledger says
    # so.
    warnings.filterwarnings(
        "ignore", message="Torchinductor does not support code generation for complex"
    )
    started = time.perf_counter()
    dtype = getattr(torch, arguments.dtype)
    print(f"{len(arguments.models)} models in {arguments.dtype}, {_choice(arguments.select)}\n")
    outcomes = []
    for number, name in enumerate(arguments.models, 1):
        outcome = run(case(name), dtype, arguments.select, f"[{number}/{len(arguments.models)}]")
        outcomes.append(outcome)
        print(f"{told(outcome)}\n", flush=True)
    print("\n".join(aligned(_overview(outcomes))))
    json_file, html_file = write(outcomes, Path(arguments.output))
    print(f"\n{time.perf_counter() - started:.0f} seconds. The ledger of every site lies in")
    print(f"  {json_file}\n  {html_file}")
    return 0


def run(zoo_case: Case, dtype: torch.dtype, select: str, label: str = "") -> Outcome:
    """Build the model, run it eagerly, in float64 and compiled, and compare."""
    name = zoo_case.source.partition(":")[2]
    with Progress(f"{label} {name}: building it, running it eagerly and in float64"):
        model = zoo_case.build(dtype)
        inputs = zoo_case.inputs(model)
        eager = zoo_case.run(model, inputs)
        reference = zoo_case.reference(model, inputs)
        in_eager = dict(zoo_case.live(model, inputs))
    with Progress(f"{label} {name}: compiling it") as compiling, torch.no_grad():
        explanation = rocm_passes.explain(
            zoo_case.function(model), *inputs[0], options={"select": select}, **inputs[1]
        )
    result = tensors_in(explanation.result)
    return Outcome(
        name,
        explanation,
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


def write(outcomes: Sequence[Outcome], folder: Path) -> tuple[Path, Path]:
    """The ledger as JSON and as an HTML page; each site says which model it is of."""
    found = document(g for o in outcomes for g in o.explanation.ledgers)
    names = [o.name for o in outcomes for _ in o.explanation.sites]
    found["sites"] = [
        {"model": name, **site} for name, site in zip(names, found["sites"], strict=True)
    ]
    found["models"] = [o.row() for o in outcomes]
    json_file, html_file = folder / "ledger.json", folder / "ledger.html"
    ledger.write_json(str(json_file), found)
    html_file.write_text(
        report_html.page(found, "rocm-passes: the demo's ledger"), encoding="utf-8"
    )
    return json_file, html_file


def told(outcome: Outcome) -> str:
    """What is printed of one model."""
    seconds = (
        f"first call {outcome.seconds:.1f} s, of which the passes took {outcome.pass_seconds:.2f} s"
    )
    errors = f"error against float64: compiled {outcome.error:.2e}, eager {outcome.eager_error:.2e}"
    counted = "\n".join(aligned(_counted(outcome)))
    return "\n".join([f"{outcome.name}: {seconds}", errors, counted, "", str(outcome.explanation)])


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


def _choice(select: str) -> str:
    return {
        "always": "select='always': all that can be is rewritten, to show it (by default, what "
        "pays)",
        "auto": "select='auto': what is known to pay on this machine is rewritten",
        "off": "select='off': nothing is changed, sites are only reported",
    }[select]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rocm-passes demo", description=__doc__.partition("\n")[0]
    )
    models = ", ".join(DEMO)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", default=list(DEMO), help=f"of {models}"
    )
    parser.add_argument(
        "--select", choices=SELECT, default="always", help="as the backend's option"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--output", default="demo-output", metavar="FOLDER")
    found = parser.parse_args(argv)
    for name in found.models:
        if name not in DEMO:
            parser.error(f"there is no model {name!r}; there are {models}")
    return found


if __name__ == "__main__":
    sys.exit(main())
