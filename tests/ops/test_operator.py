"""One signature per operator: the schema, the torch operator and a node's call all come from the
dataclass.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rocm_passes import kernels, registry  # noqa: F401  (the registry registers every lowering)
from rocm_passes.fx.builder import Builder, Eager
from rocm_passes.ops.call import Call, schema
from rocm_passes.ops.operator import COMPUTATIONS, OPERATORS, Lowering, Operator
from rocm_passes.ops.rms_norm import RMS_NORM, RmsNorm
from rocm_passes.ops.rotary import ROTARY, SpelledRotary
from rocm_passes.ops.rotary_layout import Recipe
from rocm_passes.target import Target


@dataclass(frozen=True)
class Many(Call):
    x: Tensor
    weights: Sequence[Tensor]
    bias: Tensor | None
    sizes: Sequence[int]
    eps: float
    kind: str
    flag: bool
    dtype: torch.dtype | None
    front: Tensor | None = None
    count: int = 0

    @property
    def results(self) -> int:
        return 2 if self.flag else 1


def many(call: Many) -> Tensor | list[Tensor]:
    y = call.x * call.eps + call.count
    return [y, -y] if call.flag else y


MANY = Operator("test_many", Many, many, many, results=(1, 2))


def test_the_schema_is_the_dataclass_s() -> None:
    assert schema(Many, 1, "lowering", "reference") == (
        "(Tensor x, Tensor[] weights, Tensor? bias, SymInt[] sizes, float eps, str kind, bool "
        "flag, "
        'ScalarType? dtype, Tensor? front=None, SymInt count=0, str lowering="reference") -> Tensor'
    )
    assert schema(Many, 2, "lowering", "reference").endswith("-> (Tensor, Tensor)")


def given(x: Any, **changes: Any) -> Many:
    arguments: dict[str, Any] = {
        "x": x, "weights": [x], "bias": None, "sizes": [1, 2], "eps": 3.0, "kind": "a",
        "flag": False, "dtype": None,
    }  # fmt: skip
    return Many(**arguments | changes)


def test_there_is_an_overload_for_each_number_of_results() -> None:
    """A list of one tensor, as a result, crashes Inductor's C++ wrapper."""
    x = torch.ones(2)
    one = MANY.overloads[1](*given(x).arguments().values())
    two = MANY.overloads[2](*given(x, flag=True, count=1).arguments().values())
    assert torch.equal(one, x * 3)
    assert [t.tolist() for t in two] == [[4.0, 4.0], [-4.0, -4.0]]


@dataclass(frozen=True)
class Halved(Call):
    """A match's call: of half of x, with a view behind the result."""

    x: Any

    def prepared(self, b: Any) -> Many:
        return given(b(torch.ops.aten.mul.Tensor, self.x, 0.5))

    def finished(self, b: Any, results: list[Any]) -> list[Any]:
        return [b(torch.ops.aten.unsqueeze.default, y, 0) for y in results]


def test_a_match_s_call_writes_nodes_before_and_behind_the_operator_s() -> None:
    written = MANY.write(Eager(), Halved(torch.ones(2)), "reference")
    assert written.tolist() == [[1.5, 1.5]]


def test_the_reference_refuses_what_its_operator_says() -> None:
    x = torch.empty(2, 4, 2, 8)
    recipe = Recipe(None, "bsh", 1, True, 8, (), None, x.dtype, (), (), True, False, False)
    reference = ROTARY.lowering("reference")
    assert reference is not None
    reason = reference.refuses(SpelledRotary(x, [], recipe), Target.of_device("cpu"))
    assert reason is not None and "float64" in reason


@pytest.mark.parametrize("flag", [False, True])
def test_a_node_s_call_is_read_changed_and_written(flag: bool) -> None:
    graph, mode = fx.Graph(), FakeTensorMode()
    x, bias = graph.placeholder("x"), graph.placeholder("bias")
    for node in (x, bias):
        with mode:
            node.meta["val"] = torch.empty(2)
    results = MANY.write(Builder(graph, mode, x), given(x, flag=flag), "reference")
    assert isinstance(results, list) is flag
    node = next(n for n in graph.nodes if n.target is MANY.overloads[2 if flag else 1])
    assert (MANY.call_of(node).x, MANY.call_of(node).bias, MANY.lowering_of(node)) == (
        x,
        None,
        "reference",
    )
    MANY.update(node, bias=bias, count=2)
    changed = MANY.call_of(node)
    assert (changed.bias, changed.count, changed.eps, MANY.lowering_of(node)) == (
        bias,
        2,
        3.0,
        "reference",
    )
    assert set(node.all_input_nodes) == {x, bias} == set(changed.nodes())
    assert changed.values().x is x.meta["val"]


