"""Every pass over the whole graph says in the ledger what it did, where, and why values stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rocm_passes
from rocm_passes.options import Options
from rocm_passes.registry import FINISH, PREPARE
from rocm_passes.report.changes import Change
from rocm_passes.report.ledger import Ledger, totals
from rocm_passes.rewrite.work import WholeGraphPass
from tests.fuzz.traced import Traced, target_named
from tests.passes import test_gather_in_norm as gathers
from tests.passes import test_sort_depth_to_space as shuffles
from tests.rewriting import rewrite

GPU = {"select": "always", "layout": "channels_last", "tune_seconds": 0.0}


def drawn(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape) for shape in shapes)


def channels_last(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    formats = {"dtype": torch.bfloat16, "memory_format": torch.channels_last_3d}
    return tuple(t.to(**formats) for t in drawn(*shapes))


def sliced(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.cat([cache, x], 2)
    return F.conv3d(v, w), v[:, :, -2:] + 1


def biased(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.silu(F.group_norm(F.conv2d(x, w, b, padding=1), 8, b, b))


def summed(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    return F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), w) + r


def joined(cache: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return F.conv3d(torch.cat([cache, F.silu(F.group_norm(x, 4))], 2), w)


def read_twice(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = F.conv3d(x, w, padding=1).relu()
    return F.silu(F.group_norm(y, 8, b, b)), y * 2


def rotated(x: Tensor, freqs: Tensor) -> Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs).flatten(3)


def rotated_and_written(x: Tensor, freqs: Tensor) -> Tensor:
    y = rotated(x, freqs)
    freqs.mul_(2)
    return y


def returned_twice(cache: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.cat([cache, x], 2)
    return F.conv3d(v, w), v[:, :, -2:]


def seen_by_strides(x: Tensor, w: Tensor) -> Tensor:
    return torch.as_strided(F.conv3d(x, w) * 2, (12, 5), (5, 1), 0) + 1


FREQS = torch.polar(torch.ones(6, 4), torch.randn(6, 4))


@dataclass(frozen=True)
class Program:
    """One that a pass changes. place: which of its changes is looked at, of `count`."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    did: str
    contract: str = "exact"
    arch: str = "sm_90"
    count: int = 1


PROGRAMS = {
    "drop_identities": Program(
        lambda x, y: (F.relu(x / 1.0), y * 1 - 2), drawn((4, 4), (4, 4)), "x / 1 is read as x",
        count=2,
    ),
    "slice_before_cat": Program(
        sliced, drawn((1, 4, 2, 8, 8), (1, 4, 3, 8, 8), (8, 4, 3, 3, 3)),
        "frames of a joined video are sliced from the one piece that has them",
    ),
    "sort_depth_to_space": Program(
        shuffles.ltx, drawn(*shuffles.VIDEO),
        "a convolution's channels are sorted by pixel for the depth-to-space behind it",
    ),
    "gather_in_norm": Program(
        gathers.spatial_norm, gathers.arguments(),
        "group_norm reads its multiplier and addend as they were before upsampling, by index",
    ),
    "fold_conv_bias": Program(
        biased, drawn((1, 16, 8, 8), (16, 16, 3, 3), (16,)),
        "group_norm adds its convolution's bias", "close",
    ),
    "fold_residual": Program(
        summed, channels_last((1, 96, 3, 8, 8), (96, 96, 3, 3, 3), (1, 96, 3, 8, 8)),
        "the Triton convolution adds the tensor that is added to its result", "close",
    ),
    "write_into_cat": Program(
        joined, drawn((1, 16, 2, 8, 8), (1, 16, 4, 8, 8), (16, 16, 3, 3, 3)),
        "group_norm writes its result behind the frames that a cat puts in front of it",
    ),
    "memory_format": Program(
        read_twice, drawn((1, 16, 4, 8, 8), (16, 16, 3, 3, 3), (16,)),
        "inputs of group_norm are read in channels-last", "close", count=2,
    ),
    "read_parts": Program(
        rotated, (torch.randn(2, 4, 6, 8), FREQS),
        "the parts of a complex tensor are read as a view",
    ),
    "cast_by_int32": Program(
        lambda x: (x * 300).to(torch.int8), drawn((4, 4)), "a cast to int8 goes by int32", "eager",
        "cpu",
    ),
    "keep_apart": Program(
        returned_twice, drawn((1, 4, 2, 8, 8), (1, 4, 3, 8, 8), (8, 4, 3, 3, 3)),
        "an output of the graph is copied",
    ),
    "keep_strides": Program(
        seen_by_strides, drawn((2, 4, 3, 5, 6), (4, 4, 1, 2, 2)),
        "a tensor is laid out as it was before the rewrites",
    ),
}  # fmt: skip
#: They change no value, no call and no layout.
CHANGE_NOTHING = {"mark_launcher"}


