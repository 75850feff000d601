"""Operators and lowerings that still type their arguments by hand, as calls. Goes with the last of them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from torch.fx.node import map_arg

from rocm_passes.ops import operator as ops
from rocm_passes.ops.call import Call
from rocm_passes.target import Requirement


@dataclass(frozen=True)
class Arguments(Call):
    """A call whose arguments have names and no signature."""

    given: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        return dict(self.given)

    def with_nodes(self, change: Callable[[Any], Any]) -> Arguments:
        return Arguments(map_arg(dict(self.given), change))


def Lowering(
    name: str,
    requires: tuple[Requirement, ...] = (),
    refuses: Callable[..., str | None] = lambda **_: None,
    note: Callable[..., str | None] = lambda *_, **__: None,
    run: Callable[..., Any] | None = None,
    launches: bool = False,
    write: Callable[..., Any] | None = None,
) -> ops.Lowering[Any]:
    """A lowering whose functions take arguments by name (run: by position)."""
    return ops.Lowering(
        name,
        requires,
        lambda call, target: refuses(**call.arguments()),
        lambda call, target: note(target=target, **call.arguments()),
        None if run is None else lambda call: run(*call.arguments().values()),
        launches,
        None if write is None else lambda b, call: write(b, **call.arguments()),
    )


def Operator(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    lowerings: Sequence[ops.Lowering[Any]],
    results: Sequence[int] = (1,),
    count: Callable[[Any], int] = lambda call: 1,
) -> ops.Operator[Any]:
    """An operator whose functions take arguments by position."""
    types = typing.get_type_hints(reference)
    made = make_dataclass(
        "".join(word.title() for word in name.split("_")),
        [
            (p.name, types[p.name])
            if p.default is p.empty
            else (p.name, types[p.name], field(default=p.default))
            for p in inspect.signature(reference).parameters.values()
        ],
        bases=(Call,),
        frozen=True,
        namespace={"results": property(count)},
    )
    operator: ops.Operator[Any] = ops.Operator(
        name,
        made,
        lambda call: reference(*call.arguments().values()),
        lambda call: fake(*call.arguments().values()),
        results,
    )
    ops.COMPUTATIONS.pop(name)
    for lowering in lowerings:
        operator.register(lowering)
    return operator
