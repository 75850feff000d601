"""One cell of the support table: a pipeline with a feature, compiled, against the same in eager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rocm_passes import compile_pipeline
from rocm_passes.bench.pipeline_specs import PIPELINES
from tests.support.features import FEATURES, NotOffered, Session
from tests.without_codegen import codegen_if_asked

#: Of the largest magnitude of the eager result: float32, over two steps and a decode. Eager itself
#: differs by 1e-5 from one order of additions to another.
TOLERANCE = 5e-4
#: "always" rewrites on a CPU what a GPU would measure first.
OPTIONS = {"select": "always"}


@dataclass(frozen=True)
class Cell:
    """What happened. outcome: "compiled", "in part", "eager", "not offered" or "WRONG"."""

    pipeline: str
    feature: str
    outcome: str
    why: str = ""
    error: float = 0.0


def run(pipeline: str, feature: str) -> Cell:
    """Raises whatever the compiled pipeline raises: no feature may break a compiled pipeline."""
    try:
        expected = _eager(pipeline, feature)
    except NotOffered as missing:
        return Cell(pipeline, feature, "not offered", str(missing))
    except Exception as error:
        why = (
            f"it raises {type(error).__name__} without compiling too: {str(error).splitlines()[0]}"
        )
        return Cell(pipeline, feature, "not offered", why)
    session = Session(pipeline)
    torch._dynamo.reset()
    steps = FEATURES[feature](session)
    next(steps)
    report = compile_pipeline(session.pipe, options=OPTIONS)
    with codegen_if_asked():
        _finish(steps)
    error = max(map(_error, session.results, expected))
    if len(session.results) != len(expected) or not error <= TOLERANCE:
        return Cell(pipeline, feature, "WRONG", f"{error:.1e} from eager", error)
    return _described(pipeline, feature, report, error)


def _eager(pipeline: str, feature: str) -> list[torch.Tensor]:
    session = Session(pipeline)
    _finish(FEATURES[feature](session))
    return session.results


def _finish(steps: Any) -> None:
    for _ in steps:
        pass


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _described(pipeline: str, feature: str, report: Any, error: float) -> Cell:
    skipped = {part.name: part.detail for part in report.parts if part.action == "skipped"}
    why = "; ".join(dict.fromkeys(skipped.values()))
    if not report.compiled:
        return Cell(pipeline, feature, "eager", why, error)
    denoiser = PIPELINES[pipeline](True).denoiser
    wanted = any(name.split(".")[0] == denoiser for name in skipped) or any(
        name.startswith("vae.decoder") or name == "vae" for name in skipped
    )
    return Cell(pipeline, feature, "in part" if wanted else "compiled", why, error)
