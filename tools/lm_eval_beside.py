#!/usr/bin/env python3
"""One model through lm-evaluation-harness in three ways, and through `qwen3 eval`, on the same questions.

    python tools/lm_eval_beside.py --limit 100 --out benchmarks/DATE-lm-eval.json
    python tools/lm_eval_beside.py --runs folder,folder …  # with runs of `qwen3 eval SUITE --data count=100`, greedy

The ways: `ours`, the harness's model class of this package; `api`, its clients of OpenAI's API on `qwen3 serve`; `hf`,
transformers in float32. Answers are greedy and are scored by the suite. Choices are the right reply to a problem
among three with other numbers, by log-probability. Nothing is fetched: questions are the project's own. Needs
lm_eval[api] and transformers, in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from serve_load import served

from qwen3.chat import render
from qwen3.checkpoint import resolve
from qwen3.evaluate.lm_eval_model import model_class
from qwen3.evaluate.machine import commit, describe
from qwen3.evaluate.suites import suite_named
from qwen3.evaluate.thinking import held_out
from qwen3.evaluate.types import Answer, Item, Suite, score_answer
from qwen3.tasks import CONTROL_FAMILIES, STEP_FAMILIES
from qwen3.tasks.base import interval

Found = dict[str, dict[str, Any]]
MAX_TOKENS = 3000
MODES = {"think": True, "no-think": False}


@contextmanager
def models(way: str, path: Path, think: bool | None, url: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The harness's model, and what its requests carry beside the task's own. think None: for log-probabilities."""
    from lm_eval.api.registry import get_model

    if way == "ours":
        model = model_class()(pretrained=str(path), enable_thinking=think)
        yield model, {}
        model.llm.close()
    elif way == "hf":
        end = {"think_end_token": "</think>"} if think else {}
        yield (
            get_model("hf")(
                pretrained=str(path), dtype="float32", device="cpu", batch_size=16, enable_thinking=think, **end
            ),
            {},
        )
    elif think is None:
        yield get_model("local-completions")(
            model=path.name, base_url=f"{url}/v1/completions", tokenizer=str(path), tokenizer_backend="huggingface",
            num_concurrent=8, max_length=4096,
        ), {}  # fmt: skip
    else:
        yield (
            get_model("local-chat-completions")(
                model=path.name, base_url=f"{url}/v1/chat/completions", num_concurrent=8
            ),
            {"chat_template_kwargs": {"enable_thinking": think}},
        )


def task(name: str, docs: list[dict[str, Any]], room: Path, **fields: Any) -> dict[str, Any]:
    file = room / f"{name}.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    return {"task": name, **data, "target_delimiter": "", "metric_list": metrics, **fields}


def evaluate(model: Any, work: dict[str, Any], chat: bool) -> list[dict[str, Any]]:
    """The harness's samples, in the order of the questions."""
    import lm_eval

    results = lm_eval.simple_evaluate(model, tasks=[work], apply_chat_template=chat, bootstrap_iters=0)
    return sorted(results["samples"][work["task"]], key=lambda sample: sample["doc_id"])


def answers(suite: Suite, items: list[Item], way: str, mode: str, path: Path, url: str, room: Path) -> Found:
    """By item: the answer, and the suite's score of it."""
    values: list[float] = []

    def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        values.append(score_answer(suite, items[doc["place"]], Answer(results[0])).value)
        return {"acc": values[-1]}

    docs = [{"place": i, "question": item.messages[-1]["content"]} for i, item in enumerate(items)]
    with models(way, path, MODES[mode], url) as (model, extra):
        work = task(
            f"{suite.name}_{way}_{mode.replace('-', '_')}", docs, room, output_type="generate_until",
            doc_to_text="{{question}}", doc_to_target="", process_results=score,
            generation_kwargs={"until": [], "do_sample": False, "max_gen_toks": MAX_TOKENS, **extra},
        )  # fmt: skip
        samples = evaluate(model, work, chat=True)
    return {
        items[sample["doc"]["place"]].id: {"answer": sample["filtered_resps"][0], "value": sample["acc"]}
        for sample in samples
    }


