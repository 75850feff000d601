"""The benchmark of several GPUs, with tiny models on the CPU."""

from __future__ import annotations

from dataclasses import asdict

from rocm_passes.bench import distributed
from tests.distributed.checks import Findings, exhaustive
from tests.without_codegen import without_codegen


@exhaustive
def the_benchmark_of_several_gpus() -> Findings:
    cases = ["--tiny", "--only", "wan_1.3b,wan_decoder", "--splits", "one,ulysses,ring,rows"]
    once = ["--rounds", "1", "--warm", "1", "--layers", "1"]
    given = distributed.parse([*cases, *once, "--forms", "eager,ours"])
    with without_codegen():
        rows = distributed.run(given)
    return {"rows": [asdict(row) for row in rows], "table": distributed.table(rows)}
