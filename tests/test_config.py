import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3.config import MAX_CONFIG_BYTES, ModelConfig, RopeScaling
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError
from qwen3.family import MODELS

# Qwen3-0.6B's config.json as published.
OFFICIAL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MOE = MODELS["Qwen3-30B-A3B"].config.to_dict()
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}


def test_the_published_file_is_read_and_written_back_as_it_is() -> None:
    config = ModelConfig.from_dict(OFFICIAL)
    assert config == MODELS["Qwen3-0.6B"].config
    assert config.to_dict() == OFFICIAL
    assert json.dumps(config.to_dict(), indent=2) == json.dumps(OFFICIAL, indent=2)


def test_the_spelling_of_transformers_5() -> None:
    new = without(OFFICIAL, "rope_theta", "rope_scaling", "torch_dtype") | {
        "dtype": "bfloat16",
        "layer_types": ["full_attention"] * 28,
        "pad_token_id": None,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    }
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(OFFICIAL)
    moe = without(MOE, "num_experts", "rope_theta", "rope_scaling")
    moe |= {"num_local_experts": 128, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert ModelConfig.from_dict(moe) == MODELS["Qwen3-30B-A3B"].config


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "yarn", **without(YARN, "rope_type")}},
        {"rope_scaling": YARN | {"type": "yarn"}},
        {"rope_scaling": YARN | {"beta_fast": 32, "beta_slow": 1.0, "attention_factor": None}},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": YARN | {"rope_theta": 1e6}},
        {"rope_scaling": YARN, "rope_parameters": YARN | {"rope_theta": 1e6}},
    ],
)
def test_every_spelling_of_yarn(rope: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(OFFICIAL | {"max_position_embeddings": 131072} | rope)
    assert config.rope_scaling == RopeScaling(4.0, 32768)
    assert config.rope_theta == 1e6
    assert config == MODELS["Qwen3-0.6B"].config.with_yarn(4)
    assert config.rope_scaling.mscale == pytest.approx(1.138629, abs=1e-6)


def test_yarn_stretches_the_context() -> None:
    scaled = dataclasses.replace(MODELS["Qwen3-8B"].config, rope_scaling=RopeScaling(4.0, 32768))
    assert scaled.context_length == 131072
    assert MODELS["Qwen3-8B"].config.context_length == 40960


CHANGES = [
    ({"frobnicate": 1}, "unknown key frobnicate"),
    ({"two\nlines": 1}, "unknown key 'two\\nlines'"),
    ({"model_type": "llama"}, "model_type 'llama' is not Qwen3 (expected qwen3 or qwen3_moe)"),
    ({"model_type": "qwen2"}, "model_type 'qwen2' is not Qwen3"),
    ({"num_attention_heads": 12}, "num_attention_heads 12 is not a multiple of num_key_value_heads 8"),
    ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window is true (sliding_window 4096)"),
    ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
    ({"attention_bias": True}, "attention_bias is true"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, "layer_types[27] is 'sliding_attention'"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 entries, but num_hidden_layers is 28"),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures ['Qwen3ForSequenceClassification']"),
    ({"architectures": ["Qwen3MoeForCausalLM"]}, "model_type 'qwen3' do not go together"),
    ({"num_experts": 8}, "num_experts belongs to qwen3_moe"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map asks to run code"),
    ({"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk_attention_config is not supported"),
    ({"dtype": "float32"}, "torch_dtype 'bfloat16' and dtype 'float32' contradict"),
    ({"torch_dtype": "int8"}, "dtype 'int8' is not supported"),
    ({"hidden_size": "1024"}, 'hidden_size must be an integer, not "1024"'),
    ({"hidden_size": 1024.0}, "hidden_size must be an integer, not 1024.0"),
    ({"hidden_size": True}, "hidden_size must be an integer, not true"),
    ({"hidden_size": None}, "hidden_size must be an integer, not null"),
    ({"hidden_size": 0}, "hidden_size is 0; it must be from 1"),
    ({"vocab_size": 2**60}, "vocab_size is 1152921504606846976"),
    ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100000; at most 1000"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
    ({"head_dim": 127}, "head_dim is 127"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0.0"),
    ({"rope_theta": -1}, "rope_theta is -1.0"),
    ({"rope_theta": 10**400}, "rope_theta is too large"),
    ({"eos_token_id": [151645, 200000]}, "eos_token_id 200000 is outside the vocabulary"),
    ({"eos_token_id": [151645, "x"]}, "eos_token_id[1] must be an integer"),
    ({"bos_token_id": -1}, "bos_token_id -1"),
    ({"quantization_config": "fp8"}, 'quantization_config must be an object, not "fp8"'),
    ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta 1000000.0 and rope_parameters.rope_theta 10000.0"),
    ({"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 2.0}}, "rope_scaling and rope_parameters contradict"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type is 'linear'"),
    ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type is None"),
    ({"rope_scaling": YARN | {"type": "linear"}}, "rope_scaling.rope_type 'yarn' and rope_scaling.type 'linear'"),
    ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "rope_scaling.factor is given"),
    ({"rope_scaling": without(YARN, "factor")}, "rope_scaling.factor is missing"),
    (
        {"rope_scaling": without(YARN, "original_max_position_embeddings")},
        "original_max_position_embeddings is missing",
    ),
    ({"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling.factor is 0.5"),
    ({"rope_scaling": YARN | {"beta_slow": 64}}, "rope_scaling.beta_fast 32.0 must be above beta_slow 64.0"),
    ({"rope_scaling": YARN | {"attention_factor": 0}}, "rope_scaling.attention_factor is 0.0"),
    ({"rope_scaling": YARN | {"mscale": 1.0}}, "unknown key rope_scaling.mscale"),
    ({"rope_scaling": YARN | {"use_cache": True}}, "unknown key rope_scaling.use_cache"),
    ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor is not 1"),
    ({"rope_scaling": []}, "rope_scaling must be an object, not a list"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message[:40] for _, message in CHANGES])
def test_a_wrong_key_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(OFFICIAL | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


MOE_CHANGES = [
    ({"num_experts_per_tok": 129}, "num_experts_per_tok 129 exceeds num_experts 128"),
    ({"num_experts": 0}, "num_experts is 0 but model_type is 'qwen3_moe'"),
    ({"num_local_experts": 64}, "num_experts 128 and num_local_experts 64 contradict"),
    ({"mlp_only_layers": [48]}, "mlp_only_layers names layer 48, but num_hidden_layers is 48"),
    ({"mlp_only_layers": [1, 1]}, "mlp_only_layers names a layer twice"),
    ({"mlp_only_layers": 1}, "mlp_only_layers must be a list of integers"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ({"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ({"router_aux_loss_coef": -1}, "router_aux_loss_coef is -1.0"),
]


@pytest.mark.parametrize(("change", "message"), MOE_CHANGES, ids=[message[:40] for _, message in MOE_CHANGES])
def test_a_wrong_moe_key_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(MOE | change)
    assert message in str(caught.value)


REQUIRED = """vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
intermediate_size max_position_embeddings rope_theta model_type"""


@pytest.mark.parametrize("name", REQUIRED.split())
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is missing"):
        ModelConfig.from_dict(without(OFFICIAL, name))


@pytest.mark.parametrize("name", ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"])
def test_a_missing_moe_key_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is missing"):
        ModelConfig.from_dict(without(MOE, name))


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="moe_intermediate_size is 8 but num_experts is 0"):
        dataclasses.replace(MODELS["Qwen3-8B"].config, moe_intermediate_size=8)


def test_harmless_keys_are_dropped() -> None:
    extra = {
        "use_cache": False,
        "_name_or_path": "x",
        "id2label": {"0": "a"},
        "temperature": 1.0,
        "sliding_window": 4096,
    }
    assert ModelConfig.from_dict(OFFICIAL | extra) == ModelConfig.from_dict(OFFICIAL)


def test_quantization_config_is_kept() -> None:
    quantized = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = ModelConfig.from_dict(OFFICIAL | {"quantization_config": quantized})
    assert config.quantization_config == quantized
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(ModelConfig.from_dict(OFFICIAL))


def test_sparse_layers() -> None:
    config = dataclasses.replace(MODELS["Qwen3-30B-A3B"].config, decoder_sparse_step=2, mlp_only_layers=(1,))
    assert [config.is_sparse_layer(i) for i in range(6)] == [False, False, False, True, False, True]
    dense = 3 * 2048 * 6144
    sparse = 128 * 3 * 2048 * 768 + 128 * 2048
    every = MODELS["Qwen3-30B-A3B"].config
    assert every.num_parameters() - config.num_parameters() == 25 * (sparse - dense)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    kv = draw(st.integers(1, 8))
    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(1000, 200_000)),
        "hidden_size": draw(st.integers(1, 9000)),
        "num_hidden_layers": draw(st.integers(1, 100)),
        "num_attention_heads": kv * draw(st.integers(1, 16)),
        "num_key_value_heads": kv,
        "intermediate_size": draw(st.integers(1, 30_000)),
        "head_dim": 2 * draw(st.integers(1, 128)),
        "rope_theta": draw(st.floats(2, 1e8)),
        "rms_norm_eps": draw(st.floats(1e-12, 1e-2)),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": draw(st.none() | st.integers(0, 999)),
        "eos_token_id": draw(st.none() | st.integers(0, 999) | st.tuples(st.integers(0, 999), st.integers(0, 999))),
        "pad_token_id": draw(st.none() | st.integers(0, 999)),
        "dtype": draw(st.sampled_from(["bfloat16", "float16", "float32"])),
    }
    if draw(st.booleans()):
        values["rope_scaling"] = RopeScaling(
            draw(st.floats(1, 64)),
            draw(st.integers(1, 10**6)),
            attention_factor=draw(st.none() | st.floats(0.1, 4)),
            beta_fast=draw(st.floats(8, 64)),
            beta_slow=draw(st.floats(0.1, 4)),
            truncate=draw(st.booleans()),
        )
    if draw(st.booleans()):
        values["num_experts"] = draw(st.integers(1, 512))
        values["num_experts_per_tok"] = draw(st.integers(1, values["num_experts"]))
        values["moe_intermediate_size"] = draw(st.integers(1, 4096))
        values["norm_topk_prob"] = draw(st.booleans())
        values["decoder_sparse_step"] = draw(st.integers(1, 4))
        values["mlp_only_layers"] = tuple(draw(st.sets(st.integers(0, values["num_hidden_layers"] - 1), max_size=4)))
    return ModelConfig(**values)


@given(configs())
def test_any_config_survives_json(config: ModelConfig) -> None:
    text = json.dumps(config.to_dict())
    assert ModelConfig.from_dict(json.loads(text)) == config


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*OFFICIAL, *MOE, "rope_parameters", "dtype", "layer_types"]), JSON_VALUES, st.booleans())
def test_any_value_is_read_or_refused_in_one_line(name: str, value: Any, moe: bool) -> None:
    message = ""
    try:
        config = ModelConfig.from_dict((MOE if moe else OFFICIAL) | {name: value})
    except ConfigError as error:
        message = str(error)
    else:
        assert ModelConfig.from_dict(config.to_dict()) == config
        assert math.isfinite(config.num_parameters())
    assert "\n" not in message


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ModelNotFoundError, match=r"config\.json: no such file"):
        ModelConfig.from_pretrained(tmp_path)
    file.write_text(json.dumps(OFFICIAL))
    assert ModelConfig.from_pretrained(tmp_path) == MODELS["Qwen3-0.6B"].config
    with pytest.raises(ModelNotFoundError, match="no such file"):
        ModelConfig.from_pretrained(file)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", CorruptFileError, "not valid JSON"),
        (b'{"model_type": "qwen3"', CorruptFileError, "not valid JSON"),
        (b"\xff\xfe", CorruptFileError, "not UTF-8"),
        (b"[" * 100_000, CorruptFileError, "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", CorruptFileError, "not valid JSON"),
        (b"[]", ConfigError, "must be a JSON object, not a list"),
        (b'{"model_type": "qwen3", "model_type": "qwen3"}', ConfigError, "key model_type stands there twice"),
        (b'{"rms_norm_eps": NaN}', ConfigError, "NaN is not a JSON number"),
        (b" " * (MAX_CONFIG_BYTES + 1), CorruptFileError, "too large for a config"),
    ],
    ids=["empty", "cut", "binary", "deep", "digits", "list", "twice", "nan", "large"],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error) as caught:
        ModelConfig.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
