"""Text to token ids and back: the official Qwen3 byte-level BPE, a checkpoint's own, or a prefix of one."""

from qwen3.tokenizer.control import CONTROL_TOKENS, ControlIds
from qwen3.tokenizer.detokenizer import Detokenizer
from qwen3.tokenizer.tokenizer import Tokenizer, check_unicode

__all__ = ["CONTROL_TOKENS", "ControlIds", "Detokenizer", "Tokenizer", "check_unicode"]
