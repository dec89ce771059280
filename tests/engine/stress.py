"""Bodies of the engine's large tests, for any device: small on a CPU in CI, large on a GPU by hand.

* containment: against transformers with the same random weights, greedy, token by token.
* counting: the embedded model continues counting sequences, which it does without fail; any mix-up of cached keys and
  values, positions or rows breaks a count.
* mixed: requests of every kind, cancels among them; all blocks come back.
* invariance: one request in six situations, the same bits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qwen3.chat import TokenStream, encode
from qwen3.checkpoint import official_views, resolve
from qwen3.config import ModelConfig
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.engine.scheduler import Scheduler
from qwen3.model import Qwen3, load_model
from qwen3.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)


@contextmanager
def watch_preemptions() -> Iterator[list[int]]:
    """Ids of the requests that any scheduler preempts meanwhile."""
    found: list[int] = []
    plan = Scheduler.plan

    def watched(self: Scheduler) -> Any:
        step = plan(self)
        if step is not None:
            found.extend(row.id for row in step.preempted)
        return step

    Scheduler.plan = watched  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Scheduler.plan = plan  # type: ignore[method-assign]


def run(engine: Engine, requests: Sequence[Request]) -> None:
    """All at once, to their end; raises the first error a request ended with."""
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.advance()
    for request in requests:
        if request.error is not None:
            raise request.error


# Against transformers


def random_network(config: ModelConfig, device: str, dtype: torch.dtype, seed: int, nats: float = 2.0) -> Qwen3:
    """Random weights scaled so that activations stay near 1. What layers add to the residual stream is scaled as at the
    start of training, (2 · layers)^-½: without it a mixture in which rounding sends one token to another expert says
    something else altogether. The last norm is scaled so that the next token's distribution has about `nats` of entropy
    (unscaled, every rank would be a tie)."""
    generator = torch.Generator(device).manual_seed(seed)
    model = Qwen3(config, device=device, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator, device=device))
            else:
                gain = 1.0 if name == "embed_tokens.weight" else parameter.shape[-1] ** -0.5
                if name.endswith("mlp.gate.weight"):
                    gain *= 2.0  # a router that means it
                elif "o_proj" in name or "down_proj" in name:
                    gain *= (2 * config.num_hidden_layers) ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device) * gain)
        ids = torch.randint(0, config.vocab_size, (8, 64), generator=generator, device=device)
        plain = model.head(model.hidden(ids)).flatten(0, 1).float()
        low, high = 0.0, 1e4
        for _ in range(40):
            scale = (low + high) / 2
            log_p = (plain * scale).log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
            low, high = (scale, high) if entropy > nats else (low, scale)
        model.norm.weight.mul_(high)
    return model


def transformers_twin(model: Qwen3, tensors: dict[str, Tensor] | None = None) -> Any:
    """transformers' network on the same device with the same weights. tensors: instead of some parameters of ours."""
    import transformers

    config = model.config
    moe = config.is_moe
    config_class: Any = transformers.Qwen3MoeConfig if moe else transformers.Qwen3Config
    network: Any = transformers.Qwen3MoeForCausalLM if moe else transformers.Qwen3ForCausalLM
    theirs = config_class.from_dict(config.to_dict())
    theirs._attn_implementation = "sdpa"
    with torch.device(model.device):
        twin = network(theirs).to(model.dtype).eval()
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()} | (tensors or {})
    views = official_views(config, ours)
    missing = []
    for name, target in twin.state_dict().items():
        source = views.get(name)
        if source is None:  # transformers 5 stacks the experts, as we do
            source = ours.get(name.removeprefix("model."))
        if source is None and name == "lm_head.weight":
            continue  # tied
        if source is None or source.shape != target.shape:
            missing.append(name)
            continue
        target.copy_(source)
    assert not missing, missing
    return twin


@dataclass
class Containment:
    """What a comparison found: prompts, those with a differing token, ranks of the tokens at the first difference, and
    the mean |difference| of the chosen tokens' log-probabilities up to it."""

    prompts: int = 0
    tokens: int = 0
    differing: int = 0
    ranks: list[tuple[int, int]] = field(default_factory=list)
    logprob_error: float = 0.0

    @property
    def worst(self) -> int:
        """The largest rank, from 1: within the top 5 if it is at most 5."""
        return max((rank for pair in self.ranks for rank in pair), default=1)


