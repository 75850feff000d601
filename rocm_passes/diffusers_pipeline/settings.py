"""The arguments of compile_pipeline, checked when it is called and not at the first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from rocm_passes.diffusers_pipeline.warm import Sizes
from rocm_passes.errors import OptionError, nearest
from rocm_passes.options import Options, parse

HOW = ("auto", "whole", "blocks")
VAE_DTYPES = ("bf16", "fp16")
GRAPHS = "triton.cudagraphs"
GRAPHS_MODE = "reduce-overhead"


class HowToCompile(TypedDict, total=False):
    """Those arguments of compile_pipeline that say how, and not what, to compile."""

    how: str
    dynamic: bool | None
    mode: str | None
    options: Mapping[str, Any] | None
    vae_dtype: str | None
    tune: Sizes | None


@dataclass(frozen=True)
class Settings:
    """How to compile. options: those of the backend with "mode" among them; None: no
    options given. graphs: they use CUDA graphs; graphs_by_rule: nobody asked for these.
    """

    how: str = "auto"
    dynamic: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vae_dtype: str | None = None
    graphs: bool = False
    tune: Sizes | None = None
    graphs_by_rule: bool = False

    def says_of_graphs(self) -> bool:
        """Was a mode asked for, or graphs in or out, or what looks at tensors as a graph runs?"""
        if "mode" in self.options or GRAPHS in self.options:
            return True
        parsed, _ = parse(self.options, None)
        return parsed.verify != "off" or parsed.check_finite > 0

    def with_graphs(self) -> Settings:
        options = {**self.options, "mode": GRAPHS_MODE}
        return replace(self, options=options, graphs=True, graphs_by_rule=True)

    @classmethod
    def checked(
        cls,
        *,
        how: str = "auto",
        dynamic: bool | None = None,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
        vae_dtype: str | None = None,
        tune: Sizes | None = None,
    ) -> Settings:
        """Raises OptionError on the first wrong name or value, and on two that contradict each
        other.
        """
        if how not in HOW:
            raise _not_one_of("how", HOW, how)
        if dynamic not in (None, True, False):
            raise OptionError.value("dynamic", "None, True or False", dynamic)
        if options is not None and not isinstance(options, Mapping):
            raise OptionError.value("options", "a dict", options)
        parsed, patch = parse(options, mode)
        if vae_dtype is not None:
            _check_vae_dtype(vae_dtype, parsed)
        given = dict(options or {})
        if mode:
            given["mode"] = mode
        graphs = bool(patch.get(GRAPHS))
        return cls(how, dynamic, given, vae_dtype, graphs=graphs, tune=tune)

    def of_vae(self, part: str) -> dict[str, Any]:
        """Options for "decoder" or "encoder": without CUDA graphs, which would write into frames
        that are kept from call to call; the decoder with the convolution dtype that was asked for.
        """
        options = dict(self.options)
        if self.graphs:
            options[GRAPHS] = False
        if self.vae_dtype is not None and part == "decoder":
            options["conv_dtype"] = self.vae_dtype
        return options


def _check_vae_dtype(vae_dtype: str, options: Options) -> None:
    if vae_dtype not in VAE_DTYPES:
        raise _not_one_of("vae_dtype", VAE_DTYPES, vae_dtype)
    if options.rewrite_numerics == "strict":
        raise OptionError.value("vae_dtype", "None beside rewrite_numerics='strict'", vae_dtype)
    if options.conv_dtype not in ("", vae_dtype):
        raise OptionError.value(
            "vae_dtype", f"{options.conv_dtype!r} as in option 'conv_dtype', or None", vae_dtype
        )


def _not_one_of(name: str, allowed: tuple[str, ...], found: object) -> OptionError:
    expected = f"one of {', '.join(map(repr, allowed))}"
    return OptionError.value(name, expected, found, nearest(str(found), allowed))
