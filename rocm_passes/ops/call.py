"""A typed call: one signature per operator, and nothing passed by position.

A frozen dataclass is the signature. Its fields are the arguments, in the schema's order. They hold
real tensors where a kernel runs, fake tensors where a lowering is asked about the call, and graph
nodes in a match.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg


@dataclass(frozen=True)
class Call:
    """Base of all calls. A field is a tensor, a number, a name, a dtype, None, or a list of
    these.
    """

    @property
    def results(self) -> int:
        """How many tensors the operator returns for this call."""
        return 1

    def arguments(self) -> dict[str, Any]:
        """The fields by name, in the schema's order."""
        return dict(vars(self))

    def with_nodes(self, change: Callable[[fx.Node], Any]) -> Self:
        """The call with `change` applied to every graph node in it."""
        return type(self)(
            **{name: map_arg(value, change) for name, value in self.arguments().items()}
        )

    def values(self) -> Self:
        """The call with each node's fake value in its place."""
        return self.with_nodes(lambda node: node.meta["val"])

    def prepared(self, b: Any) -> Call:
        """The operator's own call; a match's call may need nodes written first, by the
        builder `b`.
        """
        return self

    def finished(self, b: Any, results: list[Any]) -> list[Any]:
        """The graph's results from the operator's; a match's call may need nodes written behind
        them.
        """
        return results

    def nodes(self) -> list[fx.Node]:
        """Every graph node in the call, once, in order."""
        found: dict[fx.Node, None] = {}
        self.with_nodes(lambda node: found.setdefault(node))
        return list(found)

    def tensors(self) -> list[Tensor]:
        """Every tensor in the call, those in lists among them."""
        return list(_tensors_in(self.arguments().values()))

    def has_numbers(self) -> bool:
        """Are all sizes of its tensors numbers, and none symbolic?"""
        return all(isinstance(size, int) for t in self.tensors() for size in t.shape)


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)


def schema(call: type[Call], results: int, last: str, default: str) -> str:
    """The schema of an operator that takes such a call and a last argument, a string with a
    default.
    """
    types = typing.get_type_hints(call)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=_in_typing(types[field.name]),
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(call)
    ]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters.append(inspect.Parameter(last, kind, annotation=str, default=default))
    returned: Any = Tensor if results == 1 else tuple[(Tensor,) * results]  # type: ignore[misc]

    def prototype() -> None: ...

    prototype.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    return torch.library.infer_schema(prototype, mutates_args=())


def _in_typing(annotation: Any) -> Any:
    """`X | None` as `Optional[X]`: infer_schema of torch 2.11 looks types up in that spelling."""
    options = typing.get_args(annotation)
    if type(None) not in options:
        return annotation
    (only,) = (option for option in options if option is not type(None))
    return typing.Optional[only]  # noqa: UP045
