"""What a caller gives to `LLM`, checked: every error names the argument and says what is allowed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from qwen3 import family
from qwen3.checkpoint import check_fits, read_config, resolve
from qwen3.checkpoint.adapter import adapter_stamp
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.packed import BITS
from qwen3.config import ModelConfig
from qwen3.engine.adapters import Loaded
from qwen3.engine.draft import DraftModel
from qwen3.errors import UsageError
from qwen3.model import load_model
from qwen3.model.load import QUANTIZATIONS, as_dtype, best_device, default_dtype
from qwen3.model.threads import prepare_cpu
from qwen3.tokenizer import Tokenizer

T = TypeVar("T")


def check_options(
    model: Any, device: str | torch.device | None, dtype: str | torch.dtype | None, weights: str | None = None
) -> tuple[torch.device | None, torch.dtype | None]:
    """What can be wrong with these before `model` is looked for: a published model that does not fit into memory is
    refused by its name, not after gigabytes have been fetched. Raises UsageError or OutOfMemoryError."""
    where, number_type = _device(device), as_dtype(dtype)
    if weights not in (None, *QUANTIZATIONS):
        known = ", ".join(QUANTIZATIONS)
        raise UsageError(f"weights={weights!r} is not supported; use {known}, or None for what the checkpoint has")
    if isinstance(model, str) and (member := family.find(model)) and not os.path.exists(model):
        target, config = where or best_device(), member.config
        plain = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        rest, kind = config.num_parameters() - plain, number_type or default_dtype(config, target)
        saved = 0
        if weights in BITS:  # a scale for every 128 numbers, too
            saved = round(rest * (kind.itemsize - BITS[weights] / 8 - 1 / 64) + plain * (kind.itemsize - 1 - 1 / 64))
        small = rest if weights == "fp8" else 0
        check_fits(config, kind, target, fp8=small, saved=saved, name=member.name)
    elif not isinstance(model, (str, os.PathLike, type(None))):
        raise UsageError(f"model must be a name or a path, not {type(model).__name__}; LLM.of takes a network")
    return where, number_type


def adapter_place(adapter: Any, loaded: Mapping[str, Loaded]) -> tuple[str, Path | None]:
    """(name, the folder to load under it, None: it is there already or no folder) of what a caller chooses an adapter
    by: a name, or a folder, which goes by its own name. Raises UsageError where that name is another one's."""
    if not isinstance(adapter, (str, os.PathLike)) or not os.fspath(adapter):
        raise UsageError(f"adapter must be a name or a folder, not {adapter!r}")
    text = os.fspath(adapter)
    folder = Path(text).expanduser().resolve()
    if text in loaded and loaded[text].source != str(folder):
        return text, None
    if not folder.is_dir() and text == os.path.basename(text):
        return text, None
    found = loaded.get(folder.name)
    if found is None or (found.source == str(folder) and found.stamp != adapter_stamp(folder)):
        return folder.name, folder
    if found.source != str(folder):
        raise UsageError(
            f"adapter {text!r} would go by the name {folder.name!r}, as {found.source or 'another'} does already: "
            "give it one of its own with load_adapter"
        )
    return folder.name, None


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device={device!r} is not a device; use 'cpu', 'cuda' or 'cuda:0'") from None
    if found.type not in ("cpu", "cuda"):
        raise UsageError(f"device={device!r} is not supported yet; use 'cpu' or 'cuda'")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device={device!r} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )
    return found


class Aside(Generic[T]):
    """A value that a thread works out from `start` on; without it, `result` does."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._work = work
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Twice is no error."""
        if self._thread is None and not self._future.done():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def result(self) -> T:
        """Waits for it; raises what the work did."""
        if self._thread is None and not self._future.done():
            self._run()
        return self._future.result()

    def _run(self) -> None:
        try:
            self._future.set_result(self._work())
        except BaseException as error:
            self._future.set_exception(error)


def guesser(
    speculation: str | None, draft_tokens: int | None, device: torch.device | None, dtype: torch.dtype | None,
    tokenizer: Callable[[], Tokenizer],
) -> str | DraftModel | None:  # fmt: skip
    """What guesses tokens ahead: None, "ngram", or a draft model by its name, loaded for a model with `tokenizer()`.
    Raises UsageError if the two do not belong together, and what loading raises."""
    if speculation is None and draft_tokens is not None:
        raise UsageError(
            f"draft_tokens={draft_tokens} has no effect without speculation: give that, too, or leave it out"
        )
    if speculation is None or speculation == "ngram":
        return speculation
    if not isinstance(speculation, str):
        raise UsageError(f"speculation={speculation!r} must be 'ngram' or a model's name; LLM.of takes a DraftModel")
    found = resolve(speculation)
    own, _ = find_tokenizer(found, read_config(found.path))
    draft = DraftModel(load_model(found.path, device, dtype), own)
    whole = tokenizer()
    draft.check(draft.model.device, whole.vocab_size, whole)
    threads = torch.get_num_threads()
    prepare_cpu(draft.model)
    torch.set_num_threads(threads)  # the model's own size decides, not the draft's
    return draft


def context_length(context: int | None, config: ModelConfig) -> int:
    """Tokens of a request at most: what was asked for, or all the model has."""
    longest = config.context_length
    if context is None:
        return longest
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= longest:
        raise UsageError(f"context={context!r} must be 1 to {longest:,} tokens, which is what this model has")
    return context


def prompt_ids(prompts: Any, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of a text, of texts, of a list of ids, or of lists of ids."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise UsageError("prompts must be a text, a list of texts, a list of ids or a list of lists of ids")
    if prompts and all(isinstance(item, int) and not isinstance(item, bool) for item in prompts):
        prompts = [prompts]
    found = []
    for i, item in enumerate(prompts):
        if isinstance(item, str):
            found.append(tokenizer.encode(item))
        elif isinstance(item, (list, tuple)) and all(isinstance(t, int) and not isinstance(t, bool) for t in item):
            found.append(list(item))
        else:
            raise UsageError(f"prompts[{i}] is neither a text nor a list of token ids")
    return found
