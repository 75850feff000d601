"""Counting the elementary idioms of a model in one eager call, knowing nothing of graphs or of this
package.

Three sources that do not overlap: functional calls seen by a TorchFunctionMode (torch.nn modules
end there too), hooks on modules that write their norm out by hand, and a profiler that sees rotary
functions called.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

FUNCTIONS: dict[Callable[..., Any], str] = {
    F.rms_norm: "rms_norm",
    torch.rms_norm: "rms_norm",
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    F.group_norm: "group_norm",
    torch.group_norm: "group_norm",
    F.conv3d: "conv3d",
    F.scaled_dot_product_attention: "attention",
}

# Modules that spell their norm out in elementary operations; functional calls inside them do not
# count again.
HAND_WRITTEN = (
    (re.compile(r"PerChannelRMSNorm"), "channel_norm"),
    (re.compile(r"\w*RMSNorm|U?MT5LayerNorm|T5LayerNorm"), "rms_norm"),
)

# Rotations (tensors rotated) per call of each function that applies a rotary embedding.
ROTATIONS = {
    "apply_rotary_emb": 1,
    "apply_rotary_emb_qwen": 1,
    "apply_rotary_emb_transposed": 1,
    "apply_interleaved_rotary_emb": 1,
    "apply_split_rotary_emb": 1,
    "apply_rotary": 1,
    "apply_rope": 1,
    "apply_rotary_pos_emb": 2,
    "apply_multimodal_rotary_pos_emb": 2,
}
ROTATIONS_IN_MODULE = {("diffusers.models.transformers.transformer_hidream_image", "apply_rope"): 2}
LIBRARIES = ("diffusers.", "transformers.")


def count_idioms(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], entry: str = "forward"
) -> Counter[str]:
    """Run `entry` of the model once, without gradients, and count attention, conv3d, rms_norm,
    layer_norm, group_norm, channel_norm (a norm over the channel dimension of an image or video),
    pad (of an image or video, by values that it has) and rotary (tensors rotated).
    """
    counts: Counter[str] = Counter()
    mode = _FunctionCounter(counts)
    function = model if entry == "forward" else getattr(model, entry)
    with torch.no_grad(), _hand_written_norms(model, counts, mode), _rotations(counts), mode:
        function(*args, **kwargs)
    return counts


class _FunctionCounter(TorchFunctionMode):
    """Counts functional calls. The mode is off while one is handled, so nothing inside it counts
    twice.
    """

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts
        self.inside_norm = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.inside_norm:
            if func in FUNCTIONS:
                self.counts[FUNCTIONS[func]] += 1
            elif func is F.pad and _by_copies(*args, **kwargs):
                self.counts["pad"] += 1
            elif func is F.normalize and _over_channels(*args, **kwargs):
                self.counts["channel_norm"] += 1
        return func(*args, **kwargs)


def _over_channels(input: torch.Tensor, p: float = 2.0, dim: int = 1, *_: Any, **__: Any) -> bool:
    return p == 2.0 and dim == 1 and input.ndim >= 4


def _by_copies(
    input: torch.Tensor, pad: Sequence[int], mode: str = "constant", *_: Any, **__: Any
) -> bool:
    """Of an image or a video, by values that it has."""
    return mode in ("replicate", "reflect") and len(pad) >= 4


@contextmanager
def _hand_written_norms(
    model: nn.Module, counts: Counter[str], mode: _FunctionCounter
) -> Iterator[None]:
    def enter(idiom: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if not mode.inside_norm:
                counts[idiom] += 1
            mode.inside_norm += 1

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.inside_norm -= 1

    handles = []
    for module in model.modules():
        idiom = _hand_written(type(module))
        if idiom is not None:
            handles.append(module.register_forward_pre_hook(enter(idiom)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hand_written(cls: type[nn.Module]) -> str | None:
    if cls.__module__.startswith("torch."):
        return None
    for name, idiom in HAND_WRITTEN:
        if name.fullmatch(cls.__name__):
            return idiom
    return None


@contextmanager
def _rotations(counts: Counter[str]) -> Iterator[None]:
    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event != "call" or frame.f_code.co_name not in ROTATIONS:
            return
        module = frame.f_globals.get("__name__", "")
        if module.startswith(LIBRARIES):
            name = frame.f_code.co_name
            counts["rotary"] += ROTATIONS_IN_MODULE.get((module, name), ROTATIONS[name])

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(previous)
