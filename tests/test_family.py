import subprocess
import sys

import pytest

from qwen3.config import ModelConfig
from qwen3.family import ENDOFTEXT, IM_END, MODELS, SAMPLING, find, resolve_repo, resolve_tag, sampling_defaults

# Published shapes (Technical Report, tables 1 and 2, and the models' config.json files), worked out by hand:
# total, without embedding and head, KV bytes per token in bf16.
PUBLISHED = {
    "Qwen3-0.6B": (596_049_920, 440_467_456, 114_688),
    "Qwen3-1.7B": (1_720_574_976, 1_409_410_048, 114_688),
    "Qwen3-4B": (4_022_468_096, 3_633_511_936, 147_456),
    "Qwen3-8B": (8_190_735_360, 6_946_075_648, 147_456),
    "Qwen3-14B": (14_768_307_200, 13_212_482_560, 163_840),
    "Qwen3-32B": (32_762_123_264, 31_206_298_624, 262_144),
    "Qwen3-30B-A3B": (30_532_122_624, 29_909_792_768, 98_304),
    "Qwen3-235B-A22B": (235_093_634_560, 233_848_974_848, 192_512),
}
# The rounded "non-embedding" figures of the model cards, in billions, with half a unit of their last digit.
CARDS = {
    "Qwen3-0.6B": (0.44, 0.005),
    "Qwen3-1.7B": (1.4, 0.05),
    "Qwen3-4B": (3.6, 0.05),
    "Qwen3-8B": (6.95, 0.005),
    "Qwen3-14B": (13.2, 0.05),
    "Qwen3-32B": (31.2, 0.05),
    "Qwen3-30B-A3B": (29.9, 0.05),
    "Qwen3-235B-A22B": (234, 0.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    total, body, kv = PUBLISHED[name]
    member = MODELS[name]
    config = member.config
    assert member.params == total
    assert config.kv_bytes_per_token() == kv
    assert config.weight_bytes() == 2 * total
    heads = 1 if config.tie_word_embeddings else 2
    assert total - heads * config.vocab_size * config.hidden_size == body
    card, margin = CARDS[name]
    assert abs(body / 1e9 - card) <= margin


def test_active_parameters() -> None:
    assert MODELS["Qwen3-30B-A3B"].active_params == 3_353_032_704
    assert MODELS["Qwen3-235B-A22B"].active_params == 22_190_763_520
    assert all(m.active_params == m.params for m in MODELS.values() if not m.config.is_moe)


def test_the_family_is_complete() -> None:
    modes = [member.mode for member in MODELS.values()]
    assert len(MODELS) == 20
    assert {mode: modes.count(mode) for mode in set(modes)} == {"hybrid": 8, "base": 6, "instruct": 3, "thinking": 3}
    assert "Qwen3-32B-Base" not in MODELS
    assert "Qwen3-8B-Instruct-2507" not in MODELS
    assert {m.context for m in MODELS.values() if m.mode == "hybrid"} == {40960}
    assert {m.context for m in MODELS.values() if m.mode == "base"} == {32768}
    assert {m.context for m in MODELS.values() if "2507" in m.name} == {262144}
    assert {m.config.eos_token_id for m in MODELS.values() if m.mode == "base"} == {ENDOFTEXT}
    assert {m.config.eos_token_id for m in MODELS.values() if m.mode != "base"} == {IM_END}
    assert MODELS["Qwen3-30B-A3B-Thinking-2507"].config.rope_theta == 10_000_000
    assert MODELS["Qwen3-4B-Instruct-2507"].config.rope_theta == 5_000_000
    assert MODELS["Qwen3-235B-A22B"].template == "qwen3"
    assert MODELS["Qwen3-4B-Thinking-2507"].template == "thinking-2507"
    assert MODELS["Qwen3-4B-Instruct-2507"].template == "instruct-2507"


def test_quantized_repositories() -> None:
    assert MODELS["Qwen3-0.6B"].variants["gptq-int8"] == "Qwen/Qwen3-0.6B-GPTQ-Int8"
    assert MODELS["Qwen3-8B"].variants == {
        "fp8": "Qwen/Qwen3-8B-FP8",
        "awq": "Qwen/Qwen3-8B-AWQ",
        "gguf": "Qwen/Qwen3-8B-GGUF",
    }
    assert MODELS["Qwen3-235B-A22B"].variants["gptq-int4"] == "Qwen/Qwen3-235B-A22B-GPTQ-Int4"
    found = resolve_repo("qwen/qwen3-30b-a3b-thinking-2507-fp8")
    assert found is not None
    assert (found[0].name, found[1]) == ("Qwen3-30B-A3B-Thinking-2507", "fp8")
    plain = resolve_repo("Qwen/Qwen3-8B")
    assert plain is not None
    assert (plain[0].name, plain[1]) == ("Qwen3-8B", None)
    assert resolve_repo("Qwen/Qwen3-9B") is None
    repos = [m.repo for m in MODELS.values()] + [repo for m in MODELS.values() for repo in m.variants.values()]
    assert len(set(repos)) == len(repos)


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("qwen3:8b", "Qwen3-8B"),
        ("qwen3:0.6b", "Qwen3-0.6B"),
        ("Qwen3:8B", "Qwen3-8B"),
        ("qwen3:30b-a3b", "Qwen3-30B-A3B"),
        ("qwen3:30b", "Qwen3-30B-A3B"),
        ("qwen3:235b", "Qwen3-235B-A22B"),
        ("qwen3:30b-thinking-2507", "Qwen3-30B-A3B-Thinking-2507"),
        ("qwen3:4b-instruct-2507", "Qwen3-4B-Instruct-2507"),
        ("qwen3:8b-base", "Qwen3-8B-Base"),
    ],
)
def test_tags(tag: str, name: str) -> None:
    member = resolve_tag(tag)
    assert member is not None
    assert member.name == name


@pytest.mark.parametrize("tag", ["", "qwen3", "qwen3:", "qwen3:9b", "qwen2:8b", "qwen3:8b:x", "Qwen/Qwen3-8B", "8b"])
def test_what_is_no_tag(tag: str) -> None:
    assert resolve_tag(tag) is None


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("qwen3:8b", "Qwen3-8B"),
        ("qwen3:30b@main", "Qwen3-30B-A3B"),
        ("Qwen/Qwen3-8B@abc", "Qwen3-8B"),
        ("Qwen/Qwen3-8B-FP8", None),
        ("someone/Qwen3-8B", None),
        ("./Qwen3-8B", None),
    ],
)
def test_find(name: str, member: str | None) -> None:
    found = find(name)
    assert (found.name if found else None) == member


def test_every_tag_names_its_own_model() -> None:
    for member in MODELS.values():
        assert resolve_tag(member.tag) is member


def test_sampling_defaults() -> None:
    thinking, direct = sampling_defaults("hybrid"), sampling_defaults("hybrid", thinking=False)
    assert (thinking.temperature, thinking.top_p, thinking.top_k, thinking.min_p) == (0.6, 0.95, 20, 0.0)
    assert (direct.temperature, direct.top_p, direct.top_k, direct.min_p) == (0.7, 0.8, 20, 0.0)
    assert sampling_defaults("instruct") == SAMPLING["instruct"] == direct
    assert sampling_defaults("thinking", thinking=False) == SAMPLING["thinking-2507"] == thinking
    assert sampling_defaults("base").temperature == 0.0


def test_configs_survive_the_round_trip() -> None:
    for member in MODELS.values():
        assert ModelConfig.from_dict(member.config.to_dict()) == member.config


def test_floor_0_needs_no_torch() -> None:
    code = "import sys, qwen3.family, qwen3.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
