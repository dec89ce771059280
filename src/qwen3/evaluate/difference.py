"""What a variant of a model costs against the model itself: what `qwen3 diff` measures.

Both are loaded at once. Distributions are compared teacher-forced, on text and on the reference's own answers; tasks
are asked of both with the same seeds, so that questions, and the luck of sampling, are paired.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from qwen3.checkpoint import read_config, resolve
from qwen3.errors import UsageError
from qwen3.evaluate import workloads
from qwen3.evaluate.crowd import Say
from qwen3.evaluate.divergence import LayerError, layer_errors, score, summary
from qwen3.evaluate.measured import (
    Answers,
    Measured,
    Settings,
    count,
    finite,
    layer_ids,
    loaded,
    meant,
    own_answers,
    perplexity,
    same_tokenizer,
    texts_of,
)  # fmt: skip
from qwen3.evaluate.paired import Numbers, bootstrap, share, sign_test
from qwen3.evaluate.thinking import Result, head
from qwen3.model.load import SMALL_MODEL

_SPEED_RUNS = 3


@dataclass(frozen=True)
class Difference:
    """One variant against the reference.

    reference, variant: of each model alone: name, sizes, and where measured text, tasks by mode ("thinking", "direct")
    and speed. divergence: of "text" and "answers" (the reference's own); layers: see `LayerError`; tasks, speed: the
    variant against the reference. notes: what could not be measured, and why. head: date, machine, settings.
    """

    reference: Result
    variant: Result
    divergence: dict[str, Result] = field(default_factory=dict)
    layers: list[LayerError] = field(default_factory=list)
    tasks: dict[str, Result] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    head: Result = field(default_factory=dict)

    def to_dict(self) -> Result:
        """For JSON."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return found | {"layers": [layer._asdict() for layer in self.layers]}


def difference(
    a: str, b: str | Sequence[str], settings: Settings | None = None, say: Say = lambda line: None, command: str = ""
) -> list[Difference]:
    """Each variant `b` against the reference `a`, names as for LLM and `meant`. Peak memory: the reference and one
    variant. Raises what LLM raises, UsageError, and CorruptFileError for a model whose logits are not finite."""
    variants = [b] if isinstance(b, str) else [*b]
    if not variants:
        raise UsageError("give at least two models: the reference, and a variant")
    for name in (a, *variants):
        read_config(resolve(meant(name)[0]).path)  # what is not there is said before anything is measured
    return list(differences(a, variants, settings or Settings(), say, command))


def differences(
    a: str, variants: Iterable[str], settings: Settings, say: Say = lambda line: None, command: str = ""
) -> Iterator[Difference]:
    """`difference`, one after the other; a variant need not be there before its turn."""
    with loaded(a, settings, say) as reference:
        plain = {name: value for name, value in asdict(settings).items() if name != "text"}
        about = head("quality against a reference", reference.llm, command, **plain)
        if settings.problems and reference.llm.device.type == "cpu" and reference.facts["parameters"] >= SMALL_MODEL:
            say(f"{settings.problems} problems take long on a CPU: with fewer it is faster, with 0 no tasks are asked")
        reference.ask(settings, say)
        for name in variants:
            with loaded(name, settings, say) as variant:
                yield replace(_compare(reference, variant, settings, say), head=about)


def _compare(a: Measured, b: Measured, settings: Settings, say: Say) -> Difference:
    notes = []
    same = same_tokenizer(a.llm.tokenizer, b.llm.tokenizer)
    width = min(a.llm.tokenizer.vocab_size, b.llm.tokenizer.vocab_size)
    texts = [texts_of(model, settings) for model in (a, b)]
    divergence: dict[str, Result] = {}
    if same:
        parts = {"text": texts[0], "answers": own_answers(a, settings)}
        for name, part in parts.items():
            if not part:
                continue
            say(f"{b.name}: comparing distributions on {name}, {count(part):,} tokens")
            scores = score([a.llm.model, b.llm.model], part, width, [a.name, b.name])
            divergence[name] = summary(scores.kl[0], scores.agrees[0])
            if name == "text":
                for model, nats in zip((a, b), scores.nats, strict=True):
                    model.facts["text"] = perplexity(nats, part, model.llm.tokenizer)
    else:
        notes.append("the tokenizers differ: next-token distributions cannot be compared, bits per byte can")
        for model, part in zip((a, b), texts, strict=True):
            nats = score([model.llm.model], part, model.llm.tokenizer.vocab_size, [model.name]).nats[0]
            model.facts["text"] = perplexity(nats, part, model.llm.tokenizer)
    layers: list[LayerError] = []
    if same and _shape(a) == _shape(b):
        layers = layer_errors(a.llm.model, b.llm.model, layer_ids(texts[0], a.llm.model.device))
    else:
        notes.append("no errors by layer: those need two models of one architecture and tokenizer")
    b.ask(settings, say, like=a)  # after the above, which refuses a model that is broken
    if missing := [mode for mode in a.answers if mode not in b.answers]:
        notes.append(f"{b.name} has no mode {' or '.join(missing)}: its tasks were not asked there")
    if not a.answers and settings.problems:
        notes.append(f"{a.name} is a {a.llm.mode} model: tasks are for models that chat")
    tasks = {mode: _paired(a.answers[mode], found, settings.seed) for mode, found in b.answers.items()}
    speed = _speeds(a, b, say) if settings.speed else {}
    return Difference(dict(a.facts), b.facts, divergence, layers, tasks, speed, notes)


def _shape(model: Measured) -> tuple[Any, ...]:
    config = model.llm.config
    return config.num_hidden_layers, config.hidden_size, config.head_dim, config.is_moe


def _paired(a: Answers, b: Answers, seed: int) -> Result:
    """The variant's answers against the reference's, question by question."""
    only_a, only_b = int(((a.right == 1) & (b.right == 0)).sum()), int(((a.right == 0) & (b.right == 1)).sum())
    longer, shorter = int((b.tokens > a.tokens).sum()), int((b.tokens < a.tokens).sum())
    points = bootstrap(lambda x, y: 100 * (y - x).mean(-1), a.right, b.right, seed=seed)
    each = bootstrap(
        lambda ta, ra, tb, rb: _ratio(share(tb, rb), share(ta, ra)), a.tokens, a.right, b.tokens, b.right, seed=seed
    )
    per_right = [float(share(m.tokens[None], m.right[None])[0]) for m in (a, b)]
    return {
        "of": len(a.right),
        "points": 100 * float((b.right - a.right).mean()),
        "points_interval": points,
        "only_reference_right": only_a,
        "only_variant_right": only_b,
        "p": sign_test(only_a, only_a + only_b),
        "length_ratio": float(b.tokens.sum() / a.tokens.sum()),
        "length_interval": bootstrap(lambda x, y: share(y, x), a.tokens, b.tokens, seed=seed),
        "longer": longer,
        "shorter": shorter,
        "length_p": sign_test(longer, longer + shorter),
        "tokens_per_right_ratio": finite(per_right[1] / per_right[0]) if math.isfinite(per_right[0]) else None,
        "tokens_per_right_ratio_interval": [finite(bound) for bound in each],
    }


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    """Infinite where either is: no right answers, no figure."""
    usable = np.isfinite(above) & np.isfinite(below)
    return np.divide(above, below, out=np.full_like(above, np.inf), where=usable)


def _speeds(a: Measured, b: Measured, say: Say) -> dict[str, float]:
    """Tokens a second, by number of streams: of each goes into its facts; what is returned is the variant's by the
    reference's. Medians of a few runs each, in turn, so that what else the machine does falls on both."""
    scale = workloads.scale_for(a.llm.device, a.llm.config)
    models, rates = (a, b), {}
    subjects = [workloads.Subject.of(model.llm) for model in models]
    for streams in (1, 8):
        say(f"{b.name}: timing {streams} stream{'s' * (streams > 1)}")
        runs: list[list[float]] = [[], []]
        for _ in range(_SPEED_RUNS):
            for found, subject in zip(runs, subjects, strict=True):
                found += workloads.decode(subject, streams, scale.decode[streams], 1)[0]
        rates[str(streams)] = [statistics.median(found) for found in runs]
    for i, model in enumerate(models):
        model.facts["speed"] = {streams: both[i] for streams, both in rates.items()}
    return {streams: variant / reference for streams, (reference, variant) in rates.items()}
