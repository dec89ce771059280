"""`qwen3 eval` and `qwen3 compare`. The work is in `qwen3.evaluate.runs`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3.cli.console import note, out, out_json, table, warn
from qwen3.errors import UsageError
from qwen3.evaluate import statistics
from qwen3.evaluate.runs.endpoint import Endpoint
from qwen3.evaluate.runs.record import difference, read_run
from qwen3.evaluate.runs.run import Model, Wish, check_needs, finish, items_of, remarks, summarised, write_page
from qwen3.evaluate.runs.run import evaluate as ask
from qwen3.evaluate.suites import suite_named, suites
from qwen3.evaluate.suites.arena_hard import with_judge
from qwen3.evaluate.types import OUTCOMES, Suite


@dataclass(frozen=True)
class Options:
    """The flags of `qwen3 eval`, by their names."""

    model: str | None = None
    api: str | None = None
    api_model: str | None = None
    api_key_env: str | None = None
    judge: str | None = None
    judge_model: str | None = None
    judge_key_env: str | None = None
    think: bool = False
    no_think: bool = False
    auto: bool = False
    budget: int | None = None
    samples: int | None = None
    limit: int | None = None
    data: str | None = None
    out: Path | None = None
    seed: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    concurrency: int | None = None
    timeout: float = 3600
    retries: int = 8
    price_in: float | None = None
    price_out: float | None = None
    gpu_price: float | None = None
    device: str | None = None
    dtype: str | None = None
    weights: str | None = None
    context: int | None = None
    max_batch: int | None = None
    fast: bool = False

    @property
    def mode(self) -> str | None:
        """Raises UsageError for two modes, and for a budget where nothing is thought."""
        named = {"think": self.think, "no-think": self.no_think, "auto": self.auto}
        chosen = [name for name, given in named.items() if given]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in chosen)} contradict each other: give one")
        if self.budget and self.no_think:
            raise UsageError("--budget and --no-think contradict each other: leave one out")
        return chosen[0] if chosen else ("think" if self.budget is not None else None)

    def wish(self, command: str) -> Wish:
        names = ("max_tokens", "temperature", "top_p", "top_k", "presence_penalty")
        prices = {"input": self.price_in, "output": self.price_out, "gpu_hour": self.gpu_price}
        return Wish(
            samples=self.samples,
            limit=self.limit,
            data=self.data,
            seed=self.seed,
            sampling={name: getattr(self, name) for name in names},
            prices={name: price for name, price in prices.items() if price is not None},
            judge=self.judge and f"{self.judge_model} at {self.judge}",
            command=command,
        )


def endpoint_of(options: Options) -> Endpoint | None:
    """The endpoint, None for a model in this process. Raises UsageError for flags that do not go together."""
    mode = options.mode
    if options.api is not None:
        here = ("model", "device", "dtype", "weights", "context", "max_batch")
        if wrong := [name for name in here if getattr(options, name) is not None] + ["fast"] * options.fast:
            hint = "; the model's name there is --api-model" if "model" in wrong else ""
            raise UsageError(f"--{wrong[0].replace('_', '-')} is of a model in this process, not of --api{hint}")
        if not options.api_model:
            raise UsageError("--api needs --api-model, the model's name there")
        return Endpoint(
            options.api, options.api_model, key_in(options.api_key_env, "--api-key-env"), mode, options.budget,
            concurrency=options.concurrency or 8, timeout_s=options.timeout, retries=options.retries,
        )  # fmt: skip
    if wrong := [name for name in ("api_model", "api_key_env") if getattr(options, name)]:
        raise UsageError(f"--{wrong[0].replace('_', '-')} goes with --api")
    return None


def key_in(variable: str | None, flag: str) -> str | None:
    """The key in an environment variable. Raises UsageError where there is none."""
    if variable and not os.environ.get(variable):
        raise UsageError(f"{flag} {variable}: there is no such environment variable, or it is empty")
    return os.environ[variable] if variable else None


def judged(suite: Suite, options: Options) -> Suite:
    """The suite, bound to the judge where it needs one. Raises UsageError where that is not named whole."""
    if "judge" not in suite.needs:
        return suite
    if not (options.judge and options.judge_model):
        raise UsageError(f"{suite.name} is scored by a judge: give --judge URL and --judge-model NAME")
    key = key_in(options.judge_key_env, "--judge-key-env")
    endpoint = Endpoint(options.judge, options.judge_model, key, timeout_s=options.timeout, retries=options.retries)
    return with_judge(suite, endpoint.judge)


def model_of(options: Options) -> Model:
    """The endpoint, or a model that is loaded. Raises what `endpoint_of` and LLM raise."""
    if there := endpoint_of(options):
        return there
    from qwen3 import LLM
    from qwen3.evaluate.runs.engine import InProcess

    llm = LLM(
        options.model, device=options.device, dtype=options.dtype, context=options.context, weights=options.weights,
        max_batch=options.max_batch, invariant=not options.fast, prefill_ahead=False,
    )  # fmt: skip
    for line in llm.warnings:
        warn(line)
    try:
        return InProcess(llm, options.mode, options.budget, options.concurrency, options.weights)
    except BaseException:
        llm.close()
        raise


def evaluate(words: list[str], options: Options, as_json: bool, command: str) -> int:
    """Prints the table, or {"runs": [result…]}."""
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        raise UsageError("name a suite; `qwen3 eval --list` shows them")
    wish = options.wish(command)
    chosen = [judged(suite_named(name), options) for name in names]
    if options.judge and not any("judge" in suite.needs for suite in chosen):
        raise UsageError(f"--judge: none of {', '.join(names)} is scored by a judge")
    endpoint_of(options)
    for suite in chosen:  # what cannot be had is said before a model is loaded
        check_needs(suite)
    items = [items_of(suite, wish) for suite in chosen]
    model = model_of(options)
    results = []
    try:
        base = options.out or Path("evals") / place(model)
        for suite, asked in zip(chosen, items, strict=True):
            folder = base if options.out and len(chosen) == 1 else base / suite.name
            result = finish(ask(suite, model, wish, folder, note, asked), folder)
            for line in result["cautions"]:
                note(f"{suite.name}: {line}")
            note(f"{suite.name}: {folder}")
            results.append(result)
    finally:
        model.close()
    if as_json:
        out_json({"runs": results})
    else:
        show(results)
    return 0


def place(model: Model) -> str:
    """A folder's name for what a model is asked in."""
    name = str(model.head()["model"])
    budget = "" if model.budget is None else f"-{model.budget}"
    return re.sub(r"[^\w.-]+", "-", f"{name}-{model.mode or 'default'}{budget}").strip("-.") or "run"


