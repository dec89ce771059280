"""What an answer is worth: verifiers, form, language, tool calls, programs, reward models; and sums of these.

A reward is any function of an `Answer`. A problem is a `Question` (see `cold_start`), whose `check` judges the visible
text: a task's, or one of a JSONL file, by `load_problems`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3.chat import Message
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.sandbox import check_calls, check_output
from qwen3.tasks.tools import check_tool_call
from qwen3.tokenizer import Tokenizer
from qwen3.train.cold_start import Question
from qwen3.train.forward import packed_hidden, to_tensors
from qwen3.train.packing import pack
from qwen3.train.rollout import Rollout


@dataclass(frozen=True, eq=False)
class Answer:
    """What is judged: the question, the answer in parts, and the tokens it came as."""

    question: Question
    message: Message
    rollout: Rollout
    tokenizer: Tokenizer


Reward = Callable[[Answer], float]


def total(rewards: Mapping[str, tuple[Reward, float]], answer: Answer) -> tuple[float, dict[str, float]]:
    """(the weighted sum, each reward by name before its weight). Rewards of weight 0 are measured, too."""
    parts = {name: float(reward(answer)) for name, (reward, _) in rewards.items()}
    return sum(parts[name] * weight for name, (_, weight) in rewards.items()), parts


# Rewards


def verified(answer: Answer) -> float:
    """1 where the question's verifier accepts the visible text."""
    return float(answer.question.check(answer.message.content))


def well_formed(answer: Answer) -> float:
    """1 for an answer that ended by itself, with visible text or a tool call, whose think tags are where they belong:
    one closed block before it where the model was to think, none where it was not."""
    control, ids = answer.tokenizer.control, answer.rollout.output
    opened, closed = ids.count(control.think), ids.count(control.end_think)
    tags = opened <= 1 and closed == 1 if answer.rollout.thinking else not opened and not closed
    said = bool(answer.message.content.strip() or answer.message.tool_calls)
    return float(tags and said and answer.rollout.finish == "stop")


def scripts(text: str) -> Counter[str]:
    """Letters by script, as the first word of their Unicode names has it; han and kana are one: Japanese mixes them."""
    found: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            found[_script(letter)] += count
    return found


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name


def one_language(answer: Answer) -> float:
    """Share of the letters of thought and answer that are of the script most of the question is in; 1 without any."""
    asked = scripts(answer.question.prompt)
    written = scripts(answer.message.reasoning_content + answer.message.content)
    if not asked or not written:
        return 1.0
    return written[asked.most_common(1)[0][0]] / written.total()


