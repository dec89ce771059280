"""Messages to prompt and tokens back to events: templates, injection-proof encoding, parsing, the token stream."""

from qwen3.chat.encode import Encoded, encode
from qwen3.chat.messages import Message, ToolCall, normalize
from qwen3.chat.template import TEMPLATES, render

__all__ = ["TEMPLATES", "Encoded", "Message", "ToolCall", "encode", "normalize", "render"]