def list_suites(as_json: bool) -> int:
    rows = [
        {
            "name": suite.name,
            "title": suite.title,
            "licence": suite.licence,
            "source": suite.source,
            "samples": suite.sampling.samples,
            "needs": list(suite.needs),
            "notes": suite.notes,
        }
        for suite in suites().values()
    ]
    if as_json:
        out_json({"suites": rows})
    else:
        shown = [[str(row["name"]), str(row["title"]), str(row["licence"]), str(row["source"])] for row in rows]
        out(table(shown, ["suite", "what", "licence", "data"]))
    return 0


def show(results: list[dict[str, Any]]) -> None:
    """A line for each result: how much is right, how sure, how samples ended, tokens, cost of a right answer."""
    rows = []
    for one in results:
        low, high = one["interval"]
        counts = {name: outcome["count"] for name, outcome in one["outcomes"].items()}
        price = one["cost"]["by_tokens"] or one["cost"]["by_gpu"]
        rows.append([
            one["suite"],
            str(one["model"]),
            one["mode"] if one["budget"] is None else f"{one['mode']}, {one['budget']}",
            f"{one['percent']:.1f} %",
            f"{low:.1f} to {high:.1f}",
            f"{sum(counts.values()):,}",
            ", ".join(f"{counts[name]} {name}" for name in OUTCOMES[2:] if counts[name]) or "-",
            *(f"{one['tokens'][kind]['mean']:.0f}" if kind in one["tokens"] else "-"
              for kind in ("thinking", "answer")),
            f"{price['per_right']:.2g} {one['cost']['currency']}" if price and price["per_right"] else "-",
        ])  # fmt: skip
    names = [
        "suite",
        "model",
        "mode",
        "right",
        "95 % interval",
        "samples",
        "of which",
        "thought",
        "answer",
        "a right one",
    ]
    out(table(rows, names))


def compare(folder_a: Path, folder_b: Path, html: Path | None, as_json: bool) -> int:
    """Prints what statistics.compare finds, in words, or as JSON with both heads."""
    a, b = read_run(folder_a), read_run(folder_b)
    if html is not None and not html.resolve().parent.is_dir():
        raise UsageError(f"--html {html}: there is no folder {html.resolve().parent}")
    result = statistics.compare(a, b)
    for which, run in (("a", a), ("b", b)):
        for line in remarks(run):
            warn(f"{which}: {line}")
    result = {"suite": a.head["suite"], "a": str(folder_a), "b": str(folder_b), **result}
    if html is not None:
        write_page(html, [summarised(a), summarised(b)])
        note(f"{html}: the page")
    if as_json:
        out_json(result)
        return 0
    out(f"a: {a.head['model']}, {a.head['mode']}; b: {b.head['model']}, {b.head['mode']}")
    for name, there, here in result["settings"]:
        out(f"settings differ in {difference(name, there, here, ('a', 'b'))}")
    out(f"{result['items']:,} items of {a.head['suite']}: a {result['percent_a']:.1f} %, b {result['percent_b']:.1f} %")
    low, high = result["interval"]
    points = f"{result['points']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    out(f"b - a: {points}, p {result['p']:.3g} ({result['test']})")
    out(f"b is better on {result['better']} items, worse on {result['worse']}: sign test p {result['sign_p']:.3g}")
    out(f"such a pair of runs shows differences from {result['detectable']:.1f} points on (80 % power)")
    left = result["left_out"]
    if left["only_a"] or left["only_b"]:
        out(f"left out: {left['only_a']} items of a alone, {left['only_b']} of b alone")
    if groups := result["groups"]:
        rows = [
            [f"{one['key']} {one['value']}", str(one["items"]), f"{one['percent_a']:.1f}", f"{one['percent_b']:.1f}",
             f"{one['points']:+.1f}", f"{one['interval'][0]:+.1f} to {one['interval'][1]:+.1f}", f"{one['p_holm']:.2g}"]
            for one in groups
        ]  # fmt: skip
        out(table(rows, ["group", "items", "a", "b", "points", "95 % interval", "p (Holm)"]))
    return 0