@torch.inference_mode()
def containment(engine: Engine, twin: Any, prompts: int, tokens: int, seed: int = 0, longest: int = 300) -> Containment:
    """`prompts` random prompts of 4 to `longest` tokens, `tokens` greedy tokens each, all in one crowd.

    transformers then reads each whole sequence once. Up to the first place where its best token is another than ours
    both said the same, so there, and only there, the two are compared: ours must be among its best, its among ours.
    """
    rng = random.Random(seed)
    vocab = engine.model.config.vocab_size
    requests = [
        Request(
            [rng.randrange(vocab) for _ in range(rng.randint(4, longest))],
            replace(GREEDY, max_tokens=tokens, logprobs=20, ignore_eos=True),
        )
        for _ in range(prompts)
    ]
    run(engine, requests)
    found, errors = Containment(prompts=prompts, tokens=tokens), []
    for request in requests:
        output, start = request.output, len(request.ids)
        assert len(output) == len(request.logprobs) == tokens
        ids = torch.tensor([request.ids + output[:-1]], device=engine.model.device)
        logits = twin(ids, use_cache=False).logits[0, start - 1 :].float()
        theirs = logits.argmax(-1).tolist()
        first = next((i for i in range(tokens) if theirs[i] != output[i]), tokens)
        chosen = torch.tensor(output, device=logits.device).unsqueeze(1)
        expected = logits.log_softmax(-1).gather(1, chosen)[:first, 0].tolist()
        errors += [abs(a - b.logprob) for a, b in zip(expected, request.logprobs, strict=False)]
        if first == tokens:
            continue
        found.differing += 1
        row = logits[first]
        rank_of_ours = 1 + int((row > row[output[first]]).sum())
        listed = [token for token, _ in request.logprobs[first].top]
        rank_of_theirs = listed.index(theirs[first]) + 1 if theirs[first] in listed else len(listed) + 1
        found.ranks.append((rank_of_ours, rank_of_theirs))
    found.logprob_error = sum(errors) / max(1, len(errors))
    return found


# Counting

COUNTS = range(100)
LENGTHS = range(8, 61)
KNOWN = 3  # numbers the prompt gives at least: from there on the model's next token leads by more than 3 nats


class Counter:
    """The embedded model and what it must say. variety: how many different counts are asked for."""

    def __init__(self, device: str, variety: int = 2000) -> None:
        folder = resolve(None).path
        self.model = load_model(folder, device)
        self.tokenizer = Tokenizer.from_pretrained(folder)
        pairs = [(first, length) for first in COUNTS for length in LENGTHS]
        self.pairs = random.Random(0).sample(pairs, variety)
        self._made: dict[tuple[int, int], tuple[list[int], list[list[int]]]] = {}

    def case(self, rng: random.Random, most: int) -> tuple[list[int], list[int]]:
        """(prompt ids, the ids that must follow: up to `most`): a count whose first numbers are given."""
        first, length = rng.choice(self.pairs)
        if (first, length) not in self._made:
            message = [{"role": "user", "content": f"Count from {first} to {first + length - 1}."}]
            asked = encode(message, tokenizer=self.tokenizer, add_generation_prompt=True, enable_thinking=False)
            pieces = [("" if i == 0 else ", ") + str(first + i) for i in range(length)]
            self._made[first, length] = list(asked.ids), [self.tokenizer.encode(piece) for piece in pieces]
        ids, pieces = self._made[first, length]
        given = rng.randint(KNOWN, length - 2)
        prompt = ids + [i for piece in pieces[:given] for i in piece]
        rest = [i for piece in pieces[given:] for i in piece]
        return prompt, rest[: rng.randint(1, most)]


@dataclass
class Counts:
    """What a counting test saw. broken: (prompt, expected, output) of the first few that went wrong."""

    requests: int = 0
    cancelled: int = 0
    preempted: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    broken: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)


