"""What convolutions in 16 bits cost a decoder: the PSNR of one small decode against its float32
convolutions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rocm_passes.diffusers_pipeline.hooks import hooks_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Latent frames, height and width of the probe.
SIZE = (2, 8, 8)


def probe_decode(vae: nn.Module, vae_dtype: str) -> str:
    """A sentence with the PSNR in dB, or with what stopped the decode. The decode runs in eager,
    twice.

    Its latent is drawn with the mean and deviation of the VAE's config, its weights are the VAE's
    own.
    """
    what = f"3-D convolutions in {vae_dtype}"
    try:
        latent = _latent(vae)
        with torch.no_grad():
            expected = _decode(vae, latent)
            with ConvolutionsIn(DTYPES[vae_dtype]):
                got = _decode(vae, latent)
    except Exception as error:
        return f"{what}: PSNR unknown, the probe decode failed: {type(error).__name__}: {error}"
    size = "x".join(map(str, latent.shape))
    return f"{what}: PSNR {psnr(got, expected):.1f} dB on a probe decode of a {size} latent"


def psnr(got: torch.Tensor, expected: torch.Tensor) -> float:
    """In dB, the signal being the range of `expected`; infinite where both are equal."""
    error = (got.double() - expected.double()).square().mean().item()
    signal = (expected.max() - expected.min()).double().item() ** 2
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


class ConvolutionsIn(TorchDispatchMode):
    """Rounds the factors and the results of float32 3-D convolutions to another dtype.

    That is what a 16-bit convolution with float32 accumulation computes, and a CPU does it at
    float32's speed. Both factors are scaled by powers of two into the dtype's range, as the
    lowerings of `conv_dtype` do for fp16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.convolution.default or not _is_float32_video(args[0]):
            return func(*args, **(kwargs or {}))
        x, weight, bias, *rest = args
        x, x_scale = self._rounded(x)
        weight, weight_scale = self._rounded(weight)
        result, scale = self._rounded(func(x, weight, None, *rest))
        result = result * (scale * x_scale * weight_scale)
        return result if bias is None else result + bias.view(-1, 1, 1, 1)

    def _rounded(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.exp2(tensor.abs().amax().clamp(min=2.0**-100).log2().floor())
        return (tensor / scale).to(self.dtype).float(), scale


def _is_float32_video(x: torch.Tensor) -> bool:
    return x.dtype is torch.float32 and x.ndim == 5


def _decode(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = vae.decode(latent, return_dict=False)[0]
    return result


def _latent(vae: Any) -> torch.Tensor:
    """[1, channels, *SIZE] in float32, on the device that the VAE computes on."""
    config = vae.config
    channels = getattr(config, "z_dim", None) or config.latent_channels
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, channels, *SIZE, generator=generator)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        latent = latent * _per_channel(std) + _per_channel(mean)
    else:
        latent = latent / (getattr(config, "scaling_factor", None) or 1.0)
    return latent.to(_device(vae))


def _per_channel(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)


def _device(vae: nn.Module) -> torch.device:
    for hook in hooks_of(vae):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(vae.parameters()).device
