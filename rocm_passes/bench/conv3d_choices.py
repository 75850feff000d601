"""What the backend chooses for a Conv3d call, by measurement or by rule, and what every lowering
takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes.bench.conv3d_built import Call, built
from rocm_passes.idioms.convolution import conv3d
from rocm_passes.ops import conv3d as op
from rocm_passes.options import Options
from rocm_passes.policy import bounds
from rocm_passes.policy.memory import usual_memory_mib
from rocm_passes.rewrite.choose import choose, obstacle
from rocm_passes.rewrite.match import Context, Found, Match
from rocm_passes.target import Target
from rocm_passes.tuning import ahead, measure, store, tuning

#: The second measurement of what is chosen by measuring: all lowerings for longer, none dropped.
LONGER = {
    "rounds": int(3 * bounds.ROUNDS.value),
    "hopeless": 1e9,
    "seconds": 4 * bounds.ROUND_SECONDS.value,
}


def site(call: Call, dtype: torch.dtype, options: Options, target: Target) -> Match:
    """The site that the backend would see on the target, found without computing anything.

    The graph is traced over fake tensors on a CPU: it is the same one for a GPU, which need not be
    there.
    """
    found: list[Found] = []

    def find(graph: fx.Graph) -> None:
        found.extend(conv3d.find(graph, Context(options, target=target)))

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return ahead.run_passes(gm, inputs, find, {})

    torch._dynamo.reset()
    with torch.no_grad(), FakeTensorMode():
        convolve, inputs = built(call, options.layout == "channels_last", dtype, "cpu")
        torch.compile(convolve, backend=backend, dynamic=False)(*inputs)
    (seen,) = found
    assert isinstance(seen, Match), seen
    return seen


def row(
    text: str, dtype: torch.dtype, options: Options, target: Target, times: bool
) -> dict[str, Any]:
    """A call's choice, for which it is measured where the backend would measure it.

    key: as in the file of choices. chosen: the lowering that a compile takes within the default
    memory bound of bound_mib, unbound: without one; None: it is left to Inductor. by: "measurement"
    or "rule". ms, mib, skipped: of the lowerings that can take it, in the measurement that the
    choice is by; where times are asked for, a choice by rule has a measurement, too, and one by
    measurement has the times of a second and longer one in `again`.
    """
    options = replace(options, layout=Call.of(text).layout(target.vendor))
    seen = site(Call.of(text), dtype, options, target)
    call_seen: op.Conv3d = seen.values()
    able = [
        low for low in conv3d.IDIOM.lowerings if obstacle(low, call_seen, target, options) is None
    ]
    with ahead.noting() as noted:
        ahead.note(call_seen.key(), able, call_seen)
    (call,) = noted.calls
    started = time.perf_counter()
    with ahead.noting() as wanted:
        conv3d.measured(able, call.call, target, options)
    tuning.measure_noted(wanted.calls, options, target, measure.measure)
    took = time.perf_counter() - started

    known = replace(options, tune_seconds=0)
    choice = choose(conv3d.IDIOM, seen, target, known)
    chosen = unbound = choice.lowering and choice.lowering.name
    by_rule = conv3d.measured(able, call.call, target, known) is None
    if by_rule:
        found = measure.measure(able, call.call) if times else None
    else:
        found = store.store(options.choices).find(tuning.machine(target), call.key)
        best = tuning.pick(call.key, able, call.call, target, known, usual_mib=math.inf)
        unbound = best and best[0].name
    made: dict[str, Any] = {
        "call": text,
        "seconds": round(took, 2),
        "key": call.key,
        "chosen": chosen,
    }
    made |= {"unbound": unbound, "bound_mib": round(usual_memory_mib(call_seen))}
    made |= {"by": "rule" if by_rule else "measurement", "reason": choice.reason}
    if found is not None:
        made |= {"ms": dict(found.ms), "mib": dict(found.mib), "skipped": dict(found.skipped)}
    if times and not by_rule:
        made["again"] = dict(measure.measure(able, call.call, patience=LONGER).ms)
    return made