def test_defaults_may_be_left_out_of_a_node() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    arguments = list(given(x).arguments().values())[:-2]
    node = graph.call_function(MANY.overload, tuple(arguments), {"lowering": "triton"})
    assert (MANY.call_of(node).count, MANY.lowering_of(node)) == (0, "triton")


def test_reference_stays_last_and_a_name_is_taken_once() -> None:
    operator = Operator("test_order", Many, many, many)
    operator.register(Lowering("b"))
    operator.register(Lowering("c"))
    operator.register(Lowering("a"), first=True)
    assert [low.name for low in operator.lowerings] == ["a", "b", "c", "reference"]
    with pytest.raises(ValueError, match="has a lowering 'b' already"):
        operator.register(Lowering("b"))


ORDER = {
    "rms_norm": ["aiter", "triton", "reference"],
    "layer_norm": ["aiter", "triton", "reference"],
    "fused_norm": ["aiter", "triton", "reference"],
    "group_norm": ["triton", "aiter", "reference"],
    "group_norm_pad": ["triton", "reference"],
    "channel_norm": ["triton", "reference"],
    "pad": ["drop", "triton", "reference"],
    "conv3d": [
        *("matmul", "aiter_flydsl", "aiter_triton", "conv2d", "taps", "taps_tiled", "triton"),
        *("triton_narrow", "direct", "unfold", "tiled"),
    ],
    "conv2d": [
        *("aiter_flydsl", "aiter_triton", "aiter_winograd", "channels_last", "triton", "direct"),
    ],
    "conv_transposed": ["product", "matmul", "direct"],
    "aiter_conv": ["flydsl", "triton", "winograd", "reference"],
    "implicit_gemm_conv": ["triton", "reference"],
    "upsampled_conv": ["before_upsampling"],
    "rotary": ["aiter", "triton", "real", "reference"],
    "rotary_pair": ["aiter", "triton", "reference"],
    "qk_norm_rotary": ["triton", "aiter", "reference"],
}


@pytest.mark.parametrize("name", ORDER)
def test_the_order_of_preference(name: str) -> None:
    assert [low.name for low in COMPUTATIONS[name].lowerings] == ORDER[name]


def test_a_lowering_is_a_file_named_after_its_operator() -> None:
    """Whatever registers itself is found by its name, and every such file registers something."""
    found = pkgutil.walk_packages(kernels.__path__, "rocm_passes.kernels.")
    files = [m.name.rpartition(".")[2] for m in found if not m.ispkg]
    for name in ORDER:
        lowerings = COMPUTATIONS[name].lowerings
        registered = [low for low in lowerings if low.name != "reference"]
        assert 1 <= files.count(name) <= len(registered), name


#: Names that say it all, and those of formulas.
KNOWN = {
    "eps",
    "groups",
    "silu",
    "out_dtype",
    "scale",
    "gate",
    "branch_eps",
    "scale0",
    "shift0",
    "scale1",
    "shift1",
}
KNOWN |= {"weight_offset", "branch_weight_offset", "scale_offset"}


def test_every_field_is_documented() -> None:
    """By the class's docstring, in which each name stands."""
    undocumented = {
        (operator.name, field.name)
        for operator in OPERATORS
        if operator.Call.__module__ == f"rocm_passes.ops.{operator.name}"
        for field in fields(operator.Call)
        if field.name not in KNOWN and field.name not in (operator.Call.__doc__ or "")
    }
    assert not undocumented


def test_the_operators_pass_torch_s_own_checks() -> None:
    x = torch.randn(3, 8)
    call = RmsNorm(x, torch.randn(8), None, None, 1e-6, 0.0, None, None, torch.float32)
    torch.library.opcheck(RMS_NORM.overload, tuple(call.arguments().values()))
