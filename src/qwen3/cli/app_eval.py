"""The flags of `qwen3 eval` and `qwen3 compare`. The work is in `qwen3.cli.eval`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwen3.cli.flags import Json

HELP = (
    "Ask a model the items of a SUITE (several with commas; --list shows them), score the answers, and sum them up "
    "with intervals and costs. The model runs in this process, or answers at --api. A run that was ended goes on when "
    "the same command is given again. `qwen3 eval claims [RUN…]`: what runs say of the published claims. "
    "`qwen3 eval contamination SUITE CORPUS…`: which items stand in a corpus."
)
EPILOG = "Example: qwen3 eval steps --limit 200 --budget 256. Guide: docs/evaluation.md"
COMPARE_HELP = (
    "Two runs of the same suite, paired by item: the difference with its interval, and the items that changed."
)
COMPARE_EPILOG = "Example: qwen3 compare evals/base/math500 evals/mine/math500 --html difference.html"


def evaluate(
    suites: Annotated[list[str] | None, typer.Argument(metavar="SUITE[,SUITE…]", help="What is asked.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="The suites, their licences, and where their data is.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Folder, GGUF file, tag, hub id or 'embedded' (usual)."),
    ] = None,
    api: Annotated[
        str | None, typer.Option("--api", metavar="URL", help="Ask this endpoint (OpenAI's shape, up to /v1) instead.")
    ] = None,
    api_model: Annotated[
        str | None, typer.Option("--api-model", metavar="NAME", help="The model's name there.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="The environment variable with the key.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="URL", help="The endpoint that judges, for suites that need one.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="The judge's name there.")
    ] = None,
    judge_key_env: Annotated[
        str | None, typer.Option("--judge-key-env", metavar="NAME", help="The environment variable with its key.")
    ] = None,
    think: Annotated[bool, typer.Option("--think", help="Think.")] = False,
    no_think: Annotated[bool, typer.Option("--no-think", help="Answer at once.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="Think where the answer begins with doubt.")] = False,
    budget: Annotated[
        int | None, typer.Option("--budget", "--think-budget", metavar="N", min=0, help="Most tokens of thinking.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="Per item; none: as the report, by suite.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="So many items, which --seed chooses.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="The suite's data: a file or folder (see --list).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Of the run; none: evals/MODEL-MODE/SUITE.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of --limit and the sampling.")] = 1,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Of a turn, thinking included.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "--temp", metavar="X", help="0 is greedy.")
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", metavar="X", help="0 to 1.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="K", help="0 is off.")] = None,
    presence_penalty: Annotated[float | None, typer.Option("--presence-penalty", metavar="X", help="-2 to 2.")] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", metavar="N", min=1, help="Samples at once; 8 at an endpoint.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, help="Of one request to --api, in seconds.")
    ] = 3600,
    retries: Annotated[int, typer.Option("--retries", metavar="N", min=0, help="Of one request to --api.")] = 8,
    price_in: Annotated[
        float | None, typer.Option("--price-in", metavar="X", min=0, help="Of a million prompt tokens.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option("--price-out", metavar="X", min=0, help="Of a million tokens made.")
    ] = None,
    gpu_price: Annotated[
        float | None, typer.Option("--gpu-price", metavar="X", min=0, help="Of an hour of the machine.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda …; none: the best there is.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", metavar="NAME", help="fp8, int8 or int4.")] = None,
    context: Annotated[int | None, typer.Option("--context", metavar="N", help="Prompt and answer, in tokens.")] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", metavar="N", min=1, help="Most sequences computed at once.")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="On a GPU: not batch-invariant; a resumed run may differ from an unbroken one."),
    ] = False,
    as_json: Json = False,
) -> int:
    given = {name: value for name, value in locals().items() if name not in ("suites", "list_", "as_json")}
    words = suites or []
    if words[:1] == ["claims"]:
        from qwen3.cli.claims import claims

        return claims(words[1:], as_json, out)
    if words[:1] == ["contamination"]:
        from qwen3.cli.contamination import check

        return check(words[1:], data, as_json, out)
    from qwen3.cli import eval as verb

    if list_:
        return verb.list_suites(as_json)
    return verb.evaluate(words, verb.Options(**given), as_json, shlex.join(["qwen3", *sys.argv[1:]]))


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the other one.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page of both there.")] = None,
    as_json: Json = False,
) -> int:
    from qwen3.cli import eval as verb

    return verb.compare(run_a, run_b, html, as_json)
