"""A process that compiles a model on a CPU of which the backend believes that it can be measured.

`python -m tests.tuning.measuring_process CHOICES '{"inductor": 1.0, "reference": 0.5}'` prints, as
JSON, what Inductor's caches and the ledger say, and how often candidates were timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._dynamo.utils import counters

import rocm_passes
from rocm_passes.backend import rocm_diffusion
from rocm_passes.rewrite import measuring
from rocm_passes.tuning import sites
from rocm_passes.tuning.inductor_code import Code, Compiled
from rocm_passes.tuning.sites import Times


def believe(times: Mapping[str, float], timed: list[str]) -> None:
    """Candidates run node by node, and take the planted times."""

    def generated(gm: fx.GraphModule) -> Code:
        return Code("", {}, 0, gm)  # type: ignore[arg-type]

    def loaded(codes: Mapping[str, Code]) -> tuple[dict[str, Compiled], dict[str, str]]:
        runs: dict[str, Compiled] = {}
        for name, code in codes.items():
            gm: Any = code.lowering
            runs[name] = lambda inputs, gm=gm: fx.Interpreter(gm).run(*inputs)
        return runs, {}

    def clock(candidates: Mapping[str, Compiled], *_: Any) -> dict[str, Times]:
        timed.extend(candidates)
        return {name: Times(times[name], 0.0) for name in candidates}

    bound = measuring.WORTH_MEASURING_SITE_MIB
    patched: dict[str, Any] = {
        "generated": generated,
        "loaded": loaded,
        "asks": lambda *_: True,
        "measures": lambda *_: True,
        "WORTH_MEASURING_SITE_MIB": type(bound)(**{**bound.__dict__, "value": 0}),
    }
    vars(measuring).update(patched)
    measuring.policy.settled = lambda *_: (False, False)
    sites.timed = clock


def main() -> None:
    choices, times = sys.argv[1], json.loads(sys.argv[2])
    timed: list[str] = []
    believe(times, timed)
    torch.manual_seed(0)
    norm = torch.nn.RMSNorm(32)
    compiled = torch.compile(
        norm, backend=rocm_diffusion, options={"choices": choices, "idioms": "rms_norm"}
    )
    x = torch.randn(8, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), norm(x))
    (ledger,) = rocm_passes.history()
    inductor = counters["inductor"]
    answer = {
        "hits": inductor.get("fxgraph_cache_hit", 0)
        + counters["aot_autograd"]["autograd_cache_hit"],
        "misses": inductor.get("fxgraph_cache_miss", 0),
        "timed": timed,
        "from_cache": ledger.from_cache,
        "lowering": ledger.entries[0].lowering,
        "reason": ledger.entries[0].reason,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
