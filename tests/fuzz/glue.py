"""What stands between the idioms: views, casts, slices, other arithmetic, in-place writes, readers
of strides.
"""

from __future__ import annotations

import math
import random

from torch import Tensor

from tests.fuzz import norms
from tests.fuzz.draft import Draft, Unfit


def view(d: Draft, x: str) -> str:
    shape = d.shape(x)
    rank = len(shape)
    forms = [
        f"{x}.flip({d.random.randrange(rank)})",
        f"{x}.unsqueeze(0).squeeze(0)",
        f"{x}.contiguous()",
    ]
    if rank >= 2:
        a, b = d.random.sample(range(rank), 2)
        forms += [f"{x}.transpose({a}, {b})"] * 3
        forms += [f"{x}.permute({d.random.sample(range(rank), rank)})"]
        forms += [f"{x}.flatten({rank - 2}).unflatten(-1, {tuple(shape[-2:])})"]
    if rank >= 3:
        forms += [f"{x}.flatten(0, 1)", f"{x}[0]", f"{x}[:, 0]"]
    if rank == 4:
        forms += [f"{x}.contiguous(memory_format=torch.channels_last)"] * 2
    if rank == 5:
        forms += [f"{x}.contiguous(memory_format=torch.channels_last_3d)"] * 2
    if shape[0] == 1:
        forms += [f"{x}.expand(2, {', '.join('-1' for _ in shape[1:])})"]
    dim = d.random.randrange(rank)
    if shape[dim] > 1:
        index = ":, " * dim
        forms += [
            f"{x}[{index}1:]",
            f"{x}[{index}:-1]",
            f"{x}[{index}::2]",
            f"{x}.narrow({dim}, 0, 1)",
        ]
    return d.say(d.one(*forms))


def cast(d: Draft, x: str) -> str:
    """Widening, narrowing, to integers and to 8 bits, and back again."""
    dtype = d.dtype_of(x)
    there = d.one("bf16", "f16", "f32", "f64", "f32", "i32", "f8", "i64")
    if there in ("i32", "i64", "f8"):
        scaled = f"({x} * {d.one(1, 4)})" if there != "f8" else x
        return d.say(f"{scaled}.to({there}).to({dtype})", "lossy")
    made = d.say(f"{x}.to({there})")
    return d.say(f"{made}.to({dtype})") if d.maybe(0.6) else made


def arithmetic(d: Draft, x: str) -> str:
    other = norms.other_of(d, x)
    size = d.shape(x)[-1]
    forms = [
        f"{x} * {d.one(0.5, -1.0, 2.0)}", f"{x} + {d.one(0.5, 1)}", f"F.relu({x})", f"F.silu({x})",
        f"F.gelu({x})",
        f"torch.tanh({x})", f"{x} * {other}", f"{x} - {other}", f"torch.where({x} > 0, {x}, "
        f"{other})",
        f"{x} + {x}.mean()", f"{x} * (1 + {x})", f"{x} + {x}.mean(-1, keepdim=True)",
        f"{x} / (1 + {x}.abs())",
        f"torch.cat([{x}, {other}], {d.random.randrange(len(d.shape(x)))})",
        f"torch.softmax({x}, -1)",
        f"-{x}",
        f"{x}.roll(1, {d.random.randrange(len(d.shape(x)))})", f"{x}.sin()", f"{x}.cumsum(-1)",
    ]  # fmt: skip
    if len(d.shape(x)) <= 3:
        weight = d.tensor([size, size], d.dtype_of(x), scale=round(1 / math.sqrt(max(size, 1)), 3))
        forms += [f"{x} @ {weight}", f"F.linear({x}, {weight})"]
    return d.say(d.one(*forms))


def in_place(d: Draft, x: str) -> str:
    """A write into a value, or into a view of it, that others may have read."""
    dims = zip(d.values[x].stride(), d.shape(x), strict=True)
    if d.values[x].numel() == 0 or any(stride == 0 and size > 1 for stride, size in dims):
        raise Unfit("nothing to write into")
    other = norms.other_of(d, x)
    forms = [f"{x}.mul_({d.one(0.5, 2.0)})", f"{x}.add_({other})", f"{x}.mul_({other})",
    f"{x}[0].zero_()",
             f"{x}[..., :1].copy_({other}[..., :1])", f"{x}.relu_()",
             f"{x}.copy_({other})"]  # fmt: skip
    d.say(d.one(*forms), "in place")
    return x


def by_strides(d: Draft, x: str) -> str:
    """Readers that see strides: as_strided, a view of a view's memory."""
    v = d.values[x]
    if v.numel() < 2 or any(st == 0 for st in v.stride()):
        raise Unfit("not dense")
    rows = d.one(*[n for n in range(1, v.numel() + 1) if v.numel() % n == 0])
    columns = v.numel() // rows
    strides = d.one((columns, 1), (1, rows))
    reach = (rows - 1) * strides[0] + (columns - 1) * strides[1]
    if (
        reach >= v.numel()
        or v.storage_offset()
        or v.untyped_storage().nbytes() < (reach + 1) * v.element_size()
    ):
        raise Unfit("beyond its memory")
    return d.say(f"torch.as_strided({x}, {(rows, columns)}, {strides}, 0)")


def own_output(d: Draft, n: str) -> str:
    """A value that comes back to itself."""
    forms = [f"{n} * (1 + {n})", f"{n} * (1 + {n}.mean(-2, keepdim=True)) + {n}", f"{n} + {n} * "
    f"{n}",
             f"{n} * (1 + {n}.flip(0)) + {n}"]  # fmt: skip
    return d.say(d.one(*forms))


def overwrite(d: Draft) -> None:
    """Behind all else an input or two are written into: what was read of them stays as it was.

    The choice is drawn apart, so that nothing before it depends on it. Through torch.compile there
    is one write: Inductor drops a clone between two, and exchanges two inputs wrongly (torch 2.13).
    """
    choice = random.Random(d.seed)
    left = [n for n in d.inputs if d.dtype_of(n) and _of_its_own(d.values[n])]
    # What is joined with others may be read as a slice of its own.
    joined = {n for s in d.statements if "torch.cat" in s.expression for n in s.reads}
    left = [n for n in left if n in joined] or left
    most = choice.choice((1, 1, 2)) if d.mode == "graph" else 1
    for name in choice.sample(left, min(len(left), most)):
        memory = d.values[name].untyped_storage().data_ptr()
        # Of its dtype: the bound counts roundings of the input's dtype, not of a narrower value's.
        like = d.shape(name), d.dtype_of(name)
        others = [n for n in d.variables() if (d.shape(n), d.dtype_of(n)) == like]
        alike = [n for n in others if d.values[n].untyped_storage().data_ptr() != memory]
        forms = [f"{name}.mul_(2.0)", f"{name}.zero_()"]
        forms += [f"{name}.copy_({n})" for n in alike[-4:]]
        text = choice.choice(forms)
        d.attempt(lambda text=text: d.say(text, "in place"))  # type: ignore[misc]


def _of_its_own(t: Tensor) -> bool:
    """Has each element a place of its own?"""
    return all(stride or size == 1 for size, stride in zip(t.shape, t.stride(), strict=True))


GLUE = (view, view, view, cast, arithmetic, arithmetic, arithmetic, in_place, own_output)
