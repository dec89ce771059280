"""`ModelConfig`: the shape of a Qwen3 network, read strictly from a Hugging Face `config.json`.

Both spellings are read: transformers 4.51 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5.x (`rope_parameters`,
`dtype`). A key that would change the network and that we do not know is an error, never a shrug.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MAX_CONFIG_BYTES = 16 << 20  # the largest official file (235B-A22B-FP8) has 12,909 bytes
_MAX_INT = 2**31 - 1
_MAX_LAYERS = 1000
_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}

# Keys that transformers writes and that change nothing in what we compute. They are dropped, and never written again.
_IGNORED_NAMES = """
_attn_implementation_autoset _commit_hash _name_or_path add_cross_attention bad_words_ids begin_suppress_tokens
chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id id2label is_decoder is_encoder_decoder keys_to_ignore_at_inference label2id length_penalty
max_length max_window_layers min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
output_attentions output_hidden_states output_router_logits output_scores prefix problem_type pruned_heads
remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript
transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
_IGNORED = frozenset(_IGNORED_NAMES.split())
_MOE_NAMES = """
num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob router_aux_loss_coef
decoder_sparse_step mlp_only_layers
"""
_YARN_ONLY = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate")


@dataclass(frozen=True)
class RopeScaling:
    """Static YaRN (Peng et al. 2023, arXiv 2309.00071), with the names transformers gives its parameters.

    `attention_factor` None means 0.1·ln(factor) + 1, multiplied into cos and sin. `beta_fast` and `beta_slow` are
    rotations over the original context; `truncate` rounds the ramp's ends outward to whole dimensions.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if not self.factor >= 1.0 or math.isinf(self.factor):
            raise ConfigError(f"rope_scaling.factor is {self.factor}; it must be a number of at least 1")
        if self.original_max_position_embeddings < 1:
            raise ConfigError(
                f"rope_scaling.original_max_position_embeddings is {self.original_max_position_embeddings}; "
                "it must be positive (Qwen3: 32768)"
            )
        if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
            raise ConfigError(f"rope_scaling.attention_factor is {self.attention_factor}; it must be positive")
        if not 0 < self.beta_slow < self.beta_fast < math.inf:
            raise ConfigError(
                f"rope_scaling.beta_fast {self.beta_fast} must be above beta_slow {self.beta_slow}, both positive"
            )

    @property
    def mscale(self) -> float:
        """What cos and sin are multiplied by."""
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def to_dict(self) -> dict[str, Any]:
        """The `rope_scaling` object of transformers 4.51; parameters at their default are left out."""
        out: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }
        if self.attention_factor is not None:
            out["attention_factor"] = self.attention_factor
        if self.beta_fast != 32.0:
            out["beta_fast"] = self.beta_fast
        if self.beta_slow != 1.0:
            out["beta_slow"] = self.beta_slow
        if not self.truncate:
            out["truncate"] = False
        return out


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything the network needs to know, under Hugging Face's names. Raises ConfigError on contradictions.

    `num_experts` 0 means a dense model. `intermediate_size` is the dense MLP's width; in an MoE whose layers are all
    sparse nothing uses it. `eos_token_id` is an id or a tuple of ids. `quantization_config` (in MLX's files
    `quantization`) is kept as read.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int = 128
    max_position_embeddings: int = 40960
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 151643
    eos_token_id: int | tuple[int, ...] | None = 151645
    pad_token_id: int | None = None
    dtype: str = "bfloat16"
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.001
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    quantization_config: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for name in (*sizes, "intermediate_size", "head_dim", "max_position_embeddings", "decoder_sparse_step"):
            if not 1 <= getattr(self, name) <= _MAX_INT:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 1 to {_MAX_INT}")
        if self.num_hidden_layers > _MAX_LAYERS:
            raise ConfigError(f"num_hidden_layers is {self.num_hidden_layers}; at most {_MAX_LAYERS} are supported")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; RoPE rotates pairs, so it must be even")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a positive number")
        if self.rope_theta <= 1:
            raise ConfigError(f"rope_theta is {self.rope_theta}; it must be above 1 (Qwen3: 1000000)")
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype {self.dtype!r} is not supported (expected {', '.join(DTYPE_BYTES)})")
        for name, value in (("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)):
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(f"{name} {value} is outside the vocabulary: vocab_size is {self.vocab_size}")
        for value in self.eos_token_ids:
            if not 0 <= value < self.vocab_size:
                raise ConfigError(f"eos_token_id {value} is outside the vocabulary: vocab_size is {self.vocab_size}")
        self._check_moe()

    def _check_moe(self) -> None:
        if self.num_experts == 0:
            for name in ("num_experts_per_tok", "moe_intermediate_size", "mlp_only_layers"):
                if getattr(self, name):
                    raise ConfigError(f"{name} is {getattr(self, name)} but num_experts is 0 (a dense model)")
            return
        for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
            if not 1 <= getattr(self, name) <= _MAX_INT:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 1 to {_MAX_INT}")
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(f"num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}")
        if not 0 <= self.router_aux_loss_coef < math.inf:
            raise ConfigError(f"router_aux_loss_coef is {self.router_aux_loss_coef}; it must not be negative")
        for layer in self.mlp_only_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ConfigError(
                    f"mlp_only_layers names layer {layer}, but num_hidden_layers is {self.num_hidden_layers}"
                )
        if len(set(self.mlp_only_layers)) != len(self.mlp_only_layers):
            raise ConfigError(f"mlp_only_layers names a layer twice: {list(self.mlp_only_layers)}")

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def model_type(self) -> str:
        return "qwen3_moe" if self.is_moe else "qwen3"

    @property
    def architecture(self) -> str:
        return _ARCHITECTURES[self.model_type]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple, empty when there is none."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens: `max_position_embeddings`, or what YaRN stretches it to if that is more."""
        if self.rope_scaling is None:
            return self.max_position_embeddings
        stretched = int(self.rope_scaling.factor * self.rope_scaling.original_max_position_embeddings)
        return max(self.max_position_embeddings, stretched)

    def is_sparse_layer(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) has experts; the rule of transformers' Qwen3MoeDecoderLayer."""
        return self.is_moe and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def num_parameters(self, active: bool = False, experts: int | None = None) -> int:
        """Exact number of weights, a tied head counted once; `active`: those one token passes through, with `experts`
        experts per token (None: the model's own number).

        Embedding and head are counted in both. A tied checkpoint may store its head a second time on disk.
        """
        h, q, k, d = self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim
        attention = h * q * d + 2 * h * k * d + q * d * h + 2 * d
        dense = 3 * h * self.intermediate_size
        experts = (experts or self.num_experts_per_tok) if active else self.num_experts
        sparse = experts * 3 * h * self.moe_intermediate_size + self.num_experts * h
        sparse_layers = sum(self.is_sparse_layer(i) for i in range(self.num_hidden_layers))
        total = self.num_hidden_layers * (attention + 2 * h) + h
        total += sparse_layers * sparse + (self.num_hidden_layers - sparse_layers) * dense
        return total + self.vocab_size * h * (1 if self.tie_word_embeddings else 2)

    def experts_within(self, limit: int) -> int:
        """The most experts per token, at most the model's own number, with which no more than `limit` parameters are
        active; 0 if one is too many, or there are none."""
        fitting = (k for k in range(self.num_experts_per_tok, 0, -1) if self.num_parameters(True, k) <= limit)
        return next(fitting, 0) if self.is_moe else 0

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of keys and values one token occupies over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * dtype_bytes

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Bytes of the weights in memory at `dtype` ("bfloat16", "float16", "float32"; None: the config's own)."""
        name = self.dtype if dtype is None else dtype
        if name not in DTYPE_BYTES:
            raise ConfigError(f"dtype {name!r} is not supported (expected {', '.join(DTYPE_BYTES)})")
        return self.num_parameters() * DTYPE_BYTES[name]

    def with_yarn(self, factor: float, original_max_position_embeddings: int = 32768) -> ModelConfig:
        """A copy stretched by static YaRN to `factor` × the original length in tokens (Qwen: 4 × 32,768)."""
        scaling = RopeScaling(float(factor), original_max_position_embeddings)
        length = int(factor * original_max_position_embeddings)
        return replace(self, rope_scaling=scaling, max_position_embeddings=length)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ModelConfig:
        """Reads `folder`/config.json.

        Raises ModelNotFoundError without such a file, CorruptFileError when it is not JSON, ConfigError when it does
        not describe a Qwen3 network.
        """
        path = Path(folder) / "config.json"
        try:
            size = path.stat().st_size
            if size > MAX_CONFIG_BYTES:
                raise CorruptFileError(f"{path}: {size} bytes is too large for a config (limit {MAX_CONFIG_BYTES})")
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise ModelNotFoundError(f"{path}: no such file; a model folder needs its config.json") from None
        except UnicodeDecodeError:
            raise CorruptFileError(f"{path}: not UTF-8 text") from None
        except OSError as error:
            raise CorruptFileError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{path}: not valid JSON ({error})") from None
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Reads a parsed `config.json`; ConfigError names the key that is unknown, missing, wrong or at odds."""
        if not isinstance(data, dict):
            raise ConfigError(f"a config must be a JSON object, not {_shown(data)}")
        keys = _Keys(data)
        model_type = keys.take("model_type", _string)
        if model_type not in _ARCHITECTURES:
            raise ConfigError(f"model_type {model_type!r} is not Qwen3 (expected qwen3 or qwen3_moe)")
        _check_fixed(keys, model_type)
        theta, scaling = _read_rope(keys)
        values: dict[str, Any] = {
            "vocab_size": keys.take("vocab_size", _integer),
            "hidden_size": keys.take("hidden_size", _integer),
            "num_hidden_layers": keys.take("num_hidden_layers", _integer),
            "num_attention_heads": keys.take("num_attention_heads", _integer),
            "num_key_value_heads": keys.take("num_key_value_heads", _integer),
            "intermediate_size": keys.take("intermediate_size", _integer),
            "head_dim": keys.take("head_dim", _integer),
            "max_position_embeddings": keys.take("max_position_embeddings", _integer),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "rms_norm_eps": keys.take("rms_norm_eps", _number, 1e-6),
            "tie_word_embeddings": keys.take("tie_word_embeddings", _boolean, False),
            "initializer_range": keys.take("initializer_range", _number, 0.02),
            "bos_token_id": keys.take("bos_token_id", _integer, None),
            "eos_token_id": keys.take("eos_token_id", _ids, None),
            "pad_token_id": keys.take("pad_token_id", _integer, None),
            "dtype": keys.take_either("torch_dtype", "dtype", _string, "bfloat16"),
            "quantization_config": keys.take_either("quantization", "quantization_config", _object, None),
        }
        if model_type == "qwen3_moe":
            values["num_experts"] = keys.take_either("num_experts", "num_local_experts", _integer)
            if values["num_experts"] < 1:
                raise ConfigError(f"num_experts is {values['num_experts']} but model_type is 'qwen3_moe'")
            values["num_experts_per_tok"] = keys.take("num_experts_per_tok", _integer)
            values["moe_intermediate_size"] = keys.take("moe_intermediate_size", _integer)
            values["norm_topk_prob"] = keys.take("norm_topk_prob", _boolean)
            values["router_aux_loss_coef"] = keys.take("router_aux_loss_coef", _number, 0.001)
            values["decoder_sparse_step"] = keys.take("decoder_sparse_step", _integer, 1)
            values["mlp_only_layers"] = keys.take("mlp_only_layers", _integers, ())
        else:
            for name in _MOE_NAMES.split():
                if keys.take(name, _anything, None) is not None:
                    raise ConfigError(f"{name} belongs to qwen3_moe, but model_type is 'qwen3'")
        layer_types = keys.take("layer_types", _strings, None)
        keys.finish()
        config = cls(**values)
        if layer_types is not None:
            _check_layer_types(layer_types, config.num_hidden_layers)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of transformers 4.51, keys sorted; 4.51 and 5.x load it and `from_dict` gives this back."""
        out: dict[str, Any] = {
            "architectures": [self.architecture],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "max_window_layers": self.num_hidden_layers,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": None if self.rope_scaling is None else self.rope_scaling.to_dict(),
            "rope_theta": int(self.rope_theta) if self.rope_theta == int(self.rope_theta) else self.rope_theta,
            "sliding_window": None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype,
            "transformers_version": "4.51.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }
        for name in ("bos_token_id", "pad_token_id", "quantization_config"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        if self.eos_token_id is not None:
            out["eos_token_id"] = list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id
        if self.is_moe:
            out["decoder_sparse_step"] = self.decoder_sparse_step
            out["mlp_only_layers"] = list(self.mlp_only_layers)
            out["moe_intermediate_size"] = self.moe_intermediate_size
            out["norm_topk_prob"] = self.norm_topk_prob
            out["num_experts"] = self.num_experts
            out["num_experts_per_tok"] = self.num_experts_per_tok
            out["output_router_logits"] = False
            out["router_aux_loss_coef"] = self.router_aux_loss_coef
        return dict(sorted(out.items()))


_MISSING = object()


class _Keys:
    """The keys of one JSON object, taken one by one; what is left at the end nobody asked for."""

    def __init__(self, data: dict[str, Any], prefix: str = "") -> None:
        self.left = dict(data)
        self.prefix = prefix

    def take(self, name: str, read: Callable[[str, Any], Any], default: Any = _MISSING) -> Any:
        value = self.left.pop(name, _MISSING)
        if value is _MISSING or (value is None and default is not _MISSING):
            if default is _MISSING:
                raise ConfigError(f"{self.prefix}{name} is missing")
            return default
        return read(self.prefix + name, value)

    def take_either(self, old: str, new: str, read: Callable[[str, Any], Any], default: Any = _MISSING) -> Any:
        """One value under two spellings; both may stand there if they agree."""
        first, second = self.take(old, read, None), self.take(new, read, None)
        if first is not None and second is not None and first != second:
            raise ConfigError(f"{old} {first!r} and {new} {second!r} contradict each other")
        value = second if first is None else first
        if value is None:
            if default is _MISSING:
                raise ConfigError(f"{old} is missing")
            return default
        return value

    def finish(self) -> None:
        unknown = sorted(name for name in self.left if name not in _IGNORED or self.prefix)
        if unknown:
            names = ", ".join(self.prefix + _key(name) for name in unknown[:10])
            raise ConfigError(f"unknown key {names}: it may change the network, so it is not ignored; remove it if not")


def _check_fixed(keys: _Keys, model_type: str) -> None:
    """Keys that Qwen3 has at one value only; any other value asks for a network we do not have."""
    if keys.take("hidden_act", _string, "silu") != "silu":
        raise ConfigError("hidden_act must be 'silu': Qwen3 has no other activation")
    if keys.take("attention_bias", _boolean, False):
        raise ConfigError("attention_bias is true, but Qwen3's projections have no bias")
    if keys.take("attention_dropout", _number, 0.0) != 0.0:
        raise ConfigError("attention_dropout is not 0, and dropout is not supported")
    sliding = keys.take("sliding_window", _integer, None)
    if keys.take("use_sliding_window", _boolean, False):
        raise ConfigError(f"use_sliding_window is true (sliding_window {sliding}), but Qwen3 attends to everything")
    architectures = keys.take("architectures", _strings, None)
    if architectures is not None and architectures != (_ARCHITECTURES[model_type],):
        raise ConfigError(
            f"architectures {list(architectures)} and model_type {model_type!r} do not go together "
            f"(expected ['{_ARCHITECTURES[model_type]}'])"
        )
    if keys.take("auto_map", _anything, None):
        raise ConfigError("auto_map asks to run code that comes with the model, which is never done")
    for name in ("dual_chunk_attention_config", "sparse_attention_config"):
        if keys.take(name, _anything, None):
            raise ConfigError(f"{name} is not supported; use the model's ordinary config.json (up to 262144 tokens)")


def _check_layer_types(layer_types: tuple[str, ...], layers: int) -> None:
    if len(layer_types) != layers:
        raise ConfigError(f"layer_types has {len(layer_types)} entries, but num_hidden_layers is {layers}")
    for layer, kind in enumerate(layer_types):
        if kind != "full_attention":
            raise ConfigError(f"layer_types[{layer}] is {kind!r}; Qwen3 has only 'full_attention'")


def _read_rope(keys: _Keys) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from either spelling; both may be there if they agree."""
    theta = keys.take("rope_theta", _number, None)
    old, new = keys.take("rope_scaling", _object, None), keys.take("rope_parameters", _object, None)
    readings = []
    for name, rope in (("rope_scaling", old), ("rope_parameters", new)):
        if rope is None:
            continue
        inner, scaling = _read_rope_object(name, rope)
        if inner is not None and theta is not None and inner != theta:
            raise ConfigError(f"rope_theta {theta} and {name}.rope_theta {inner} contradict each other")
        theta = inner if theta is None else theta
        readings.append(scaling)
    if theta is None:
        raise ConfigError("rope_theta is missing (it may also stand inside rope_parameters)")
    if len(readings) == 2 and readings[0] != readings[1]:
        raise ConfigError("rope_scaling and rope_parameters contradict each other; keep one")
    return theta, readings[0] if readings else None


def _read_rope_object(name: str, rope: dict[str, Any]) -> tuple[float | None, RopeScaling | None]:
    keys = _Keys(rope, prefix=f"{name}.")
    kind, legacy = keys.take("rope_type", _string, None), keys.take("type", _string, None)
    if kind is not None and legacy is not None and kind != legacy:
        raise ConfigError(f"{name}.rope_type {kind!r} and {name}.type {legacy!r} contradict each other")
    kind = kind or legacy or ("default" if set(rope) <= {"rope_theta"} else None)
    if kind not in ("default", "yarn"):
        raise ConfigError(f"{name}.rope_type is {kind!r}; Qwen3 uses 'default' or 'yarn'")
    theta = keys.take("rope_theta", _number, None)
    if keys.take("partial_rotary_factor", _number, 1.0) != 1.0:
        raise ConfigError(f"{name}.partial_rotary_factor is not 1, but Qwen3 rotates the whole head")
    if kind == "default":
        given = [key for key in _YARN_ONLY if keys.left.pop(key, None) is not None]
        keys.finish()
        if given:
            raise ConfigError(f"{name}.{given[0]} is given, but {name}.rope_type is 'default', which does not use it")
        return theta, None
    scaling = RopeScaling(
        factor=keys.take("factor", _number),
        original_max_position_embeddings=keys.take("original_max_position_embeddings", _integer),
        attention_factor=keys.take("attention_factor", _number, None),
        beta_fast=keys.take("beta_fast", _number, 32.0),
        beta_slow=keys.take("beta_slow", _number, 1.0),
        truncate=keys.take("truncate", _boolean, True),
    )
    keys.finish()
    return theta, scaling


def _key(name: str) -> str:
    """A key from the file as an error message shows it."""
    return name if name.isidentifier() and len(name) <= 60 else repr(name)[:60]


def _shown(value: Any) -> str:
    """A value as an error message shows it: short, one line."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value) if isinstance(value, str | float | bool | None) else str(value)[:60]
    return text if len(text) <= 60 else text[:60] + "…"


def _wrong(name: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{name} must be {wanted}, not {_shown(value)}")


def _anything(name: str, value: Any) -> Any:
    return value


def _integer(name: str, value: Any) -> int:
    if type(value) is not int:
        raise _wrong(name, value, "an integer")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise _wrong(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} is too large") from None


def _boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(name, value, "true or false")
    return value


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(name, value, "a list of strings")
    return tuple(_string(f"{name}[{i}]", item) for i, item in enumerate(value))


def _integers(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong(name, value, "a list of integers")
    return tuple(_integer(f"{name}[{i}]", item) for i, item in enumerate(value))


def _ids(name: str, value: Any) -> int | tuple[int, ...]:
    return _integers(name, value) if isinstance(value, list) else _integer(name, value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"key {_key(twice)} stands there twice")
    return out


def _no_constant(name: str) -> Any:
    raise ConfigError(f"{name} is not a JSON number")
