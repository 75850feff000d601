"""Every option of the backend: its name, meaning, default, environment variable and validation.

Options come from three places; the first that names one wins:
`torch.compile(..., options={...})`, the environment (`ROCM_PASSES_<NAME>`), the default here.
Keys that are not ours are handed to Inductor, validated as Inductor itself would validate them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_origin

from torch._inductor import config as inductor_config
from torch._inductor import list_mode_options

from rocm_passes import option_values
from rocm_passes.errors import OptionError, nearest

ENVIRONMENT_PREFIX = "ROCM_PASSES_"
#: Variables of that prefix that are read elsewhere and are no options: where to dump graphs
#: (report/dump.py).
NO_OPTIONS = ("ROCM_PASSES_DUMP",)

SELECT = ("auto", "always", "off", "rules", "measure")
REWRITE_NUMERICS = ("default", "strict", "fast")
LAYOUTS = ("auto", "channels_last", "as_is")
CONV_DTYPES = ("", "bf16", "fp16")
LAUNCHES = ("auto", "inductor", "static", "python")
ON_COMPILE_ERROR = ("fallback", "raise")
#: Inductor's option behind launch="static".
STATIC_LAUNCH = "static_launch_user_defined_triton_kernels"


def option(default: Any, check: Callable[[str, object], Any], doc: str) -> Any:
    return field(default=default, metadata={"check": check, "doc": doc})


@dataclass(frozen=True)
class Options:
    """What the user asked for. Immutable: it travels with one call of torch.compile and is never
    global.
    """

    select: str = option(
        "auto",
        option_values.choice(*SELECT),
        "auto: rewrite a site where it is known to pay on this machine; always: rewrite all that "
        "can be; "
        "off: change nothing, only report; rules: as auto, and nothing is measured or looked up; "
        "measure: measure all that can be, known or not (past Inductor's caches)",
    )
    idioms: tuple[str, ...] | None = option(
        None,
        option_values.idioms,
        "which idioms to look for: 'all', 'none', a comma list, or '-name' to leave one out",
    )
    lowering: tuple[tuple[str, str], ...] = option(
        (), option_values.lowerings, "force a lowering for an idiom, e.g. {'rms_norm': 'triton'}"
    )
    rewrite_numerics: str = option(
        "default",
        option_values.choice(*REWRITE_NUMERICS),
        "strict: give the bits of the graph's own nodes, or refuse (the default where Inductor's "
        "own option numerics is strict); fast: also allow fp64 rotary arithmetic (complex128 "
        "tables) in fp32, 3-D convolutions as sums of temporal taps that are rounded to 16 bits, "
        "and aiter's attention in 8 bits",
    )
    layout: str = option(
        "auto",
        option_values.choice(*LAYOUTS),
        "memory layout of a graph's convolutions: auto: by rule for this machine; "
        "channels_last; as_is: leave it to Inductor",
    )
    conv_dtype: str = option(
        "",
        option_values.choice(*CONV_DTYPES),
        "'bf16' or 'fp16': compute the float32 3-D convolutions in bfloat16, or in float16 scaled "
        "into its range "
        "(less exact, as the ledger says; not with rewrite_numerics='strict')",
    )
    conv_frames_bucket: int = option(
        0,
        option_values.count,
        "compute a 3-D convolution's frames up to a multiple of this, so that chunks of "
        "neighbouring lengths share one "
        "tuned convolution; 0: as many as there are",
    )
    conv_search: str = option(
        "off",
        option_values.choice("off", "on"),
        "on: cudnn.benchmark (find mode in MIOpen) while the compiled graph runs, within "
        "tune_seconds",
    )
    tune_seconds: float = option(
        60.0,
        option_values.seconds,
        "time that a process may spend measuring lowerings on its GPU; 0: never measure, choose by "
        "rule",
    )
    choices: str = option(
        "",
        option_values.path,
        "file of measured choices; default: rocm-passes/choices.json in the user's cache folder",
    )
    conv_memory_mib: int | None = option(
        None,
        option_values.optional_count,
        "choose no convolution measured to need more MiB than this beside its tensors (0: no "
        "bound; "
        "default: for the graph's largest 512, or three quarters of its tensors where that is "
        "more)",
    )
    launch: str = option(
        "auto",
        option_values.choice(*LAUNCHES),
        "who launches our Triton kernels: inductor: its generated code; static: the same, by its "
        "static launcher, as its own kernels; auto: static on NVIDIA, else inductor; python: an "
        "operator call each, slower for the host, and where a kernel fails plain torch takes over",
    )
    fuel: int | None = option(
        None,
        option_values.optional_count,
        "at most this many rewrites per graph, to bisect a wrong result",
    )
    fuel_total: int | None = option(
        None,
        option_values.optional_count,
        "at most this many rewrites in the whole process, in the order of its compiles "
        "(`rocm-passes bisect`)",
    )
    verify: str = option(
        "off",
        option_values.verify,
        "True or 'drawn': run each rewritten site's own nodes and its replacement on drawn inputs, "
        "hold both against "
        "float64, and put back what is worse; 'live': also on the inputs of the first call",
    )
    check_finite: int = option(
        0,
        option_values.finite_calls,
        "on this many first calls (True: 3) compare whether each rewritten site's results are "
        "finite with what the "
        "original nodes give; where they are not, the graph runs without rewrites from then on",
    )
    on_compile_error: str = option(
        "fallback",
        option_values.choice(*ON_COMPILE_ERROR),
        "what to do where a graph does not compile with its rewrites: fallback: compile it without "
        "them, and say so in the ledger and in a warning; raise: fail, as with backend='inductor'",
    )
    as_if: str = option(
        "",
        option_values.architecture,
        "decide as on this architecture ('gfx942'), which need not be here, and generate no code: "
        "the model runs in eager; shows what the ledger would be there",
    )
    report: str = option(
        "",
        option_values.path,
        "write the ledger of this process to this JSON file after each compile",
    )

    def looks_for(self, idiom: str) -> bool:
        return self.idioms is None or idiom in self.idioms

    def forced_lowering(self, idiom: str) -> str | None:
        return dict(self.lowering).get(idiom)


OPTION_NAMES = tuple(f.name for f in fields(Options))


#: Old names: each is still taken where it has one of our values, with a DeprecationWarning.
RENAMED = {"numerics": "rewrite_numerics"}


def parse(options: Mapping[str, Any] | None, mode: str | None) -> tuple[Options, dict[str, Any]]:
    """Split what `torch.compile` was given into our Options and a patch of Inductor's config.

    Raises OptionError on the first wrong name or value, and on options that contradict each other.
    "mode" may stand among the options, because torch.compile itself refuses `mode=` beside
    `options=`.
    """
    if options is not None and not isinstance(options, Mapping):
        raise OptionError.value("options", "a dict such as {'select': 'always'}", options)
    given = dict(options or {})
    inner_mode = given.pop("mode", None)
    if mode and inner_mode:
        raise OptionError.value("mode", "it once, as mode= or inside options", inner_mode)
    ours = {name: given.pop(name) for name in OPTION_NAMES if name in given}
    ours |= _given_by_old_name(given, ours)
    patch = _mode_patch(mode or inner_mode)
    patch.update(_inductor_options(given))
    settings = _resolve(ours, patch)
    return settings, patch


def _given_by_old_name(given: dict[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Take our options under their old names out of `given`.

    A name that Inductor has taken since is Inductor's: torch 2.14 has an option `numerics`.
    """
    found = {}
    for old, new in RENAMED.items():
        if old not in given:
            continue
        if old in inductor_config.get_config_copy():
            if given[old] in REWRITE_NUMERICS and given[old] not in ("default", "strict"):
                raise OptionError(
                    f"option {old!r} is Inductor's in this version of torch: write "
                    f"{new}={given[old]!r}"
                )
            continue
        if new in ours:
            raise OptionError(
                f"options {old!r} and {new!r} are both given, and {old!r} is the old name"
            )
        found[new] = given.pop(old)
        _warn_of_old_name(f"option {old!r}", f"{new!r}")
    return found


