"""The command `rocm-passes`: doctor, explain, demo, bench, and tune where it is there."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Read when torch is imported: with Inductor's caches on, a hit would leave nothing to report.
NO_CACHES = "TORCHINDUCTOR_FORCE_DISABLE_CACHES"

#: The checkout, where this is one: it has the demo and the benchmarks.
ROOT = Path(__file__).resolve().parent.parent

#: Subcommands that hand over to a module's `main(argv)`: each exists where its module does.
HANDED_OVER = {
    "tune": ("rocm_passes.tuning.tuning", "measure the lowerings on this machine and remember the best"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code; wrong usage exits with 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in _handed_over():
        module = importlib.import_module(HANDED_OVER[argv[0]][0])
        return int(module.main(argv[1:]) or 0)
    arguments = parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rocm-passes",
        description="Looks at what torch.compile(model, backend='rocm_diffusion') does, and where it runs.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what this machine is, and what will be used on it")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(run=_doctor)

    explain = commands.add_parser(
        "explain",
        help="run a script and print the ledger of all that it compiled with the backend",
        description="Runs the script as Python would, Inductor's caches off, then prints the ledger. "
        "The script keeps its arguments, its exit code and its exceptions.",
    )
    explain.add_argument("--json", metavar="FILE", help="write the ledger as JSON")
    explain.add_argument("--html", metavar="FILE", help="write the ledger as one HTML page")
    explain.add_argument("--all", action="store_true", help="print every site on a line of its own")
    explain.add_argument("script", help="a Python file")
    explain.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    explain.set_defaults(run=_explain)

    demo = commands.add_parser("demo", help="compile five tiny diffusion models and show what was done")
    demo.add_argument("arguments", nargs=argparse.REMAINDER, help="see: rocm-passes demo --help")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="run one of the benchmarks, on a GPU")
    bench.add_argument("benchmark", help=f"of {', '.join(_benchmarks()) or 'none: not a checkout'}")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="the benchmark's own arguments")
    bench.set_defaults(run=_bench)

    for name in _handed_over():
        commands.add_parser(name, help=HANDED_OVER[name][1], add_help=False)
    return top


def _handed_over() -> list[str]:
    return [
        name
        for name, (module, _) in HANDED_OVER.items()
        if importlib.util.find_spec(module) and hasattr(importlib.import_module(module), "main")
    ]


def _doctor(arguments: argparse.Namespace) -> int:
    from rocm_passes import doctor

    found = doctor.examine()
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(doctor.text(found, max(60, shutil.get_terminal_size((100, 24)).columns)))
    return 1 if found["problems"] else 0


def _explain(arguments: argparse.Namespace) -> int:
    script = Path(arguments.script)
    if not script.is_file():
        return _usage(f"explain: there is no script {arguments.script!r}")
    for output in (arguments.json, arguments.html):
        if output and not Path(output).resolve().parent.is_dir():
            return _usage(f"explain: there is no folder to write {output!r} into")
    if os.environ.get(NO_CACHES) != "1":
        # torch is imported already, with its caches on: start over.
        os.environ[NO_CACHES] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "rocm_passes.cli", *_as_given(arguments)])
    # torch says so itself when the caches are off; here they are off on purpose.
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    try:
        run_script(script, arguments.arguments)
    finally:
        report(arguments)
    return 0


def _as_given(arguments: argparse.Namespace) -> list[str]:
    words = ["explain"]
    for name in ("json", "html"):
        if getattr(arguments, name):
            words += [f"--{name}", getattr(arguments, name)]
    if arguments.all:
        words.append("--all")
    return [*words, arguments.script, *arguments.arguments]


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a file as `python script arguments…` would: as __main__, with its own argv and import path."""
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__file__=str(script), __builtins__=__builtins__)
    # It stays __main__ after the run: functions that outlive the script, at exit say, need its globals.
    sys.modules["__main__"] = main_module
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    exec(compile(script.read_bytes(), str(script), "exec"), main_module.__dict__)


def report(arguments: argparse.Namespace) -> None:
    """Print and write what this process has compiled with the backend so far."""
    from rocm_passes.explain import document
    from rocm_passes.report import html as report_html
    from rocm_passes.report import ledger
    from rocm_passes.report.text import every_site, table

    graphs = ledger.history()
    print()
    if graphs:
        print(every_site(graphs) if arguments.all else table(graphs))
        print(f"{len(graphs)} graph{'' if len(graphs) == 1 else 's'} compiled by {arguments.script}")
    else:
        print(f"{arguments.script} compiled nothing with torch.compile(..., backend='rocm_diffusion')")
    found: dict[str, Any] = document(graphs)
    if arguments.json:
        ledger.write_json(arguments.json, found)
        print(f"ledger written to {arguments.json}")
    if arguments.html:
        Path(arguments.html).write_text(report_html.page(found, arguments.script), encoding="utf-8")
        print(f"page written to {arguments.html}")
    sys.stdout.flush()


def _demo(arguments: argparse.Namespace) -> int:
    if not (ROOT / "examples" / "demo.py").is_file():
        return _usage("demo: it is part of a checkout of the project, and this is an installed package")
    sys.path.insert(0, str(ROOT))
    return int(importlib.import_module("examples.demo").main(arguments.arguments))


def _bench(arguments: argparse.Namespace) -> int:
    known = _benchmarks()
    if arguments.benchmark not in known:
        return _usage(f"bench: there is no {arguments.benchmark!r}; there are {', '.join(known) or 'none'}")
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"rocm-passes bench {arguments.benchmark}", *arguments.arguments]
    runpy.run_module(f"benchmarks.{arguments.benchmark}", run_name="__main__")
    return 0


def _benchmarks() -> list[str]:
    """The programs in a checkout's benchmarks folder."""
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    return [f.stem for f in files if '__name__ == "__main__"' in f.read_text(encoding="utf-8")]


def _usage(message: str) -> int:
    print(f"rocm-passes {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
