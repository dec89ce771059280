"""The measurements of thinking: their arithmetic, what they catch, and each of them in small on the embedded model."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qwen3 import LLM
from qwen3.chat.events import Finish, TextDelta, ThinkingReport, Usage, fold
from qwen3.chat.stream import AFTER_THINK, CLOSE_THINK, EARLY_STOP
from qwen3.cli.main import main
from qwen3.errors import UsageError
from qwen3.evaluate import thinking, thinking_auto, thinking_live, thinking_rules
from qwen3.evaluate.crowd import Case, Progress
from qwen3.evaluate.schemas import SCHEMAS
from qwen3.tasks import CONTROL_FAMILIES, STEP_FAMILIES, is_eval
from tests.cli.conftest import EMBEDDED
from tests.evaluate.test_page import tool

needs_model = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded model is not in this checkout")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    if not EMBEDDED.is_dir():
        pytest.skip("the embedded model is not in this checkout")
    with LLM(device="cpu", prefill_ahead=False) as llm:
        yield llm


# Arithmetic


def test_intervals_are_wilsons() -> None:
    assert thinking.wilson(5, 10) == pytest.approx((23.66, 76.34), abs=0.01)
    assert thinking.wilson(0, 20) == pytest.approx((0.0, 16.11), abs=0.01)
    assert thinking.wilson(20, 20) == pytest.approx((83.89, 100.0), abs=0.01)
    assert thinking.wilson(0, 0) == (0.0, 100.0)
    low, high = thinking.wilson(1000, 2000)
    assert high - low < 5  # half of it is what the curve promises


def test_a_curve_rises_if_no_interval_lies_below_an_earlier_one() -> None:
    def rises(*intervals: tuple[float, float]) -> bool:
        return thinking.rises([{"interval": interval} for interval in intervals])

    assert rises((40, 44), (38, 41), (60, 64))
    assert not rises((40, 44), (35, 39), (60, 64))
    assert not rises((40, 44), (60, 64), (43, 47), (61, 65))


def test_budgets_that_are_worse_than_no_thinking_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter((45, 20, 44, 90))
    monkeypatch.setattr(thinking, "answer_all", lambda *given: [])
    monkeypatch.setattr(thinking, "_point", lambda budget, *given: thinking_point(budget, next(shares)))
    llm: Any = SimpleNamespace(mode="hybrid", resolved=None, device=torch.device("cpu"))
    found = thinking.curve(llm, "chain", (0, 4, 32, None), 1)
    assert found["below_none"] == [4]
    assert found["monotone"]
    assert found["rise"] == 45
    assert found["half_width"] == 2


def thinking_point(budget: int | None, percent: float) -> dict[str, Any]:
    return {"budget": budget, "percent": percent, "interval": (percent - 2, percent + 2)}


def test_budgets_and_suites_by_name() -> None:
    assert thinking.budgets_of("64,none, 0,16,16") == (0, 16, 64, None)
    for text in ("", "-1", "1.5", "many", "8,,9"):
        with pytest.raises(UsageError, match="whole numbers or 'none'"):
            thinking.budgets_of(text)
    assert thinking.families_of("tasks") == (*STEP_FAMILIES, *CONTROL_FAMILIES)
    assert thinking.families_of("chain, sort") == ("chain", "sort")
    with pytest.raises(UsageError, match="'chess'; take tasks, steps, controls, chain"):
        thinking.families_of("chain,chess")


@pytest.mark.parametrize("seed", [1, 77, 775981])
def test_problems_are_held_out_in_equal_shares_and_always_the_same(seed: int) -> None:
    problems = thinking.held_out(("chain", "sort", "gcd"), 50, seed)
    assert problems == thinking.held_out(("chain", "sort", "gcd"), 50, seed)
    assert all(is_eval(problem.key) for problem in problems)
    counts = [sum(problem.family == name for problem in problems) for name in ("chain", "sort", "gcd")]
    assert sorted(counts) == [16, 17, 17]
    assert len({problem.key for problem in problems}) == 50
    assert {problem.level for problem in problems if problem.family == "chain"} == {1, 2, 3, 4, 5}
    assert not any(is_eval(problem.key) for problem in thinking.held_out(("chain",), 9, seed, split="train"))


def test_progress_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    times, lines = iter((0.0, 2.0, 6.0, 8.0, 100.0)), list[str]()
    monkeypatch.setattr("qwen3.evaluate.crowd.time", SimpleNamespace(monotonic=lambda: next(times)))
    progress = Progress(10, lines.append)
    for _ in range(4):
        progress.add(2.5, "this")
    assert lines == ["this: 50%, 6 s left"]


# Budgets, counted again


def faults(tokenizer: Any, ids: list[int], budget: int | None, content: str = "", **report: Any) -> list[str]:
    """Of an output with this report."""
    given = {"mode": "on", "budget": budget, "used": 0, "forced_tokens": 0, "ended_by": None} | report
    used = given["used"]
    finish = Finish("stop", Usage(10, 0, used, report.pop("total", len(ids))), ThinkingReport(**given))
    request: Any = SimpleNamespace(output=ids, error=None)
    case = Case(request, {}, budget)
    return thinking_rules.faults(case, fold([TextDelta(content), finish]), tokenizer)


@needs_model
def test_what_breaks_a_rule_is_found(llm: LLM) -> None:
    tok = llm.tokenizer
    opening, early, answer = tok.encode("<think>\n"), tok.encode(EARLY_STOP), tok.encode("It is 4.<|im_end|>")
    thought = tok.encode("2 and 2 are four, I am sure")
    ids = [*opening, *thought, *early, *answer]
    good = {"used": len(thought), "forced_tokens": len(opening) + len(early), "ended_by": "budget"}
    assert faults(tok, ids, len(thought), "It is 4.", **good) == []
    assert "the budget is 3" in " ".join(faults(tok, ids, 3, "It is 4.", **good))
    assert "closed by the budget at" in faults(tok, ids, len(thought) + 1, "It is 4.", **good)[0]
    assert "word for word" in faults(tok, [*ids[:-9], *answer], len(thought), "It is 4.", **good)[0]
    assert "no answer follows" in faults(tok, ids, len(thought), " ", **good)[0]
    assert "in the content" in faults(tok, ids, len(thought), "</think> 4", **good)[0]
    for name, change in (("used", {"used": 3}), ("forced_tokens", {"forced_tokens": 4})):
        assert f"{name} is {change[name]}" in " ".join(faults(tok, ids, len(thought), "It is 4.", **good | change))
    call = [*opening, tok.control.tool_call, *early, *answer]
    assert faults(tok, call, 1, "4", **good | {"used": 1}) == ["a tool call inside thinking"]
    assert faults(tok, ids, 0, "4") == ["a think block where there must be none"]
    natural = [*opening, *thought, *tok.encode(CLOSE_THINK), *answer]
    newline = len(tok.encode(CLOSE_THINK.partition("</think>")[0]))
    said = {"used": len(thought) + newline, "forced_tokens": len(opening), "ended_by": "natural"}
    assert faults(tok, natural, None, "It is 4.", **said) == []
    tried = {"used": len(thought), "forced_tokens": len(opening) + len(tok.encode(CLOSE_THINK)), "ended_by": "eos"}
    assert faults(tok, natural, None, "It is 4.", **tried) == []
    assert "was ended by time" in faults(tok, natural, None, "It is 4.", **tried | {"ended_by": "time"})[0]
    found = thinking_rules.account(natural, tok, "natural", thinks=True, gap=True)
    assert found.forced == len(opening) + len(tok.encode(AFTER_THINK))


def test_answers_are_judged_by_the_other_package() -> None:
    check = tool("thinking_campaign").validator()
    assert check is not None
    answer = {"schema": "boolean", "mode": "on", "resolved": "on", "finish_reason": "stop", "error": None}
    answers = [
        answer | {"content": "true"},
        answer | {"content": "7"},
        answer | {"content": "tru"},
        answer | {"content": "true", "finish_reason": "length"},
        answer | {"content": "", "error": "broken"},
        answer | {"schema": "date", "content": '"2026-02-30"'},
    ]
    found = thinking_rules.judge({"what": "x", "answers": answers}, check)
    assert (found["valid"], found["of"]) == (1, 6)
    assert [line["why"].split()[0] for line in found["failures"]] == [
        "7",
        "Expecting",
        "ended",
        "broken",
        "'2026-02-30'",
    ]
    assert thinking_rules.judge({"answers": answers}, None)["valid"] is None
    assert len(SCHEMAS) == 20


# Auto


def runs(**changes: Any) -> thinking_auto.Runs:
    """Four problems: thinking helps the first two, does nothing for the third and is in vain for the last."""
    base = thinking_auto.Runs(
        np.full(4, 0.25),
        {"always": np.array([1.0, 1, 1, 0]), "never": np.array([0.0, 0, 1, 0]), "auto": np.array([1.0, 0, 1, 0])},
        {"always": np.array([100.0, 200, 50, 50]), "never": np.full(4, 10.0), "auto": np.array([110.0, 10, 10, 70])},
        {"always": np.array([90.0, 190, 40, 40]), "never": np.zeros(4), "auto": np.array([100.0, 0, 0, 60])},
        np.array([1.0, 0, 0, 1]),
    )
    return dataclasses.replace(base, **changes)


def test_figures_of_auto() -> None:
    found = runs().figures()
    assert found["of_always_accuracy"] == pytest.approx(2 / 3)
    assert found["of_always_tokens"] == pytest.approx(200 / 400)
    assert found["of_always_extra"] == pytest.approx(160 / 360)
    assert found["thinking_rate"] == 0.5
    assert found["accuracy_random"] == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)
    assert found["above_random"] == pytest.approx(0.0)
    weighted = runs(weight=np.array([0.5, 0, 0.5, 0])).figures()
    assert weighted["of_always_tokens"] == pytest.approx(120 / 150)
    spread = thinking_auto.summary(runs())["intervals"]["of_always_tokens"]
    assert spread[0] < 0.5 < spread[1]


def test_floors_of_auto_take_what_gains_most_for_its_tokens() -> None:
    items = [thinking_auto.Item("chain", level, "", bool, 1) for level in (1, 1, 2, 2)]
    found = thinking_auto.floors(items, runs())
    missing = 0.95 * 3 - 1  # problems to be won, of two that can be
    assert found["outcomes_tokens"] == pytest.approx((40 + 90 + (missing - 1) * 190) / 400)
    assert found["levels_tokens"] == pytest.approx((40 + missing / 2 * 280) / 400)


def test_each_half_and_each_family_of_a_half_counts_the_same() -> None:
    items = [thinking_auto.Item(name, 1, "", bool, 1) for name in ("chain", "chain", "gcd", "sort", "talk", "talk")]
    assert thinking_auto.weights(items, [True] * 6).tolist() == [0.125, 0.125, 0.25, 0.25, 0.125, 0.125]
    assert thinking_auto.weights(items, [True, True, False, True, False, False]).tolist() == [0.25, 0.25, 0, 0.5, 0, 0]


# In small


@needs_model
def test_the_command_shows_a_curve_that_rises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "curve.json"
    arguments = ["curve", "chain,boolean", "--budgets", "0,none", "--problems", "12", "--device", "cpu"]
    assert main([*arguments, "--out", str(file)]) == 0
    shown = capsys.readouterr()
    assert "12 held-out problems each" in shown.out
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [point["budget"] for point in found["points"]] == [0, None]
    assert found["rise"] >= 30
    assert found["monotone"]
    assert found["machine"]["device"] == "cpu"
    assert found["points"][0]["most_used"] == 0
    assert found["below_none"] == []
    assert main(["curve", "chess", "--device", "cpu"]) == 2
    assert main(["curve", "--budgets", "-4", "--device", "cpu"]) == 2
    assert main(["curve", "--out", str(tmp_path / "none" / "x.json"), "--device", "cpu"]) == 2


@needs_model
def test_budgets_are_kept_in_every_combination(llm: LLM) -> None:
    found = thinking_rules.budgets(llm, requests=24, seed=random.randrange(10**6))
    assert found["violations"] == 0, found["examples"]
    assert {group["speculation"] for group in found["groups"]} == {None, "ngram"}
    assert [group["crowd"] for group in found["groups"][:3]] == [1, 32, 32]
    assert sum(group["requests"] for group in found["groups"]) == found["requests"] >= 24


@needs_model
def test_answers_follow_their_schemas(llm: LLM) -> None:
    check = tool("thinking_campaign").validator()
    found = thinking_rules.judge(thinking_rules.schema_answers(llm, 12, seed=random.randrange(10**6)), check)
    assert found["valid"] == found["of"] == 12, found["failures"]


@needs_model
def test_auto_stands_beside_always_and_never(llm: LLM) -> None:
    found = thinking_auto.auto(llm, 26)
    short = found["short"]
    assert found["window"] <= 32
    assert short["accuracy_never"] <= short["accuracy_auto"] <= 1
    assert 0 < short["thinking_rate"] < 1
    assert short["extra_never"] == 0
    assert set(found["families"]) >= {*STEP_FAMILIES, "talk"}
    at = next(step for step in short["sweep"] if step["threshold"] == found["threshold"])
    assert at["thinking_rate"] == pytest.approx(short["thinking_rate"], abs=0.15)  # other noise, the same rule


@needs_model
def test_second_turns_and_limits_in_small(llm: LLM) -> None:
    found = thinking_live.second_turns(llm, conversations=1, thought=24, crowd=2, pause=0.2, busy=40)
    assert len(found["runs"]) == 4
    for run in found["runs"]:
        for kind in run["kinds"].values():
            assert kind["same_bits" if run["invariant"] else "same_tokens"] == kind["of"]
            assert run["loaded"] or kind["kept"] == kind["of"]
    limits = thinking_live.time_limits(llm, 5, (1.5, 2.0), crowd=4, max_batch=3)
    assert limits["of"] == 5
    assert limits["in_time"] >= 4
