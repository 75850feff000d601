"""The list of what would be measured on AMD: in a process of its own, where torch believes in such
a GPU and no kernel is interpreted.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocm_passes.bench import amd_models, amd_sites
from tests.inductor_for_amd import answers_of
from tests.suites import architectures


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2048, 2048, dtype=torch.bfloat16)
        self.norm = nn.RMSNorm(2048, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x + F.silu(self.linear(x))))


def main() -> None:
    with torch.device("meta"):
        block, x = Block(), torch.empty(1, 1024, 2048, dtype=torch.bfloat16)
    graphs = amd_models.traced(block, (x,), {})
    found = {arch: [vars(row) for row in amd_sites.found_in(graphs, arch)] for arch in sys.argv[1:]}
    print(json.dumps({"found": found, "page": amd_sites.table({"block": found})}))


def test_each_architecture_has_its_candidates_with_their_code() -> None:
    answer = answers_of("tests.bench.test_amd_sites", *architectures())
    size = 1024 * 2048 * 2
    for arch in architectures():
        (chained, alone) = answer["found"][arch]
        assert chained["site"].startswith("residual_norm bfloat16 1x1024x2048 in ")
        assert alone["site"].startswith("rms_norm ")
        # x, the product and the result, and a weight.
        assert chained["codes"]["inductor"][0] == 1
        assert 3 * size <= chained["codes"]["inductor"][1] < 3.1 * size
        # By itself the norm reads a sum that must be written first.
        assert alone["codes"]["triton"][0] == 2
        assert alone["codes"]["triton"][1] > 1.5 * alone["codes"]["inductor"][1]
        assert chained["failed"] == alone["failed"] == {}
    page = answer["page"]
    assert f"## block: {', '.join(architectures())}" in page
    assert "inductor: 1, 12.0; triton: " in page


def test_a_row_without_code_says_why() -> None:
    rows = [
        {"site": "a", "count": 2, "codes": {}, "failed": {}, "note": "beyond doubt by rule"},
        {"site": "b", "count": 1, "codes": {}, "failed": {"triton": "E: no"}, "note": ""},
    ]
    page = amd_sites.table({"m": {"gfx942": rows}})
    assert "| a | 2 | beyond doubt by rule |" in page
    assert "| b | 1 | triton: no code (E: no) |" in page


if __name__ == "__main__":
    sys.exit(main())
