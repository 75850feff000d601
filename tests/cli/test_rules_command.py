"""`rocm-passes rules`: the rules of a machine with their evidence, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from rocm_passes import cli, policy
from rocm_passes.target import Target


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["rules", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("gfx942", {"any", "gpu", "amd", "gfx942"}),
        ("sm_90", {"any", "gpu", "nvidia", "sm_90"}),
        ("cpu", {"any", "cpu"}),
    ],
)
def test_rules_of_a_target(
    capsys: pytest.CaptureFixture[str], target: str, where: set[str]
) -> None:
    found = json.loads(printed(capsys, "--json", "--target", target))
    assert found["target"] == target
    assert {rule["where"] for rule in found["rules"]} == where
    assert 0 < len(found["rules"]) < len(policy.RULES)


def test_every_rule_and_bound_is_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "--json", "--all"))
    assert len(found["rules"]) == len(policy.RULES)
    assert [bound["name"] for bound in found["bounds"]] == [bound.name for bound in policy.BOUNDS]
    (row,) = (
        r
        for r in found["rules"]
        if (r["operator"], r["lowering"], r["pays"]) == ("layer_norm", "triton", True)
    )
    assert row["condition"] == {"columns": [[">=", 1024]], "elements": [[">=", 2**22]]}
    assert row["evidence"]["machine"] == "H200"
    assert row["command"] == "python -m rocm_passes.bench.norm_sites"


def test_the_table_has_reason_evidence_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--target", "gfx1100")
    for cell in (
        "layer_norm.triton",
        "columns >= 1,024 and elements >= 4,194,304",
        "one pass over memory vs. Inductor's two",
        "python -m rocm_passes.bench.norm_sites",
        "WORTH_MEASURING_MIB",
    ):
        assert cell in text
    assert "conv3d.taps" in text and "cuDNN" not in text.split("WORTH_MEASURING")[0]
    target = Target.named("gfx1100")
    assert target is not None
    rules = [rule for rule in policy.RULES if rule.applies_to(target)]
    assert f"{len(rules)} rules for gfx1100, {len(policy.BOUNDS)} bounds" in text


def test_without_a_target_it_is_this_machine_s(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert json.loads(printed(capsys, "--json"))["target"] == "cpu"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target", "mi300"], "found 'mi300'"),
        (["--all", "--target", "cpu"], "--target or --all, not both"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert cli.main(["rules", *words]) == 2
    assert says in capsys.readouterr().err
