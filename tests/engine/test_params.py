"""SamplingParams: every field checked, every error naming field, value and range, defaults per mode."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qwen3 import family
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError

BAD = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("max_tokens", "10"),
    ("min_tokens", -1),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "hot"),
    ("temperature", 101),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_k", -2),
    ("top_k", 2.0),
    ("min_p", -0.01),
    ("min_p", 1.5),
    ("presence_penalty", 2.5),
    ("presence_penalty", None),
    ("frequency_penalty", -2.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", 11),
    ("logit_bias", [1, 2]),
    ("logit_bias", {"5": 1}),
    ("logit_bias", {-5: 1}),
    ("logit_bias", {5: 101}),
    ("logit_bias", {5: float("nan")}),
    ("seed", 2**64),
    ("seed", 1.0),
    ("stop", 5),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a", None]),
    ("stop", [str(i) for i in range(65)]),
    ("stop_token_ids", 7),
    ("stop_token_ids", "7"),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [1.0]),
    ("ignore_eos", 1),
    ("n", 0),
    ("n", 129),
    ("n", None),
    ("logprobs", 21),
    ("logprobs", -1),
    ("logprobs", True),
    ("prompt_logprobs", 21),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_names_the_field(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_message_carries_value_and_range() -> None:
    with pytest.raises(
        UsageError, match=r"^top_p=1\.5 must be a number, above 0 to 1, or None for the published default$"
    ):
        SamplingParams(top_p=1.5)
    with pytest.raises(
        UsageError, match=r"^seed=-9223372036854775809 must be an integer, -2\*\*63 to 2\*\*64-1, or None"
    ):
        SamplingParams(seed=-(2**63) - 1)
    with pytest.raises(UsageError, match="min_tokens=5 is above max_tokens=4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)


def test_everything_valid_is_kept() -> None:
    params = SamplingParams(
        max_tokens=7, min_tokens=7, temperature=1, top_p=1, top_k=-1, min_p=0, presence_penalty=-2, frequency_penalty=2,
        repetition_penalty=10, logit_bias={3: -100}, seed=-(2**63), stop="x", stop_token_ids=[4, 5], ignore_eos=True,
        n=128, logprobs=0, prompt_logprobs=20,
    )  # fmt: skip
    assert params.stop == ("x",)
    assert params.stop_token_ids == (4, 5)
    assert params.logit_bias == {3: -100.0}
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams().stop == ()


@pytest.mark.parametrize("mode", sorted(family.SAMPLING))
def test_resolved_fills_only_what_is_none(mode: str) -> None:
    published = family.SAMPLING[mode]
    params = SamplingParams(max_tokens=9, seed=3).resolved(mode)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (
        published.temperature,
        published.top_p,
        published.top_k,
        published.min_p,
    )
    assert (params.max_tokens, params.seed) == (9, 3)
    kept = SamplingParams(temperature=0, top_p=0.5, top_k=0, min_p=0.25).resolved(mode)
    assert (kept.temperature, kept.top_p, kept.top_k, kept.min_p) == (0, 0.5, 0, 0.25)


def test_published_values_of_the_two_modes() -> None:
    on, off = SamplingParams().resolved("thinking"), SamplingParams().resolved("non-thinking")
    assert (on.temperature, on.top_p, on.top_k, on.min_p) == (0.6, 0.95, 20, 0)
    assert (off.temperature, off.top_p, off.top_k, off.min_p) == (0.7, 0.8, 20, 0)
    with pytest.raises(UsageError, match="mode='fast' must be one of"):
        SamplingParams().resolved("fast")


def test_params_need_no_torch() -> None:
    code = "import sys, qwen3; qwen3.SamplingParams(temperature=0).resolved('thinking'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
