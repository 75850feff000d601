"""A user's own passes beside ours, in every form that Inductor takes, on both hooks that this
package uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.utils import fresh_cache

from rocm_passes.fx import hooks
from rocm_passes.fx.hooks import InferenceAwareSequence, PassSequence, after_the_users
from tests.rewriting import rewrite
from tests.without_codegen import without_codegen

HOOKS = ("post_grad_custom_pre_pass", "joint_custom_pre_pass")

aware = pytest.mark.skipif(
    not hasattr(custom_graph_pass, "CustomInferenceAwareGraphPass"),
    reason="this torch has no such passes",
)
several = pytest.mark.skipif(
    not hasattr(custom_graph_pass, "get_custom_graph_passes"),
    reason="this torch takes one pass per hook",
)


def norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Pass(CustomGraphPass):
    """Notes what it is called with, and whether our rewrite has been there before it."""

    def __init__(self, seen: list[Any], key: Any = "a user's") -> None:
        self.seen = seen
        self.key = key

    def uuid(self) -> Any:
        return self.key

    def __call__(self, graph: fx.Graph) -> None:
        assert not any("rocm_passes" in str(n.target) for n in graph.nodes)
        self.seen.append(None)


def aware_pass(seen: list[Any]) -> Any:
    class Aware(custom_graph_pass.CustomInferenceAwareGraphPass):  # type: ignore[name-defined,misc]
        def uuid(self) -> str:
            return "an aware one"

        def __call__(self, graph: fx.Graph, is_inference: bool) -> None:
            seen.append(is_inference)

    return Aware()


def function(seen: list[Any], graph: fx.Graph) -> None:
    seen.append(None)


FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "pass": Pass,
    "function": lambda seen: lambda graph: seen.append(None),
    "partial": lambda seen: functools.partial(function, seen),
    "partial of a pass": lambda seen: functools.partial(Pass(seen)),
}
SEVERAL: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda seen: [Pass(seen), Pass(seen, "another")],
    "tuple": lambda seen: (functools.partial(function, seen), Pass(seen)),
    "empty list": lambda seen: [],
}


def both_ran(hook: str, theirs: Any, **config: Any) -> None:
    with without_codegen(), inductor_config.patch(config):
        rewritten = rewrite(
            norm, torch.randn(3, 16), options={} if theirs is None else {hook: theirs}
        )
    assert rewritten.only().outcome == "rewritten"


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("form", FORMS)
def test_it_runs_before_ours(hook: str, form: str) -> None:
    seen: list[Any] = []
    both_ran(hook, FORMS[form](seen))
    assert seen == [None]


@several
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("form", SEVERAL)
def test_several_run_before_ours(hook: str, form: str) -> None:
    seen: list[Any] = []
    theirs = SEVERAL[form](seen)
    both_ran(hook, theirs)
    assert len(seen) == len(theirs)


@pytest.mark.parametrize("hook", HOOKS)
def test_one_of_the_global_config_runs_and_stays_there(hook: str) -> None:
    seen: list[Any] = []
    theirs = Pass(seen)
    with inductor_config.patch({hook: theirs}):
        both_ran(hook, None)
        assert getattr(inductor_config, hook) is theirs
    assert seen == [None]


@aware
def test_an_inference_aware_pass_is_told_of_inference() -> None:
    seen: list[Any] = []
    both_ran("post_grad_custom_pre_pass", aware_pass(seen))
    assert seen == [True]


@aware
@several
def test_an_inference_aware_pass_among_others() -> None:
    seen: list[Any] = []
    both_ran(
        "post_grad_custom_pre_pass",
        [Pass(seen), aware_pass(seen), functools.partial(function, seen)],
    )
    assert seen == [None, True, None]


@aware
def test_an_inference_aware_pass_in_a_torch_that_takes_one_pass_per_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hooks, "_TAKES_SEVERAL", False)
    seen: list[Any] = []
    both_ran("post_grad_custom_pre_pass", aware_pass(seen))
    assert seen == [True]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("form", FORMS)
def test_where_a_hook_takes_one_pass(hook: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torch 2.11."""
    monkeypatch.setattr(hooks, "_TAKES_SEVERAL", False)
    seen: list[Any] = []
    both_ran(hook, FORMS[form](seen))
    assert seen == [None]


@pytest.mark.parametrize("kind", [PassSequence, InferenceAwareSequence])
def test_a_sequence_has_a_key_only_where_all_its_passes_have_one(kind: type[PassSequence]) -> None:
    keyed, other = Pass([], "one"), Pass([], "other")
    assert kind([keyed, other]).uuid() == ("one", "other")
    assert kind([keyed, Pass([], None)]).uuid() is None
    # Inductor takes an empty key for none.
    assert kind([keyed, Pass([], "")]).uuid() is None
    assert kind([keyed, functools.partial(function, [])]).uuid() is None


def test_options_win_over_the_global_config() -> None:
    """As Inductor's own options do; None among them takes a global pass away."""
    theirs, ours = Pass([]), Pass([], "ours")
    hook = HOOKS[0]
    with inductor_config.patch({hook: theirs}):
        assert after_the_users({hook: None}, hook, ours) is ours
        assert after_the_users({}, hook, ours) is not ours


@pytest.mark.parametrize(
    ("theirs", "hits"), [(Pass([], "k"), 1), (functools.partial(function, []), 0)]
)
def test_compiled_code_is_cached_where_the_users_pass_has_a_key(theirs: Any, hits: int) -> None:
    from torch._dynamo.utils import counters

    with fresh_cache(), torch.no_grad():
        for _ in range(2):
            torch._dynamo.reset()
            counters["inductor"].clear()
            options = {"select": "always", "post_grad_custom_pre_pass": theirs}
            torch.compile(norm, backend="rocm_diffusion", options=options)(torch.randn(3, 16))
        assert counters["inductor"]["fxgraph_cache_hit"] == hits
