"""One model of a comparison: what it is, what it weighs, what it answers to the tasks."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.chat import encode
from qwen3.checkpoint.source import open_source
from qwen3.errors import UsageError
from qwen3.evaluate.crowd import Progress, Say
from qwen3.evaluate.divergence import Text
from qwen3.evaluate.paired import Numbers, bootstrap, share
from qwen3.evaluate.thinking import Result, answer_all, families_of, held_out, wilson
from qwen3.kernels import cpu as cpu_kernels
from qwen3.model.load import DTYPES, QUANTIZATIONS
from qwen3.tasks import FAMILIES, Problem
from qwen3.tokenizer import Tokenizer

MODES = {"hybrid": ("thinking", "direct"), "thinking": ("thinking",), "instruct": ("direct",), "base": ()}
_WINDOW = 512  # tokens of a text that are one sequence
_LAYER_TOKENS = 512


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    suite, problems: which tasks (see `thinking.families_of`) and how many, 0 for none. text: plain text for perplexity
    and divergence, text_name what to call it; None: worked solutions of held-out problems, in the chat template.
    tokens: scored at most, of the text and of the reference's answers each. max_tokens: of an answer. seed: of
    problems, sampling and resampling. speed: whether to time. device: as for LLM.
    """

    suite: str = "tasks"
    problems: int = 96
    text: str | None = None
    text_name: str | None = None
    tokens: int = 4096
    max_tokens: int = 1024
    seed: int = 1
    speed: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        families_of(self.suite)
        for name, low in (("problems", 0), ("tokens", 16), ("max_tokens", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name}={getattr(self, name)} must be {low} or more")
        if self.text is not None and not self.text.strip():
            raise UsageError(f"{self.text_name or 'the text'} is empty: there is nothing to score")


def meant(name: str) -> tuple[str, str | None, str | None]:
    """(model, weights, dtype) of a model's name that may end in "+int4", "+int8", "+fp8" (as `--weights`) or
    "+bfloat16", "+float16", "+float32" (as `--dtype`). A path that exists with such an end is that path."""
    model, plus, how = name.rpartition("+")
    if not plus or not model or os.path.exists(name):
        return name, None, None
    if how in QUANTIZATIONS:
        return model, how, None
    if how in DTYPES:
        return model, None, how
    raise UsageError(f"{name!r}: {how!r} behind the + must be one of {', '.join((*QUANTIZATIONS, *DTYPES))}")


@dataclass(frozen=True)
class Answers:
    """Of one mode, by problem. right, tokens (all that were generated), thought (inside the tags): float64 [problems].
    cut: how many `max_tokens` ended, looped: how many repeated themselves without end. texts: prompt and answer as the
    other model is to see them."""

    right: Numbers
    tokens: Numbers
    thought: Numbers
    cut: int
    looped: int
    texts: list[Text]
    families: dict[str, tuple[int, int]]


class Measured:
    """One model and what was measured of it."""

    def __init__(self, name: str, llm: LLM, copies: int, load_seconds: float) -> None:
        self.name, self.llm = name, llm
        self.answers: dict[str, Answers] = {}
        self.facts = _facts(name, llm, copies) | {"load_seconds": load_seconds}

    def ask(self, settings: Settings, say: Say, like: Measured | None = None) -> None:
        """All problems in every mode it has; those of `like` alone, if given."""
        modes = MODES[self.llm.mode] if like is None else [m for m in MODES[self.llm.mode] if m in like.answers]
        problems = _problems(settings, settings.seed)
        if not problems:
            return
        work = {"thinking": lambda p: 60 + 3 * len(p.trace) + len(p.reply), "direct": lambda p: 60 + len(p.reply)}
        progress = Progress(sum(work[mode](p) for mode in modes for p in problems), say)
        sampling = SamplingParams(max_tokens=settings.max_tokens, seed=settings.seed)
        for mode in modes:
            policy = ThinkingPolicy("on" if mode == "thinking" else "off") if self.llm.mode == "hybrid" else None
            pairs = answer_all(self.llm, problems, policy, sampling, progress, f"{self.name}, {mode}", work[mode])
            for request, _ in pairs:
                if request.error is not None:
                    raise request.error
            results = [result for _, result in pairs]
            right = [FAMILIES[p.family].check(p, r.content) for p, r in zip(problems, results, strict=True)]
            families: dict[str, tuple[int, int]] = {}
            for problem, good in zip(problems, right, strict=True):
                of = families.get(problem.family, (0, 0))
                families[problem.family] = of[0] + good, of[1] + 1
            answers = self.answers[mode] = Answers(
                right=np.array(right, np.float64),
                tokens=np.array([len(request.output) for request, _ in pairs], np.float64),
                thought=np.array([r.thinking.used if r.thinking else 0 for r in results], np.float64),
                cut=sum(r.finish_reason == "length" for r in results),
                looped=sum(r.finish_reason == "loop" or r.thinking.ended_by == "loop" for r in results if r.thinking),
                texts=[Text([*q.ids, *q.output], len(q.ids)) for q, _ in pairs if q.output],
                families=families,
            )
            self.facts.setdefault("tasks", {})[mode] = found = _alone(answers, settings.seed)
            low, high = found["interval"]
            say(f"{self.name}, {mode}: {found['percent']:.1f} % right [{low:.1f}, {high:.1f}], "
                f"{found['tokens']:.0f} tokens an answer")  # fmt: skip


@contextmanager
def loaded(name: str, settings: Settings, say: Say) -> Iterator[Measured]:
    model, weights, dtype = meant(name)
    copies, started = cpu_kernels.packed_bytes, time.perf_counter()
    with LLM(model, settings.device, dtype, weights=weights, prefix_cache=False, prefill_ahead=False) as llm:
        for line in llm.warnings:
            say(f"{name}: {line}")
        yield Measured(name, llm, cpu_kernels.packed_bytes - copies, time.perf_counter() - started)


def _facts(name: str, llm: LLM, copies: int) -> Result:
    """Sizes: of the files, of the weights in memory, and of what the CPU keeps beside them for speed."""
    assert llm.resolved is not None
    source, count = open_source(llm.resolved.path, llm.config), llm.config.num_parameters()
    try:
        kinds: Counter[str] = Counter()
        for stored in source.stored.values():
            kinds[stored.kind] += stored.nbytes
        disk = sum(file.stat().st_size for file in source.files)
    finally:
        source.close()
    memory = weight_bytes(llm.model)
    return {
        "name": name,
        "mode": llm.mode,
        "parameters": count,
        "dtype": str(llm.dtype).removeprefix("torch."),
        "stored": dict(kinds.most_common()),
        "disk_bytes": disk,
        "bits_per_weight": 8 * sum(kinds.values()) / count,
        "memory_bytes": memory,
        "memory_bits_per_weight": 8 * memory / count,
        "copies_bytes": copies,
        "warnings": llm.warnings,
    }


def weight_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers in memory, each once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _problems(settings: Settings, seed: int) -> list[Problem]:
    return held_out(families_of(settings.suite), settings.problems, seed) if settings.problems else []


def _alone(answers: Answers, seed: int) -> Result:
    right, of = int(answers.right.sum()), len(answers.right)
    each = bootstrap(share, answers.tokens, answers.right, seed=seed)
    return {
        "right": right,
        "of": of,
        "percent": 100 * right / of,
        "interval": wilson(right, of),
        "tokens": float(answers.tokens.mean()),
        "thinking_tokens": float(answers.thought.mean()),
        "cut": answers.cut,
        "looped": answers.looped,
        "tokens_per_right": float(answers.tokens.sum() / right) if right else None,
        "tokens_per_right_interval": [finite(bound) for bound in each],
        "families": {name: {"right": good, "of": of} for name, (good, of) in answers.families.items()},
    }


def finite(value: float) -> float | None:
    """JSON has no infinity: None."""
    return value if math.isfinite(value) else None


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether both have the same tokens as far as the smaller vocabulary goes, and the same control tokens."""
    if a is b:
        return True
    count = min(a.vocab_size, b.vocab_size)
    return a.control == b.control and all(a.token_bytes(i) == b.token_bytes(i) for i in range(count))


def texts_of(model: Measured, settings: Settings) -> list[Text]:
    """Sequences with `settings.tokens` tokens to score: the file in windows, of which all but the first token count, or
    solutions, of which the assistant's tokens count."""
    llm, window = model.llm, min(_WINDOW, model.llm.context)
    found: list[Text] = []
    if settings.text is not None:
        ids = llm.tokenizer.encode_plain(settings.text)
        found = [Text(ids[i : i + window], 1) for i in range(0, len(ids), window) if len(ids[i : i + window]) > 1]
    else:
        problems = held_out(families_of(settings.suite), 96, settings.seed + 1)
        for problem in sorted(problems, key=lambda p: p.key):  # families mixed: the first so many are of all kinds
            found.append(_solution(problem, llm))
    texts = _first_tokens(found, settings.tokens)
    if not texts:
        raise UsageError(f"{settings.text_name} has fewer than two tokens: there is nothing to score")
    return texts


def _solution(problem: Problem, llm: LLM) -> Text:
    thinks = "thinking" in MODES[llm.mode]
    turns = [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": problem.reply}]
    asked = encode(turns[:1], tokenizer=llm.tokenizer, template=llm.template, enable_thinking=thinks or None).ids
    if thinks:
        turns[1]["reasoning_content"] = problem.trace
    ids = encode(turns, tokenizer=llm.tokenizer, template=llm.template, add_generation_prompt=False).ids
    common = next((i for i, pair in enumerate(zip(asked, ids, strict=False)) if pair[0] != pair[1]), len(asked))
    return Text(ids[: llm.context], max(1, min(common, llm.context - 1)))


def own_answers(model: Measured, settings: Settings) -> list[Text]:
    """The model's answers to the tasks, of its modes and families in turn."""
    by_mode = [answers.texts for answers in model.answers.values()]
    step = max(1, settings.problems // 8)  # problems lie by family: take every so many, then those behind them
    mixed = [texts[i] for first in range(step) for texts in by_mode for i in range(first, len(texts), step)]
    return _first_tokens(mixed, settings.tokens)


def _first_tokens(texts: Sequence[Text], tokens: int) -> list[Text]:
    found = []
    for text in texts:
        kept = Text(text.ids[: text.first + tokens], text.first)
        if tokens <= 0:
            break
        tokens -= len(kept.ids) - kept.first
        found.append(kept)
    return found


def count(texts: Sequence[Text]) -> int:
    return sum(len(text.ids) - text.first for text in texts)


def perplexity(nats: Numbers, texts: Sequence[Text], tokenizer: Tokenizer) -> Result:
    size = sum(len(tokenizer.token_bytes(token)) for text in texts for token in text.ids[text.first :])
    mean = float(nats.mean())
    return {
        "tokens": len(nats),
        "bytes": size,
        "perplexity": finite(math.exp(min(mean, 700.0))),
        "bits_per_byte": float(nats.sum()) / math.log(2) / size,
    }


def layer_ids(texts: Sequence[Text], device: torch.device) -> Tensor:
    """[B, T] of at most `_LAYER_TOKENS` tokens, cut to one length: no padding to leave out."""
    length = min(128, max(len(text.ids) for text in texts))
    rows = [text.ids[:length] for text in texts if len(text.ids) >= length][: max(1, _LAYER_TOKENS // length)]
    return torch.tensor(rows, device=device)
