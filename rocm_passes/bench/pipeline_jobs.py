"""One pipeline in one form, as the parent of its processes sees it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocm_passes.bench.pipeline_forms import may_use_graphs
from rocm_passes.bench.pipeline_spec import Spec
from rocm_passes.bench.workers import Worker

TIMES = ("denoise", "decode", "denoise_host", "decode_host")
#: Estimates of a cold start by blocks, against that of the whole: alike blocks share a graph.
BY_BLOCKS = 0.5


@dataclass(eq=False)
class Job:
    """figures: what its processes said of it. failed: why there is no more of it. calls: the timed
    ones.

    cold: its cold start is running. ready: its second process waits for commands.
    """

    spec: Spec
    form: str
    figures: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, float]] = field(default_factory=list)
    failed: str = ""
    cold: bool = False
    ready: bool = False
    kept_gib: float = 0.0
    worker: Worker | None = None
    outputs: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.spec.name}.{self.form.replace('+', '-')}"

    @property
    def alive(self) -> bool:
        return not self.failed

    @property
    def gib(self) -> float:
        """The most that it holds while it compiles and runs."""
        return (
            self.spec.weights_gib + self.spec.peak_gib + (2.0 if may_use_graphs(self.form) else 0.0)
        )

    @property
    def cold_s(self) -> float:
        share = BY_BLOCKS if "blocks" in self.form else 1.0
        return 20 + share * self.spec.compile_s

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def kill(self) -> None:
        if self.worker is not None:
            self.worker.kill()

    def row(self, reference: Path | None) -> dict[str, Any]:
        """Its medians, its figures, and how far its outputs are from the reference's."""
        found: dict[str, Any] = {
            "pipeline": self.spec.name,
            "note": self.spec.note,
            "form": self.form,
        }
        found |= self.figures
        if self.calls:
            found |= {name: statistics.median(c[name] for c in self.calls) for name in TIMES}
            totals = sorted(c["denoise"] + c["decode"] for c in self.calls)
            found |= {
                "total": statistics.median(totals),
                "fastest": totals[0],
                "slowest": totals[-1],
            }
            found["calls"] = len(self.calls)
        if "forward_device" in found and "decode_device" in found:
            forwards = self.spec.steps * self.spec.forwards
            found["device"] = forwards * found["forward_device"] + found["decode_device"]
        if self.outputs is not None and reference is not None:
            found["difference"] = differences(self.outputs, reference)
        if self.failed:
            found["failed"] = self.failed
        return found


def decided(jobs: Iterable[Job], reason: str) -> None:
    """The jobs go no further, for this reason or an earlier one."""
    for job in jobs:
        job.failed = job.failed or reason


def differences(outputs: Path, reference: Path) -> dict[str, float]:
    """Relative root mean square of the difference, by output. NaN where either has one."""
    import torch

    found, expected = torch.load(outputs), torch.load(reference)
    return {
        name: float(((found[name] - expected[name]).norm() / expected[name].norm()).item())
        for name in expected
    }
