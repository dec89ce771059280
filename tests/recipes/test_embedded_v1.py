"""The packaged model's recipe: what is trained in its samples, its numbers, its verdict, its parts in toy size."""

from __future__ import annotations

import copy
import json
import lzma
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3.chat.stream import CLOSE_THINK, EARLY_STOP
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, UsageError
from qwen3.tasks import FAMILIES, is_eval
from qwen3.train.mixture import Mixture
from qwen3.train.start import train
from recipes.embedded_student import stages as student
from recipes.embedded_v1 import mixture, stages, text
from recipes.embedded_v1.campaign import PARTS, Campaign, run_tiny
from recipes.embedded_v1.card import card
from recipes.embedded_v1.evaluate import MODES, OLD, known_by_heart, share, verdict

TASTE = mixture.Taste(terse=0.5)


def drawn(name: str, count: int) -> list[Any]:
    return [mixture.DRAWS[name](random.Random(f"{name}/{i}"), TASTE) for i in range(count)]


@pytest.mark.parametrize("name", list(mixture.DRAWS))
def test_every_source_trains_the_answer_and_nothing_before_it(name: str) -> None:
    control = mixture.tokenizer().control
    for sample in drawn(name, 60):
        assert len(sample) <= mixture.LENGTH
        assert sample.ids.max() < 8320
        first = int(sample.trained.argmax())
        assert sample.trained[-1]
        assert sample.ids[-1] == control.im_end
        assert sample.trained[first:].all()  # one piece, at the end
        assert control.im_start in sample.ids[:first]
        assert control.im_end not in sample.ids[first:-1]


def test_cut_thoughts_train_the_right_answer_alone() -> None:
    tokenizer = mixture.tokenizer()
    forced, bare, kept = 0, 0, []
    for sample in drawn("cut", 200):
        first = int(sample.trained.argmax())
        before, answer = tokenizer.decode(sample.ids[:first].tolist()), sample.ids[first:].tolist()
        assert before.endswith((EARLY_STOP, CLOSE_THINK))
        forced += before.endswith(EARLY_STOP)
        bare += not before.endswith(EARLY_STOP)
        thought = before.split("<think>\n")[-1].removesuffix(CLOSE_THINK).removesuffix(EARLY_STOP[: -len(CLOSE_THINK)])
        kept.append(len(tokenizer.encode_plain(thought)))
        assert tokenizer.decode(answer).endswith("<|im_end|>")
        assert "<think>" not in tokenizer.decode(answer)
    assert forced > 2 * bare > 20
    assert sum(n <= 8 for n in kept) > 30  # small budgets are seen
    assert sum(n >= 64 for n in kept) > 15


def test_modes_and_switches() -> None:
    decode = mixture.tokenizer().decode
    thought = [decode(s.ids[s.trained].tolist()) for s in drawn("thinking", 100)]
    assert all(t.startswith("<think>\n") and "</think>\n\n" in t for t in thought)
    samples = drawn("direct", 100)
    assert all("think" not in decode(s.ids[s.trained].tolist()) for s in samples)
    prompts = [decode(s.ids[~s.trained].tolist()) for s in samples]
    assert all(prompt.endswith("<think>\n\n</think>\n\n") for prompt in prompts)
    assert any("/no_think" in prompt for prompt in prompts)


def test_direct_answers_are_of_easy_problems_mostly_and_of_hard_ones_too() -> None:
    rng = random.Random(1)
    levels = [mixture.problem(rng, TASTE, direct=True).level for _ in range(800)]
    assert levels.count(1) > 2 * levels.count(3) > 40
    assert max(levels) == 5


def test_only_training_problems_are_drawn_and_reworded_ones_are_the_same() -> None:
    rng = random.Random(2)
    problems = [mixture.problem(rng, TASTE, direct=False) for _ in range(1500)]
    assert not any(is_eval(p.key) for p in problems)
    assert all(FAMILIES[p.family].check(p, p.reply) for p in problems)
    assert any(" plus " in p.prompt for p in problems if p.family == "chain")
    assert {p.family for p in problems} == set(FAMILIES)