def counting(
    engine: Engine, counter: Counter, requests: int, *, seed: int = 0, most: int = 40, crowd: int = 96,
    cancel: float = 0.3, streams: float = 0.2, say: Callable[[str], None] = lambda line: None,
) -> Counts:  # fmt: skip
    """`requests` counts of random length, arriving at random, about `crowd` at a time; `cancel` of them are cancelled
    at a random moment (before, during or after their run), `streams` are followed token by token by a TokenStream, some
    have priority. Every token that came out must be the right one, and of those not cancelled all must have come."""
    rng = random.Random(seed)
    found = Counts()
    live: list[tuple[Request, list[int]]] = []
    doomed: list[tuple[int, Request]] = []
    cancelled: set[int] = set()
    step = 0
    with watch_preemptions() as preempted:
        while found.requests < requests or engine.has_work:
            arrivals = rng.choice((0, 1, 1, 2, crowd // 8)) if len(live) < crowd else 0
            for _ in range(min(arrivals, requests - found.requests)):
                prompt, expected = counter.case(rng, most)
                stream = TokenStream(counter.tokenizer, prompt) if rng.random() < streams else None
                params = replace(GREEDY, max_tokens=len(expected))
                request = Request(prompt, params, stream, priority=-1 if rng.random() < 0.1 else 0)
                engine.add(request)
                found.requests += 1
                live.append((request, expected))
                if rng.random() < cancel:
                    doomed.append((step + rng.choice((0, 0, 1, 2, rng.randint(1, 2 * most))), request))
            for due, request in [pair for pair in doomed if pair[0] <= step]:
                doomed.remove((due, request))
                engine.cancel(request.id)
                engine.cancel(request.id)
                cancelled.add(request.id)
            engine.advance()
            step += 1
            for pair in [pair for pair in live if pair[0].done]:
                live.remove(pair)
                request, expected = pair
                found.cached_tokens += request.cached_tokens
                found.tokens += len(request.output)
                found.cancelled += request.finish_reason == "cancelled"
                whole = request.finish_reason != "cancelled"
                if whole and request.id not in cancelled and request.error is not None:
                    raise request.error
                right = request.output == expected if whole else request.output == expected[: len(request.output)]
                if not right and len(found.broken) < 20:
                    found.broken.append((request.ids, expected, list(request.output)))
            if step % 2000 == 0:
                say(f"counting: {found.requests:,} requests, {len(found.broken)} broken")
        found.preempted = len(preempted)
    assert not live
    return found


# Everything comes back


def mixed(engine: Engine, requests: int, *, seed: int = 0, crowd: int = 64, longest: int = 60) -> dict[str, int]:
    """`requests` of every kind, 30 % cancelled; finish reason -> count. The caller looks at the pool afterwards."""
    rng = random.Random(seed)
    vocab = engine.vocab_size
    reasons: dict[str, int] = {}
    live: list[Request] = []
    doomed: list[tuple[int, Request]] = []
    prefixes = [[rng.randrange(vocab) for _ in range(longest)] for _ in range(8)]
    made = step = 0
    while made < requests or engine.has_work:
        for _ in range(rng.choice((0, 1, 2, 4)) if len(live) < crowd else 0):
            if made >= requests:
                break
            prompt = rng.choice(prefixes)[: rng.randint(1, longest)] + [
                rng.randrange(vocab) for _ in range(rng.randint(0, longest))
            ]
            params = SamplingParams(
                max_tokens=rng.randint(1, longest),
                temperature=rng.choice((0.0, 0.6, 1.0)),
                top_p=rng.choice((1.0, 0.9)),
                top_k=rng.choice((0, 1, 20)),
                min_p=rng.choice((0.0, 0.05)),
                presence_penalty=rng.choice((0.0, 0.0, 0.5)),
                repetition_penalty=rng.choice((1.0, 1.0, 1.1)),
                logprobs=rng.choice((None, None, None, 0, 5)),
                prompt_logprobs=rng.choice((None,) * 9 + (1,)),
                stop_token_ids=[rng.randrange(vocab)] if rng.random() < 0.3 else None,
                seed=rng.choice((None, rng.randrange(1000))),
                ignore_eos=rng.random() < 0.5,
            )
            group = [
                Request(list(prompt), params, index=i, priority=rng.choice((0, 0, 1)), tenant=rng.choice("ab"))
                for i in range(min(rng.choice((1, 1, 1, 3)), requests - made))
            ]
            for request in group:
                request.tenant, request.priority = group[0].tenant, group[0].priority
            engine.add_samples(group)
            made += len(group)
            live += group
            doomed += [(step + rng.randint(0, longest), r) for r in group if rng.random() < 0.3]
        for due, request in [pair for pair in doomed if pair[0] <= step]:
            doomed.remove((due, request))
            engine.cancel(request.id)
        engine.advance()
        step += 1
        for request in [request for request in live if request.done]:
            live.remove(request)
            reason = request.finish_reason or ""
            if reason == "error" and request.error is not None:
                raise request.error
            reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def check_empty(engine: Engine) -> None:
    """Nothing runs, so no block is held and the pool's sum is whole."""
    pool = engine.scheduler.pool
    assert engine.used_blocks == 0
    assert pool.free + pool.cached + pool.used == engine.blocks - 1
    assert engine.running == engine.queued == 0


# The same bits in six situations


def invariance(
    model: Qwen3, *, prompt: int = 70, tokens: int = 24, crowd: int = 12, seed: int = 0, **options: Any
) -> dict[str, bool]:
    """situation -> whether tokens and log-probabilities equal, bit for bit, those of the request alone.

    The situations: alone again, in a crowd, at another position of the batch, chunked, cached, preempted. options: of
    every Engine. Raises AssertionError if a situation did not come about.
    """
    rng = random.Random(seed)
    vocab = model.config.vocab_size
    ids = [rng.randrange(vocab) for _ in range(prompt)]
    params = SamplingParams(
        max_tokens=tokens, temperature=0.8, top_p=0.95, top_k=0, min_p=0.0, seed=7, logprobs=3, ignore_eos=True
    )

    def subject() -> Request:
        return Request(list(ids), params)

    def others(count: int, length: int = 50, output: int = 0, priority: int = 0) -> list[Request]:
        return [
            Request(
                [rng.randrange(vocab) for _ in range(rng.randint(2, length))],
                replace(params, seed=i, logprobs=None, max_tokens=output or rng.randint(2, 2 * tokens)),
                priority=priority,
            )
            for i in range(count)
        ]

    def engine(**more: Any) -> Engine:
        return Engine(model, **({"max_batch": 2 * crowd + 2, "max_len": 4 * (prompt + tokens)} | options | more))

    def said(request: Request) -> tuple[list[int], list[Any]]:
        assert request.error is None
        assert len(request.output) == tokens
        return list(request.output), [(p.id, p.logprob, p.top) for p in request.logprobs]

    def alone(used: Engine) -> Request:
        request = subject()
        run(used, [request])
        return request

    plain = engine(invariant=True, prefix_cache=False)
    wanted = said(alone(plain))
    found = {"alone": said(alone(plain)) == wanted}
    request = subject()
    run(plain, [request, *others(crowd)])
    found["in a crowd"] = said(request) == wanted
    request = subject()
    before = others(crowd, output=3 * tokens)
    for other in before:
        plain.add(other)
    for _ in range(5):
        plain.advance()
    run(plain, [*others(crowd // 2), request])
    found["at another position"] = said(request) == wanted
    plain.close()
    chunked = engine(invariant=True, prefix_cache=False, prefill_chunk=24)
    request = subject()
    run(chunked, [request, *others(3)])
    found["chunked"] = said(request) == wanted
    chunked.close()
    cached = engine(invariant=True, prefix_cache=True)
    alone(cached)
    request = alone(cached)
    assert request.cached_tokens > 0
    found["cached"] = said(request) == wanted
    cached.close()
    small = engine(invariant=True, prefix_cache=False, blocks=1 + -(-(prompt + tokens) // 16) + 4, max_batch=4)
    request = subject()
    with watch_preemptions() as preempted:
        small.add(request)
        for _ in range(tokens // 2):
            small.advance()
        run(small, others(2, length=prompt, output=prompt // 2, priority=-1))
    assert request.id in preempted, "the request was not preempted"
    found["preempted"] = said(request) == wanted
    small.close()
    return found
