"""Options: three sources, one validation, and errors that name what is wrong."""

from __future__ import annotations

import pytest
import torch

from rocm_passes.errors import OptionError
from rocm_passes.options import OPTION_NAMES, Options, describe, parse
from rocm_passes.registry import idiom_names


def test_defaults() -> None:
    options, patch = parse(None, None)
    assert options == Options()
    assert options.select == "auto"
    assert patch == {}
    assert all(options.looks_for(name) for name in idiom_names())


def test_option_beats_environment_and_environment_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert parse({"lowering": {"rms_norm": "triton", "conv3d": "unfold"}}, None)[0].lowering == expected
    assert parse({"lowering": "rms_norm=triton, conv3d=unfold"}, None)[0].lowering == expected
    with pytest.raises(OptionError, match="did you mean 'unfold'"):
        parse({"lowering": {"conv3d": "unfolded"}}, None)
    with pytest.raises(OptionError, match=r"idioms among"):
        parse({"lowering": {"conv4d": "unfold"}}, None)
    with pytest.raises(OptionError, match="pairs such as"):
        parse({"lowering": "triton"}, None)


@pytest.mark.parametrize("name", ["fuel", "conv_memory_mib", "conv_frames_bucket"])
@pytest.mark.parametrize("wrong", [-1, "many", 1.5, True])
def test_counts_are_whole_numbers(name: str, wrong: object) -> None:
    with pytest.raises(OptionError, match=f"option '{name}': expected a whole number, 0 or more, found"):
        parse({name: wrong}, None)
    assert getattr(parse({name: 3}, None)[0], name) == getattr(parse({name: "3"}, None)[0], name) == 3


def test_a_frames_bucket_has_no_other_off_than_0() -> None:
    assert parse(None, None)[0].conv_frames_bucket == 0
    with pytest.raises(OptionError, match="option 'conv_frames_bucket'"):
        parse({"conv_frames_bucket": None}, None)


def test_conv_dtypes() -> None:
    assert parse({"conv_dtype": "fp16"}, None)[0].conv_dtype == "fp16"
    with pytest.raises(OptionError, match=r"option 'conv_dtype': expected one of '', 'bf16', 'fp16'"):
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
    with pytest.raises(OptionError, match="Inductor option 'max_autotune': expected a value of type"):
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
