"""Options: three sources, one validation, and errors that name what is wrong."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config

from rocm_passes import options as options_module
from rocm_passes.errors import OptionError
from rocm_passes.options import OPTION_NAMES, RENAMED, Options, describe, parse
from rocm_passes.registry import idiom_names


@pytest.fixture(autouse=True)
def of_a_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the tests set for all others (tests/conftest.py)."""
    monkeypatch.delenv("ROCM_PASSES_ON_COMPILE_ERROR")


def test_defaults() -> None:
    options, patch = parse(None, None)
    assert options == Options()
    assert options.select == "auto"
    assert patch == {}
    assert all(options.looks_for(name) for name in idiom_names())


def test_option_beats_environment_and_environment_beats_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROCM_PASSES_SELECT", "always")
    assert parse(None, None)[0].select == "always"
    assert parse({"select": "off"}, None)[0].select == "off"


def test_wrong_value_names_option_expected_and_found() -> None:
    with pytest.raises(
        OptionError, match=r"option 'select': expected one of 'auto', 'always', 'off'"
    ) as error:
        parse({"select": "alway"}, None)
    assert "found 'alway'" in str(error.value)
    assert "did you mean 'always'" in str(error.value)


def test_wrong_environment_value_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCM_PASSES_SELECT", "sometimes")
    with pytest.raises(OptionError, match=r"ROCM_PASSES_SELECT.*found 'sometimes'"):
        parse(None, None)


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'selct'.*did you mean 'select'"):
        parse({"selct": "auto"}, None)
    with pytest.raises(OptionError, match=r"did you mean 'max_autotune'"):
        parse({"max_autotun": True}, None)


def test_unknown_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCM_PASSES_SELEKT", "auto")
    with pytest.raises(OptionError, match="ROCM_PASSES_SELEKT; did you mean 'ROCM_PASSES_SELECT'"):
        parse(None, None)


def test_idioms_take_names_all_none_and_exclusions() -> None:
    names = idiom_names()
    assert parse({"idioms": "none"}, None)[0].idioms == ()
    assert parse({"idioms": "all"}, None)[0].idioms == names
    assert parse({"idioms": "rms_norm"}, None)[0].idioms == ("rms_norm",)
    assert parse({"idioms": ["conv3d", "rms_norm"]}, None)[0].idioms == tuple(
        n for n in names if n in ("conv3d", "rms_norm")
    )
    assert "conv3d" not in (parse({"idioms": "-conv3d"}, None)[0].idioms or ())
    with pytest.raises(OptionError, match="did you mean 'rms_norm'"):
        parse({"idioms": "rmsnorm"}, None)
    with pytest.raises(OptionError, match="expected a comma-separated string or a list"):
        parse({"idioms": 3}, None)


def test_lowering_takes_a_dict_or_pairs() -> None:
    expected = (("conv3d", "unfold"), ("rms_norm", "triton"))
    assert (
        parse({"lowering": {"rms_norm": "triton", "conv3d": "unfold"}}, None)[0].lowering
        == expected
    )
    assert parse({"lowering": "rms_norm=triton, conv3d=unfold"}, None)[0].lowering == expected
    with pytest.raises(OptionError, match="did you mean 'unfold'"):
        parse({"lowering": {"conv3d": "unfolded"}}, None)
    with pytest.raises(OptionError, match=r"idioms among"):
        parse({"lowering": {"conv4d": "unfold"}}, None)
    with pytest.raises(OptionError, match="pairs such as"):
        parse({"lowering": "triton"}, None)


@pytest.mark.parametrize("name", ["fuel", "fuel_total", "conv_memory_mib", "conv_frames_bucket"])
@pytest.mark.parametrize("wrong", [-1, "many", 1.5, True])
def test_counts_are_whole_numbers(name: str, wrong: object) -> None:
    with pytest.raises(
        OptionError, match=f"option '{name}': expected a whole number, 0 or more, found"
    ):
        parse({name: wrong}, None)
    assert (
        getattr(parse({name: 3}, None)[0], name) == getattr(parse({name: "3"}, None)[0], name) == 3
    )


