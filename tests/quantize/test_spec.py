"""What may be asked for, and which module a rule is for."""

from __future__ import annotations

from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.quantize.spec import Rule, Spec, plan
from tests.fixtures import tiny_config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "gguf"}, "method must be one of rtn, gptq, awq, w8a8, fp8"),
        ({"bits": 7}, "bits must be one of"),
        ({"bits": True}, "bits must be one of"),
        ({"group": 100}, "group must be one of 32, 64, 128, -1"),
        ({"fp8_scale": "row"}, "fp8_scale"),
        ({"damp": 0.0}, "damp"),
        ({"alpha": 1.5}, "alpha"),
        ({"samples": 0}, "samples"),
        ({"calibration": "none"}, "gptq needs calibration data"),
        ({"rules": (Rule("*", bits=9),)}, "bits must be one of"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Spec(**fields)


def test_what_is_not_said_follows_from_the_method() -> None:
    assert (Spec("rtn").calibration, Spec("fp8").calibration, Spec("gptq").calibration) == ("none", "none", "qwen3")
    assert Spec("rtn", rules=(Rule("*.o_proj", method="gptq"),)).calibration == "qwen3"
    assert (Spec("gptq").symmetric, Spec("awq").symmetric, Spec("awq", symmetric=True).symmetric) == (True, False, True)


def test_rules_must_say_something_and_be_readable() -> None:
    for rule in ({}, {"skip": True, "bits": 4}):
        with pytest.raises(UsageError, match="must say skip, or what to change"):
            Rule("*", **rule)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no regular expression"):
        Rule("re:(", skip=True)


def test_the_first_rule_that_matches_counts() -> None:
    rules = (
        Rule("model.layers.0.*", skip=True),
        Rule(r"re:.*\.(q|k)_proj", bits=8, group=32),
        Rule("*_proj", bits=3),
    )
    wanted = plan(Spec("rtn", group=64, rules=rules), tiny_config())
    assert all(name.startswith("model.layers.1.") for name in wanted)
    assert len(wanted) == 7
    assert {(spec.bits, spec.group) for name, spec in wanted.items() if name[-6] in "qk"} == {(8, 32)}
    assert {spec.bits for name, spec in wanted.items() if name[-6] not in "qk"} == {3}


def test_norms_routers_embedding_and_head_are_kept_unless_the_last_two_are_named() -> None:
    config = tiny_config(moe=True)
    wanted = plan(Spec("rtn", group=32, rules=(Rule("*", bits=8),)), config)
    assert all(name.endswith("_proj") for name in wanted)
    assert len(wanted) == 2 * (4 + 8 * 3)
    named = plan(Spec("rtn", group=32, rules=(Rule("lm_head", bits=8), Rule("model.embed_tokens", bits=8))), config)
    assert {*named} - {*wanted} == {"lm_head", "model.embed_tokens"}


@pytest.mark.parametrize("pattern", ["*.mlp.gate", "model.norm", "lm_head", "model.layers.7.*"])
def test_a_rule_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="matches no module"):
        plan(Spec("rtn", group=32, rules=(Rule(pattern, bits=8),)), tiny_config())  # its head is tied


def test_groups_that_do_not_fit_are_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match=r"_proj has 64 columns, no multiple of group 128: take 32 or 64 or -1"):
        plan(Spec("rtn", group=128), tiny_config())
