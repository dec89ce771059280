"""`verify` for a GGUF file: header, configuration, names, values, tokenizer, template."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3.checkpoint.gguf.config import gguf_config
from qwen3.checkpoint.gguf.files import Gguf, open_gguf
from qwen3.checkpoint.resolved import blob_name
from qwen3.config import ModelConfig
from qwen3.errors import ModelNotFoundError, Qwen3Error

if TYPE_CHECKING:
    from qwen3.checkpoint.verify import Progress, Report


def check_gguf(path: Path, progress: Progress) -> Report:
    """What is wrong with the model at `path`, as findings. Raises ModelNotFoundError without such a file."""
    from qwen3.checkpoint.verify import Check, Report

    report = Report(path)
    check = Check(report, progress)
    try:
        model = open_gguf(path)
    except ModelNotFoundError:
        raise
    except Qwen3Error as error:
        check.add("error", "headers", str(error))
        return report
    report.path, report.files, report.bytes = model.path, len(model.headers), model.size
    report.tensors = len(model.tensors)
    expected = {header.file: blob for header in model.headers if (blob := blob_name(header.file))}
    check.compare(expected)
    if expected:
        report.hashes = "hub cache"
    else:
        check.unknown("it is not in a hub's cache")
    config = check.attempt("config", gguf_config, model)
    if config is not None:
        report.parameters = config.num_parameters()
        check.attempt("tensors", _values, check, model, config, progress)
        _tokenizer(check, model, config)
    return report


def _values(check: Any, model: Gguf, config: ModelConfig, progress: Progress) -> None:
    """NaN and infinite values, tensor by tensor, as they are once widened."""
    import torch

    from qwen3.checkpoint.gguf.source import GgufSource
    from qwen3.checkpoint.values import count_nan_inf

    done = 0
    with closing(GgufSource(model.path, config)) as source:
        for name, stored in source.stored.items():
            nan = inf = 0
            zero = True
            rows = stored.shape[0]
            step = max(1, (1 << 20) // stored.shape[-1]) if len(stored.shape) > 1 else rows
            for first in range(0, rows, step):
                values = stored.read(slice(first, min(rows, first + step)), torch.float32)
                chunk_nan, chunk_inf = count_nan_inf(values)
                nan, inf, zero = nan + chunk_nan, inf + chunk_inf, zero and not values.any()
            done += stored.nbytes
            progress(f"scanning {model.path.name}", done, source.nbytes)
            if nan or inf:
                check.add("error", "values", f"{model.path}: {name} has {nan} NaN and {inf} infinite values")
            elif zero:
                check.add("warning", "values", f"{model.path}: {name} is all zeros")


def _tokenizer(check: Any, model: Gguf, config: ModelConfig) -> None:
    from qwen3.chat import SandboxTemplate
    from qwen3.checkpoint.gguf.tokenizer import gguf_template, gguf_tokenizer

    found = check.attempt("tokenizer", gguf_tokenizer, model, config)
    if found is not None:
        if found[1]:
            check.add("warning", "tokenizer", found[1])
        check.vocabulary(found[0], config)
    template = check.attempt("template", gguf_template, model)
    if isinstance(template, SandboxTemplate):
        check.own_template(template)
