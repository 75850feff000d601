"""The part of the suite that every version of torch runs: what depends on torch's own code.

Of a test with parameters the first case runs (once.py). Graphs are rewritten and run without code
generation, but for tests of the generated code. The whole suite runs with one version, that of
constraints.txt.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Of torch: the supported ones.
VERSIONS = ("2.11", "2.12", "2.13", "2.14", "2.15")
_IDIOMS = (
    "attention_idiom",
    "attention_lowerings",
    "channel_norm",
    "conv3d",
    "conv_transposed",
    "gated_activation",
    "group_norm",
    "group_norm_pad",
    "layer_norm",
    "linear_gelu",
    "modulate",
    "norm_graphs",
    "pad",
    "pixels",
    "qk_norm_rotary",
    "residual_norm",
    "rms_norm",
    "rotary",
    "rotary_pair",
    "upsampled_conv",
    "upsampling",
)
#: By what is checked: files and tests.
PART: Mapping[str, tuple[str, ...]] = {
    "every idiom is found and rewritten": tuple(f"tests/idioms/test_{name}.py" for name in _IDIOMS),
    "whole-graph passes": ("tests/passes",),
    "the backend, its options, and a user's own passes": (
        "tests/test_backend.py",
        "tests/test_options.py",
        "tests/fx/test_hooks.py",
        "tests/test_isolation.py",
    ),
    "the pass in a graph: control flow, checkpointing, symbolic sizes": (
        "tests/test_graph_pass.py",
        "tests/test_graph_pass_choices.py",
        "tests/test_graph_pass_failures.py",
        "tests/test_control_flow.py",
        "tests/test_no_guards.py",
        "tests/test_export.py",
        "tests/fx",
    ),
    "operators, and their launches in Inductor's code": (
        "tests/ops/test_operator.py",
        "tests/kernels/test_inductor.py",
    ),
    "the code of sites that are measured": (
        "tests/bench/test_amd_sites.py",
        "tests/rewrite/test_neighbourhood.py",
    ),
    "cache keys, and ledgers of cached graphs": (
        "tests/tuning/test_consulted.py",
        "tests/report/test_remembered.py",
    ),
    "ledgers and dumps, also in the structured trace": (
        "tests/report/test_report.py",
        "tests/report/test_dump.py",
    ),
    "compile_pipeline": ("tests/diffusers_pipeline/test_compile_pipeline.py",),
}
#: The marks of tests that are left out.
MARKS = "not exhaustive and not codegen"


def arguments(all_cases: bool = False) -> list[str]:
    """Of pytest: each file or test once."""
    once = [] if all_cases else ["-p", "tests.versions.once"]
    return [*dict.fromkeys(path for paths in PART.values() for path in paths), "-m", MARKS, *once]