def tool_calls(
    reference: Callable[[Question], tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
) -> Reward:
    """1 for the calls that the last of the reference's messages has, among its tools. reference: (messages, tools) of a
    question; see `tasks.tools.check_tool_call`."""
    return lambda answer: float(check_tool_call(*reference(answer.question), answer.message.to_dict()))


class RewardModel:
    """A network with a head of one row: its value at the last token of prompt and answer.

    head: [h], in the network's hidden width. It must have the policy's tokenizer. Raises UsageError for another shape.
    """

    def __init__(self, model: Qwen3, head: Tensor) -> None:
        if head.shape != (model.config.hidden_size,):
            raise UsageError(f"the reward head has shape {list(head.shape)}; [{model.config.hidden_size}] fits")
        self.model, self.head = model, head.to(model.device, torch.float32)

    @torch.no_grad()
    def __call__(self, answer: Answer) -> float:
        sample = answer.rollout.sample
        batch, _ = pack([sample], 1, len(sample), answer.tokenizer.control.endoftext)
        hidden = packed_hidden(self.model, to_tensors(batch, self.model.device))
        return float(hidden[0, -1].float() @ self.head)


# Verifiers of text


def same_answer(expected: str, text: str) -> bool:
    r"""Whether the last \boxed{…}, else the last line's end, is `expected`, spaces, case and a final dot apart."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    lines = text.strip().splitlines()
    found, wanted = (_plain(t) for t in (boxed[-1] if boxed else lines[-1] if lines else "", expected))
    at = found.rfind(wanted)
    return (
        bool(wanted)
        and at + len(wanted) == len(found)
        and at >= 0
        and not (at and found[at - 1].isalnum() and wanted[0].isalnum())
    )


def _plain(text: str) -> str:
    return " ".join(text.replace("$", "").replace("*", "").lower().split()).rstrip(". ")


def same_value(expected: str, text: str) -> bool:
    """Whether the text's mathematical value is `expected`'s, by the package math-verify. Raises UsageError without."""
    checker = _optional("math_verify", "math-verify")
    return bool(checker.verify(checker.parse(expected), checker.parse(text)))


def program_of(text: str) -> str:
    """The last fenced block of a text, all of it where there is none."""
    blocks = re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL)
    return blocks[-1] if blocks else text


def runs_right(cases: Sequence[tuple[str, str]], text: str) -> bool:
    """Whether its program prints what it is to, for each (stdin, expected)."""
    return all(check_output(program_of(text), stdin, expected).passed for stdin, expected in cases)


def passes(entry: str, tests: str, text: str) -> bool:
    """Whether what its program defines as `entry` passes the tests."""
    return check_calls(program_of(text), entry, tests).passed


def _optional(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"this reward needs the package {package}: pip install {package}") from None


# Problems


def gym_problems(dataset: str, count: int, seed: int = 0, **config: Any) -> list[Question]:
    """Problems of the package reasoning-gym with its own verifiers. Raises UsageError without the package."""
    made = _optional("reasoning_gym", "reasoning-gym").create_dataset(dataset, size=count, seed=seed, **config)

    def question(number: int, entry: Any) -> Question:
        right = lambda text: made.score_answer(answer=text.strip(), entry=entry) >= 1.0  # noqa: E731
        return Question(f"{dataset}/{seed}/{number}", entry["question"], right, dataset)

    return [question(number, entry) for number, entry in enumerate(made)]


def load_problems(path: str | Path) -> list[Question]:
    """A JSONL file: one object a line with "prompt", and how it is judged: "answer" (a text; with "math": true by
    value), "cases" ([[stdin, expected], …]) or "entry" and "tests" for programs; "key" and "family" as you like.

    Raises UsageError with file, line and field for what is wrong, and where a key comes twice.
    """
    found: dict[str, Question] = {}
    for where, row in _rows(Path(path)):
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError(f"{where}: prompt must be a text")
        question = Question(str(row.get("key", where)), prompt, _check(row, where), str(row.get("family", "problems")))
        if question.key in found:
            raise UsageError(f"{where}: the key {question.key!r} comes twice")
        found[question.key] = question
    if not found:
        raise UsageError(f"{path} has no problems")
    return list(found.values())


_FIELDS = {"prompt", "key", "family", "answer", "math", "cases", "entry", "tests"}


def _check(row: Mapping[str, Any], where: str) -> Callable[[str], bool]:
    if unknown := sorted(set(row) - _FIELDS):
        raise UsageError(f"{where}: {unknown[0]} is no field; there are {', '.join(sorted(_FIELDS))}")
    kinds = [name for name in ("answer", "cases", "tests") if name in row]
    if len(kinds) != 1:
        raise UsageError(f"{where}: give one of answer, cases, or entry and tests, not {' and '.join(kinds) or 'none'}")
    if kinds == ["answer"]:
        if not isinstance(row["answer"], (str, int, float)) or not str(row["answer"]).strip():
            raise UsageError(f"{where}: answer must be a text or a number")
        if row.get("math"):
            _optional("math_verify", "math-verify")
        return partial(same_value if row.get("math") else same_answer, str(row["answer"]))
    if kinds == ["cases"]:
        pairs = row["cases"]
        good = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
        )
        if not good or not pairs:
            raise UsageError(f"{where}: cases must be a list of [stdin, expected], both texts")
        return partial(runs_right, [(stdin, expected) for stdin, expected in pairs])
    if not isinstance(row["tests"], str) or not isinstance(row.get("entry"), str):
        raise UsageError(f"{where}: entry and tests must be texts: a function's name, and Python that tests it")
    return partial(passes, row["entry"], row["tests"])


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: no JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where}: must be an object")
        yield where, row


def mean_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each reward over answers, as "reward/NAME"."""
    return {f"reward/{name}": float(np.mean([part[name] for part in parts])) for name in (parts[0] if parts else ())}
