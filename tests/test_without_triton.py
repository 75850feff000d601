"""Where Triton is not installed (a CPU wheel, Windows) the backend is there, and compiles."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())

import torch
from torch import nn

import rocm_passes
from tests.without_codegen import without_codegen

x = torch.randn(2, 8)
with without_codegen(), torch.no_grad():
    compiled = torch.compile(
        nn.RMSNorm(8), backend="rocm_diffusion", options={"select": "always"}
    )
    torch.testing.assert_close(compiled(x), nn.RMSNorm(8)(x))
(ledger,) = rocm_passes.history()
print([entry.outcome for entry in ledger.entries])
print("triton" in sys.modules)
"""


def test_a_model_is_compiled_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["['rewritten']", "False"], done.stdout
