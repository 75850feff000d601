"""The wheel and the sdist: what they contain, and that installing them never touches an installed
torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import rocm_passes
from rocm_passes import torch_version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Folders of a checkout that are no part of it.
NOT_OURS = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "demo-output"
)
BUILD = (
    "import sys; from setuptools import build_meta; print(getattr(build_meta, "
    "sys.argv[1])(sys.argv[2]))"
)


@dataclass(frozen=True)
class Built:
    """The sdist of this tree, unpacked, and the wheel that was built from it."""

    sdist: Path
    wheel: Path


def build(kind: str, tree: Path, folder: Path) -> Path:
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=NOT_OURS)
    archive = build("build_sdist", tree, folder)
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (sdist,) = (folder / "unpacked").iterdir()
    return Built(sdist, build("build_wheel", sdist, folder))


def test_the_sdist_has_what_its_tests_need(built: Built) -> None:
    for folder in ("tests", "examples", "docs", "rocm_passes", ".github"):
        here = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
        kept = {p for p in here if "__pycache__" not in p.parts and p.suffix != ".pyc"}
        missing = [str(p) for p in kept if not (built.sdist / p).is_file()]
        assert not missing, missing
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "constraints.txt",
        "Dockerfile",
    ):
        assert (built.sdist / name).is_file(), name


def test_tests_run_from_the_sdist(built: Built) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/cli/test_collect.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(built.sdist)}
    done = subprocess.run(
        [*command, "-k", "driver or nodes"],
        cwd=built.sdist,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_wheel_has_the_package_whole_and_nothing_else(built: Built) -> None:
    names = set(zipfile.ZipFile(built.wheel).namelist())
    package = ROOT / "rocm_passes"
    wanted = {
        str(p.relative_to(ROOT))
        for p in package.rglob("*")
        if p.suffix in (".py", ".css", ".js", ".json") or p.name == "py.typed"
    }
    assert {
        "rocm_passes/report/report.css",
        "rocm_passes/report/report.js",
        "rocm_passes/py.typed",
    } <= wanted
    assert wanted <= names
    others = {n for n in names if not n.startswith(("rocm_passes/", "rocm_passes-"))}
    assert not others


def test_the_wheel_s_metadata(built: Built) -> None:
    archive = zipfile.ZipFile(built.wheel)
    folder = f"rocm_passes-{rocm_passes.__version__}.dist-info"
    entry_points = archive.read(f"{folder}/entry_points.txt").decode()
    assert "rocm-passes = rocm_passes.cli:main" in entry_points
    assert "rocm_diffusion = rocm_passes:rocm_diffusion" in entry_points
    metadata = archive.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_nothing_but_the_extra_for_it_names_torch() -> None:
    assert {Requirement(r).name for r in PROJECT["dependencies"]} == {"click", "rich"}
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    of_builds = {"torch", "triton", "aiter", "amd-aiter", "pytorch-triton-rocm"}
    naming = {e for e, needs in extras.items() if of_builds & {Requirement(r).name for r in needs}}
    assert naming == {"torch", "dev"}


def fake(site: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """A distribution that pip takes for installed."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    needs = "".join(f"Requires-Dist: {r}\n" for r in requires)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    )
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").write_text("")


#: What the libraries that may be there already ask of torch.
LIBRARIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "click": ("8.2.1", ()),
    "rich": ("14.0.0", ()),
    "diffusers": ("0.36.0", ()),
    "transformers": ("4.57.0", ()),
    "accelerate": ("1.10.0", ("torch>=2.0.0",)),
}
ROCM_BUILDS = (
    "2.10.0+rocm7.0",
    "2.11.0a0+gitd1c0ffee",
    "2.11.0.dev20260115+rocm7.1",
    "2.13.0+rocm7.2",
)


