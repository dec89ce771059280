"""From words to a run: what is refused before anything is trained, stages after each other, how a run ends."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3 import LLM
from qwen3.checkpoint.adapter import read_adapter
from qwen3.config import ModelConfig
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.model import load_model
from qwen3.train.adapters import LoraConfig, add_lora, merge
from qwen3.train.recipe import Recipe, key, keys, override
from qwen3.train.sft import SFT, Lora
from qwen3.train.start import RECIPES, Job, find_recipe, listed, main, train
from tests.fixtures import random_checkpoint, random_model, tiny_config


@dataclass(frozen=True)
class Count:
    """A stage that needs nothing."""

    name: str = "count"
    steps: int = key(3, "how often")
    finished: bool = key(True, "whether it gets there")
    error: str = key("", "what it ends with")

    def run(self, job: Job) -> dict[str, Any]:
        for i in range(self.steps):
            job.run.log(stage=self.name, update=i + 1, loss=1.0)
        if self.error:
            raise RuntimeError(self.error)
        return {"finished": self.finished, "update": self.steps, "of": self.steps}


TINY = tiny_config(num_hidden_layers=1, vocab_size=640).to_dict()


def counting(folder: Path, *stages: Any, **changes: Any) -> Recipe:
    return Recipe("counting", TINY, stages or (Count(),), out=str(folder), device="cpu", **changes)


def quiet(recipe: Recipe) -> dict[str, Any]:
    return train(recipe, lambda line: None)


def test_every_recipe_by_name_has_a_line_and_an_example_that_parses() -> None:
    text = listed()
    for name, (module, about, example) in RECIPES.items():
        assert f"qwen3 train {name} {example}" in text
        assert about in text
        assert (importlib.import_module(module).__doc__ or "").strip()
        made = find_recipe(name, example.split())
        assert dataclasses.is_dataclass(made)
        assert all(meaning for _, (_, meaning) in keys(made)), "a key without a meaning"


def test_nothing_asked_for_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.strip() == listed().strip()


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["sftt"], ModelNotFoundError, "no recipe sftt; did you mean sft"),
        (["zzzzzz"], ModelNotFoundError, "there are .*sft, "),
        (["gone.py"], ModelNotFoundError, r"no file gone\.py"),
        (["data=x", "sft"], UsageError, "the recipe comes first"),
        (["sft", "dta=x"], UsageError, r"did you mean sft\.data"),
        (["sft", "device=tpu"], UsageError, "device=tpu must be cpu or cuda"),
        (["report"], UsageError, "one run's folder"),
        (["report", "gone"], ModelNotFoundError, "holds no run"),
    ],
)
def test_what_is_refused_and_how(
    words: list[str], error: type[Exception], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=told):
        main(words, lambda line: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "has no function recipe"),
        ("import nowhere_to_be_found\n", "line 1: ModuleNotFoundError"),
        ("def recipe():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def recipe(:\n", "line 1: SyntaxError"),
        ("def recipe():\n    return 5\n", "gives a int, not"),
    ],
)
def test_a_recipe_file_with_a_fault_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        find_recipe(str(path))


def test_a_recipe_file_may_hold_its_own_stage(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from qwen3.train.recipe import Recipe, key\n"
        "@dataclass(frozen=True)\n"
        "class Nothing:\n"
        "    name: str = 'nothing'\n"
        "    size: int = key(1, 'of it')\n"
        "    def run(self, job):\n"
        "        return {'finished': True}\n"
        "def recipe():\n"
        "    return Recipe('mine', 'embedded', (Nothing(),))\n"
    )
    assert find_recipe(str(path), ["size=4"]).stages[0].size == 4


def test_a_run_that_ends_leaves_a_report_and_says_so_when_it_is_asked_again(tmp_path: Path) -> None:
    recipe, said = counting(tmp_path / "run"), []
    result = train(recipe, said.append, "qwen3 train counting.py")
    assert result["finished"]
    assert result["model"] == str(tmp_path / "run/model")
    page = Path(result["report"]).read_text()
    assert "finished" in page
    assert "qwen3 run " in page
    again = train(recipe, said.append)
    assert (again["finished"], again["model"]) == (True, result["model"])
    assert "has ended; give another out=FOLDER" in said[-1]
    with pytest.raises(UsageError, match=r"count has ended with count\.steps=3, not 5: give another out"):
        quiet(override(recipe, ["steps=5"]))
    with pytest.raises(UsageError, match="this run has ended with seed=0, not 1"):
        quiet(override(recipe, ["seed=1"]))
    with pytest.raises(UsageError, match="holds a run of the recipe counting: give another"):
        quiet(dataclasses.replace(recipe, name="other"))
    grown = counting(tmp_path / "run", Count(), Count("more"))
    assert set(quiet(grown)["stages"]) == {"count", "more"}


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds other things \(thesis\.tex\): give a folder that is new"):
        quiet(counting(tmp_path))
    with pytest.raises(UsageError, match=r"thesis\.tex is a file"):
        quiet(counting(tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert quiet(counting(tmp_path / "empty"))["finished"]


def test_a_stage_that_fails_or_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        quiet(counting(tmp_path / "a", Count(error="out of luck")))
    assert "out of luck" in (tmp_path / "a/report.html").read_text()
    two = counting(tmp_path / "b", Count(), Count("second", finished=False), Count("third"))
    result = quiet(two)
    assert (result["finished"], result["model"], list(result["stages"])) == (False, None, ["count"])
    stages = (Count(), Count("second"), Count("third"))
    assert quiet(dataclasses.replace(two, stages=stages))["model"] == str(tmp_path / "b/model")


def chats(folder: Path) -> str:
    rows = [{"prompt": f"a{i % 3}", "completion": f"b{i % 3}"} for i in range(12)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "chats.jsonl")


@pytest.mark.parametrize("second", [Lora(rank=0), Lora(rank=2)])
def test_an_adapter_becomes_part_of_the_weights_before_the_next_stage(tmp_path: Path, second: Lora) -> None:
    base = random_checkpoint(tmp_path / "base", tiny_config(num_hidden_layers=1), tokenizer=True)
    data = (chats(tmp_path),)
    stages = (
        SFT("first", data=data, lora=Lora(rank=4), updates=3, lr=0.02),
        SFT("second", data=data, lora=second, updates=2),
    )
    recipe = Recipe("both", str(base), stages, out=str(tmp_path / "out"), device="cpu")
    result = quiet(recipe)
    out = tmp_path / "out"
    kept = read_adapter(out / "first-adapter", ModelConfig.from_pretrained(base))
    merged, after = merge(load_model(base, dtype=torch.float32), kept), load_model(out / "after-first")
    for name, p in merged.named_parameters():
        torch.testing.assert_close(dict(after.named_parameters())[name].float(), p, rtol=0, atol=1e-2)
    if second.rank:
        assert result["model"] == str(out / "adapter")
        assert read_adapter(out / "adapter", after.config).base == str(out / "after-first")
    else:
        assert result["model"] == str(out / "model")
        assert not (out / "adapter").exists()
    only = dataclasses.replace(recipe, stages=stages[:1], out=str(tmp_path / "parts"))
    assert quiet(only)["model"] == str(tmp_path / "parts/adapter")
    grown = quiet(dataclasses.replace(recipe, out=str(tmp_path / "parts")))  # what was the last is the first of two
    for name, p in load_model(out / "after-first").named_parameters():
        assert torch.equal(dict(load_model(tmp_path / "parts/after-first").named_parameters())[name], p)
    assert Path(grown["model"]).name == Path(result["model"]).name


def test_an_engine_does_not_pass_over_an_adapter_that_is_trained_in_its_network() -> None:
    model = random_model(tiny_config())
    engine = Engine(model, vocab_size=634)
    request = lambda: Request([5, 6], SamplingParams(max_tokens=1).resolved("instruct"))  # noqa: E731
    engine.check(request())
    add_lora(model, LoraConfig(rank=2))
    engine.update_weights({})
    for one in (engine, Engine(model, vocab_size=634)):
        with pytest.raises(UsageError, match="the network has an adapter in it, which is trained"):
            one.check(request())
    merge(model)
    engine.update_weights({})
    engine.check(request())


@pytest.mark.slow
def test_ctrl_c_ends_with_a_checkpoint_and_the_second_at_once(tmp_path: Path) -> None:
    base = random_checkpoint(tmp_path / "base", tiny_config(num_hidden_layers=1), tokenizer=True)
    words = ["sft", f"data={chats(tmp_path)}", f"model={base}", "updates=100000", "device=cpu"]
    for times in (1, 2):
        out = tmp_path / f"out{times}"
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3.train", *words, f"out={out}"],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        wait_for(lambda out=out: '"update": 3' in (out / "log.jsonl").read_text())  # type: ignore[misc]
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, told = process.communicate(timeout=60)
        # A shell says 130 in both cases; the second may come when Python is leaving already.
        assert process.returncode in ((130,) if times == 1 else (130, -signal.SIGINT)), told
        assert "Traceback" not in told
        assert "ending after this update, with a checkpoint; once more ends at once" in told
        if times == 1:
            assert list((out / "sft").glob("step-*/manifest.json"))
            assert (out / "report.html").exists()
            assert "start it again to go on" in told


def wait_for(true: Any) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if true():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not happen within a minute")


def test_an_adapters_stage_and_then_an_engine_over_the_model(tmp_path: Path) -> None:
    """What a stage of reinforcement learning after one of LoRA samples from is the merged model."""
    base = random_checkpoint(tmp_path / "base", tiny_config(num_hidden_layers=1), tokenizer=True)

    @dataclass(frozen=True)
    class Ask:
        name: str = "ask"

        def run(self, job: Job) -> dict[str, Any]:
            with LLM.of(job.model, job.tokenizer, mode=job.mode) as llm:
                return {
                    "finished": True,
                    "tokens": llm.chat("a1", sampling=SamplingParams(max_tokens=2)).usage.completion_tokens,
                }

    stages = (SFT(data=(chats(tmp_path),), lora=Lora(rank=2), updates=1), Ask())
    assert quiet(Recipe("two", str(base), stages, out=str(tmp_path / "out"), device="cpu"))["finished"]