def _warn_of_old_name(old: str, new: str) -> None:
    warnings.warn(
        f"rocm_passes: {old} is called {new} now: torch 2.14 has an option of the old name",
        DeprecationWarning,
        stacklevel=2,
    )


def _resolve(ours: Mapping[str, Any], patch: Mapping[str, Any]) -> Options:
    known = {ENVIRONMENT_PREFIX + name.upper(): name for name in OPTION_NAMES}
    in_environment = _environment(known)
    checks = {f.name: f.metadata["check"] for f in fields(Options)}
    environment = {
        known[v]: checks[known[v]](f"environment variable {v}", text)
        for v, text in in_environment.items()
    }
    given = {name: checks[name](f"option {name!r}", value) for name, value in ours.items()}
    for source, values in (("options", given), ("environment variables", environment)):
        for contradiction in _contradictions(values):
            raise OptionError(f"{source} contradict each other: {contradiction}")
    values = {**environment, **given}
    if "rewrite_numerics" not in values and _inductor_is_strict(patch):
        values["rewrite_numerics"] = "strict"
    return Options(**values)


def _environment(known: Mapping[str, str]) -> dict[str, str]:
    """Our environment variables by their names of today."""
    found = {v: text for v, text in os.environ.items() if v.startswith(ENVIRONMENT_PREFIX)}
    for old_name, new_name in RENAMED.items():
        old, new = (ENVIRONMENT_PREFIX + name.upper() for name in (old_name, new_name))
        if old in found and new in found:
            raise OptionError(
                f"environment variables {old} and {new} are both set, and {old} is the old name"
            )
        if old in found:
            found[new] = found.pop(old)
            _warn_of_old_name(f"environment variable {old}", new)
    unknown = [
        variable for variable in found if variable not in known and variable not in NO_OPTIONS
    ]
    if unknown:
        hint = nearest(unknown[0], [*known, *NO_OPTIONS])
        raise OptionError(f"unknown environment variable {unknown[0]}{hint}")
    return {variable: text for variable, text in found.items() if variable in known}


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """Values of one source that cannot all be meant. (Options override the environment, which is no
    mistake.)
    """
    forced = dict(values.get("lowering", ()))
    if forced and values.get("select") == "off":
        yield "select='off' rewrites nothing, and lowering forces a rewrite"
    left_out = [
        name for name in forced if values.get("idioms") is not None and name not in values["idioms"]
    ]
    if left_out:
        yield f"lowering forces {left_out[0]}, and idioms leaves it out"
    if values.get("rewrite_numerics") == "strict":
        for inexact in _not_strict(values):
            yield f"{inexact}, and rewrite_numerics='strict' refuses that"
    for name in ("conv_search", "verify"):
        if values.get("as_if") and values.get(name, "off") != "off":
            yield f"as_if generates no code, and {name}={values[name]!r} runs it"
    if values.get("conv_search") == "on" and values.get("tune_seconds") == 0:
        yield "conv_search='on' searches within tune_seconds, and tune_seconds=0 leaves no time"


