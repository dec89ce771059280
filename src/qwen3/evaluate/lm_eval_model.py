"""The model class `qwen3` of lm-evaluation-harness: its tasks and scores on our engine, in process.

    python -m qwen3.evaluate.lm_eval_model run --model qwen3 --model_args pretrained=qwen3:0.6b,enable_thinking=true \\
        --apply_chat_template --tasks gsm8k

The harness knows models by name once their class is registered, which this command does before it hands its arguments
on; a script calls `model_class()` instead. What differs from the harness's own classes, because its thinkers suffer:
stop texts of a task are not searched in thoughts, answers come without their thoughts and need no marker told, how many
were cut is said, and a limit is the task's own or else whatever the context leaves, not 256 tokens.

Source: lm-evaluation-harness 0.4.13, docs/model_guide.md and lm_eval/api/model.py.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Asking, Form
from qwen3.chat import encode, render, resolve_mode
from qwen3.chat.events import Result as Folded
from qwen3.engine.request import Request
from qwen3.errors import Qwen3Error, UsageError
from qwen3.evaluate.crowd import Case, drive

_LOG = logging.getLogger("lm_eval")  # whose lines the harness shows


class Methods:
    """What the harness asks of a model, as `model_class` joins it to the harness's base class.

    pretrained (or model): as LLM's, None: the embedded model. enable_thinking: whether prompts of
    --apply_chat_template make the model think; None: the model's own way. thinking_budget: most thinking tokens.
    max_batch: most requests at once, None: the engine's number (the harness's batch_size, if above 1). seed: of sampled
    answers, plus the place of the request. device, dtype, context, weights: as LLM's. llm: one that is loaded already,
    in place of all of these.

    Raises UsageError for what LLM refuses, and for thinking where there is nothing to think.
    """

    tokenizer = None  # the harness's base class reads templates off one of transformers'

    def __init__(
        self,
        pretrained: str | None = None,
        model: str | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        max_batch: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        seed: int = 0,
        llm: LLM | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if enable_thinking not in (None, True, False):
            raise UsageError(f"enable_thinking={enable_thinking!r} must be true or false")
        if thinking_budget is not None and not enable_thinking:
            raise UsageError("thinking_budget goes with enable_thinking=true")
        if pretrained and model:
            raise UsageError(f"pretrained={pretrained!r} and model={model!r}: give one")
        batch = str(batch_size or 1)
        if max_batch is None and batch.isdecimal() and int(batch) > 1:
            max_batch = int(batch)
        else:
            max_batch = max_batch or max_batch_size
        if options.get("device") == "cuda:0" and not torch.cuda.is_available():
            _LOG.warning("device cuda:0, which is the harness's default, is not here: taking the CPU")
            options["device"] = None
        self.llm = llm or LLM(pretrained or model, max_batch=max_batch, **_given(options))
        self.thinking = {None: None, True: ThinkingPolicy("on", budget=thinking_budget), False: ThinkingPolicy("off")}[
            enable_thinking
        ]
        self.seed = seed
        self._asking = Asking(self.llm.tokenizer, self.llm.config, self.llm.mode, self.llm.template)

    # What the harness reads

    @property
    def max_length(self) -> int:
        """Prompt and answer together, in tokens."""
        return self.llm.context

    @property
    def eot_token_id(self) -> int:
        """What a text without context is scored after: the token that parts the documents of pretraining."""
        return self.llm.tokenizer.control.endoftext

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells its caches of prompts apart."""
        return f"qwen3-{self.chat_template(True)}-{'' if self.thinking is None else self.thinking.mode}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """For the harness's record."""
        return self.llm.template if isinstance(self.llm.template, str) else self.llm.template.text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Qwen's tokenizer adds no tokens around a text."""
        return self.llm.tokenizer.encode(string)

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        """The prompt's text, that of `LLM.chat`. Control strings in a task's own texts become control tokens when it is
        read again, as in the official pipeline."""
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in chat_history]
        found = resolve_mode(turns, self.thinking, self.llm.mode, self.llm.template)
        if not add_generation_prompt and turns[-1]["role"] == "assistant":
            if self.thinking is not None and not self.thinking.off:
                raise UsageError("the task begins the answer itself (gen_prefix): leave enable_thinking=true out")
            tokenizer, template = self.llm.tokenizer, self.llm.template
            return tokenizer.decode(encode(turns, tokenizer=tokenizer, template=template, continue_last=True).ids)
        return render(
            found.messages,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=found.enable_thinking,
            template=self.llm.template,
        )

    # What the harness asks

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers without their thoughts, in order."""
        utils = importlib.import_module("lm_eval.models.utils")
        given = [request.args for request in requests]

        def cases() -> Iterator[Case]:
            for i, (prompt, options) in enumerate(given):
                params = sampling(utils.normalize_gen_kwargs(options, self.max_length), self.seed + i)
                yield Case(self._request(self.tok_encode(prompt), params), {"number": i})

        answers, cut = [""] * len(given), 0
        for case, folded in self._run(cases(), len(given), "generating", disable_tqdm):
            i = case.what["number"]
            answers[i] = folded.content
            cut += case.request.finish_reason == "length"
            self.cache_hook.add_partial("generate_until", given[i], answers[i])  # type: ignore[attr-defined]
        if cut:
            _LOG.warning(
                "%d of %d answers were cut at their limit of tokens, and the harness scores what there is of them: "
                "raise it with --gen_kwargs max_gen_toks=…",
                cut,
                len(given),
            )
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of texts after contexts: log-probability (nats), and whether it is what greedy choice gives."""
        if self.thinking is not None and not self.thinking.off:
            raise UsageError("answers chosen by probability have no thoughts: leave enable_thinking=true out")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[misc]

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)

        def cases() -> Iterator[Case]:
            for i, (_, context, continuation) in enumerate(requests):
                yield Case(self._request([*context, *continuation], params), {"number": i})

        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for case, _ in self._run(cases(), len(requests), "scoring", disable_tqdm):
            key, context, _ = requests[case.what["number"]]
            scored = [entry for entry in case.request.prompt_logprobs[len(context) :] if entry is not None]
            greedy = all(entry.logprob >= entry.top[0][1] for entry in scored)
            answer = sum(entry.logprob for entry in scored), greedy
            found[case.what["number"]] = answer
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)  # type: ignore[attr-defined]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the context where they are longer."""
        utils, totals = importlib.import_module("lm_eval.utils"), []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self.max_length - 1, 1)
            scored = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(scored, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])  # type: ignore[attr-defined]
        return totals

    def _request(self, ids: list[int], params: SamplingParams) -> Request:
        policy = None if self.thinking is None or self.thinking.off else self.thinking  # the prompt says it is off
        return self._asking.raw(ids, Form(), policy, params, self.llm.engine.check).requests[0]

    def _run(self, cases: Iterator[Case], count: int, what: str, quiet: bool) -> Iterator[tuple[Case, Folded]]:
        engine = self.llm.engine
        bar = importlib.import_module("tqdm").tqdm(total=count, desc=f"qwen3, {what}", disable=quiet)
        with bar:
            for case, folded in drive(engine, cases, 2 * engine.max_batch):
                if case.request.error is not None:
                    raise case.request.error
                bar.update()
                yield case, folded


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Without what the harness passes on unset."""
    return {name: value for name, value in options.items() if value is not None}


def sampling(options: dict[str, Any], seed: int) -> SamplingParams:
    """Of the harness's normalised generation arguments: greedy unless do_sample; what is sampled without a temperature
    is sampled as Qwen published it. Raises UsageError for a name that says nothing here."""
    left = dict(options)
    do_sample, until = left.pop("do_sample"), [text for text in left.pop("until") if text]
    limit = left.pop("max_gen_toks")
    if not do_sample:
        left["temperature"] = 0.0
    known = {field.name for field in fields(SamplingParams)} - {
        "n",
        "logprobs",
        "prompt_logprobs",
        "max_tokens",
        "stop",
    }
    if unknown := sorted(left.keys() - known):
        raise UsageError(f"generation argument {unknown[0]!r} is unknown; there are {', '.join(sorted(known))}")
    return SamplingParams(max_tokens=limit, stop=until, **{"seed": seed, **_given(left)})


@cache
def model_class() -> type:
    """The class, registered with the harness as `qwen3`. Raises UsageError where the harness is not installed."""
    try:
        registry = importlib.import_module("lm_eval.api.registry")
        base = importlib.import_module("lm_eval.api.model").TemplateLM
    except ImportError as error:
        raise UsageError(f"lm-evaluation-harness cannot be imported ({error}): pip install lm_eval") from None
    register: Callable[[type], type] = registry.register_model("qwen3")
    return register(type("Qwen3LM", (Methods, base), {"__doc__": Methods.__doc__}))


def main() -> None:
    """The harness's own command, knowing this class."""
    model_class()
    importlib.import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    try:
        main()
    except Qwen3Error as error:
        sys.exit(f"error: {error}")
