"""The doctor's judgement of machines that are described as data, and its command on this one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from rocm_passes import cli
from rocm_passes.cli.doctor import collect, text
from rocm_passes.cli.doctor.diagnosis import (
    CHECKED_ARCHITECTURES,
    Finding,
    diagnose,
    exit_code,
    override_arch,
    verdict,
)
from rocm_passes.cli.doctor.known import ADVICE, KNOWN_ISSUES
from rocm_passes.cli.doctor.machine import (
    Aiter,
    DeviceNode,
    Gpu,
    Library,
    LoweringRow,
    Machine,
    Miopen,
)
from rocm_passes.target import AMD_ARCHITECTURES
from tests.cli.machines import CPU, IGPU, LIBRARIES, MI300X, MI300X_GPU, NODES, RX7900


def found(machine: Machine, name: str) -> Finding:
    """The finding of that name; the test fails where the machine has none."""
    findings = diagnose(machine)
    assert name in {f.name for f in findings}, [f.name for f in findings]
    return next(f for f in findings if f.name == name)


def names(machine: Machine) -> list[str]:
    return [f.name for f in diagnose(machine)]


@pytest.mark.parametrize("machine", [MI300X, CPU], ids=["MI300X", "CPU"])
def test_a_healthy_machine_takes_ten_lines_and_code_0(machine: Machine) -> None:
    findings = diagnose(machine)
    assert findings == []
    assert exit_code(findings) == 0
    lines = text.summary(machine, findings, 100).splitlines()
    assert len(lines) <= 10
    assert lines[-1] == 'torch.compile(model, backend="rocm_diffusion") will work here'


INVISIBLE = replace(MI300X, gpus=())


@pytest.mark.parametrize(
    ("machine", "fix"),
    [
        (
            replace(INVISIBLE, kernel_archs=(), nodes=(DeviceNode("/dev/kfd", "absent"),)),
            "/dev/kfd is absent",
        ),
        (replace(INVISIBLE, kernel_archs=(), nodes=()), "--device=/dev/kfd"),
        (
            replace(
                INVISIBLE, groups=("user",), nodes=(replace(NODES[0], access="denied"), NODES[1])
            ),
            "/dev/kfd cannot be opened by this user (groups user): sudo usermod -aG render $USER",
        ),
        (replace(INVISIBLE, nodes=NODES[:1]), "no /dev/dri/renderD* is there"),
        (replace(INVISIBLE, variables={"HIP_VISIBLE_DEVICES": ""}), "unset HIP_VISIBLE_DEVICES=''"),
        (
            replace(INVISIBLE, variables={"HIP_VISIBLE_DEVICES": "-1"}),
            "unset HIP_VISIBLE_DEVICES='-1'",
        ),
        (
            replace(INVISIBLE, variables={"ROCR_VISIBLE_DEVICES": "1"}),
            "unset ROCR_VISIBLE_DEVICES='1'",
        ),
        (
            replace(INVISIBLE, gpu_error="RuntimeError: HIP error"),
            "the runtime says RuntimeError: HIP error",
        ),
        (INVISIBLE, "the driver lists gfx942: check `rocminfo`"),
    ],
)
def test_a_rocm_build_without_a_visible_gpu_will_not_work_and_says_why(
    machine: Machine, fix: str
) -> None:
    finding = found(machine, "no-visible-gpu")
    assert finding.severity == "error"
    assert fix in finding.fix
    assert exit_code(diagnose(machine)) == 2
    assert verdict(diagnose(machine)).endswith("will not work here")


def test_an_mi300x_without_triton_will_not_work() -> None:
    machine = replace(MI300X, triton=Library())
    finding = found(machine, "triton-missing")
    assert finding.severity == "error" and "pytorch-triton-rocm" in finding.fix
    assert exit_code(diagnose(machine)) == 2
    assert text.summary(machine, diagnose(machine)).endswith("will not work here")


def test_a_triton_that_fails_to_import_is_told_in_its_own_words() -> None:
    machine = replace(MI300X, triton=Library("3.7.1", "ImportError: libamdhip64.so"))
    finding = found(machine, "triton-broken")
    assert finding.severity == "error" and "ImportError: libamdhip64.so" in finding.says


def test_a_cpu_needs_no_triton() -> None:
    assert found(replace(CPU, triton=Library()), "triton-missing").severity == "note"
    assert exit_code(diagnose(replace(CPU, triton=Library()))) == 0


@pytest.mark.parametrize(
    ("version", "name"),
    [("2.10.0+rocm7.0", "torch-old"), ("2.9.1", "torch-old"), (None, "torch-missing")],
)
def test_a_torch_that_is_too_old_or_missing(version: str | None, name: str) -> None:
    finding = found(replace(MI300X, torch=Library(version), gpus=()), name)
    assert finding.severity == "error"
    assert str(version or "not installed") in finding.says and "2.11" in str(finding)


@pytest.mark.parametrize("version", ["2.11.0a0+git1234567", "2.11.0.dev20260101+rocm7.1", "2.15.0"])
def test_development_builds_of_torch_2_11_are_taken(version: str) -> None:
    assert diagnose(replace(MI300X, torch=Library(version))) == []


def test_a_torch_that_fails_to_import() -> None:
    machine = replace(MI300X, torch=Library("2.13.0", "OSError: libhsa-runtime64.so.1"), gpus=())
    assert "libhsa-runtime64.so.1" in found(machine, "torch-broken").says
    assert names(machine) == ["torch-broken"], "what torch would have told is not guessed at"


def test_an_amd_gpu_under_a_torch_for_cuda_or_for_cpus() -> None:
    machine = replace(CPU, kernel_archs=("gfx942",), nodes=NODES)
    assert "built for CPUs only" in found(machine, "torch-not-rocm").says
    finding = found(replace(machine, cuda="12.8"), "torch-not-rocm")
    assert finding.severity == "error" and "gfx942" in finding.says and "CUDA 12.8" in finding.says


def test_a_cuda_build_without_a_gpu_is_a_warning() -> None:
    assert exit_code(diagnose(replace(CPU, cuda="12.8"))) == 1


def test_an_integrated_gpu_in_front_of_the_real_one() -> None:
    machine = replace(MI300X, gpus=(IGPU, RX7900), kernel_archs=("gfx1036", "gfx1100"))
    assert found(machine, "integrated-first").fix.endswith("HIP_VISIBLE_DEVICES=1")
    assert "integrated-first" not in names(replace(machine, gpus=(RX7900, IGPU)))
    alone = Gpu("amd", "gfx1151", "Radeon 8060S", integrated=True)
    assert "integrated-first" not in names(replace(machine, gpus=(alone,)))


def test_several_gpus_of_one_kind_are_one_line() -> None:
    said = text.summary(replace(MI300X, gpus=(MI300X_GPU,) * 8), [])
    assert "8 of AMD Instinct MI300X (amd, gfx942, 192 GiB)" in said


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, "two-device-variables"),
        (
            {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"},
            "contradicting-device-variables",
        ),
    ],
)
def test_variables_that_choose_devices_twice(variables: dict[str, str], name: str) -> None:
    assert found(replace(MI300X, variables=variables), name).severity == "warning"
    assert diagnose(replace(MI300X, variables=dict([*variables.items()][1:]))) == []


@pytest.mark.parametrize("arch", ["gfx90a", "gfx1030", "gfx1101", "gfx1151", "gfx1200"])
def test_architectures_that_are_not_checked_get_advice_of_their_own(arch: str) -> None:
    machine = replace(MI300X, gpus=(replace(MI300X_GPU, arch=arch),), kernel_archs=(arch,))
    finding = found(machine, "unchecked-architecture")
    assert finding.severity == "warning" and arch in finding.says
    assert finding.fix == ADVICE[arch]


def test_an_architecture_that_nobody_knows() -> None:
    machine = replace(MI300X, gpus=(replace(MI300X_GPU, arch="gfx1250"),))
    assert "Nothing is known of it" in found(machine, "unchecked-architecture").fix


def test_the_doctor_and_the_kernels_agree_on_what_is_checked() -> None:
    assert CHECKED_ARCHITECTURES == AMD_ARCHITECTURES
    assert not ADVICE.keys() & set(AMD_ARCHITECTURES)


@pytest.mark.parametrize(
    ("value", "arch", "name"),
    [
        ("11.0.0", "gfx1101", "gfx-override"),
        ("10.3.0", "gfx1101", "gfx-override-generation"),
        ("11.0.0", "gfx1100", "gfx-override-needless"),
        ("gfx1100", "gfx1100", "gfx-override-malformed"),
    ],
)
def test_an_overridden_architecture(value: str, arch: str, name: str) -> None:
    variables = {"HSA_OVERRIDE_GFX_VERSION": value}
    assert value in found(replace(MI300X, kernel_archs=(arch,), variables=variables), name).says


def test_versions_and_architectures_are_read_alike() -> None:
    assert [override_arch(v) for v in ("9.0.10", "9.4.2", "12.0.1", "11")] == [
        *("gfx90a", "gfx942", "gfx1201"),
        None,
    ]


def gpu_of(arch: str) -> Gpu:
    return replace(MI300X_GPU, arch=arch)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"miopen": Miopen((3, 5, 1)), "variables": {"ROCM_PASSES_CONV_SEARCH": "on"}},
            "miopen-naive-search",
        ),
        (
            {"miopen": Miopen((3, 5, 1)), "variables": {"MIOPEN_FIND_MODE": "NORMAL"}},
            "miopen-naive-search",
        ),
        ({"variables": {"ROCM_PASSES_CONV_SEARCH": "on"}}, "miopen-find-db"),
        ({"variables": {"MIOPEN_DISABLE_CACHE": "1"}}, "miopen-cache-disabled"),
        ({"hip": "7.0.51831"}, "no-conv3d-heuristics"),
        (
            {
                "hip": "7.14.60850",
                "torch": Library("2.12.0+rocm7.14"),
                "gpus": (replace(MI300X_GPU, arch="gfx1201"),),
            },
            "gfx1201-nan-when-warm",
        ),
        ({"gpus": (RX7900,)}, "gfx1100-wide-attention"),
        ({"miopen": Miopen((3, 5, 1))}, "miopen-first-run"),
        ({"variables": {"MIOPEN_NAIVE_DISABLE_IF_ALT": "0"}}, "miopen-naive-timed"),
        (
            {"gpus": (gpu_of("gfx1030"),), "variables": {"MIOPEN_FIND_ENFORCE": "SEARCH"}},
            "miopen-search-crashes",
        ),
        ({"miopen": Miopen((3, 5, 2), "/tmp/db", "/home/u/c")}, "miopen-temporary-folder"),
        ({"miopen": Miopen((3, 5, 2), "/home/u/d", "/dev/shm/c")}, "miopen-temporary-folder"),
        ({"gpus": (MI300X_GPU, MI300X_GPU)}, "miopen-shared-database"),
        (
            {"gpus": (RX7900,), "variables": {"ROCM_PASSES_LAYOUT": "channels_last"}},
            "miopen-nhwc-on-rdna",
        ),
        (
            {"hip": "6.4.43482", "variables": {"ROCM_PASSES_LAYOUT": "channels_last"}},
            "miopen-nhwc-off",
        ),
        ({"gpus": (RX7900,)}, "miopen-rdna-conv3d"),
        ({"gpus": (gpu_of("gfx950"),)}, "miopen-transposed"),
        ({"rocm": "7.14.1-60850"}, "rocm-7.14.1-vae-attention"),
        ({"gpus": (gpu_of("gfx1151"),)}, "bf16-vae-black"),
        ({"gpus": (gpu_of("gfx1201"),)}, "gfx1201-miopen-nan"),
        ({"miopen": Miopen((3, 5, 2), "/a", "/b", writable=False)}, "miopen-unwritable"),
    ],
)
def test_versions_that_are_known_to_misbehave(changes: dict[str, object], name: str) -> None:
    finding = found(replace(MI300X, **changes), name)  # type: ignore[arg-type]
    assert finding.fix and "#" in finding.source
    assert name not in names(MI300X)


def test_every_known_issue_has_a_machine_above() -> None:
    (cases,) = (mark.args[1] for mark in test_versions_that_are_known_to_misbehave.pytestmark)  # type: ignore[attr-defined]
    assert {issue.name for issue in KNOWN_ISSUES} == {name for _, name in cases} - {
        "miopen-unwritable"
    }
    assert all("#" in issue.source for issue in KNOWN_ISSUES)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"variables": {"MIOPEN_FIND_MODE": "FAST"}}, "miopen-first-run"),
        ({"miopen": Miopen((3, 5, 2))}, "miopen-first-run"),
        ({"rocm": "7.14.0"}, "rocm-7.14.1-vae-attention"),
        ({"gpus": (gpu_of("gfx1030"),)}, "miopen-search-crashes"),
        ({"gpus": (RX7900,)}, "miopen-nhwc-on-rdna"),
        ({"variables": {"ROCM_PASSES_LAYOUT": "channels_last"}}, "miopen-nhwc-off"),
        ({"hip": "6.4"}, "miopen-nhwc-off"),
        (
            {
                "hip": "6.4",
                "variables": {
                    "ROCM_PASSES_LAYOUT": "channels_last",
                    "PYTORCH_MIOPEN_SUGGEST_NHWC": "1",
                },
            },
            "miopen-nhwc-off",
        ),
    ],
)
def test_what_does_not_misbehave(changes: dict[str, object], name: str) -> None:
    machine = replace(MI300X, **{"miopen": Miopen((3, 5, 1)), **changes})  # type: ignore[arg-type]
    assert name not in names(machine)


@pytest.mark.parametrize("status", ["unrelated", "broken"])
def test_an_aiter_that_cannot_be_used(status: str) -> None:
    aiter = Aiter(status, None, "the aiter at /x is another project than AMD's")  # type: ignore[arg-type]
    assert found(replace(MI300X, aiter=aiter), f"aiter-{status}").severity == "warning"
    assert found(replace(CPU, aiter=aiter), f"aiter-{status}").severity == "note", (
        "a CPU never uses it"
    )


def test_no_aiter_is_no_warning() -> None:
    assert found(replace(MI300X, aiter=Aiter()), "aiter-absent").severity == "note"


def test_libraries_that_are_too_old() -> None:
    old = {**LIBRARIES, "diffusers": Library("0.31.0")}
    assert "diffusers>=0.36" in found(replace(MI300X, libraries=old), "diffusers-old").fix
    assert diagnose(replace(MI300X, libraries={"diffusers": Library()})) == []


def test_python_registration_and_options_are_errors() -> None:
    assert found(replace(MI300X, python=(3, 10, 2)), "python-old").severity == "error"
    assert found(replace(MI300X, registered=False), "backend-unregistered").severity == "error"
    assert (
        found(replace(MI300X, option_error="unknown environment variable"), "option").severity
        == "error"
    )


def test_errors_come_before_warnings_and_notes_stay_out_of_the_summary() -> None:
    machine = replace(MI300X, triton=Library(), aiter=Aiter(), hip="7.0.0")
    findings = diagnose(machine)
    assert [f.severity for f in findings] == ["error", "warning", "note"]
    said = text.summary(machine, findings)
    assert said.index("error  ") < said.index("warning  ")
    assert "ROCm/aiter" not in said and "ROCm/aiter" in text.report(
        machine, [*findings, Finding("note", "n", "ROCm/aiter")]
    )


def test_a_warning_is_code_1_and_counted_in_the_verdict() -> None:
    findings = diagnose(replace(MI300X, hip="7.0.0"))
    assert exit_code(findings) == 1
    assert verdict(findings).endswith("will work here, with 1 warning")


def test_the_report_has_everything_and_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    machine = replace(MI300X, hip="7.0.0", variables={"ROCM_PASSES_CHOICES": "/home/user/c.json"})
    said = text.report(machine, diagnose(machine))
    assert said.startswith("```text\n") and said.endswith("\n```")
    for part in ("gfx942", "MIOpen 3.5.2", "ROCM_PASSES_CHOICES=~/c.json", "no-conv3d-heuristics"):
        assert part in said
    assert "it is slower: pad by reference" in said and "/home/user" not in said


def test_the_report_has_one_line_for_each_reason() -> None:
    rows = tuple(LoweringRow(i, "triton", "no GPU") for i in ("rms_norm", "rotary"))
    said = text.report(replace(CPU, lowerings=rows), [])
    assert "not here     no GPU: rms_norm by triton, rotary by triton" in said.splitlines()


def test_json_is_plain_data_with_findings_and_code() -> None:
    machine = replace(MI300X, hip="7.0.0")
    document = text.document(machine, diagnose(machine))
    assert json.loads(json.dumps(document)) == document
    assert document["exit_code"] == 1 and document["findings"][0]["name"] == "no-conv3d-heuristics"
    assert document["gpus"][0]["arch"] == "gfx942"


def test_lines_keep_to_the_width() -> None:
    machine = replace(MI300X, triton=Library(), hip="7.0.0")
    assert max(map(len, text.summary(machine, diagnose(machine), 80).splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "will work here"),
        (("--lowerings",), "residual_norm_modulate"),
        (("--report",), "```text"),
    ],
)
def test_the_command(
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = collect.lowerings(CPU)
    monkeypatch.setattr(collect, "this_machine", lambda: replace(CPU, lowerings=rows))
    assert cli.main(["doctor", *arguments]) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("machine", "code"), [(MI300X, 0), (replace(MI300X, hip="7.0"), 1), (INVISIBLE, 2)]
)
def test_the_command_s_exit_code(
    machine: Machine, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "this_machine", lambda: machine)
    assert cli.main(["doctor", "--json"]) == code


def test_the_table_of_lowerings_cuts_no_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = collect.lowerings(CPU)
    monkeypatch.setattr(collect, "this_machine", lambda: replace(CPU, lowerings=rows))
    cli.main(["doctor", "--lowerings"])
    said = capsys.readouterr().out
    assert rows and all(row.reason in said for row in rows if row.reason)


def test_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCM_PASSES_SELECT", "allways")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    # Set for all tests (tests/conftest.py).
    monkeypatch.delenv("ROCM_PASSES_ON_COMPILE_ERROR")
    machine = collect.this_machine()
    assert machine.torch == Library(torch.__version__)
    assert machine.triton.usable and machine.registered
    assert machine.variables == {"HIP_VISIBLE_DEVICES": "0", "ROCM_PASSES_SELECT": "allways"} | {
        k: v for k, v in machine.variables.items() if k == "TRITON_INTERPRET"
    }
    assert "did you mean 'always'" in str(machine.option_error)
    assert {r.idiom for r in machine.lowerings} >= {"rms_norm", "conv3d"}
    assert "option" in names(machine)
