"""Models for the engine's tests: a random Qwen3, and one that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen3.chat.policy import ThinkingPolicy
from qwen3.chat.stream import TokenStream
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.kernels import StepPlan
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from tests.fixtures import random_model, tiny_config, tiny_tokenizer


class ScriptedModel:
    """Says `script[i]` after position i: as a network that ignores what it reads. Counts the tokens it is fed."""

    def __init__(self, script: list[int], **changes: Any) -> None:
        self.config = tiny_config(**changes)
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.script = torch.tensor(script)
        self.embedding = torch.zeros(self.config.vocab_size, 1)
        self.fed: list[list[tuple[int, list[int]]]] = []  # a step's rows: (first position, ids)
        self.trouble: Callable[[torch.Tensor], None] | None = None

    def stepper(self, **_: Any) -> ScriptedModel:
        return self

    def modules(self) -> list[Any]:
        return []

    def cos_sin(self, length: int) -> torch.Tensor:
        return torch.zeros(length, self.config.head_dim)

    def hidden(self, ids: torch.Tensor, plan: StepPlan, k_cache: Any, v_cache: Any, **_: Any) -> torch.Tensor:
        if self.trouble is not None:
            self.trouble(plan.positions)
        starts = plan.starts.tolist()
        spans = [slice(a, b) for a, b in pairwise(starts)]
        self.fed.append([(int(plan.positions[span][0]), ids[span].tolist()) for span in spans])
        return plan.positions.unsqueeze(-1).float()

    def logits(self, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
        ids = self.script[hidden[..., 0].long().clamp(0, len(self.script) - 1)]
        return torch.nn.functional.one_hot(ids, self.config.vocab_size).float() * 50


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer(tiny_config())


@pytest.fixture(scope="session")
def model() -> Qwen3:
    return random_model(tiny_config())


@pytest.fixture
def scripted() -> type[ScriptedModel]:
    return ScriptedModel


@pytest.fixture
def run(tokenizer: Tokenizer) -> Any:
    """run(model, prompt ids, params, …) -> the finished Requests of one or several prompts."""

    def make(ids: list[int], params: SamplingParams, policy: ThinkingPolicy | None = None, index: int = 0) -> Request:
        params = params.resolved("thinking")
        stream = TokenStream(
            tokenizer,
            ids,
            policy,
            stop=params.stops,
            stop_token_ids=params.stop_ids,
            ignore_eos=params.ignore_eos,
            min_tokens=params.min_tokens,
        )
        return Request(list(ids), params, stream, index)

    def finish(engine: Engine, *requests: Request) -> list[list[Any]]:
        events: dict[int, list[Any]] = {request.id: [] for request in requests}
        for _ in range(100_000):
            if not engine.has_work:
                return [events[request.id] for request in requests]
            for request_id, found in engine.step():
                events.setdefault(request_id, []).extend(found)
        raise AssertionError("the engine never came to an end")

    def run_one(model: Any, ids: list[int], params: SamplingParams, **more: Any) -> Request:
        policy = more.pop("policy", None)
        engine = Engine(model, tokenizer, **more)
        request = make(ids, params, policy)
        engine.add(request)
        finish(engine, request)
        return request

    return SimpleNamespace(make=make, finish=finish, one=run_one)
