"""PSNR of a decoded video against the float32 decode, for each dtype and option.

    python -m rocm_passes.bench.quality [--only "bf16 ours,fp32 ours"] [--out quality.json]

A synthetic clip (moving gradients and shapes, edges as sharp as text) goes through the encoder of a
Wan VAE in float32; its latents are decoded in each form, and compared with float32 in eager without
TF32. There are no pretrained weights here: they are random, drawn so that activations keep their
variance through the model, and PSNR is relative to the range of the reference. So figures compare
forms with each other; they are not those of a trained VAE. The VAE has Wan 2.1's widths with one
residual block a level, so that all forms compile in a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rocm_passes.bench.failing import raise_on_compile_error
from rocm_passes.bench.inputs import randomise
from rocm_passes.bench.workers import Worker, WorkerFailed, reply

REFERENCE = "reference"


@dataclass(frozen=True)
class Form:
    """compiled: "" (eager), "inductor" or "ours", with the backend's options."""

    dtype: torch.dtype
    compiled: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    tf32: bool = True


FORMS = {
    REFERENCE: Form(torch.float32, tf32=False),
    "fp32 eager": Form(torch.float32),
    "fp32 ours": Form(torch.float32, "ours"),
    "fp32 ours conv_dtype=bf16": Form(torch.float32, "ours", {"conv_dtype": "bf16"}),
    "fp32 ours conv_dtype=fp16": Form(torch.float32, "ours", {"conv_dtype": "fp16"}),
    "bf16 eager": Form(torch.bfloat16),
    "bf16 Inductor": Form(torch.bfloat16, "inductor"),
    "bf16 ours": Form(torch.bfloat16, "ours"),
    "bf16 ours taps": Form(
        torch.bfloat16, "ours", {"lowering": {"conv3d": "taps"}, "rewrite_numerics": "fast"}
    ),
    "bf16 ours strict": Form(torch.bfloat16, "ours", {"rewrite_numerics": "strict"}),
}
CONFIG: dict[str, Any] = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
TINY = {**CONFIG, "base_dim": 8, "dim_mult": [1, 2, 2, 2]}


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """[1, 3, frames, height, width] in [-1, 1]: a drifting gradient, a moving disc, and rows of
    small glyphs.
    """
    t = torch.arange(frames).view(-1, 1, 1) / max(1, frames - 1)
    y = torch.arange(height).view(1, -1, 1) / height
    x = torch.arange(width).view(1, 1, -1) / width
    gradients = [torch.sin(2 * math.pi * (x * (c + 1) + y * (2 - c) / 2 + t / 3)) for c in range(3)]
    video = 0.6 * torch.stack([g.expand(frames, height, width) for g in gradients])
    disc = (x - 0.3 - 0.3 * t) ** 2 + (y - 0.6 + 0.2 * t) ** 2 < 0.02
    video = torch.where(disc, torch.tensor([0.9, -0.7, 0.2]).view(3, 1, 1, 1), video)
    strokes = torch.rand(height // 2, width // 2, generator=torch.Generator().manual_seed(5)) < 0.4
    glyphs = strokes.repeat_interleave(2, 0).repeat_interleave(2, 1)
    text = torch.zeros(height, width, dtype=torch.bool)
    text[height // 8 : height // 4, width // 8 : -width // 8] = True
    rows = text[: glyphs.shape[0], : glyphs.shape[1]] & glyphs
    text = torch.zeros_like(text)
    text[: rows.shape[0], : rows.shape[1]] = rows
    return torch.where(text, torch.tensor(1.0), video)[None].contiguous()


def psnr(result: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB, relative to the range of the reference; infinite where they are equal. Raises
    ValueError on NaN.
    """
    a, b = result.double(), reference.double()
    error = (a - b).square().mean().item()
    if not math.isfinite(error):
        raise ValueError("the result is not finite")
    return math.inf if error == 0 else 10 * math.log10((b.max() - b.min()).item() ** 2 / error)


def decode_worker(name: str, out: Path, given: argparse.Namespace) -> None:
    """Encode the clip in float32, decode it in that form, and save the video."""
    from diffusers import AutoencoderKLWan

    from rocm_passes.diffusers_pipeline import compile_vae

    form = FORMS[name]
    torch.manual_seed(0)
    vae: Any = AutoencoderKLWan(**(TINY if given.tiny else CONFIG)).eval()
    randomise(vae)
    vae.to(given.device)
    video = clip(*((5, 32, 40) if given.tiny else (9, 256, 256))).to(given.device)
    with torch.no_grad():
        torch.backends.cudnn.allow_tf32 = False
        latents = vae.encode(video).latent_dist.mode()
        latents = (latents - latents.mean()) / latents.std()
        torch.backends.cudnn.allow_tf32 = form.tf32
        vae.to(form.dtype)
        if form.compiled == "ours":
            compile_vae(vae, options=dict(form.options) or None)
        elif form.compiled:
            vae.decoder = torch.compile(vae.decoder, dynamic=False)
        decoded = vae.decode(latents.to(form.dtype), return_dict=False)[0]
    torch.save(decoded.float().cpu(), out)
    reply(done=True)


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every form in a process of its own, all at once: what is compared are numbers, not times."""
    folder = Path(tempfile.mkdtemp(prefix="quality-"))
    wanted = [name for name in given.only.split(",") if name] or [
        n for n in FORMS if n != REFERENCE
    ]
    for name in wanted:
        if name not in FORMS:
            raise SystemExit(f"no form {name!r}; there are {', '.join(FORMS)}")
    files = {name: folder / f"{i}.pt" for i, name in enumerate([REFERENCE, *wanted])}

    def decoded(name: str) -> str | None:
        settings = ["--device", given.device, *["--tiny"] * given.tiny]
        arguments = ["--worker", name, str(files[name]), *settings]
        env = {"TORCHINDUCTOR_COMPILE_THREADS": "2", "ROCM_PASSES_TUNE_SECONDS": "0"}
        worker = Worker(
            "rocm_passes.bench.quality", arguments, env, files[name].with_suffix(".log")
        )
        try:
            worker.wait()
        except WorkerFailed as error:
            return str(error)
        finally:
            worker.close()
        return None

    with ThreadPoolExecutor(len(files)) as pool:
        failed = dict(zip(files, pool.map(decoded, files), strict=True))
    if failed[REFERENCE]:
        raise SystemExit(f"the reference failed: {failed[REFERENCE]}")
    reference = torch.load(files[REFERENCE])
    rows: list[dict[str, Any]] = []
    for name in wanted:
        if failed[name]:
            print(f"{name} failed: {failed[name]}")
            continue
        rows.append({"form": name, "psnr_db": round(psnr(torch.load(files[name]), reference), 2)})
        print(f"{name:30} {rows[-1]['psnr_db']:8.2f} dB", flush=True)
    given.out.write_text(json.dumps(rows, indent=1))
    return rows


def main(arguments: list[str] | None = None) -> None:
    raise_on_compile_error()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("quality.json"))
    parser.add_argument("--only", default="", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--device", default="cuda", help="cpu, with --tiny, to try this program")
    parser.add_argument("--tiny", action="store_true", help="a small VAE and clip")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        decode_worker(given.worker[0], Path(given.worker[1]), given)
    else:
        run(given)


if __name__ == "__main__":
    main()
