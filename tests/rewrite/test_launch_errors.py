"""A launch of ours that fails when a compiled graph runs: an error that says which, and what to
do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from rocm_passes.errors import LaunchError
from rocm_passes.kernels.triton import launched
from rocm_passes.kernels.triton.launched import Launched
from rocm_passes.report.ledger import Entry, Ledger
from rocm_passes.rewrite import launch_errors

KERNEL = "channel_norm_kernel"
PLACE = ("diffusers/models/vae.py:12", "decoder.norm")
SITE = Entry("channel_norm", {"channel_norm": 1}, "rewritten", "triton", "by rule", *PLACE, {}, ())
KEPT = Entry("rms_norm", {"rms_norm": 1}, "kept", None, "by rule", *PLACE, {}, ())


class Refused:
    """A kernel that the driver refuses to launch."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, *_: Any, **__: Any) -> None:
        raise self._error


def generated(folder: Path, kernel: str, error: Exception) -> Callable[..., Any]:
    """A module as Inductor writes it, with one launch."""
    file = folder / "generated.py"
    lines = ["def call(args):", "    x, = args", "    args.clear()",
             f"    {kernel}_0.run(x, stream=0)", "    return (x,)"]  # fmt: skip
    file.write_text("\n".join(lines), encoding="utf-8")
    names: dict[str, Any] = {f"{kernel}_0": Refused(error)}
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    call: Callable[..., Any] = names["call"]
    return call


def node(location: str, module: str) -> fx.Node:
    made = fx.Graph().placeholder("x")
    path, line = location.split(":")
    made.meta["stack_trace"] = f'  File "/site-packages/{path}", line {line}, in forward'
    made.meta["nn_module_stack"] = {"m": (module, torch.nn.Module)}
    return made


def compiled(call: Callable[..., Any], *places: tuple[str, str], ledgers: Any = ()) -> Any:
    """A compiled graph whose lowering launched the kernel at these places."""

    def inner(gm: Any, inputs: Any, **how: Any) -> Any:
        for place in places:
            launched.note(KERNEL, "channel_norm", node(*place))
        return SimpleNamespace(current_callable=call)

    gm = fx.GraphModule({}, fx.Graph())
    return launch_errors.inner_compile(lambda: ledgers, inner)(gm, []).current_callable


OUT_OF_RESOURCES = RuntimeError("out of resource: shared memory, Required: 99\nHardware limit: 64")


def test_it_names_operator_place_and_options(tmp_path: Path) -> None:
    call = compiled(
        generated(tmp_path, KERNEL, OUT_OF_RESOURCES), PLACE, PLACE,
        ledgers=[Ledger("graph0", [SITE, KEPT])],
    )  # fmt: skip
    with pytest.raises(LaunchError) as raised:
        call([torch.ones(2)])
    assert raised.value.__cause__ is OUT_OF_RESOURCES
    assert str(raised.value) == (
        "the kernel channel_norm_kernel of rocm_passes could not be launched: RuntimeError: out of "
        "resource: shared memory, Required: 99. It computes channel_norm at "
        "diffusers/models/vae.py:12 (decoder.norm). options={'idioms': '-channel_norm'} leaves its "
        "sites to Inductor, and options={'launch': 'python'} goes on with plain torch where a "
        "kernel fails. The graph was not run again, as it may have written into its inputs"
    )


def test_many_places_are_counted(tmp_path: Path) -> None:
    places = [(f"diffusers/models/vae.py:{line}", "norm") for line in range(1, 7)]
    call = compiled(generated(tmp_path, KERNEL, OUT_OF_RESOURCES), *places)
    with pytest.raises(LaunchError, match=r"vae.py:3 \(norm\) and 3 more places\. options") as said:
        call([torch.ones(2)])
    # No site of the ledger is there: what is left is not to rewrite.
    assert "{'select': 'off'}" in str(said.value)


def test_code_of_a_cached_graph_names_the_kernel(tmp_path: Path) -> None:
    call = compiled(generated(tmp_path, KERNEL, OUT_OF_RESOURCES))
    with pytest.raises(LaunchError, match="the graph came from a cache"):
        call([torch.ones(2)])


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        ("triton_poi_fused_add", OUT_OF_RESOURCES),
        ("run", OUT_OF_RESOURCES),
        (KERNEL, torch.OutOfMemoryError("no memory")),
        (KERNEL, KeyboardInterrupt()),
    ],
    ids=["Inductor's kernel", "a user's kernel", "memory", "interrupted"],
)
def test_other_errors_pass(tmp_path: Path, kernel: str, error: Any) -> None:
    call = compiled(generated(tmp_path, kernel, error), PLACE)
    with pytest.raises(type(error)) as raised:
        call([torch.ones(2)])
    assert raised.value is error


def test_an_error_before_the_launch_passes() -> None:
    def call(inputs: Any) -> Any:
        raise ValueError("wrong sizes")

    with pytest.raises(ValueError, match="wrong sizes"):
        compiled(call, PLACE)([])


def test_what_runs_is_what_ran() -> None:
    assert compiled(lambda inputs: [x + 1 for x in inputs], PLACE)([1, 2]) == [2, 3]


def test_what_is_no_compiled_graph_is_left_as_it_is() -> None:
    def inner(gm: Any, inputs: Any, **how: Any) -> Any:
        return print

    assert launch_errors.inner_compile(list, inner)(fx.GraphModule({}, fx.Graph()), []) is print


def test_launches_are_noted_for_the_graph_that_is_compiled_only() -> None:
    launched.note(KERNEL, "channel_norm", node(*PLACE))
    with launched.collected() as found:
        launched.note(KERNEL, "channel_norm", node(*PLACE))
    launched.note(KERNEL, "channel_norm", node(*PLACE))
    assert found == [Launched(KERNEL, "channel_norm", *PLACE)]


def test_kernels_of_this_package_are_known_by_name() -> None:
    assert launched.is_ours(KERNEL)
    assert not launched.is_ours("run") and not launched.is_ours("channel_norm")
