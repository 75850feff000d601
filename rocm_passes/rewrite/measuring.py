"""Asks the measurements which candidate a site gets: Inductor's own code, or a lowering."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._inductor import config as inductor_config

from rocm_passes import policy
from rocm_passes.ops.operator import Lowering
from rocm_passes.options import Options
from rocm_passes.policy.bounds import (
    SITE_MEMORY_SHARE,
    SITE_SHARE,
    WORTH_MEASURING_SITE_MIB,
)
from rocm_passes.rewrite import host_time
from rocm_passes.rewrite.cut import Cut, cut
from rocm_passes.rewrite.match import Idiom, Match
from rocm_passes.rewrite.neighbourhood import Neighbourhoods, NotCut
from rocm_passes.rewrite.program import WIDE
from rocm_passes.rewrite.verify import TRIALS, compared, draw, limit, on_device
from rocm_passes.target import Target
from rocm_passes.tuning import ahead, sites
from rocm_passes.tuning.inductor_code import Compiled, generated, loaded
from rocm_passes.tuning.known import knows_sites

log = logging.getLogger("rocm_passes")

#: The ledger's note on a site that could be measured.
NOT_ASKED = "not measured: `rocm-passes tune` and select='measure' measure it with its neighbours"


class Answer(NamedTuple):
    """picked: what the measurements say, or None where they say nothing: `reason` says why not."""

    picked: sites.Picked | None
    reason: str = ""


def asks(target: Target, options: Options) -> bool:
    """Do the times of sites count in this process? Times of a CPU choose nothing."""
    return target.is_gpu and torch.cuda.is_available() and options.select in ("auto", "measure")


def asked_for(options: Options) -> bool:
    """Does the user want sites measured, by `rocm-passes tune` or by select="measure"?"""
    return options.select == "measure" or ahead.active()


def measures(target: Target, options: Options) -> bool:
    """May it measure what is not known? Compiling every site with its neighbours takes seconds:
    where the user asks, and where the rules are not this architecture's.
    """
    elsewhere = target.arch not in policy.MEASURED_ON
    return asked_for(options) or (options.select == "auto" and elsewhere)


@dataclass
class Measuring:
    """Of the sites of one graph, before it is changed. channels_last: how its convolutions run.

    timer: stands in for the device's times in tests.
    """

    graph: fx.Graph
    target: Target
    options: Options
    preserved: tuple[str, ...] = ()
    channels_last: bool = False
    timer: sites.Timer | None = None
    _neighbourhoods: Neighbourhoods | None = field(default=None, init=False)

    @functools.cached_property
    def _hidden(self) -> bool:
        """Does the host's time not count (`sites.pick`)?"""
        return bool(inductor_config.triton.cudagraphs) or host_time.is_hidden(self.graph)

    def ask(self, idiom: Idiom, site: Match, able: Sequence[Lowering[Any]]) -> Answer:
        """What a fault of a measurement raises costs the measurement, and the rules decide."""
        if not asks(self.target, self.options):
            return Answer(None)
        measure = measures(self.target, self.options)
        try:
            names = doubtful(idiom, site.values(), able, self.target)
            if not names:
                return Answer(None)
            if not measure and not knows_sites(self.options, self.target):
                return Answer(None, NOT_ASKED)
            made = self._cut(idiom, site, [low for low in able if low.name in names])
            picked = sites.pick(
                made, names, self.target, self._budgeted, self._hidden, self.timer, measure
            )
        except NotCut as reason:
            return Answer(None, f"not measured: {reason}")
        except Exception as error:
            log.warning("rocm_passes: measuring %s failed", idiom.name, exc_info=True)
            return Answer(None, f"measuring it failed: {type(error).__name__}: {error}")
        if picked is None:
            return Answer(None, self._why_not() if measure else NOT_ASKED)
        return Answer(picked)

    @property
    def _budgeted(self) -> Options:
        """With the time that sites may take."""
        share = 1.0 if asked_for(self.options) else SITE_SHARE.value
        return replace(self.options, tune_seconds=share * self.options.tune_seconds)

    def _cut(self, idiom: Idiom, site: Match, able: Sequence[Lowering[Any]]) -> CompiledSite:
        if self._neighbourhoods is None:
            self._neighbourhoods = Neighbourhoods(self.graph, self.preserved)
        nodes = self._neighbourhoods.of(site)
        made = cut(nodes, idiom.name, self.preserved, self.channels_last)
        least = WORTH_MEASURING_SITE_MIB.value
        if made.bytes < least * 2**20:
            raise NotCut(f"it moves {made.bytes / 2**20:.2g} MiB, and {least:g} are worth the time")
        return CompiledSite(made, idiom, able, self.options.launch)

    def _why_not(self) -> str:
        seconds = self._budgeted.tune_seconds
        if seconds <= 0:
            return "not measured: tune_seconds=0"
        return f"not measured: no figure within {seconds:g} s (tune_seconds)"


