"""From a recipe to a finished run: the model found or made, the stages in order, the result saved.

`python -m qwen3.train RECIPE [key=value …]` and `qwen3 train` come here. A recipe is a name (see `RECIPES`), or a
Python file with a function `recipe()`. `report FOLDER` draws a run, also one that goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import random
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from qwen3.checkpoint import read_config, resolve, save_checkpoint
from qwen3.checkpoint.mode import detect_mode, find_tokenizer
from qwen3.config import ModelConfig
from qwen3.errors import ModelNotFoundError, Qwen3Error, UsageError
from qwen3.model import Qwen3, load_model
from qwen3.model.load import best_device
from qwen3.tokenizer import Tokenizer
from qwen3.train.adapters import load_adapter, merge
from qwen3.train.initial import init_weights
from qwen3.train.optim import process
from qwen3.train.parallel import join, wait_for_all
from qwen3.train.recipe import Recipe, described, keys, override, plain
from qwen3.train.report import logged_lines, write_report
from qwen3.train.run import Run, duration, ended_stages


@dataclass
class Job:
    """What a stage works on. The model is changed in place; it is None where the recipe's is: its stages make data.
    mode, template: of its chat, see `LLM`. notes: what the stages leave for those after them."""

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


def train(recipe: Recipe, say: Callable[[str], None] | None = None, command: str = "") -> dict[str, Any]:
    """Run a recipe, or go on with it. Returns {"finished", "stages", "model", "seconds", "report"}; "model" is the
    folder of the result, None until there is one. command: what the report is to say was typed. Raises what loading
    raises, UsageError, TrainingError."""
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        raise UsageError(f"two stages have one name: {', '.join(names)}")
    join()
    if not process():
        check_folder(recipe)
    wait_for_all()
    device = _device(recipe.device)
    run = Run(recipe.folder, recipe.max_minutes, say, recipe.tensorboard)
    random.seed(recipe.seed)
    np.random.seed(recipe.seed % 2**32)
    torch.manual_seed(recipe.seed)
    done = run.done()
    ended = [name for name in names if done.get(name, {}).get("finished")]
    if len(ended) == len(names):
        run.show(f"{recipe.folder}: this run has ended; give another out=FOLDER to train again")
        return {"finished": True, "stages": done, "model": _result(run), "seconds": 0.0, "report": _report(run)}
    job = prepare(recipe, run, device, ended)
    parameters = job.model.config.num_parameters() if job.model else 0
    run.log(event="start", recipe=recipe.name, parameters=parameters, device=str(device),
            keys=plain(recipe), help={name: text for name, (_, text) in keys(recipe)}, torch=torch.__version__,
            stages=names, command=command, time=datetime.now(UTC).isoformat(timespec="seconds"))  # fmt: skip
    finished = True
    try:
        with run.interruptible():
            for stage in recipe.stages:
                if stage.name in ended:
                    continue
                summary = stage.run(job)
                run.log(event="stage", stage=stage.name, **summary)
                if not summary["finished"]:
                    finished = False
                    break
                _end(run, job, stage.name, last=stage.name == names[-1])
                run.mark_done(stage.name, summary)
    except Exception as error:
        with contextlib.suppress(Qwen3Error):
            run.log(event="failed", error=str(error))
        raise
    finally:
        run.close()
        if not isinstance(sys.exception(), KeyboardInterrupt):
            report = _report(run)
    return {
        "finished": finished, "stages": run.done(), "model": _result(run), "seconds": round(run.seconds, 1),
        "report": report,
    }  # fmt: skip


def _device(name: str) -> torch.device:
    if not name:
        return best_device()
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"device={name} must be cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"device={name}: PyTorch {torch.__version__} finds no GPU here; leave it out to train on the CPU"
        )
    return torch.device(name)


def check_folder(recipe: Recipe) -> None:
    """Raises UsageError where the run's folder holds other things, another recipe's run, or stages that have ended with
    other keys than these: nothing of it would be what was asked for."""
    folder = recipe.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out={folder} is a file: give a folder that is new, or a run's")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and not {"log.jsonl", "run.txt", "done.json"} & {*there}:
        shown = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise UsageError(f"out={folder} holds other things ({shown}): give a folder that is new, or a run's")
    starts = [line for line in logged_lines(folder, '"event"') if line.get("event") == "start"]
    if not starts:
        return
    last = starts[-1]
    if last.get("recipe") != recipe.name:
        raise UsageError(f"{folder} holds a run of the recipe {last.get('recipe')}: give another out=FOLDER")
    done, before = ended_stages(folder), dict(last.get("keys") or {})
    for name, value in plain(recipe).items():
        whose, dot, _ = name.partition(".")
        fixed = whose in done if dot else done and name in ("model", "tokenizer", "seed")
        if fixed and before.get(name, value) != value:
            raise UsageError(
                f"{folder}: {whose if dot else 'this run'} has ended with {name}={before[name]}, not {value}: "
                "give another out=FOLDER"
            )


def _report(run: Run) -> str | None:
    """Its place; None where nothing was measured. A run is not to fail on its picture."""
    if process() or next(logged_lines(run.folder, '"update"'), None) is None:
        return None
    try:
        return str(write_report(run.folder))
    except Exception as error:
        run.show(f"warning: there is no report of this run: {error}")
        return None


def prepare(recipe: Recipe, run: Run, device: torch.device, ended: Sequence[str]) -> Job:
    """The model as the stages that have ended left it, or as the recipe has it."""
    if recipe.model is None:
        return _no_model(recipe, run)
    if ended:
        # A stage that was the last when it ended, before the recipe grew, left its weights or adapter as the result.
        after, adapter = run.folder / f"after-{ended[-1]}", run.folder / "adapter"
        if not after.is_dir() and adapter.is_dir():
            job = prepare(recipe, run, device, ended[:-1])
            load_adapter(job.model, adapter)
            job.notes["adapter"] = str(adapter)
            _end(run, job, ended[-1], last=False)
            return job
        source: Any = str(after if after.is_dir() else run.folder / "model")
    elif isinstance(recipe.model, Mapping):
        return _fresh(recipe, run, device)
    else:
        source = None if recipe.model == "embedded" else recipe.model
    found = resolve(source)
    config = read_config(found.path)
    tokenizer, _ = find_tokenizer(found, config)
    mode, template, _ = detect_mode(found, config, tokenizer.control.endoftext)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(found.path, device, dtype)
    notes: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        notes["generation"] = json.loads((Path(found.path) / "generation_config.json").read_text(encoding="utf-8"))
    return Job(model, tokenizer, run, recipe.seed, mode, template, str(recipe.model), notes)


def _no_model(recipe: Recipe, run: Run) -> Job:
    """recipe.tokenizer: a folder with one, or the name of a model; empty: the official one."""
    name = recipe.tokenizer
    if not name or (Path(name).exists() and not (Path(name) / "config.json").exists()):
        tokenizer = Tokenizer.from_pretrained(name or None)
    else:
        found = resolve(None if name == "embedded" else name)
        tokenizer, _ = find_tokenizer(found, read_config(found.path))
    return Job(None, tokenizer, run, recipe.seed, "hybrid", "qwen3", "", {})  # type: ignore[arg-type]


def _fresh(recipe: Recipe, run: Run, device: torch.device) -> Job:
    config = ModelConfig.from_dict(dict(recipe.model))
    tokenizer = Tokenizer.from_pretrained(recipe.tokenizer or None)
    if config.vocab_size < len(tokenizer):  # the first ranks are a tokenizer of their own
        tokenizer = tokenizer.prefix((config.vocab_size - 26) // 256 * 256)
    model = Qwen3(config, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    init_weights(model, recipe.seed)
    return Job(model, tokenizer, run, recipe.seed, "hybrid", "qwen3", recipe.name, {})


def _end(run: Run, job: Job, stage: str, last: bool) -> None:
    """What a stage leaves for those after it, or as the result. An adapter that others come after becomes part of the
    weights."""
    adapter = job.notes.get("adapter")
    if job.model is None or (adapter and last):  # the base stays as it was
        return
    folder = run.folder / ("model" if last else f"after-{stage}")
    if adapter:
        run.say(
            f"{stage}: the adapter is merged into the weights, which the next stage trains; it stays in {stage}-adapter"
        )
        merge(job.model)
    if not process():
        save_checkpoint(folder, job.model, tokenizer=job.tokenizer, generation_config=job.notes.get("generation"))
    wait_for_all()
    if adapter:
        shutil.rmtree(kept := run.folder / f"{stage}-adapter", ignore_errors=True)
        Path(job.notes.pop("adapter")).rename(kept)
        job.source = str(folder)


def _result(run: Run) -> str | None:
    for name in ("adapter", "model"):
        if (run.folder / name).is_dir():
            return str(run.folder / name)
    return None


# Recipes by name: the module with its function recipe(), imported when asked for; what it does; an example.
RECIPES: dict[str, tuple[str, str, str]] = {
    "corpus": (
        "qwen3.train.corpus.pipeline",
        "texts of any kind, cleaned, filtered and freed of duplicates, into shards of tokens",
        "sources=./docs,more.jsonl,package:python tokenizer=embedded out=./text",
    ),
    "pretrain": (
        "qwen3.train.pretrain",
        "a model from nothing: general, reasoning and long text, in three stages",
        "model=tiny data=./text out=./base",
    ),
    "sft": (
        "qwen3.train.sft",
        "your own chats, into an adapter, or into all weights (lora.rank=0)",
        "data=chats.jsonl model=embedded out=./mine",
    ),
    "rl": (
        "qwen3.train.rl",
        "reinforcement learning on problems whose answers can be checked",
        "model=embedded families=chain,gcd updates=100 out=./sharper",
    ),
    "distill": (
        "qwen3.train.distill",
        "a small model learns from a larger one: first from its answers, then from what it says of the student's own",
        "teacher=embedded model=./student families=chain,gcd out=./taught",
    ),
}


def listed() -> str:
    """Every recipe with what it does and an example, and what else can be said."""
    lines = ["qwen3 train RECIPE [NAME=VALUE]...    --keys lists a recipe's keys, --max-minutes M ends it in time", ""]
    for name, (_, about, example) in RECIPES.items():
        lines += [f"{name:9} {about}", f"{'':9} qwen3 train {name} {example}"]
    lines += [f"{'FILE.py':9} a function recipe() of your own: docs/training.md"]
    lines += [f"{'report':9} a run's curves, as one page", f"{'':9} qwen3 train report FOLDER"]
    return "\n".join(lines)


def find_recipe(name: str, words: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or file, with `key=value` words set. Raises ModelNotFoundError or UsageError."""
    made = importlib.import_module(RECIPES[name][0]).recipe() if name in RECIPES else _from_file(Path(name))
    if not isinstance(made, Recipe):
        raise UsageError(f"{name}: recipe() gives a {type(made).__name__}, not a qwen3.train.recipe.Recipe")
    return override(made, words)