def pip(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--dry-run",
        "--quiet",
    ]
    return subprocess.run(
        [*command, "--no-index", "--report", "-", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHONPATH"))}
        | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


@pytest.fixture(params=ROCM_BUILDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The Python of an environment in which pip sees a ROCm build of torch and the usual
    libraries.
    """
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    fake(site, "torch", request.param)
    for name, (version, requires) in LIBRARIES.items():
        fake(site, name, version, requires)
    return tmp_path / "env" / "bin" / "python"


@pytest.mark.each_value
@pytest.mark.parametrize("extra", ["", "[models]"])
def test_pip_leaves_an_installed_torch_alone(built: Built, machine: Path, extra: str) -> None:
    done = pip(machine, f"{built.wheel}{extra}")
    assert done.returncode == 0, done.stderr
    installs = [each["metadata"]["name"] for each in json.loads(done.stdout)["install"]]
    assert installs == ["rocm-passes"]


def test_the_dry_run_would_notice_a_dependency_on_torch(built: Built, tmp_path: Path) -> None:
    """The extra `torch` is what a dependency would be: pip then looks for another torch than the
    ROCm build.
    """
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    fake(site, "torch", ROCM_BUILDS[1])
    for name in ("click", "rich"):
        fake(site, name, LIBRARIES[name][0])
    done = pip(tmp_path / "env" / "bin" / "python", f"{built.wheel}[torch]")
    assert done.returncode != 0
    assert "No matching distribution found for torch" in done.stderr


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        (
            "2.10.0+rocm7.0",
            "torch 2.10.0+rocm7.0 is too old: rocm-passes needs torch 2.11 or newer",
        ),
        ("2.11.0a0+gitd1c0ffee", None),
        ("2.11.0.dev20260115+rocm7.1", None),
        ("3.0.0", None),
        (None, "torch is not installed: install torch 2.11 or newer"),
    ],
)
def test_the_version_of_torch_is_checked_at_the_first_use(
    version: str | None, problem: str | None
) -> None:
    found = torch_version.problem(version)
    assert (found is None) == (problem is None)
    assert problem is None or (found or "").startswith(problem)


def test_a_torch_that_is_too_old_is_an_import_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_version, "installed", lambda: "2.10.0+rocm7.0")
    monkeypatch.delitem(vars(rocm_passes), "rocm_diffusion", raising=False)
    with pytest.raises(ImportError, match=r"torch 2\.10\.0\+rocm7\.0 is too old"):
        rocm_passes.rocm_diffusion  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'explane'"):
        rocm_passes.explane  # type: ignore[attr-defined]  # noqa: B018


def test_the_installed_version_is_read_from_metadata_without_an_import(tmp_path: Path) -> None:
    fake(tmp_path, "torch", "2.10.0+rocm7.0")
    program = (
        "from rocm_passes import torch_version; import sys; "
        "print(torch_version.installed(), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["2.10.0+rocm7.0", "False"], done.stderr


def test_the_dockerfile_copies_what_is_there_and_installs_no_torch() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("ARG BASE=rocm/pytorch") and lines[1] == "FROM ${BASE}"
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1])
        if "pip install" in line:
            assert (
                ".[models]" in line
                and "torch " not in line.partition("pip install")[2].partition("&&")[0]
            )
    assert 'ENTRYPOINT ["rocm-passes"]' in lines


@pytest.mark.exhaustive
def test_the_dockerfile_s_step_installs_beside_a_torch_and_leaves_it(
    built: Built, tmp_path: Path
) -> None:
    """The RUN line, by a shell, in an environment that sees this one's torch and libraries."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    (step,) = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    done = subprocess.run(
        ["sh", "-c", step.replace("/tmp/", f"{tmp_path}/")],
        cwd=built.sdist,
        # Nothing is fetched: what the package needs is there, and setuptools builds it.
        env={"PATH": f"{tmp_path / 'env' / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path),
             "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0",
             "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    installed = {p.name.partition("-")[0] for p in site.glob("*.dist-info")}
    assert installed == {"rocm_passes"}
    assert not (tmp_path / "torch-before").exists(), "the step tidies up"


def test_issue_templates_ask_for_the_doctor_s_report() -> None:
    templates = [
        p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"
    ]
    assert len(templates) == 3
    for template in templates:
        fields = yaml.safe_load(template.read_text())["body"]
        (doctor,) = [f for f in fields if f["id"] == "doctor"]
        assert "rocm-passes doctor --report" in doctor["attributes"]["description"]
        assert doctor["validations"]["required"]


def test_the_release_workflow_builds_both_and_uploads_nothing() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["build"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    assert "python -m build" in commands and "twine check" in commands and "make test" in commands
    assert "twine upload" not in text and "pypi-publish" not in text
    links = commands.index("release_links.py")
    assert links < commands.index("python -m build"), "links are made absolute before the build"


def test_a_release_has_addresses_and_no_relative_link(built: Built, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(built.sdist, tree)
    repository = "https://github.com/some-owner/some-name"
    command = [sys.executable, ".github/release_links.py", repository, "c0ffee"]
    subprocess.run(command, cwd=tree, check=True, timeout=60)
    archive = zipfile.ZipFile(build("build_wheel", tree, tmp_path))
    folder = f"rocm_passes-{rocm_passes.__version__}.dist-info"
    head, _, readme = archive.read(f"{folder}/METADATA").decode().partition("\n\n")
    for name, address in (
        ("Repository", repository),
        ("Documentation", f"{repository}/blob/c0ffee/docs/index.md"),
        ("Issues", f"{repository}/issues"),
        ("Changelog", f"{repository}/blob/c0ffee/CHANGELOG.md"),
    ):
        assert f"Project-URL: {name}, {address}" in head.splitlines()
    assert f"({repository}/raw/c0ffee/docs/images/wan-1280-light.png)" in readme
    assert f"]({repository}/blob/c0ffee/docs/supported.md)" in readme
    assert not re.findall(r"\]\((?!https?://|#)[^)]*\)", readme)
    for path in re.findall(rf"{repository}/(?:blob|raw)/c0ffee/([^)#]+)", readme):
        assert (ROOT / path).is_file(), path


def test_the_development_container_is_valid_and_its_command_exists() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = container["postCreateCommand"].removeprefix("make ").replace(".venv", "$(VENV)")
    assert (
        "$(READY):" in (ROOT / "Makefile").read_text()
        and f"READY := {target}" in (ROOT / "Makefile").read_text()
    )


def test_every_development_tool_is_pinned() -> None:
    pinned = {
        Requirement(line).name
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line[0] != "#"
    }
    needed = {
        Requirement(r).name
        for needs in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for r in needs
    }
    assert needed - {"rocm-passes"} <= pinned


def test_the_changelog_and_the_version_agree() -> None:
    assert f"## {rocm_passes.__version__}" in (ROOT / "CHANGELOG.md").read_text()
