"""Messages to prompt and tokens back to events: templates, injection-proof encoding, parsing, the token stream."""

from qwen3.chat.encode import Encoded, encode
from qwen3.chat.events import (
    Event,
    Finish,
    ReasoningDelta,
    Result,
    TextDelta,
    ThinkingReport,
    ToolCallDelta,
    ToolCallDropped,
    Usage,
    fold,
)
from qwen3.chat.messages import Message, ToolCall, normalize
from qwen3.chat.parse import parse
from qwen3.chat.policy import Resolution, ThinkingPolicy, resolve_mode
from qwen3.chat.sandbox_template import SandboxTemplate, template_for, template_mode
from qwen3.chat.stream import TokenStream
from qwen3.chat.template import TEMPLATES, render

__all__ = [
    "TEMPLATES",
    "Encoded",
    "Event",
    "Finish",
    "Message",
    "ReasoningDelta",
    "Resolution",
    "Result",
    "SandboxTemplate",
    "TextDelta",
    "ThinkingPolicy",
    "ThinkingReport",
    "TokenStream",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallDropped",
    "Usage",
    "encode",
    "fold",
    "normalize",
    "parse",
    "render",
    "resolve_mode",
    "template_for",
    "template_mode",
]
