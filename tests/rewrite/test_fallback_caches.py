"""What a graph that did not compile with its rewrites leaves in the caches: nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests import forked
from tests.zygote import WITHOUT_COMPILER

SCRIPT = """
import json, sys, torch
import rocm_passes
from torch._dynamo.utils import counters
from torch._inductor.lowering import lowerings

def raises(*args, **kwargs):
    raise NotImplementedError("no lowering for this")

if sys.argv[1] == "fails":
    lowerings[torch.ops.rocm_passes.rms_norm.default] = raises
norm = torch.nn.RMSNorm(16, eps=1e-6)
options = {"select": "always", "on_compile_error": "fallback"}
compiled = torch.compile(lambda x: norm(x) + 1, backend="rocm_diffusion", options=options)
with torch.no_grad():
    compiled(torch.ones(4, 16))
print(json.dumps({
    "sites": [[e.outcome, e.reason] for g in rocm_passes.history() for e in g.entries],
    "from_cache": [g.from_cache for g in rocm_passes.history()],
    "autograd": counters["aot_autograd"].get("autograd_cache_hit", 0),
}))
"""


def compiled(folder: Path, how: str) -> dict[str, Any]:
    """In a process of its own, with the folder's caches."""
    done = forked.run(
        [sys.executable, "-c", SCRIPT, how],
        env={**os.environ, WITHOUT_COMPILER: "1", "TORCHINDUCTOR_CACHE_DIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    falls_back = found["sites"] == [["refused", REASON]]
    assert ("did not compile with the rewrites" in done.stderr) == falls_back
    return found


REASON = (
    "its graph did not compile with the rewrites: "
    "LoweringException: NotImplementedError: no lowering for this"
)


def test_each_process_tries_the_rewrites_first(tmp_path: Path) -> None:
    for _ in range(2):
        found = compiled(tmp_path, "fails")
        assert found["sites"] == [["refused", REASON]]
        assert found["from_cache"] == [False] and not found["autograd"]
    found = compiled(tmp_path, "works")
    assert [outcome for outcome, _ in found["sites"]] == ["rewritten"]
    assert found["from_cache"] == [False]
    # What is cached now was compiled with the rewrites, and is not compiled again.
    found = compiled(tmp_path, "fails")
    assert [outcome for outcome, _ in found["sites"]] == ["rewritten"]
    assert found["from_cache"] == [True]