def test_json_answers_are_the_object_that_was_asked_for() -> None:
    for i in range(50):
        messages, wanted = mixture.json_messages(random.Random(i), "eval")
        assert json.loads(messages[-1]["content"]) == wanted
        assert next(iter(wanted)) in messages[0]["content"]


def test_the_models_own_answers_are_trained_as_they_were_sampled(tmp_path: Path) -> None:
    renderer, path = mixture.renderer(), tmp_path / "traces.jsonl"
    asked = {"role": "user", "content": "Take 5. 1: + 6. What?"}
    answer = {"role": "assistant", "reasoning_content": "1: 5 + 6 = 11", "content": "The answer is 11."}
    ids = renderer.turn([asked, answer], thinking=True).completion
    path.write_text(json.dumps({"messages": [asked, {**answer, "ids": ids}]}) + "\n")
    taste = mixture.Taste(labelled=20, traces=str(path))
    sample = mixture.thinking(random.Random(4), taste)
    assert sample.ids[sample.trained].tolist() == ids
    path.with_name("none.jsonl").write_text("")
    assert mixture.thinking(random.Random(4), replace(taste, traces=str(path.with_name("none.jsonl")))).trained.any()


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rows = [{"text": f"Passage {i} of a book. " * 20, "source": f"book {i // 300}"} for i in range(600)]
    with lzma.open(folder / "text.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_text_becomes_shards_of_both_lengths(passages: Path, tmp_path: Path) -> None:
    found = text.build(str(passages), tmp_path)
    assert len(found["short"]) > 4 * len(found["long"]) > 8
    tokenizer = mixture.tokenizer()
    document = found["long"][0].tolist()
    assert document[-1] == tokenizer.control.endoftext
    assert tokenizer.decode(document[:-1]).startswith("Passage 0 of a book. ")
    assert max(len(found["long"][i]) for i in range(len(found["long"]))) <= mixture.LENGTH
    with pytest.raises(FileNotFoundError, match="run recipes/embedded_v1/fetch_text"):
        text.build(str(tmp_path), tmp_path / "no")


def test_stages_mix_what_their_shares_say(passages: Path, tmp_path: Path) -> None:
    text.build(str(passages), tmp_path / "shards")
    for name in stages.NEXT_TOKEN:
        sources = [replace(s, kept=0) for s in mixture.sources(name, tmp_path / "shards")]
        assert sum(s.weight for s in sources) == 100
        mixed = Mixture(sources, mixture.LENGTH, "0")
        tokens: dict[str, int] = {}
        for number in range(300):
            sample = mixed.sample(number)
            tokens[sample.source] = tokens.get(sample.source, 0) + len(sample)
        assert 0.5 < tokens["thinking"] / sum(tokens.values()) / (mixture.SHARES[name]["thinking"] / 100) < 1.6


def test_shapes_and_budgets() -> None:
    full = ModelConfig.from_dict(stages.FULL.config())
    assert 18.3e6 < full.num_parameters() < 18.5e6
    small = ModelConfig.from_dict(student.STUDENT.config())
    assert small.num_parameters() < 6e6
    recipe = stages.build(out="x", text=None)
    assert [s.name for s in recipe.stages] == [s for part in PARTS.values() for s in part]
    assert sum(stages.FULL.tokens.values()) < 1.5e9  # 12 minutes at 2 M tokens a second
    # What RL asks for fits what it lets the model write.
    encode = mixture.tokenizer().encode_plain
    for ask, most in ((stages.reasoning_question, recipe.stages[4]), (stages.any_question, recipe.stages[-1])):
        asked = [ask(random.Random(i)) for i in range(400)]
        assert max(len(encode(q.trace + q.reply)) for q in asked) + 16 < most.max_tokens
        assert max(len(encode(q.prompt)) for q in asked) + 32 < most.max_prompt
    names = [s.name for s in student.build(text=None).stages]
    assert names == ["general", "cold", "off-policy", "on-policy"]
    assert student.rl("a", "b").stages[0].source is stages.reasoning_question


def test_terse_thoughts_are_shorter_and_brevity_counts_only_where_it_is_right() -> None:
    rng = random.Random(6)
    for name in mixture.LABELLED:
        task = FAMILIES[name]
        p = task.sample(rng, task.levels)
        assert len(task.told(p.key, mixture.STRIDES[name])) < 0.6 * len(p.trace)  # type: ignore[attr-defined]

    class Answer:
        def __init__(self, right: bool, tokens: int) -> None:
            self.question = type("Q", (), {"check": lambda self, text: right})()
            self.message = type("M", (), {"content": ""})()
            self.rollout = range(tokens)

    assert stages.brief(Answer(True, 64)) == 0.75  # type: ignore[arg-type]
    assert stages.brief(Answer(True, 400)) == stages.brief(Answer(False, 1)) == 0  # type: ignore[arg-type]


# The verdict


def measured(percent: float, steps: int = 180) -> dict[str, Any]:
    cell = share(round(percent * steps / 100), steps)
    good = share(199, 200)
    return {
        "families": {name: dict.fromkeys(MODES, cell) for name in FAMILIES},
        "mean_before": percent, "talk": good, "tools": good, "schema": good, "closes": share(2000, 2000),
        "curve": {"points": [{"percent": p} for p in range(10)], "monotone": True, "below_none": []},
        "auto": {"accuracy": 0.97, "tokens": 0.5}, "obedience": {"obeyed": 1.0},
        "facts": {"thinking": good, "direct": good}, "skills": {"held_out": 0.9},
    }  # fmt: skip


def test_a_better_model_passes_and_each_weakness_is_named() -> None:
    before, after = measured(80), measured(90)
    rl = {"before": 70.0, "after": 91.0}
    assert verdict(before, after, rl) == {
        **verdict(before, after, rl), "pass": True, "failed": [], "near": [],
    }  # fmt: skip
    cases = [
        (lambda r: r["families"]["gcd"].update(direct=share(90, 180)), "not worse, gcd direct: 80.0 → 50.0 %"),
        (lambda r: r.update(tools=share(100, 200)), "tools: 99.5 → 50.0"),
        (lambda r: r.update(mean_before=82.9), "rises by 3 points: +2.9"),
        (lambda r: r["curve"].update(below_none=[8]), "rises with the budget"),
        (lambda r: r["auto"].update(tokens=0.7), "auto costs at most 60%"),
        (lambda r: r["obedience"].update(obeyed=0.98), "switches are obeyed"),
        (lambda r: r["facts"].update(direct=share(1, 2)), "facts of single digits"),
        (lambda r: r.update(closes=share(9, 10)), "closes by itself"),
        (lambda r: r["skills"].update(held_out=0.88), "fusion loses at most 2: 3.0"),
    ]
    for spoil, named in cases:
        worse = copy.deepcopy(after)
        worse["families"] = {name: dict(row) for name, row in worse["families"].items()}
        spoil(worse)
        failed = verdict(before, worse, rl)["failed"]
        assert len(failed) == 1
        assert named in failed[0]
    assert "RL raises" in verdict(before, after, {"before": 80.0, "after": 91.0})["failed"][0]


def test_what_is_near_is_told_but_no_failure() -> None:
    before, after = measured(80), measured(90)
    after["families"] = {name: dict(row) for name, row in after["families"].items()}
    after["families"]["gcd"]["direct"] = share(131, 180)
    found = verdict(before, after)
    assert found["pass"]
    assert found["near"] == ["gcd direct: 80.0 → 72.8 %"]


def test_facts_measure_nothing_as_held_out_problems() -> None:
    rng = random.Random(1)
    chain = [FAMILIES["chain"].sample(rng, 1) for _ in range(600)]
    short = [p for p in chain if all(len(n) == 1 for n in p.key.split()[1::2])]
    assert short
    assert all(known_by_heart(p) for p in short if p.answer.isdigit() and not p.key.count("-"))
    assert tuple(FAMILIES)[:12] == OLD


# The campaign


def test_parts_want_the_part_before_and_a_gpu(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path / "out", tmp_path / "run", text=None, say=lambda line: None)
    with pytest.raises(UsageError, match="no finished stage general: give --start with the pieces before B"):
        campaign.part("B")
    with pytest.raises(UsageError, match="no CUDA device"):
        campaign.part("A")
    missing = replace(campaign, size=stages.TINY, text=str(tmp_path))
    with pytest.raises(UsageError, match="holds no text"):
        missing.part("A")


def test_pieces_make_the_run_again_and_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.embedded_v1 import campaign as module

    monkeypatch.setattr(module, "PIECE", 1000)
    out, run = tmp_path / "out", tmp_path / "run"
    out.mkdir()
    (run / "after-general").mkdir(parents=True)
    weights = np.random.default_rng(0).bytes(2500)
    (run / "after-general" / "model.safetensors").write_bytes(weights)
    (run / "done.json").write_text(json.dumps({"general": {"finished": True}}))
    campaign = Campaign(out, run, text=None, say=lambda line: None)
    pieces = campaign.pieces("A", ["general"])
    assert len(pieces) > 3
    (out / "part-A.json").write_text(json.dumps({"pieces": pieces}))
    again = replace(campaign, run=tmp_path / "again")
    again.restore(out, "A")
    assert (again.run / "after-general" / "model.safetensors").read_bytes() == weights
    first = out / "part-A.000"
    first.write_bytes(b"x" + first.read_bytes()[1:])
    with pytest.raises(CorruptFileError, match=r"part-A\.000 is damaged"):
        again.restore(out, "A")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy")
    assert run_tiny(out, lambda line: None)["finished"]
    return out


@pytest.mark.timeout(900)
def test_the_whole_campaign_in_toy_size(toy: Path) -> None:
    reports = {name: json.loads((toy / f"part-{name}.json").read_text()) for name in PARTS}
    assert {s for r in reports.values() for s in r["stages"]} == {s for part in PARTS.values() for s in part}
    assert all(r["pieces"] for r in reports.values())
    evaluation = json.loads((toy / "evaluation.json").read_text())
    assert set(evaluation["families"]) == set(FAMILIES)
    published = toy / "second" / "embedded"
    assert json.loads((published / "generation_config.json").read_text())["temperature"] == 0.6
    assert json.loads((published / "config.json").read_text())["rope_theta"] == 1e6
    points = [{"budget": b, "percent": 1.0, "of": 5} for b in (0, 8, None)]
    corpus = {"characters": 5e6, "sources": [{"source": "a book", "passages": 3, "characters": 5e6, "license": "free"}]}
    written = card(evaluation | {"curve": {"points": points}}, [reports[name] for name in PARTS], corpus)
    assert "| a book | 5.0 | free |" in written
    assert "| 0 | 8 | no limit |" in written
    assert written.count("| track |") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_student_learns_from_the_toy(toy: Path, tmp_path: Path) -> None:
    published = toy / "second" / "embedded"
    size = replace(stages.TINY, width=32, layers=1)
    lessons = student.Lessons(answers=4, off_updates=2, on_updates=1, prompts=2, samples=2, rl_samples=2, top_k=8)
    taught = student.build(size, lessons, str(published), None, tmp_path / "student", device="cpu")
    # A teacher of toy size is never right.
    untaught = tuple(replace(s, verify=False) if s.name == "off-policy" else s for s in taught.stages)
    assert train(replace(taught, stages=untaught), lambda line: None)["finished"]
    rival = student.rl(tmp_path / "student" / "after-cold", tmp_path / "rival", size, lessons, device="cpu")
    assert train(rival, lambda line: None)["finished"]
