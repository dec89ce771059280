"""From a recipe to a finished run: the model found or made, the stages in order, the result saved.

`python -m qwen3.train RECIPE [key=value …]` and `qwen3 train` come here. A recipe is a name (see `RECIPES`), or a
Python file with a function `recipe()`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from qwen3.checkpoint import resolve, save_checkpoint
from qwen3.checkpoint.mode import detect_mode, find_tokenizer
from qwen3.config import ModelConfig
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.model import Qwen3, load_model
from qwen3.model.load import best_device
from qwen3.tokenizer import Tokenizer
from qwen3.train.recipe import Recipe, described, override
from qwen3.train.run import Run, duration


@dataclass
class Job:
    """What a stage works on. The model is changed in place. mode, template: of its chat, see `LLM`. notes: what the
    stages leave for those after them."""

    model: Qwen3
    tokenizer: Tokenizer
    run: Run
    seed: int
    mode: Any
    template: Any
    source: str
    notes: dict[str, Any]


class Stage(Protocol):
    """A part of a recipe. `run` trains `job.model` until its steps are done, or `job.run.over`, and returns a summary
    whose `finished` says which; started again, it goes on from its last checkpoint."""

    @property
    def name(self) -> str: ...

    def run(self, job: Job) -> dict[str, Any]: ...


def train(recipe: Recipe, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run a recipe, or go on with it. Returns {"finished", "stages", "model", "seconds"}; "model" is the folder of the
    result, None until there is one. Raises what loading raises, UsageError, TrainingError."""
    run = Run(recipe.folder, recipe.max_minutes, say)
    device = torch.device(recipe.device) if recipe.device else best_device()
    random.seed(recipe.seed)
    np.random.seed(recipe.seed % 2**32)
    torch.manual_seed(recipe.seed)
    done = run.done()
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        raise UsageError(f"two stages have one name: {', '.join(names)}")
    if all(done.get(name, {}).get("finished") for name in names):
        run.say(f"{recipe.folder}: this run has ended; give another out=FOLDER to train again")
        return {"finished": True, "stages": done, "model": _result(run), "seconds": 0.0}
    job = prepare(recipe, run, device, [name for name in names if done.get(name, {}).get("finished")])
    run.log(event="start", recipe=recipe.name, parameters=job.model.config.num_parameters(), device=str(device),
            keys=described(recipe).splitlines(), torch=torch.__version__)  # fmt: skip
    finished = True
    with run.interruptible():
        for stage in recipe.stages:
            if done.get(stage.name, {}).get("finished"):
                continue
            summary = stage.run(job)
            run.log(event="stage", stage=stage.name, **summary)
            if not summary["finished"]:
                finished = False
                break
            _save(run, job, stage.name, last=stage.name == names[-1])
            run.mark_done(stage.name, summary)
    return {"finished": finished, "stages": run.done(), "model": _result(run), "seconds": round(run.seconds, 1)}


def prepare(recipe: Recipe, run: Run, device: torch.device, ended: Sequence[str]) -> Job:
    """The model as the stages that have ended left it, or as the recipe has it."""
    if ended:
        # A stage that was the last when it ended, before the recipe grew, left its weights as the result.
        after = run.folder / f"after-{ended[-1]}"
        source: Any = str(after if after.is_dir() else run.folder / "model")
    elif isinstance(recipe.model, Mapping):
        return _fresh(recipe, run, device)
    else:
        source = None if recipe.model == "embedded" else recipe.model
    found = resolve(source)
    config = ModelConfig.from_pretrained(found.path)
    tokenizer, _ = find_tokenizer(found, config)
    mode, template, _ = detect_mode(found, config, tokenizer.control.endoftext)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(found.path, device, dtype)
    notes: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        notes["generation"] = json.loads((Path(found.path) / "generation_config.json").read_text(encoding="utf-8"))
    return Job(model, tokenizer, run, recipe.seed, mode, template, str(recipe.model), notes)


def _fresh(recipe: Recipe, run: Run, device: torch.device) -> Job:
    from qwen3.train.loop import init_weights

    config = ModelConfig.from_dict(dict(recipe.model))
    tokenizer = Tokenizer.from_pretrained(recipe.tokenizer or None)
    if config.vocab_size < len(tokenizer):  # the first ranks are a tokenizer of their own
        tokenizer = tokenizer.prefix((config.vocab_size - 26) // 256 * 256)
    model = Qwen3(config, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    init_weights(model, recipe.seed)
    return Job(model, tokenizer, run, recipe.seed, "hybrid", "qwen3", recipe.name, {})


def _save(run: Run, job: Job, stage: str, last: bool) -> None:
    if job.notes.get("adapter"):  # the base stays as it was
        return
    folder = run.folder / ("model" if last else f"after-{stage}")
    save_checkpoint(folder, job.model, tokenizer=job.tokenizer, generation_config=job.notes.get("generation"))


def _result(run: Run) -> str | None:
    for name in ("adapter", "model"):
        if (run.folder / name).is_dir():
            return str(run.folder / name)
    return None


# Recipes by name, each a module and a function of it; imported when asked for.
RECIPES: dict[str, tuple[str, str, str]] = {
    "sft": ("qwen3.train.sft", "recipe", "chats of your own: data=chats.jsonl model=…; lora.rank=0 trains all weights"),
}


def find_recipe(name: str, words: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or file, with `key=value` words set. Raises ModelNotFoundError or UsageError."""
    if name in RECIPES:
        module, function, _ = RECIPES[name]
        made = getattr(importlib.import_module(module), function)()
    else:
        made = _from_file(Path(name))
    if not isinstance(made, Recipe):
        raise UsageError(f"{name}: recipe() gives a {type(made).__name__}, not a qwen3.train.recipe.Recipe")
    return override(made, words)


def _from_file(path: Path) -> Any:
    if path.suffix != ".py" or not path.is_file():
        raise ModelNotFoundError(f"there is no recipe {path}: give a file *.py, or one of {', '.join(RECIPES)}")
    spec = importlib.util.spec_from_file_location(f"qwen3_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "recipe", None)):
        raise UsageError(f"{path} has no function recipe()")
    return module.recipe()


def main(
    words: Sequence[str],
    say: Callable[[str], None] | None = None,
    max_minutes: float | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """RECIPE and its `key=value` words: the exit code. 0 only where all steps are done, or the time limit that was
    asked for is over; 130 for a run that somebody ended, which goes on when it is started again. `--keys` among the
    words prints what can be set. emit: takes what `train` returns."""
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    if not words or words[0].startswith("-") or "=" in words[0]:
        known = "\n".join(f"  {name:10} {text}" for name, (_, _, text) in RECIPES.items())
        raise UsageError(f"give a recipe: a file *.py with a function recipe(), or one of\n{known}")
    recipe = find_recipe(words[0], [word for word in words[1:] if word != "--keys"])
    if "--keys" in words:
        print(described(recipe))
        return 0
    if max_minutes is not None:
        recipe = dataclasses.replace(recipe, max_minutes=max_minutes)
    result = train(recipe, tell)
    if emit is not None:
        emit(result)
    if result["model"]:
        tell(f"result: {result['model']}")
    if result["finished"]:
        return 0
    again = "start it again to go on" if recipe.max_minutes is None else "the time is up; start it again to go on"
    tell(f"not finished after {duration(result['seconds'])}: {again}")
    return 0 if recipe.max_minutes is not None and result["seconds"] >= 60 * recipe.max_minutes else 130
