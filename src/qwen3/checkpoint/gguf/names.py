"""Where the official tensors are in a GGUF file. Names: llama.cpp's (gguf-py/gguf/constants.py of ggml-org)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen3.checkpoint.gguf.files import Gguf
from qwen3.checkpoint.gguf.reader import GgufTensor
from qwen3.checkpoint.names import EMBED, HEAD, official_shapes
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError

_TOP = {EMBED: "token_embd.weight", HEAD: "output.weight", "model.norm.weight": "output_norm.weight"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj")


@dataclass(frozen=True)
class Part:
    """Rows `first` … `first + shape[0] - 1` of a tensor seen as a matrix of its last dimension (all, if it has one)."""

    tensor: GgufTensor
    first: int
    shape: tuple[int, ...]


def find_parts(model: Gguf, config: ModelConfig) -> dict[str, Part]:
    """Official name → where it is. Experts may be stacked (`ffn_up_exps`), stacked with gate and up in one
    (`ffn_gate_up_exps`), or one by one (`ffn_up.3`).

    Raises CorruptFileError listing every tensor that is missing, misshapen, of integers, or that nothing needs.
    """
    found: dict[str, Part] = {}
    problems, used = [], set()
    for official, shape in official_shapes(config).items():
        options = places_of(official, shape, config.num_experts)
        name, first, whole = next((option for option in options if option[0] in model.tensors), options[0])
        tensor = model.tensors.get(name)
        if tensor is None:
            problems.append(f"missing {name} {list(whole)}")
            continue
        used.add(name)
        if tensor.shape != whole:
            problems.append(f"{name} has shape {list(tensor.shape)} instead of {list(whole)}")
        elif tensor.type.name.startswith("I") and tensor.type.plain:
            problems.append(f"{name} is stored as {tensor.type.name}: whole numbers are no weights")
        found[official] = Part(tensor, first, shape)
    problems += [f"unexpected {name} {list(t.shape)}" for name, t in model.tensors.items() if name not in used]
    if problems:
        listed = "; ".join(dict.fromkeys(problems))  # the experts of a layer name one tensor again and again
        raise CorruptFileError(f"{model.path}: the tensors do not match the metadata: {listed}")
    return found


def places_of(official: str, shape: tuple[int, ...], experts: int) -> list[tuple[str, int, tuple[int, ...]]]:
    """(tensor, first row in it, shape of all of it), the usual one first."""
    if official in _TOP:
        return [(_TOP[official], 0, shape)]
    match = _LAYER.fullmatch(official)
    assert match is not None, official
    block, inner = f"blk.{match[1]}.", match[2]
    expert = _EXPERT.fullmatch(inner)
    if expert is None:
        return [(f"{block}{_IN_LAYER[inner]}.weight", 0, shape)]
    number, what, (rows, width) = int(expert[1]), expert[2], shape
    options = [
        (f"{block}ffn_{what}_exps.weight", number * rows, (experts, rows, width)),
        (f"{block}ffn_{what}.{number}.weight", 0, shape),
    ]
    if what != "down":
        first = 2 * number * rows + (rows if what == "up" else 0)
        options.append((f"{block}ffn_gate_up_exps.weight", first, (experts, 2 * rows, width)))
    return options