def choice_problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Problems whose answer is a whole number: the prompt up to the reply, four replies, and which is right."""
    docs, rng = [], random.Random(seed)
    for problem in held_out((*STEP_FAMILIES, *CONTROL_FAMILIES), 3 * count, seed):
        number = re.compile(rf"(?<![\d-]){re.escape(problem.answer)}(?!\d)")
        if not problem.answer.isdecimal() or len(number.findall(problem.reply)) != 1:
            continue
        near = [n for n in range(int(problem.answer) - 9, int(problem.answer) + 10) if 0 <= n != int(problem.answer)]
        numbers = [problem.answer, *map(str, rng.sample(near, 3))]
        rng.shuffle(numbers)
        context = render([{"role": "user", "content": problem.prompt}], enable_thinking=False)
        replies = [number.sub(other, problem.reply) for other in numbers]
        docs.append({"context": context, "choices": replies, "gold": numbers.index(problem.answer)})
    return docs[:count]


def choices(docs: list[dict[str, Any]], way: str, path: Path, url: str, room: Path) -> Found:
    """By place: which reply has the most probability, and those of all."""
    work = task(
        f"choice_{way}", docs, room, output_type="multiple_choice", doc_to_text="{{context}}",
        doc_to_choice="{{choices}}", doc_to_target="{{gold}}",
    )  # fmt: skip
    with models(way, path, None, url) as (model, _):
        samples = evaluate(model, work, chat=False)
    found = {}
    for sample in samples:
        values = [float(value) for value, _ in sample["filtered_resps"]]
        best = max(range(len(values)), key=values.__getitem__)
        greedy = [str(greedy) == "True" for _, greedy in sample["filtered_resps"]]
        found[str(sample["doc_id"])] = {"answer": best, "value": sample["acc"], "logprobs": values, "greedy": greedy}
    return found


def own_run(folder: Path) -> tuple[str, str, Found]:
    """(suite, mode, by item …) of a run of `qwen3 eval`, its first sample of each item."""
    from qwen3.evaluate.runs import read_run

    run = read_run(folder)
    first = [sample for sample in run.samples if sample["sample"] == 0]
    found = {s["item"]: {"answer": s["answer"]["content"], "value": s["score"]["value"]} for s in first}
    return run.head["suite"], run.head["mode"], found


def beside(ways: dict[str, Found], base: str) -> dict[str, Any]:
    """Each way's accuracy, and how its items compare with those of the way `base`."""
    table = {}
    for way, found in ways.items():
        shared = [id for id in found if id in ways[base]]
        right = sum(found[id]["value"] == 1 for id in found)
        row: dict[str, Any] = {"items": len(found), "right": right}
        row["percent"] = 100 * right / len(found)
        row["interval"] = [100 * end for end in interval(right, len(found))]
        row["equal_answers"] = sum(found[id]["answer"] == ways[base][id]["answer"] for id in shared)
        row["equal_scores"] = sum(found[id]["value"] == ways[base][id]["value"] for id in shared)
        row["shared"] = len(shared)
        if all("logprobs" in value for value in found.values()):
            pairs = [
                (a, b) for id in shared
                for a, b in zip(found[id]["logprobs"], ways[base][id]["logprobs"], strict=True)
            ]  # fmt: skip
            row["largest_logprob_difference"] = max(abs(a - b) for a, b in pairs)
            row["equal_greedy"] = sum(found[id]["greedy"] == ways[base][id]["greedy"] for id in shared)
        else:
            row["differ"] = [
                {"item": id, way: found[id]["answer"][-200:], base: ways[base][id]["answer"][-200:]}
                for id in shared if found[id]["answer"] != ways[base][id]["answer"]
            ][:20]  # fmt: skip
        table[way] = row
    ends = [row["interval"] for row in table.values()]
    inside = all(low - 1e-9 <= row["percent"] <= high + 1e-9 for row in table.values() for low, high in ends)
    return {"each_inside_the_others_intervals": inside, "ways": table}


def timed(seconds: dict[str, float], name: str, work: Callable[..., Found], *args: Any) -> Found:
    begin = time.monotonic()
    found = work(*args)
    seconds[name] = round(time.monotonic() - begin, 1)
    print(f"{name}: {seconds[name]} s", file=sys.stderr)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--model", default="embedded")
    options.add_argument("--suites", default="steps,controls")
    options.add_argument("--limit", type=int, default=100, help="items of each suite")
    options.add_argument("--choices", type=int, default=100, help="problems with four replies")
    options.add_argument("--ways", default="hf,ours,api")
    options.add_argument("--runs", default="", help="folders of `qwen3 eval` runs, with commas between")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the harness is imported
    path = resolve(given.model).path
    ways, seconds, tables = given.ways.split(","), {}, {}
    runs = [own_run(Path(folder)) for folder in given.runs.split(",") if folder]
    with tempfile.TemporaryDirectory() as folder, served(Namespace(model=given.model, max_batch=0), Path(folder)) as at:
        url, room = at[0], Path(folder)
        for name in given.suites.split(","):
            suite = suite_named(name)
            items = list(suite.load(f"count={given.limit}"))
            for mode in MODES:
                found = {
                    way: timed(seconds, f"{name} {mode} {way}", answers, suite, items, way, mode, path, url, room)
                    for way in ways
                }
                for of, how, own in runs:
                    if (of, how) == (name, mode):
                        found["qwen3 eval"] = own
                tables[f"{name}, {mode}"] = beside(found, ways[0])
        docs = choice_problems(given.choices, seed=1)
        found = {way: timed(seconds, f"choice {way}", choices, docs, way, path, url, room) for way in ways}
        tables["choice"] = beside(found, ways[0])
    result = {
        "what": "one model through lm-evaluation-harness in three ways and through qwen3 eval, greedily",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "machine": describe(torch.device("cpu")) | {"note": "2 shared EPYC cores"},
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch", "datasets")},
        "seconds": seconds,
        "tables": tables,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