def doubtful(idiom: Idiom, call: Any, able: Iterable[Lowering[Any]], target: Target) -> list[str]:
    """The lowerings that a measurement is to decide on: none where a rule that is beyond doubt
    takes the first, and none that such a rule leaves.
    """
    names: list[str] = []
    for lowering in able:
        pays, settled = policy.settled(idiom.rules, lowering.name, call, target)
        if settled and pays:
            return [*names, lowering.name] if names else []
        if not settled:
            names.append(lowering.name)
    return names


@dataclass(frozen=True)
class CompiledSite:
    """A cut whose candidates can be compiled, verified and fed: `sites.Measurable`."""

    cut: Cut
    idiom: Idiom
    able: Sequence[Lowering[Any]]
    launch: str

    @property
    def key(self) -> str:
        return self.cut.key

    @property
    def device(self) -> torch.device:
        return self.cut.device

    def compiled(self, names: Sequence[str]) -> tuple[dict[str, Compiled], dict[str, str]]:
        codes, skipped = {}, {}
        by_name = {low.name: low for low in self.able}
        for name in names:
            try:
                codes[name] = generated(self._graph(by_name.get(name)))
            except Exception as error:
                skipped[name] = f"{type(error).__name__}: {error}"
        with on_device(self.device):
            compiled, failed = loaded(codes)
        return compiled, {**skipped, **failed}

    def _graph(self, lowering: Lowering[Any] | None) -> fx.GraphModule:
        if lowering is None:
            return self.cut.original()
        return self.cut.rewritten(lowering, self.idiom.operator, self.launch)

    def wrong(self, name: str, compiled: Compiled) -> str:
        """Against float64, with the bound of `verify`, on the same drawn inputs."""
        if 4 * self.cut.bytes > limit(self.device):
            return ""
        with on_device(self.device):
            for trial, scale in enumerate(TRIALS):
                values = self._drawn(trial, scale)
                reason = self._differs(values, compiled)
                if reason:
                    return f"wrong: {reason}"
        return ""

    def _differs(self, values: list[Any], compiled: Compiled) -> str:
        plain = fx.Interpreter(self.cut.plain())
        olds = plain.run(*values)
        wide = [v.to(WIDE.get(v.dtype, v.dtype)) if isinstance(v, Tensor) else v for v in values]
        exacts = fx.Interpreter(_widened(self.cut.plain())).run(*wide)
        for new, old, exact in zip(compiled(list(values)), olds, exacts, strict=True):
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                return f"it gives {new.dtype} {list(new.shape)}"
            reason = compared(new, old, exact).reason
            if reason:
                return reason
        return ""

    def inputs(self, cache: int) -> list[list[Any]]:
        with on_device(self.device):
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 2**30
            most = int(free * SITE_MEMORY_SHARE.value)
            if self.cut.bytes > most:
                raise NotCut(f"its tensors take {self.cut.bytes >> 20} MiB of {free >> 20} free")
            return sites.rotated(self._drawn(0, TRIALS[0]), cache, most)

    def _drawn(self, trial: int, scale: float) -> list[Any]:
        generator = torch.Generator("cpu").manual_seed(trial)
        return [
            self.cut.constants[i.name]
            if i.name in self.cut.constants
            else draw(i, generator, scale, self.device)
            for i in self.cut.inputs
        ]


def _widened(gm: fx.GraphModule) -> fx.GraphModule:
    """The same graph in float64."""

    def wide(found: Any) -> Any:
        return WIDE.get(found, found) if isinstance(found, torch.dtype) else found

    for node in gm.graph.nodes:
        node.args = tuple(map(wide, node.args))
        node.kwargs = {name: wide(found) for name, found in node.kwargs.items()}
    gm.recompile()
    return gm