def test_a_frames_bucket_has_no_other_off_than_0() -> None:
    assert parse(None, None)[0].conv_frames_bucket == 0
    with pytest.raises(OptionError, match="option 'conv_frames_bucket'"):
        parse({"conv_frames_bucket": None}, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, "drawn"),
        (False, "off"),
        ("1", "drawn"),
        ("off", "off"),
        ("drawn", "drawn"),
        ("live", "live"),
    ],
)
def test_verify_takes_a_truth_value_or_a_word(given: object, expected: str) -> None:
    assert parse({"verify": given}, None)[0].verify == expected


@pytest.mark.parametrize(("given", "calls"), [(True, 3), (False, 0), ("true", 3), ("0", 0), (5, 5)])
def test_check_finite_takes_a_truth_value_or_a_number_of_calls(given: object, calls: int) -> None:
    assert parse({"check_finite": given}, None)[0].check_finite == calls


def test_wrong_values_of_the_options_that_verify() -> None:
    with pytest.raises(OptionError, match=r"'verify': expected one of .*did you mean 'live'"):
        parse({"verify": "life"}, None)
    with pytest.raises(OptionError, match="'verify': expected one of"):
        parse({"verify": 1}, None)
    with pytest.raises(OptionError, match="'check_finite': expected a whole number, 0 or more"):
        parse({"check_finite": "always"}, None)


def test_conv_dtypes() -> None:
    assert parse({"conv_dtype": "fp16"}, None)[0].conv_dtype == "fp16"
    with pytest.raises(
        OptionError, match=r"option 'conv_dtype': expected one of '', 'bf16', 'fp16'"
    ):
        parse({"conv_dtype": "float16"}, None)


def test_mode_among_options_and_as_argument() -> None:
    assert parse({"mode": "max-autotune"}, None)[1]["max_autotune"] is True
    assert parse(None, "reduce-overhead")[1] == {"triton.cudagraphs": True}
    assert parse({"mode": "default"}, None)[1] == {}
    with pytest.raises(OptionError, match="did you mean 'max-autotune'"):
        parse({"mode": "max-autotun"}, None)
    with pytest.raises(OptionError, match="once"):
        parse({"mode": "max-autotune"}, "reduce-overhead")


def test_inductor_options_pass_through_and_are_validated() -> None:
    assert parse({"epilogue_fusion": False, "triton.cudagraphs": True}, None)[1] == {
        "epilogue_fusion": False,
        "triton.cudagraphs": True,
    }
    with pytest.raises(
        OptionError, match="Inductor option 'max_autotune': expected a value of type"
    ):
        parse({"max_autotune": "yes"}, None)


def test_the_users_dict_is_left_alone() -> None:
    given = {"select": "off", "max_autotune": True}
    parse(given, None)
    assert given == {"select": "off", "max_autotune": True}


def test_every_option_is_described() -> None:
    assert [row[0] for row in describe()] == list(OPTION_NAMES)
    assert all(len(row[3]) > 20 for row in describe())


def test_a_wrong_option_surfaces_at_the_first_call() -> None:
    compiled = torch.compile(lambda x: x + 1, backend="rocm_diffusion", options={"selekt": "auto"})
    with pytest.raises(Exception, match=r"unknown option 'selekt'.*did you mean 'select'"):
        compiled(torch.ones(2))


@pytest.mark.parametrize("wrong", ["select=always", ["select"], 3])
def test_options_that_are_no_dict_are_refused(wrong: Any) -> None:
    with pytest.raises(
        OptionError, match=r"options: expected a dict such as \{'select': 'always'\}, found"
    ):
        parse(wrong, None)


def test_options_as_a_string_surface_at_the_first_call() -> None:
    compiled = torch.compile(lambda x: x + 1, backend="rocm_diffusion", options="select=always")  # type: ignore[call-overload]
    with pytest.raises(Exception, match=r"options: expected a dict"):
        compiled(torch.ones(2))


@pytest.mark.parametrize("wrong", [True, -1, "soon", float("inf")])
def test_seconds_are_numbers(wrong: object) -> None:
    with pytest.raises(
        OptionError, match="option 'tune_seconds': expected a number of seconds, 0 or more"
    ):
        parse({"tune_seconds": wrong}, None)
    assert parse({"tune_seconds": "2.5"}, None)[0].tune_seconds == 2.5


