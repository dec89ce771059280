"""The 26 control tokens of the Qwen3 family: their strings, and their ids in one tokenizer.

The order is the official id order (151,643 … 151,668); `special` is the flag the official `tokenizer.json` carries.
The names are the fields of `ControlIds`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from qwen3.errors import CorruptFileError

CONTROL_TOKENS: dict[str, tuple[str, bool]] = {
    "endoftext": ("<|endoftext|>", True),
    "im_start": ("<|im_start|>", True),
    "im_end": ("<|im_end|>", True),
    "object_ref_start": ("<|object_ref_start|>", True),
    "object_ref_end": ("<|object_ref_end|>", True),
    "box_start": ("<|box_start|>", True),
    "box_end": ("<|box_end|>", True),
    "quad_start": ("<|quad_start|>", True),
    "quad_end": ("<|quad_end|>", True),
    "vision_start": ("<|vision_start|>", True),
    "vision_end": ("<|vision_end|>", True),
    "vision_pad": ("<|vision_pad|>", True),
    "image_pad": ("<|image_pad|>", True),
    "video_pad": ("<|video_pad|>", True),
    "tool_call": ("<tool_call>", False),
    "end_tool_call": ("</tool_call>", False),
    "fim_prefix": ("<|fim_prefix|>", False),
    "fim_middle": ("<|fim_middle|>", False),
    "fim_suffix": ("<|fim_suffix|>", False),
    "fim_pad": ("<|fim_pad|>", False),
    "repo_name": ("<|repo_name|>", False),
    "file_sep": ("<|file_sep|>", False),
    "tool_response": ("<tool_response>", False),
    "end_tool_response": ("</tool_response>", False),
    "think": ("<think>", False),
    "end_think": ("</think>", False),
}
"""Field name -> (string, special). Source: the official `tokenizer.json` of Qwen3."""


@dataclass(frozen=True)
class ControlIds:
    """The id of every control token in one tokenizer, found by its string."""

    endoftext: int
    im_start: int
    im_end: int
    object_ref_start: int
    object_ref_end: int
    box_start: int
    box_end: int
    quad_start: int
    quad_end: int
    vision_start: int
    vision_end: int
    vision_pad: int
    image_pad: int
    video_pad: int
    tool_call: int
    end_tool_call: int
    fim_prefix: int
    fim_middle: int
    fim_suffix: int
    fim_pad: int
    repo_name: int
    file_sep: int
    tool_response: int
    end_tool_response: int
    think: int
    end_think: int

    @classmethod
    def lookup(cls, find: Callable[[str], int | None], source: str) -> ControlIds:
        """Ask `find` for the id of each control string. Raises CorruptFileError naming those that `source` lacks."""
        ids = {name: find(text) for name, (text, _) in CONTROL_TOKENS.items()}
        missing = [CONTROL_TOKENS[name][0] for name, id in ids.items() if id is None]
        if missing:
            raise CorruptFileError(
                f"{source}: not a Qwen3 tokenizer, it has no control token {', '.join(missing)} among its added tokens"
            )
        return cls(**{name: id for name, id in ids.items() if id is not None})

    def as_tuple(self) -> tuple[int, ...]:
        """All ids in the official order."""
        return tuple(getattr(self, field.name) for field in fields(self))
