"""One run of a user's script in one form, in a process of its own; its figures go to a file.

python -m rocm_passes.bench.script_child FORM FILE SCRIPT [ARGUMENTS]...
python -m rocm_passes.bench.script_child FORM FILE -m MODULE [ARGUMENTS]...
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rocm_passes.bench.script_calls import Watch

SEED = 0
OUTPUTS = ".outputs.pt"


def main(form: str, file: str, words: list[str]) -> int:
    """Run the script with `torch.compile` replaced. Returns the script's exit code."""
    watch = Watch(form)
    original, torch.compile = torch.compile, watch.compile(torch.compile)
    torch.manual_seed(SEED)
    began = time.perf_counter()
    try:
        code = _run(words)
    finally:
        torch.compile = original
        found = watch.figures() | {"total_s": time.perf_counter() - began, "peak_gib": peak_gib()}
        if form == "ours":
            found["ledger"] = _ledger()
        torch.save(watch.samples(), file + OUTPUTS)
        Path(file).write_text(json.dumps(found))
    return code


def _run(words: list[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    return 0


def peak_gib() -> float:
    """Of the GPU's memory; without a GPU, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20


def _ledger() -> dict[str, Any]:
    import rocm_passes
    from rocm_passes.environment import document

    return document(rocm_passes.history())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