def _from_file(path: Path) -> Any:
    """What the file's recipe() gives. Its own errors are told with the file's line."""
    if path.suffix != ".py":
        near = difflib.get_close_matches(str(path), RECIPES, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}, or give a file *.py"
        raise ModelNotFoundError(f"there is no recipe {path}; {hint}")
    if not path.is_file():
        raise ModelNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"qwen3_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "recipe", None)):
            raise UsageError(f"{path} has no function recipe()")
        return module.recipe()
    except Qwen3Error:
        raise
    except Exception as error:
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else "?"
        raise UsageError(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def main(
    words: Sequence[str],
    say: Callable[[str], None] | None = None,
    max_minutes: float | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """RECIPE and its `key=value` words: the exit code. 0 only where all steps are done, or the time limit that was
    asked for is over; 130 for a run that somebody ended, which goes on when it is started again; 2 where nothing is
    asked for. `--keys` among the words prints what can be set. emit: takes what `train` returns."""
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    if not words or words[0].startswith("-"):
        print(listed())
        return 2
    if "=" in words[0]:
        raise UsageError(f"the recipe comes first, before {words[0]}: one of {', '.join(RECIPES)}, or a file *.py")
    if words[0] == "report":
        return _draw(words[1:], emit)
    recipe = find_recipe(words[0], [word for word in words[1:] if word != "--keys"])
    if "--keys" in words:
        if emit is not None:
            emit({name: {"value": value, "help": text} for name, (value, text) in keys(recipe)})
        else:
            print(described(recipe))
        return 0
    if max_minutes is not None:
        recipe = dataclasses.replace(recipe, max_minutes=max_minutes)
    result = train(recipe, tell, f"qwen3 train {shlex.join(words)}")
    if process():  # the first one speaks for all, and knows whose time is up
        return 0
    if process():  # the first one speaks
        tell, emit = (lambda line: None), None
    if emit is not None:
        emit(result)
    for what in ("model", "report"):
        if result[what]:
            so_far = "" if result["finished"] else " so far"
            tell(f"{'result' if what == 'model' else what}{so_far}: {result[what]}")
    if result["finished"]:
        return 0
    again = "start it again to go on" if recipe.max_minutes is None else "the time is up; start it again to go on"
    tell(f"not finished after {duration(result['seconds'])}: {again}")
    return 0 if recipe.max_minutes is not None and result["seconds"] >= 60 * recipe.max_minutes else 130


def _draw(folders: Sequence[str], emit: Callable[[dict[str, Any]], None] | None) -> int:
    if len(folders) != 1:
        raise UsageError("one run's folder is wanted: qwen3 train report FOLDER")
    path = write_report(folders[0])
    if emit is not None:
        emit({"report": str(path)})
    else:
        print(path)
    return 0
