"""The entry point: `torch.compile(model, backend="rocm_diffusion")`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.custom_graph_pass import CustomGraphPass

from rocm_passes.fx import decompositions as decomposing
from rocm_passes.fx.hooks import after_the_users
from rocm_passes.graph_pass import GraphPass
from rocm_passes.idioms.rotary import rotary
from rocm_passes.options import Options, parse
from rocm_passes.passes.complex_to_real import ComplexToReal, is_training
from rocm_passes.policy.launch import launched_by
from rocm_passes.policy.layout import is_convolutional
from rocm_passes.report import dump, remembered
from rocm_passes.report.ledger import Ledger
from rocm_passes.rewrite import fallback, launch_errors
from rocm_passes.rewrite.cache_key import with_choices
from rocm_passes.rewrite.watch import inner_compile
from rocm_passes.rewrite.whole_fallback import compiled_or_plain
from rocm_passes.target import Target, triton_version
from rocm_passes.tuning import ahead, library_search, ranks

log = logging.getLogger(__name__)


def rocm_diffusion(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    listener: Callable[[Ledger], None] | None = None,
    caches: bool = True,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Inductor, our rewrites applied.

    gm, example_inputs: as Dynamo hands them to any backend. mode: an Inductor mode, as of
    torch.compile.
    options: those of `rocm_passes.options.Options`, "mode", and any Inductor option.
    listener: called with the ledger of each graph that is compiled. caches: False compiles past
    Inductor's caches, so that the passes run and have something to report. (`rocm_passes.explain`
    uses both.) So does ROCM_PASSES_DUMP, which would find nothing to dump otherwise. Raises
    OptionError on a wrong option.
    """
    settings, patch = parse(options, mode)
    # What these look at or count happens in the passes, which do not run on a hit.
    if settings.as_if:
        return _as_if(gm, example_inputs, settings, patch, listener)
    looks = settings.verify != "off" or settings.check_finite or settings.fuel_total is not None
    looks = looks or settings.select == "measure"
    if not caches or looks or dump.folder() is not None:
        patch["force_disable_caches"] = True
    made: list[GraphPass] = []

    def ours() -> Callable[..., Any]:
        return _with_passes(gm, example_inputs, settings, dict(patch), listener, made)

    if settings.on_compile_error == "raise" or ahead.active():
        return ours()
    return compiled_or_plain(
        gm,
        example_inputs,
        ours,
        plain=lambda: _inductor(gm, example_inputs, dict(patch)),
        passes=lambda: made[-1] if made else None,
    )


def _with_passes(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    settings: Options,
    patch: dict[str, Any],
    listener: Callable[[Ledger], None] | None,
    made: list[GraphPass],
) -> Callable[..., Any]:
    """made: is given the pass, before anything is compiled."""
    target = Target.of_inputs(_tensors(gm, example_inputs))
    settings = replace(settings, launch=launched_by(settings.launch, target))
    # Read before Inductor takes the graph over.
    convolutions = library_search.convolutions(gm)
    graph_pass = GraphPass(settings, target, listener)
    made.append(graph_pass)
    if (
        target.is_gpu
        and graph_pass.may_rewrite()
        and is_convolutional(len(gm.graph.nodes), len(convolutions))
    ):
        # It sinks what only leaves the graph, a video VAE's cached frames, to the end, and so keeps
        # the padded inputs that these are read from alive through the whole graph.
        patch.setdefault("reorder_for_locality", False)
    if ranks.current() is not None:
        same = replace(settings, choices="", report="")
        graph_pass.name_on_ranks = remembered.key_of(gm, example_inputs, repr(same), False)
    key = None
    if _cached(patch):
        described = remembered.key_of(gm, example_inputs, graph_pass.static_key())
        graph_pass.recall(described)
        key = with_choices(described, graph_pass.asked)
    compiled = _compiled(gm, example_inputs, graph_pass, patch)
    if key is not None and graph_pass.idioms:
        _keep_or_recall(key, graph_pass)
    return library_search.searching(compiled, convolutions, target, settings)


