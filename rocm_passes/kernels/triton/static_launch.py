"""Kernels of ours that go through Inductor's static launcher, as its own kernels do.

Inductor keeps these with a compiled graph, and a warm start loads and launches them without Triton.
A user's kernel is launched so where an option of Inductor's says it. That option does not reach the
processes in which Inductor compiles kernels: there ours were compiled as a user's, and every start
from warm caches compiled them again (Z-Image's VAE on an H200: 12 kernels, 3 to 4.5 s). So the
source of a kernel says that it is a template of Inductor's.

Private names of torch 2.11 to 2.15 beside those of inductor.py:
    the writer of a user's kernel
        PythonWrapperCodegen.define_user_defined_triton_kernel, define_kernel
    what keeps the static launcher from a user's kernel
        runtime.hints.HeuristicType.TEMPLATE
"""

# mypy: allow-untyped-calls
# (Inductor's internals are partly untyped.)

from __future__ import annotations

from typing import Any

from torch._inductor import ir

#: What the generated module says behind a kernel, which is a string of it.
END = "\n''', device_str="
SAYS = "{kernel}.heuristic_type = triton_heuristics.HeuristicType.TEMPLATE"


class StaticallyLaunched(ir.UserDefinedTritonKernel):
    """A launch of one of our kernels."""

    def codegen(self, wrapper: Any) -> None:
        writer: Any = _Writer(wrapper)
        super().codegen(writer)


class _Writer:
    """Inductor's writer of code, through which a kernel's source is changed."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    def define_user_defined_triton_kernel(self, *args: Any, **kwargs: Any) -> Any:
        """As the wrapper's, which calls `define_kernel` of this."""
        return type(self._wrapper).define_user_defined_triton_kernel(self, *args, **kwargs)

    def define_kernel(self, name: str, body: str, *args: Any, **kwargs: Any) -> None:
        self._wrapper.define_kernel(name, as_a_template(name, body), *args, **kwargs)


def as_a_template(name: str, body: str) -> str:
    """body: the definition of a kernel in a generated module, `async_compile.triton(...)`. It comes
    back unchanged where it has another form: the kernel is then launched as a user's.

    name: the kernel's, with a number behind it.
    """
    source, end, rest = body.rpartition(END)
    if not end:
        return body
    return f"{source}\n{SAYS.format(kernel=name.rpartition('_')[0])}{end}{rest}"
