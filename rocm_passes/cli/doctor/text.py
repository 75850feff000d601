"""The doctor's answer as text: ten lines for a healthy machine, a table of lowerings, a report to
paste.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rocm_passes.cli.doctor.diagnosis import Finding, exit_code, is_integrated, verdict
from rocm_passes.cli.doctor.machine import Gpu, Library, Machine

_LABEL = 13


def document(machine: Machine, findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything, as plain data for JSON: the facts, the findings and the exit code."""
    facts = json.loads(json.dumps(asdict(machine)))
    return {
        **facts,
        "python": ".".join(map(str, machine.python)),
        "findings": [f.to_dict() for f in findings],
        "exit_code": exit_code(list(findings)),
        "verdict": verdict(list(findings)),
    }


def summary(machine: Machine, findings: Sequence[Finding], width: int = 100) -> str:
    """What the machine is, then what is wrong with it, then the verdict. Notes are left to the
    report.
    """
    rows = [*_facts(machine)]
    rows += [(f.severity, str(f)) for f in findings if f.severity != "note"]
    return "\n".join([*_lines(rows, width), verdict(list(findings))])


def report(machine: Machine, findings: Sequence[Finding]) -> str:
    """A block of Markdown for an issue: all facts and findings, the lowerings that cannot
    run here.
    """
    rows = [*_facts(machine)]
    rows += [("variable", f"{name}={value}") for name, value in machine.variables.items()]
    rows += [(f.severity, f"{f.name}: {f}") for f in findings]
    rows += [("not here", said) for said in _not_here(machine)]
    lines = [f"{label:<{_LABEL}}{value}".rstrip() for label, value in rows]
    body = "\n".join([*lines, verdict(list(findings))])
    return f"```text\n{_without_home(body)}\n```"


def _not_here(machine: Machine) -> Iterable[str]:
    """The lowerings that cannot run here, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for row in machine.lowerings:
        if row.reason is not None:
            by_reason.setdefault(row.reason, []).append(f"{row.idiom} by {row.lowering}")
    return (f"{reason}: {', '.join(names)}" for reason, names in by_reason.items())


def lowering_rows(machine: Machine) -> list[tuple[str, str, str]]:
    """The table of --lowerings: idiom, lowering, and whether it can run here."""
    return [
        (r.idiom, r.lowering, "available" if r.reason is None else r.reason)
        for r in machine.lowerings
    ]


def _facts(machine: Machine) -> Iterable[tuple[str, str]]:
    python = ".".join(map(str, machine.python))
    yield "rocm-passes", f"{machine.rocm_passes}, Python {python}, {machine.system}"
    yield "torch", _torch(machine)
    yield "triton", _library(machine.triton) + (", interpreted" if machine.interpreted else "")
    yield from (("device", line) for line in _devices(machine))
    if machine.hip is not None or machine.has_amd_hardware:
        yield "rocm", _rocm(machine)
    yield "aiter", "not installed" if machine.aiter.status == "absent" else machine.aiter.detail
    libraries = [f"{name} {_library(found)}" for name, found in machine.libraries.items()]
    yield "libraries", ", ".join(libraries) or "none"
    ours = [f"{k}={v}" for k, v in machine.variables.items() if k.startswith("ROCM_PASSES_")]
    if ours:
        yield "options", ", ".join(ours)
    able = sum(r.reason is None for r in machine.lowerings)
    yield (
        "lowerings",
        f"{able} of {len(machine.lowerings)} can run here (rocm-passes doctor --lowerings)",
    )


def _torch(machine: Machine) -> str:
    if machine.torch.version is None:
        return "not installed"
    if machine.torch.error is not None:
        return f"{machine.torch.version}, which fails to import"
    build = (
        f"ROCm {machine.hip}"
        if machine.hip
        else f"CUDA {machine.cuda}"
        if machine.cuda
        else "CPUs only"
    )
    return f"{machine.torch.version}, built for {build}"


def _library(found: Library) -> str:
    if found.version is None:
        return "not installed"
    return found.version if found.error is None else f"{found.version} (fails to import)"


def _devices(machine: Machine) -> list[str]:
    if not machine.gpus:
        return ["no GPU: graphs run on the CPU" if machine.hip is None else "no GPU is visible"]
    first, *others = map(_gpu, machine.gpus)
    if len(set(others)) == 1 and others[0] == first:
        return [f"{len(machine.gpus)} of {first}"]
    return [first, *others]


def _gpu(gpu: Gpu) -> str:
    memory = f", {gpu.gib:g} GiB" if gpu.gib else ""
    return (
        f"{gpu.name} ({gpu.vendor}, "
        f"{gpu.arch}{', integrated' if is_integrated(gpu) else ''}{memory})"
    )


def _rocm(machine: Machine) -> str:
    parts = [machine.rocm or "none in /opt/rocm"]
    if machine.miopen is not None and machine.miopen.version is not None:
        mode = machine.variables.get("MIOPEN_FIND_MODE", "its default")
        parts.append(f"MIOpen {'.'.join(map(str, machine.miopen.version))}, find mode {mode}")
        parts.append(f"find-db in {_without_home(machine.miopen.database)}")
    parts.append("nodes " + (", ".join(f"{n.path} {n.access}" for n in machine.nodes) or "none"))
    parts.append(f"driver lists {', '.join(machine.kernel_archs) or 'no GPU'}")
    return "; ".join(parts)


def _lines(rows: Iterable[tuple[str, str]], width: int) -> list[str]:
    return [
        textwrap.fill(
            f"{label:<{_LABEL}}{value}",
            width,
            subsequent_indent=" " * _LABEL,
            break_long_words=False,
        )
        for label, value in rows
    ]


def _without_home(text: str) -> str:
    """A report is pasted in public: the user's home folder has their name."""
    from pathlib import Path

    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