def _not_strict(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("conv_dtype"):
        yield f"conv_dtype={values['conv_dtype']!r} rounds more"
    if values.get("layout") == "channels_last":
        yield "layout='channels_last' has convolutions sum in another order"
    if values.get("conv_search") == "on":
        yield "conv_search='on' may choose another order of sums"


def _inductor_is_strict(patch: Mapping[str, Any]) -> bool:
    """Who has asked Inductor for strict numerics (torch 2.14) has asked for no rewrite that rounds
    elsewhere.
    """
    value = patch.get("numerics", getattr(inductor_config, "numerics", None))
    return isinstance(value, str) and value.startswith("strict")


def _mode_patch(mode: object) -> dict[str, Any]:
    if mode in (None, "", "default"):
        return {}
    modes = list_mode_options()
    if not isinstance(mode, str) or mode not in modes:
        raise OptionError.value(
            "option 'mode'",
            f"one of {', '.join(map(repr, modes))}",
            mode,
            nearest(str(mode), modes),
        )
    return dict(modes[mode])


def _inductor_options(given: Mapping[str, Any]) -> dict[str, Any]:
    known = inductor_config.get_config_copy()
    patch = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in known:
            raise OptionError.unknown(key, [*OPTION_NAMES, "mode", *known])
        expected = inductor_config.get_type(name)  # type: ignore[attr-defined]
        if not _accepts(expected, value):
            raise OptionError.value(
                f"Inductor option {key!r}", f"a value of type {expected}", value
            )
        patch[name] = value
    return patch


def _accepts(expected: Any, value: object) -> bool:
    """As Inductor's own check: plain types are compared, subscripted generics and unions are let
    through.
    """
    if not isinstance(expected, type) or get_origin(expected) is not None:
        return True
    return isinstance(value, expected)


def describe() -> list[tuple[str, str, str, str]]:
    """Rows (name, default, environment variable, meaning) for the documentation and the doctor."""
    return [
        (f.name, repr(f.default), ENVIRONMENT_PREFIX + f.name.upper(), f.metadata["doc"])
        for f in fields(Options)
    ]