def _as_if(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    settings: Options,
    patch: dict[str, Any],
    listener: Callable[[Ledger], None] | None,
) -> Callable[..., Any]:
    """The passes alone, as on another machine; what they decided is in the ledger."""
    target = Target.named(settings.as_if, triton=triton_version() or "unknown")
    assert target is not None, settings.as_if
    # Nothing can be measured for a machine that is not here.
    graph_pass = GraphPass(replace(settings, tune_seconds=0.0), target, listener)
    if not graph_pass.idioms:
        forward: Callable[..., Any] = gm.forward
        return forward
    return _compiled(gm, example_inputs, graph_pass, patch)


def _cached(patch: Mapping[str, Any]) -> bool:
    disabled = patch.get("force_disable_caches", inductor_config.force_disable_caches)
    return bool(patch.get("fx_graph_cache", inductor_config.fx_graph_cache)) and not disabled


def _keep_or_recall(key: str, graph_pass: GraphPass) -> None:
    """On a hit in Inductor's caches the pass has not run: its ledgers come from where they were
    kept.
    """
    if graph_pass.published:
        remembered.remember(key, graph_pass.published)
    else:
        for ledger in remembered.recall(key):
            graph_pass.publish(ledger)


def _compiled(
    gm: fx.GraphModule, example_inputs: Sequence[Any], graph_pass: GraphPass, patch: dict[str, Any]
) -> Callable[..., Any]:
    if not graph_pass.idioms:
        return _inductor(gm, example_inputs, patch)
    table = None
    strict = graph_pass.options.rewrite_numerics == "strict"
    if graph_pass.may_rewrite(rotary.IDIOM) and not strict:
        complex_to_real = ComplexToReal(
            graph_pass.uuid, graph_pass.note_early, graph_pass.note_early_failure
        )
        patch["joint_custom_pre_pass"] = after_the_users(
            patch, "joint_custom_pre_pass", complex_to_real
        )
    if graph_pass.preserved:
        # Which operators Inductor decomposes depends on its options, `fallback_random` for one.
        with inductor_config.patch(patch):
            on_cpu = not graph_pass.target.is_gpu
            table = decomposing.table_preserving(graph_pass.preserved, on_cpu)
        graph_pass.not_kept = table.not_kept
        patch["joint_custom_pre_pass"] = after_the_users(
            patch, "joint_custom_pre_pass", DecomposeForTraining(graph_pass)
        )
    if ahead.active() or graph_pass.options.as_if:
        return ahead.run_passes(gm, example_inputs, graph_pass, patch, table)
    patch["post_grad_custom_pre_pass"] = after_the_users(
        patch, "post_grad_custom_pre_pass", graph_pass
    )
    watches = graph_pass.options.verify == "live" or graph_pass.options.check_finite > 0
    inner = inner_compile(graph_pass.taken_watch) if watches else None
    if graph_pass.target.is_gpu:
        inner = launch_errors.inner_compile(lambda: graph_pass.published, inner or compile_fx_inner)
    if graph_pass.may_rewrite() and graph_pass.options.on_compile_error == "fallback":
        inner = fallback.inner_compile(graph_pass, inner or compile_fx_inner)
    return _inductor(gm, example_inputs, patch, table, inner)


def _inductor(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    patch: dict[str, Any],
    decompositions: decomposing.PreservingTable | None = None,
    inner: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    if decompositions is not None and decomposing.key_cannot_be_made():
        inner = decomposing.with_picklable_table(decompositions, inner or compile_fx_inner)
    how: dict[str, Any] = {} if inner is None else {"inner_compile": inner}
    compiled: Any = compile_fx(
        gm, list(example_inputs), config_patches=patch, decompositions=decompositions, **how
    )
    return compiled  # type: ignore[no-any-return]


def _tensors(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> list[Any]:
    """Everything that may say on which device the graph runs: its inputs, then its parameters."""
    return [*example_inputs, *gm.parameters(), *gm.buffers()]


class DecomposeForTraining(CustomGraphPass):
    """Decompose kept operators before the partitioner sees a training graph.

    What is saved for the backward pass and what is recomputed is then decided as for plain
    Inductor. The sites among them are lost to the later pass over the forward graph, so it is told
    of them here.
    """

    def __init__(self, graph_pass: GraphPass) -> None:
        self._graph_pass = graph_pass

    def uuid(self) -> str:
        return self._graph_pass.uuid()

    def __call__(self, graph: fx.Graph) -> None:
        if is_training(graph):
            self._graph_pass.note_training(graph)
            decomposing.decompose_preserved(graph, self._graph_pass.preserved, joint=True)
