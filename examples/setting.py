"""What the examples of pipelines share: their options, and a tiny pipeline for `--tiny`.

`--tiny` writes a pipeline of the same classes with small configs and random weights to a temporary
folder. The example's own `from_pretrained` line then loads that folder. It has no text encoders:
`parts` says so to from_pretrained, and prompt embeddings take the prompt's place.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rocm_passes.bench.pipeline_models import arguments, build
from rocm_passes.bench.pipeline_specs import PIPELINES
from rocm_passes.diffusers_pipeline.report import Report

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Setting:
    """How an example was asked to run. model, lora: what to give to from_pretrained and
    load_lora_weights. device: the GPU, or the CPU where there is none. options: of the backend.
    parts: components that from_pretrained is to leave out (none of a real pipeline).
    """

    model: str
    lora: str
    device: str
    options: dict[str, Any]
    html: str
    parts: dict[str, None]
    tiny_call: dict[str, Any] | None

    def call(self, **users: Any) -> dict[str, Any]:
        """The arguments of the pipeline's call: those given, or the tiny pipeline's."""
        return users if self.tiny_call is None else self.tiny_call

    def finish(self, report: Report) -> None:
        """Print what was compiled, and write the page if one was asked for."""
        print(report)
        if self.html:
            print(f"page written to {report.save(self.html)}")


@contextmanager
def setting(
    doc: str | None, spec: str, model: str, argv: Sequence[str] | None, lora: str = ""
) -> Iterator[Setting]:
    """Read the command line. spec: the tiny pipeline's name. model, lora: of the Hugging Face
    hub.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--model", default=model, help=f"a folder or a repository ({model})")
    parser.add_argument("--tiny", action="store_true", help="a tiny pipeline, random weights")
    parser.add_argument("--as-if", default="", metavar="ARCH", help="the backend's option as_if")
    parser.add_argument("--html", default="", metavar="FILE", help="write the ledger's page")
    found = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"as_if": found.as_if} if found.as_if else {}
    with tempfile.TemporaryDirectory() as folder:
        call = _write_tiny(Path(folder), spec, device, bool(lora)) if found.tiny else None
        names = (folder, f"{folder}/lora") if found.tiny else (found.model, lora)
        left_out = dict.fromkeys(PIPELINES[spec](True).none) if found.tiny else {}
        yield Setting(*names, device, options, found.html, left_out, call)


def _write_tiny(folder: Path, name: str, device: str, with_lora: bool) -> dict[str, Any]:
    """Write the tiny pipeline to the folder. Returns the arguments of one call."""
    spec = PIPELINES[name](True)
    pipe, _ = build(spec, torch.device("cpu"), DTYPE)
    pipe.save_pretrained(folder)
    if with_lora:
        _write_lora(folder / "lora", pipe)
    return {**arguments(spec, torch.device(device), DTYPE), "num_inference_steps": 2}


def _write_lora(folder: Path, pipe: Any) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"]))
    layers = get_peft_model_state_dict(pipe.transformer)
    type(pipe).save_lora_weights(folder, transformer_lora_layers=layers)