@pytest.mark.parametrize("name", ["choices", "report"])
def test_a_folder_is_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OptionError, match=f"option '{name}': expected a file path, found the folder"
    ):
        parse({name: str(tmp_path)}, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OptionError, match="found the folder '~'"):
        parse({name: "~"}, None)
    assert getattr(parse({name: tmp_path / "c.json"}, None)[0], name) == str(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"select": "off", "lowering": "rms_norm=triton"}, "select='off' rewrites nothing"),
        ({"idioms": "-rms_norm", "lowering": "rms_norm=triton"}, "idioms leaves it out"),
        ({"conv_dtype": "bf16", "rewrite_numerics": "strict"}, "conv_dtype='bf16' rounds more"),
        ({"conv_search": "on", "tune_seconds": 0}, "tune_seconds=0 leaves no time"),
        ({"conv_search": "on", "rewrite_numerics": "strict"}, "may choose another order of sums"),
        ({"layout": "channels_last", "rewrite_numerics": "strict"}, "sum in another order"),
    ],
)
def test_options_that_contradict_each_other(
    given: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match=f"options contradict each other: .*{says}"):
        parse(given, None)
    (first, its_value), (second, other) = given.items()
    monkeypatch.setenv(f"ROCM_PASSES_{first.upper()}", str(its_value))
    assert getattr(parse({second: other}, None)[0], first), "an option overrides the environment"
    monkeypatch.setenv(f"ROCM_PASSES_{second.upper()}", str(other))
    with pytest.raises(OptionError, match=f"environment variables contradict each other: .*{says}"):
        parse(None, None)


def test_no_option_has_the_name_of_one_of_inductor_s() -> None:
    """Ours would shadow it: the user could not set Inductor's. `numerics` is Inductor's from torch
    2.14 on.
    """
    theirs = {*inductor_config.get_config_copy(), "numerics", "mode"}
    assert not theirs & set(OPTION_NAMES)


def test_the_old_name_of_rewrite_numerics_is_taken_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "numerics" in RENAMED
    monkeypatch.setattr(options_module, "inductor_config", inductor(numerics=None))
    with pytest.warns(
        DeprecationWarning, match="option 'numerics' is called 'rewrite_numerics' now"
    ):
        options, patch = parse({"numerics": "fast"}, None)
    assert options.rewrite_numerics == "fast" and patch == {}
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(
            OptionError, match=r"'rewrite_numerics': expected one of .*'strict_pointwise'"
        ),
    ):
        parse({"numerics": "strict_pointwise"}, None)
    with pytest.raises(OptionError, match="are both given"):
        parse({"numerics": "fast", "rewrite_numerics": "fast"}, None)


def test_the_old_environment_variable_is_taken_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROCM_PASSES_NUMERICS", "strict")
    with pytest.warns(
        DeprecationWarning, match="ROCM_PASSES_NUMERICS is called ROCM_PASSES_REWRITE_NUMERICS"
    ):
        assert parse(None, None)[0].rewrite_numerics == "strict"
    monkeypatch.setenv("ROCM_PASSES_REWRITE_NUMERICS", "fast")
    with pytest.raises(OptionError, match="are both set"):
        parse(None, None)


def inductor(numerics: str | None) -> Any:
    """Inductor's config: of torch before 2.14 where None, else with the option `numerics` at that
    value.
    """
    more = {} if numerics is None else {"numerics": numerics}
    known = {k: v for k, v in inductor_config.get_config_copy().items() if k != "numerics"} | more
    return SimpleNamespace(
        get_config_copy=lambda: known, get_type=lambda name: type(known[name]), **more
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("strict", "strict"),
        ("strict_pointwise", "strict"),
        ("strict_reduction", "strict"),
        ("default", "default"),
    ],
)
def test_where_inductor_has_the_old_name_it_is_inductor_s_and_its_strictness_is_followed(
    given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options_module, "inductor_config", inductor("default"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options, patch = parse({"numerics": given}, None)
        assert patch == {"numerics": given}
        assert options.rewrite_numerics == expected
        assert (
            parse({"numerics": given, "rewrite_numerics": "fast"}, None)[0].rewrite_numerics
            == "fast"
        )
    monkeypatch.setattr(options_module, "inductor_config", inductor(given))
    assert parse(None, None)[0].rewrite_numerics == expected
    with pytest.raises(
        OptionError, match="is Inductor's in this version of torch: write rewrite_numerics='fast'"
    ):
        parse({"numerics": "fast"}, None)
