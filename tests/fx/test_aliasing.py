"""Outputs share memory after a rewrite where they shared it before, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rocm_passes.fx import aliasing
from rocm_passes.fx.builder import fake_mode_of
from rocm_passes.options import Options
from rocm_passes.target import Target
from tests.fuzz.traced import Traced, references_run, target_named
from tests.rewriting import rewrite
from tests.without_codegen import without_codegen


def traced(f: Callable[..., Any], *inputs: Tensor) -> tuple[fx.GraphModule, FakeTensorMode]:
    gm = make_fx(f, tracing_mode="fake")(*inputs)
    mode = fake_mode_of(gm.graph)
    assert mode is not None
    return gm, mode


def memory(tensors: Sequence[Tensor]) -> list[int]:
    """For each tensor the place of the first that it shares memory with."""
    at = [t.untyped_storage().data_ptr() for t in tensors]
    return [at.index(a) for a in at]


#: Views of one input: one node twice, a view of a view, and parts of a list.
VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "one value twice": lambda x: (lambda y: (y, y))(x[1:]),
    "a view and its view": lambda x: (lambda y: (y, y.reshape(-1)))(x[1:]),
    "two views": lambda x: (x[1:], x[:1]),
    "parts of a list": lambda x: x.split(1),
    "a part and its view": lambda x: (lambda p: (p[0], p[0].transpose(0, 1)))(x.split(1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_outputs_that_shared_memory_are_views_of_one_copy(name: str) -> None:
    x = torch.randn(2, 3)
    gm, mode = traced(VIEWS[name], x)
    shared = frozenset((i, j) for i, j in aliasing.sharing(gm.graph) if isinstance(j, int))
    assert shared == {(0, 1)}
    assert len(aliasing.keep_apart(gm.graph, shared, mode)) == 1
    gm.recompile()
    found = gm(x)
    assert memory([x, *found]) == [0, 1, 1]
    for got, want in zip(found, VIEWS[name](x), strict=True):
        assert torch.equal(got, want)


def test_outputs_that_shared_nothing_are_copied_one_by_one() -> None:
    x = torch.randn(2, 3)
    gm, mode = traced(VIEWS["two views"], x)
    assert len(aliasing.keep_apart(gm.graph, frozenset(), mode)) == 2
    gm.recompile()
    assert memory([x, *gm(x)]) == [0, 1, 2]


def rewritten(
    f: Callable[..., Any], *inputs: Tensor, layout: str = "channels_last"
) -> tuple[list[str], list[Tensor]]:
    with torch.no_grad(), references_run():
        pass_over = Traced(f, inputs)
        pass_over.trace()
        options = Options(select="always", layout=layout, tune_seconds=0.0)
        ledger = pass_over.rewrite(options, target_named("sm_90"))
        return [e.outcome for e in ledger.entries], list(pass_over(*inputs))


VIDEO, CACHE = torch.randn(1, 4, 2, 3, 5), torch.randn(1, 4, 2, 3, 5)


def writing(returned: Callable[[fx.Graph, fx.Node], Any]) -> tuple[fx.GraphModule, FakeTensorMode]:
    """A graph that writes 2 * x into its input x, and behind that returns something."""
    gm, mode = traced(lambda x, y: (torch.ops.aten.copy_.default(x, x * 2),), X34, X34)
    out = returned(gm.graph, next(iter(gm.graph.nodes)))
    gm.graph.output_node().args = ((out,),)
    return gm, mode


X34 = torch.arange(12.0).reshape(3, 4)


def test_a_copy_of_an_input_is_made_before_it_is_written() -> None:
    def row(graph: fx.Graph, x: fx.Node) -> fx.Node:
        with graph.inserting_after(x.next):
            made = graph.call_function(torch.ops.aten.slice.Tensor, (x, 0, 1, 2))
        made.meta["val"] = x.meta["val"][1:2]
        return made

    gm, mode = writing(row)
    assert len(aliasing.keep_apart(gm.graph, frozenset(), mode)) == 1
    gm.recompile()
    x = X34.clone()
    (found,) = gm(x, x)
    assert torch.equal(found, X34[1:2])
    assert torch.equal(x, 2 * X34)


@pytest.mark.parametrize("copied", ["not at all", "copy", "clone"])
def test_what_is_written_into_an_input_may_not_become_a_view_of_one_that_is_written(
    copied: str,
) -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        t = {"not at all": x, "copy": torch.ops.aten.copy.default(y, x), "clone": x.clone()}[copied]
        aten = torch.ops.aten
        return aten.copy_.default(x, y * 2), aten.copy_.default(y, t)

    gm, _ = traced(f, X34, X34)
    gm.graph.eliminate_dead_code()
    with pytest.raises(ValueError, match="is written too"):
        aliasing.check_sources(gm.graph, {})
    # What the user's own code does is left to Inductor.
    aliasing.check_sources(gm.graph, aliasing.sources(gm.graph))


def front_kept(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    joined = torch.cat([cache, x], 2)
    kept, y = joined[:, :, :2], F.conv3d(joined, w)
    cache.copy_(joined[:, :, -2:])
    return y, kept


def x_doubled(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    joined = torch.cat([cache, x], 2)
    kept, y = joined[:, :, -2:], F.conv3d(joined, w)
    x.mul_(2)
    return y, kept


def exchanged(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    joined = torch.cat([cache, x], 2)
    y = F.conv3d(joined, w)
    cache.copy_(joined[:, :, 2:4])
    x.copy_(joined[:, :, :2])
    return (y,)


@pytest.mark.parametrize("f", [front_kept, x_doubled, exchanged])
@pytest.mark.parametrize("select", ["auto", "always"])
def test_frames_of_an_input_that_is_written_into_are_what_they_were(
    f: Callable[..., tuple[Tensor, ...]], select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_named("sm_90")
    monkeypatch.setattr(Target, "of_inputs", staticmethod(lambda _: target))
    drawn = torch.randn(1, 4, 2, 5, 5), torch.randn(1, 4, 2, 5, 5), torch.randn(4, 4, 3, 3, 3)
    ours, eager = ([t.clone() for t in drawn] for _ in range(2))
    with references_run(), without_codegen():
        seen = rewrite(f, *ours, options={"select": select, "tune_seconds": 0.0})
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    for got, want in zip([*seen.result, *ours], [*f(*eager), *eager], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_frames_for_the_next_chunk_that_are_returned_twice_stay_one_tensor() -> None:
    """They were a slice of the joined frames; behind the rewrite they are the cache itself."""

    def f(x: Tensor, cache: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        joined = torch.cat([cache, x], 2)
        kept = joined[:, :, :2]
        return kept, kept, F.conv3d(joined, w)

    outcomes, found = rewritten(f, VIDEO, CACHE, torch.randn(4, 4, 1, 1, 1))
    assert outcomes == ["rewritten"]
    assert memory([CACHE, *found]) == [0, 1, 1, 3]


@pytest.mark.parametrize("views", ["y, y.flatten()", "y.flatten(), y.transpose(1, 2)"])
def test_views_of_what_lies_channels_last_now_share_its_memory_still(views: str) -> None:
    """A flat view of the channels-last result would be a copy."""
    f = eval(f"lambda x, w: (lambda y: ({views}))(F.conv3d(x, w) * 2)", {"F": F})
    weight = torch.randn(4, 4, 2, 3, 1)
    outcomes, found = rewritten(f, VIDEO, weight)
    assert outcomes == ["rewritten"]
    assert memory(found) == [0, 0]
    for got, want in zip(found, f(VIDEO, weight), strict=True):
        torch.testing.assert_close(got, want)


#: Of a convolution's result y, whose sizes of channels and frames are equal: a view and its base in
#: either order, a view of a view, two views without the base, parts, and a base returned twice.
OF_A_SQUARE_RESULT = (
    "y, y.flatten()",
    "y.flatten(), y",
    "y.flatten(), y.flatten().unflatten(0, (2, -1))",
    "y.flatten(), y.permute(0, 2, 1, 3, 4)",
    "y.transpose(1, 2), y.flatten(0, 2)",
    "y[:, 1:], y.flatten()",
    "y.flatten()[:4], y.flatten()[2:]",
    "y.flatten(1), y.flatten(2), y.flatten(3)",
    "y, y, y.flatten()",
    "y.flatten() + 1, y, y.flatten()",
)
SQUARE = torch.randn(1, 4, 2, 3, 5)


def of_square(views: str) -> Callable[..., Any]:
    """A kernel of one frame: the 2d convolution has frames in front of channels."""
    return eval(f"lambda x, w: (lambda y: ({views}))(F.conv3d(x, w))", {"F": F})  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", ["as_is", "channels_last"])
@pytest.mark.parametrize("views", OF_A_SQUARE_RESULT)
def test_views_of_a_result_in_which_two_sizes_are_equal(views: str, layout: str) -> None:
    """By its shape the transposed result of the 2d convolution would be taken for the result."""
    f, weight = of_square(views), torch.randn(2, 4, 1, 2, 2)
    for x in (SQUARE, SQUARE.contiguous(memory_format=torch.channels_last_3d)):
        outcomes, found = rewritten(f, x, weight, layout=layout)
        assert outcomes == ["rewritten"]
        # Channels-last in eager, a flat view is a copy: what is traced says what is shared.
        assert memory(found) == memory(unrewritten(f, x, weight))
        for got, want in zip(found, f(x, weight), strict=True):
            torch.testing.assert_close(got, want)


def unrewritten(f: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        as_it_was = Traced(f, inputs)
        as_it_was.trace()
        return list(as_it_was(*inputs))


@pytest.mark.parametrize("dims", [(3, 4), (2,)])
@pytest.mark.parametrize("views", ["y, y.flatten()", "y.transpose(1, 2), y.flatten(0, 2)"])
def test_views_of_a_result_of_dynamic_sizes(views: str, dims: tuple[int, ...]) -> None:
    x, weight = SQUARE.clone(), torch.randn(2, 4, 1, 2, 2)
    for dim in dims:
        torch._dynamo.mark_dynamic(x, dim)
    seen = rewrite(of_square(views), x, weight)
    assert [e.outcome for e in seen.sites] == ["rewritten"]
    assert memory(seen.result) == [0, 0]
    for got, want in zip(seen.result, of_square(views)(x, weight), strict=True):
        torch.testing.assert_close(got, want)
