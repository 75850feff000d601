"""Real diffusers and transformers classes from tiny configs, for tests, demo and benchmarks."""

from __future__ import annotations

from examples.demo_arguments import MODELS as DEMO

from .case import Case, Draw, main_dtype, tensors_in
from .counting import count_idioms
from .denoisers import MAIN_DENOISERS
from .image_denoisers import IMAGE_DENOISERS
from .reference import in_float64
from .text_encoders import TEXT_ENCODERS
from .vaes import VAES
from .video_denoisers import VIDEO_DENOISERS

__all__ = [
    "DEMO",
    "Case",
    "Draw",
    "case",
    "cases",
    "count_idioms",
    "in_float64",
    "main_dtype",
    "tensors_in",
]


def cases() -> tuple[Case, ...]:
    """Every case: first the five of DEMO, then the other denoisers, VAEs and text encoders."""
    everything = MAIN_DENOISERS + IMAGE_DENOISERS + VIDEO_DENOISERS + VAES + TEXT_ENCODERS
    return tuple(
        sorted(everything, key=lambda c: DEMO.index(c.name) if c.name in DEMO else len(DEMO))
    )


def case(name: str) -> Case:
    """The case of that name. Raises KeyError listing the names there are."""
    by_name = {c.name: c for c in cases()}
    if name not in by_name:
        raise KeyError(f"no zoo case {name!r}; there are {', '.join(by_name)}")
    return by_name[name]
