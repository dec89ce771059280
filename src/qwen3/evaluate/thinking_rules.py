"""Do outputs keep the rules? Budgets counted again from the ids alone, answers held against their JSON schemas.

Nothing of what the engine reports is believed: `account` takes an output apart by its tags and by the text that may be
forced, and the report is compared with what it finds.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Form
from qwen3.chat.stream import AFTER_THINK, CLOSE_THINK, EARLY_STOP
from qwen3.engine import Engine
from qwen3.evaluate.crowd import Case, Folded, Progress, Say, asker, drive
from qwen3.evaluate.schemas import SCHEMAS
from qwen3.evaluate.thinking import Result, families_of, head, held_out
from qwen3.tasks.tools import sample_tool_dialogue
from qwen3.tokenizer import Tokenizer

BUDGETS = (0, 1, 7, 64, 512, None)
GROUPS = (("alone", 1, False, 0.04), ("crowd", 32, False, 0.76), ("preempted", 32, True, 0.2))
"""Name, requests at once, whether the KV pool is too small for them, share of the requests."""
_SMALL_POOL = 96  # blocks: 1,536 tokens for 32 samples
_UNLIMITED = 1500  # tokens of thinking that max_tokens leaves where there is no budget
_ANSWER = 400
_OPEN = "<think>\n"


# Budgets


@dataclass(frozen=True)
class Account:
    """An output taken apart: tokens sampled between the tags, tokens that must have been forced, closing tags that were
    sampled, and the ids of the answer."""

    used: int
    forced: int
    tags: int
    answer: tuple[int, ...]


def account(ids: Sequence[int], tokenizer: Tokenizer, ended_by: str | None, thinks: bool, gap: bool) -> Account:
    """ended_by: as reported, which the ids must bear out (that the model closed its thinking, or tried to end its turn,
    may look the same). thinks: the output begins with a think block that was opened for it. gap: a grammar begins
    behind the block, so that what follows a sampled closing tag is forced.

    Raises ValueError for an output that no rule allows.
    """
    control = tokenizer.control
    opening, early, close, after = (tokenizer.encode(text) for text in (_OPEN, EARLY_STOP, CLOSE_THINK, AFTER_THINK))
    if not thinks:
        if control.think in ids:
            raise ValueError("a think block where there must be none")
        return Account(0, 0, 0, tuple(ids))
    if [*ids[: len(opening)]] != opening:
        raise ValueError(f"the output does not begin with {_OPEN!r}")
    body = [*ids[len(opening) :]]
    end = body.index(control.end_think) if control.end_think in body else len(body)
    if control.tool_call in body[:end]:
        raise ValueError("a tool call inside thinking")
    if ended_by == "natural":
        behind = body[end + 1 :]
        if end == len(body) or (gap and behind[: len(after)] != after):
            raise ValueError("the thinking is not closed as a grammar's answer needs it")
        return Account(end, len(opening) + len(after) * gap, 1, tuple(behind[len(after) * gap :]))
    if ended_by in ("budget", "loop", "eos"):
        text = close if ended_by == "eos" else early
        start = end - text.index(control.end_think)
        if start < 0 or body[start : start + len(text)] != text:
            raise ValueError(f"ended by {ended_by}, but the text that closes it is not there word for word")
        return Account(start, len(opening) + len(text), 0, tuple(body[start + len(text) :]))
    if end < len(body):
        raise ValueError(f"the thinking is closed, but was ended by {ended_by}")
    return Account(len(body), len(opening), 0, ())


def faults(case: Case, result: Folded, tokenizer: Tokenizer) -> list[str]:
    """What is wrong with a result, each as one line; none if all rules are kept."""
    request, report, usage = case.request, result.thinking, result.usage
    if request.error is not None or report is None or usage is None:
        return [f"error: {request.error}"]
    thinks = case.budget != 0
    try:
        found = account(request.output, tokenizer, report.ended_by, thinks, case.schema is not None)
    except ValueError as error:
        return [str(error)]
    wrong = []
    if case.budget is not None and found.used > case.budget:
        wrong.append(f"{found.used} tokens of thinking, the budget is {case.budget}")
    if thinks and report.ended_by == "budget" and found.used != case.budget:
        wrong.append(f"closed by the budget at {found.used} of {case.budget} tokens")
    for name, reported, counted in (
        ("used", report.used, found.used),
        ("usage.reasoning_tokens", usage.reasoning_tokens, found.used),
        ("forced_tokens", report.forced_tokens, found.forced),
        ("completion_tokens", usage.completion_tokens, len(request.output)),
        ("completion_tokens", usage.completion_tokens, found.used + found.forced + found.tags + len(found.answer)),
    ):
        if reported != counted:
            wrong.append(f"{name} is {reported}, the ids say {counted}")
    # A closing tag that the model itself writes into its answer is text of that answer.
    if EARLY_STOP.strip().splitlines()[0] in result.content or (
        "</think>" in result.content and tokenizer.control.end_think not in found.answer
    ):
        wrong.append("text of the thinking in the content")
    if not result.content.strip() and not result.tool_calls:
        wrong.append(f"no answer follows (finish_reason {result.finish_reason}, {len(found.answer)} tokens)")
    if case.schema is not None and not result.tool_calls and result.finish_reason == "stop":
        try:
            json.loads(result.content)
        except ValueError:
            wrong.append("the grammar's answer is no JSON")
    return wrong


def _variety(llm: LLM, seed: int, priorities: int = 1) -> Iterator[Case]:
    """Requests of every combination of budget, streaming, grammar and tools, in turn, without end; of any of so many
    priorities: higher ones push others aside where there is no room for both."""
    ask, rng = asker(llm), random.Random(seed)
    problems = held_out(families_of("tasks"), 240, seed)
    schemas = {name: Form.of(schema=schema) for name, schema in SCHEMAS.items()}
    dialogues = []
    for _ in range(24):
        turns, functions = sample_tool_dialogue(rng, split="eval")
        at = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        dialogues.append((turns[:at], functions))
    both = [
        (turns, name, Form.of(functions, schema=SCHEMAS[name]))
        for (turns, functions), name in zip(dialogues, SCHEMAS, strict=False)
    ]
    kinds = list(itertools.product(BUDGETS, (False, True), (False, True), (False, True)))
    rng.shuffle(kinds)
    for number, (budget, streamed, grammar, tools) in enumerate(itertools.cycle(kinds)):
        name: str | None = None
        messages: Any = problems[rng.randrange(len(problems))].prompt
        form = Form()
        if tools and grammar:
            messages, name, form = both[rng.randrange(len(both))]
        elif tools:
            messages, functions = dialogues[rng.randrange(len(dialogues))]
            form = Form.of(functions)
        elif grammar:
            name = rng.choice(list(SCHEMAS))
            form = schemas[name]
        policy = ThinkingPolicy(budget=0) if budget == 0 else ThinkingPolicy("on", budget=budget)
        longest = (_UNLIMITED if budget is None else budget) + len(llm.tokenizer.encode(EARLY_STOP)) + 4 + _ANSWER
        request = ask(messages, form, policy, SamplingParams(seed=seed * 1_000_003 + number, max_tokens=longest))
        what = {"budget": budget, "streamed": streamed, "grammar": name, "tools": tools}
        request.priority = rng.randrange(priorities)
        yield Case(request, what, budget, name, streamed)


def budgets(
    base: LLM, requests: int = 20_000, seed: int = 1, say: Say = lambda line: None, command: str = ""
) -> Result:
    """Budgets under everything at once: `requests` of every combination of budget, streaming, grammar and tools, by
    engines with and without speculation, alone, in crowds, and preempted. violations must be 0.

    A thinking that the context or max_tokens ended, not the model (budget none), is no violation but counted apart in
    `cut`: nothing can follow there.
    """
    groups: list[Result] = []
    progress = Progress(requests, say)
    examples: list[Result] = []
    for speculation, (name, crowd, small, share) in itertools.product((None, "ngram"), GROUPS):
        count = max(1, round(requests * share / 2))
        pool = _SMALL_POOL if small else crowd * -(-base.context // 16) + 64
        llm = LLM.of(
            base.model, base.tokenizer, mode=base.mode, context=base.context,
            max_batch=crowd, blocks=pool, speculation=speculation,
        )  # fmt: skip
        preempted = _count_preemptions(llm.engine)
        tally: Counter[str] = Counter()
        by_end: Counter[str] = Counter()
        start = time.monotonic()
        cases = itertools.islice(_variety(llm, seed, 16 if small else 1), count)
        for case, result in drive(llm.engine, cases, crowd):
            found = faults(case, result, llm.tokenizer)
            if result.finish_reason == "length" and result.thinking and result.thinking.ended_by == "length":
                tally["cut"] += 1
                found = [line for line in found if not line.startswith("no answer follows")]
            tally["requests"] += 1
            tally["tokens"] += len(case.request.output)
            tally["violating"] += bool(found)
            tally["tool_calls"] += len(result.tool_calls)
            by_end[str(result.thinking.ended_by if result.thinking else None)] += 1
            if found and len(examples) < 40:
                text = llm.tokenizer.decode(case.request.output)
                examples.append({**case.what, "group": name, "speculation": speculation, "faults": found, "text": text})
            progress.add(1, f"{name}, speculation {speculation}")
        groups.append(
            {
                "group": name,
                "crowd": crowd,
                "speculation": speculation,
                **tally,
                "preemptions": preempted(),
                "ended_by": dict(by_end),
                "blocks_left": llm.engine.used_blocks,
                "seconds": time.monotonic() - start,
            }
        )
        say(f"{name}, speculation {speculation}: {tally['requests']} requests, {tally['violating']} violations")
        llm.close()
        seed += 1
    return {
        **head("thinking budgets under all combinations", base, command, requests=requests),
        "requests": sum(group["requests"] for group in groups),
        "violations": sum(group["violating"] for group in groups),
        "cut": sum(group.get("cut", 0) for group in groups),
        "groups": groups,
        "examples": examples,
    }


def _count_preemptions(engine: Engine) -> Callable[[], int]:
    """How many samples the engine has preempted since now."""
    plan, count = engine.scheduler.plan, 0

    def watched() -> Any:
        nonlocal count
        found = plan()
        count += 0 if found is None else len(found.preempted)
        return found

    engine.scheduler.plan = watched  # type: ignore[method-assign]
    return lambda: count


# Schemas

MODES: tuple[tuple[str, ThinkingPolicy], ...] = (
    ("off", ThinkingPolicy("off")),
    ("on", ThinkingPolicy("on", answer_reserve=1024)),
    ("on, budget 64", ThinkingPolicy("on", budget=64)),
    ("auto", ThinkingPolicy("auto", answer_reserve=1024)),
)


def schema_answers(
    llm: LLM,
    requests: int = 1000,
    seed: int = 1,
    crowd: int = 32,
    say: Say = lambda line: None,
    command: str = "",
) -> Result:
    """Answers under the twenty schemas in every mode at temperature 1, unfiltered; `judge` them afterwards."""
    ask, progress = asker(llm), Progress(requests, say)
    forms = {name: Form.of(schema=schema) for name, schema in SCHEMAS.items()}

    def cases() -> Iterator[Case]:
        pairs = itertools.cycle(itertools.product(SCHEMAS, MODES))
        for number, (name, (mode, policy)) in enumerate(itertools.islice(pairs, requests)):
            sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=seed * 1_000_003 + number)
            prompt = f"Give me some example data of this kind: {name}. Answer with JSON only."
            yield Case(ask(prompt, forms[name], policy, sampling), {"schema": name, "mode": mode}, schema=name)

    answers = []
    for case, result in drive(llm.engine, cases(), crowd):
        report = result.thinking
        answers.append(
            {
                **case.what,
                "content": result.content,
                "finish_reason": result.finish_reason,
                "thought": report.used if report else None,
                "resolved": report.mode if report else None,
                "error": None if case.request.error is None else str(case.request.error),
            }
        )
        progress.add(1, "schemas")
    return {**head("answers under JSON schemas", llm, command, requests=requests, seed=seed), "answers": answers}


def judge(result: Result, check: Callable[[str, Any], None] | None) -> Result:
    """The result with `valid`, `of` and `failures`. check(schema's name, value) raises ValueError for a value that is
    not valid (from another package than the one that wrote the grammar); None: the answers wait for a machine that has
    one. An answer that was cut is a failure."""
    if check is None:
        return {**result, "valid": None, "of": len(result["answers"])}
    failures, modes = [], Counter[str]()
    for answer in result["answers"]:
        why = answer["error"] or (None if answer["finish_reason"] == "stop" else f"ended by {answer['finish_reason']}")
        if why is None:
            try:
                check(answer["schema"], json.loads(answer["content"]))
            except ValueError as error:
                why = str(error).splitlines()[0]
        if why is not None:
            failures.append({**answer, "why": why})
        modes[f"{answer['mode']} -> {answer['resolved']}"] += 1
    kept = {key: value for key, value in result.items() if key != "answers"}
    count = len(result["answers"])
    return {**kept, "valid": count - len(failures), "of": count, "modes": dict(modes), "failures": failures}