def test_the_table_of_the_documentation_has_each_pass() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(exact|close|eager)` \|$", page, re.MULTILINE)
    said = {step: program.contract for step, program in PROGRAMS.items()}
    assert dict(rows) == {**said, "complex_to_real": "close"}


def passed(program: Program, **options: Any) -> Ledger:
    with torch.no_grad():
        traced = Traced(program.function, program.inputs)
        traced.trace()
        return traced.rewrite(Options(**{**GPU, **options}), target_named(program.arch))


def of_step(ledger: Ledger, step: str) -> list[Change]:
    return [change for change in ledger.changes if change.step == step]


@pytest.mark.parametrize("step", PROGRAMS)
def test_a_change_is_said(step: str) -> None:
    program = PROGRAMS[step]
    found = of_step(passed(program), step)
    assert len(found) == program.count, [str(change) for change in found]
    first = found[0]
    assert (first.did, first.contract, first.verdict) == (program.did, program.contract, "taken")
    assert first.reason and not first.stays


@pytest.mark.parametrize("step", PROGRAMS)
def test_nothing_is_said_where_nothing_may_change(step: str) -> None:
    assert passed(PROGRAMS[step], select="off").changes == []


def test_each_pass_has_a_program_here() -> None:
    names = {each.name for each in (*PREPARE, *FINISH)}
    assert names - CHANGE_NOTHING <= PROGRAMS.keys()


@pytest.mark.parametrize("step", ["drop_identities", "cast_by_int32"])
def test_random_programs_find_a_pass_that_says_nothing(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No site is rewritten in these two programs, so that the change alone tells."""
    program = PROGRAMS[step]
    traced = Traced(program.function, program.inputs)
    with torch.no_grad():
        traced.trace()
        how = Options(**GPU), target_named(program.arch)
        assert traced.changed_silently(traced.rewrite(*how)) == ""
        monkeypatch.setattr(Ledger, "changed", lambda self, changes: None)
        silent = traced.changed_silently(traced.rewrite(*how))
    assert "fewer" in silent or "more" in silent


@pytest.mark.parametrize(
    ("function", "freqs", "why"),
    [
        (rotated, FREQS.t().contiguous().t(), "it is not contiguous"),
        (rotated_and_written, FREQS.clone(), "the graph writes into it"),
    ],
)
def test_parts_that_cannot_be_viewed_are_copied(function: Any, freqs: Tensor, why: str) -> None:
    ledger = passed(Program(function, (torch.randn(2, 4, 6, 8), freqs), ""))
    (found,) = of_step(ledger, "read_parts")
    assert found.did.endswith(f"read by a call that copies them: {why}")


class Attended(nn.Module):
    """Diffusers' divisions by one, each in a module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x / 1.0)


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attended() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) + 1
        return x


THIS = f"tests/passes/{Path(__file__).name}"


def test_source_line_module_and_folding() -> None:
    """Each place has an entry; where they are alike they are one group of the text and the page."""
    with torch.no_grad():
        found = rocm_passes.explain(Blocks(5), torch.randn(2, 3), options={"as_if": "gfx942"})
    # torch 2.14 drops the quotients by itself.
    if not found.changes:
        assert torch.__version__ >= "2.14"
        return
    assert [c.module for c in found.changes] == [f"blocks.{i}" for i in range(5)]
    (location,) = {c.location for c in found.changes}
    assert location.startswith(f"{THIS}:")
    (head,) = [line for line in str(found).splitlines() if line.startswith("drop_identities")]
    assert head.split() == ["drop_identities", "5", "x", "/", "1", "is", "read", "as", "x",
                            f"passes/{Path(__file__).name}:{location.split(':')[1]}"]  # fmt: skip
    assert found.to_html().count('<details class="change">') == 1
    assert not found.sites and totals(found.sites) == {}
    assert found.to_dict()["graphs"][0]["changes"] == 5


def tables(x: Tensor, freqs: Tensor, index: Tensor) -> Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs[index][:, None]).flatten(-2)


TABLES = (
    torch.randn(4, 2, 8),
    torch.randn(9, 4, dtype=torch.complex64),
    torch.tensor([0, 3, 1, 2]),
)


def test_a_complex_table_is_said_in_the_ledger_of_the_next_graph() -> None:
    seen = rewrite(tables, *TABLES)
    (found,) = of_step(seen.ledgers[0], "complex_to_real")
    assert found.location.startswith(f"{THIS}:")
    assert (found.contract, found.verdict, found.stays) == ("close", "taken", True)
    assert [c for graph in seen.ledgers[1:] for c in graph.changes] == []


def test_a_pass_over_complex_tables_that_fails_is_said_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rocm_passes.passes import complex_to_real

    def fail(graph: torch.fx.Graph) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(complex_to_real, "stable_topological_sort", fail)
    seen = rewrite(tables, *TABLES)
    torch.testing.assert_close(seen.result, tables(*TABLES))
    (ledger,) = seen.ledgers
    assert ledger.notes == ["complex_to_real failed: LookupError: a fault of ours"]
    assert of_step(ledger, "complex_to_real") == []


@pytest.mark.parametrize("failing", [0, 1])
def test_what_is_taken_back_is_said_to_be(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's entry says no more of the passes that were taken back either."""

    def fail(work: Any) -> None:
        raise LookupError("a fault of ours")

    lists = (PREPARE, FINISH)
    broken = WholeGraphPass("broken", fail, lambda work: True)
    name = ("PREPARE", "FINISH")[failing]
    monkeypatch.setattr(f"rocm_passes.graph_pass.{name}", (*lists[failing], broken))
    step = ("slice_before_cat", "write_into_cat")[failing]
    ledger = passed(PROGRAMS[step])
    (found,) = of_step(ledger, step)
    assert (found.verdict, found.did) == ("failed", PROGRAMS[step].did)
    assert found.reason == "broken failed: LookupError: a fault of ours"
    assert found.said() == f"taken back: {found.reason}"
    assert found.reason in ledger.notes
    assert not any("front_frames" in entry.parameters for entry in ledger.entries)


def test_the_compile_that_falls_back_takes_changes_back() -> None:
    ledger = Ledger("graph0")
    ledger.changed([Change("a", "same"), Change("b", "same", stays=True)])
    ledger.refuse_rewritten("its graph did not compile", "RuntimeError")
    assert [c.verdict for c in ledger.changes] == ["failed", "taken"]
    ledger.refuse_rewritten("nothing compiled", "RuntimeError", whole=True)
    assert [c.reason for c in ledger.changes] == ["its graph did not compile", "nothing compiled"]
