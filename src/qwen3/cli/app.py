"""The verbs and their flags. Each imports what it needs when it is called: `qwen3 version` must not wait for torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3.cli import app_convert, app_diff, app_eval, app_quantize
from qwen3.cli.flags import Json

MODEL_HELP = "Folder, GGUF file, tag (qwen3:0.6b), hub id (owner/name@REVISION:QUANT) or 'embedded', the default."
Model = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)]

app = typer.Typer(
    name="qwen3",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text reads well at any width and in a pipe
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help='Run Qwen3 models. Start with: qwen3 run "What is 27 * 14?"',
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 model not found, 4 out of memory, 5 hub, 6 corrupt or unsafe file, "
    "130 interrupted. Guide: docs/cli.md",
)


def _version(asked: bool) -> None:
    if asked:
        raise typer.Exit(version())


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Flags of `qwen3` itself."""


@app.command(
    help="Answer a prompt; without one, on a terminal, hold a conversation. MODEL: a folder, a tag (qwen3:0.6b), a hub "
    "id (Qwen/Qwen3-0.6B@REVISION) or 'embedded', the small model in this package, which is the default. One word "
    "alone is the model if it can be one, else the prompt.",
    short_help="Answer a prompt, or hold a conversation.",
    epilog='Example: qwen3 run --think-budget 64 "What is 27 * 14?"',
)
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL] [PROMPT]", hidden=True),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model, whatever it looks like.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt, whatever it looks like.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System message.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Think, even if the model would not.")] = False,
    no_think: Annotated[bool, typer.Option("--no-think", help="Answer at once.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="Begin to answer; think where that shows doubt.")] = False,
    threshold: Annotated[
        float | None, typer.Option("--threshold", metavar="X", help="Of --auto: how much doubt, 0 to 1.")
    ] = None,
    think_budget: Annotated[
        int | None,
        typer.Option("--think-budget", "--budget", metavar="N", help="At most N tokens of thinking, then the answer."),
    ] = None,
    answer_reserve: Annotated[
        int | None, typer.Option("--answer-reserve", metavar="N", help="Keep N of --max-tokens for the answer.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", metavar="N", help="At most N paragraphs of thinking, 1 to 32.")
    ] = None,
    soft_landing: Annotated[
        int | None,
        typer.Option("--soft-landing", metavar="N", help="N tokens before the budget, close at a sentence's end."),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", metavar="S", help="Answer within S seconds, 0.5 to 30.")
    ] = None,
    max_active_params: Annotated[
        int | None, typer.Option("--max-active-params", metavar="N", help="Fewer experts per token (MoE models).")
    ] = None,
    hide_thinking: Annotated[bool, typer.Option("--hide-thinking", help="Think, but do not show it.")] = False,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "--temp", metavar="X", help="0 is greedy.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="X", help="Keep the likeliest tokens up to this sum.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 is off.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", metavar="X", help="Drop tokens below this share of the likeliest.")
    ] = None,
    presence_penalty: Annotated[float, typer.Option("--presence-penalty", metavar="X", help="-2 to 2.")] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option("--frequency-penalty", metavar="X", help="-2 to 2; grows with each repetition.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", metavar="X", help="Above 0 to 10; 1 is off.")
    ] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Thinking included.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Same seed, same tokens.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the answer; may be repeated.")
    ] = None,
    tools: Annotated[
        Path | None, typer.Option("--tools", metavar="FILE", help="JSON list of functions the model may call.")
    ] = None,
    tool_choice: Annotated[
        str | None, typer.Option("--tool-choice", metavar="NAME", help="auto, none, required, or one tool's name.")
    ] = None,
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="FILE|JSON", help="The answer is JSON under this schema.")
    ] = None,
    regex: Annotated[str | None, typer.Option("--regex", metavar="TEXT", help="The answer matches it.")] = None,
    grammar: Annotated[
        Path | None, typer.Option("--grammar", metavar="FILE", help="The answer follows it (Lark or EBNF).")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is: no chat template.")] = False,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="Answer with this LoRA adapter (PEFT's format).")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 …; none: the best there is.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32.")] = None,
    speculation: Annotated[
        str | None, typer.Option("--speculation", metavar="NAME", help="Guess tokens ahead: ngram, or a small model.")
    ] = None,
    as_json: Json = False,
) -> int:
    from qwen3.cli import run as verb

    options = verb.Options(
        system=system,
        think=think,
        no_think=no_think,
        auto=auto,
        thinking={
            "budget": think_budget,
            "answer_reserve": answer_reserve,
            "max_steps": max_steps,
            "time_limit_s": time_limit,
            "max_active_params": max_active_params,
            "soft_landing": soft_landing,
            "threshold": threshold,
        },
        hide_thinking=hide_thinking,
        sampling={
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "repetition_penalty": repetition_penalty,
            "max_tokens": max_tokens,
            "seed": seed,
            "stop": stop or None,
        },
        tools=tools,
        tool_choice=tool_choice,
        schema=schema,
        regex=regex,
        grammar=grammar,
        raw=raw,
        adapter=adapter,
        device=device,
        dtype=dtype,
        speculation=speculation,
        as_json=as_json,
    )
    return verb.run(words or [], model, prompt, options)


@app.command(
    help="What a model is: size, context, memory per token, thinking modes, sampling defaults, files. With --plan: "
    "which model fits where, in which format, with how much context.",
    short_help="What a model is: size, context, modes, files; or what fits.",
    epilog="Example: qwen3 show --plan --memory 24GB",
)
def show(
    model: Model = None,
    plan: Annotated[bool, typer.Option("--plan", help="What it takes and what fits; no MODEL: all members.")] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Of --plan: 24GB, 4x96GB, all; none: this machine.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Of --plan: cpu or cuda, where that memory is.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", help="Of --plan: tokens of a sequence (32768).")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Of --plan: sequences at once (1).")] = None,
    kv_dtype: Annotated[
        str | None, typer.Option("--kv-dtype", metavar="NAME", help="Of --plan: fp8, bfloat16 or float32.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Of --plan: one format alone, such as Q4_K_M.")
    ] = None,
    as_json: Json = False,
) -> int:
    if plan:
        from qwen3.cli import plan as planner

        return planner.plan(
            model, as_json,
            memory=memory, device=device, context=context, batch=batch, kv_dtype=kv_dtype, format=format,
        )  # fmt: skip
    from qwen3.cli import show as verb

    of_plan = {"memory": memory, "device": device, "context": context, "batch": batch, "kv_dtype": kv_dtype}
    return verb.show(model, as_json, {**of_plan, "format": format})


@app.command(
    name="ls",
    help="The models on this machine: the embedded one and what is in the Hugging Face cache.",
    short_help="The models on this machine, or all there are.",
    epilog="Example: qwen3 ls --all",
)
def list_models(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also every published Qwen3 that could be pulled.")
    ] = False,
    as_json: Json = False,
) -> int:
    from qwen3.cli import models as verb

    return verb.list_models(everything, as_json)


@app.command(
    help="Download a model into the Hugging Face cache, or finish a download that was cut.",
    short_help="Download a model, or finish a download that was cut.",
    epilog="Example: qwen3 pull qwen3:0.6b",
)
def pull(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A tag (qwen3:0.6b) or hub id (Qwen/Qwen3-0.6B@REVISION).")
    ],
    as_json: Json = False,
) -> int:
    from qwen3.cli import models as verb

    return verb.pull(model, as_json)


@app.command(
    help="Read every byte of a model and say whether it is sound: files, hashes, names, shapes, NaN, tokenizer. "
    "Exit code 6 if it is not.",
    short_help="Read every byte of a model and say whether it is sound.",
    epilog="Example: qwen3 verify ./Qwen3-0.6B",
)
def verify(model: Model = None, as_json: Json = False) -> int:
    from qwen3.cli import models as verb

    return verb.verify(model, as_json)


@app.command(
    help="How fast a model runs here, each number beside what the hardware allows at most. MODEL: a size (0.6B, 1.7B, "
    "4B, 8B, 14B, 32B, 30B-A3B, 235B-A22B: random weights at the published shape, no download), 'embedded' (the "
    "default), a tag, a hub id or a folder.",
    short_help="How fast a model runs here, beside its floor.",
    epilog="Example: qwen3 bench embedded --only decode_b1_tok_s",
)
def bench(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A size, or as for the other verbs.")] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="KEYS", help="These measurements alone, comma-separated.")
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option("--kv-dtype", metavar="NAME", help="fp8: of the KV cache.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="NAME", help="fp8, int8 or int4: of the weights.")
    ] = None,
    invariant: Annotated[bool, typer.Option("--invariant", help="Batch-invariant mode.")] = False,
    curves: Annotated[
        bool, typer.Option("--curves", help="Also speed against streams (1 to 1,024) and context (1k to 128k).")
    ] = False,
    gap: Annotated[
        bool, typer.Option("--gap", help="Also the time between tokens while a 32k prompt is computed.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 …; none: the best there is.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32.")] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", metavar="N", help="Most sequences at once.")] = 256,
    max_len: Annotated[
        int | None, typer.Option("--max-len", metavar="N", help="Longest sequence; none: 34,000 or the context.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="SECONDS", help="End then, with what was measured.")
    ] = None,
    as_json: Json = False,
) -> int:
    import shlex
    import sys

    from qwen3.cli import bench as verb
    from qwen3.evaluate.bench import keys_of

    return verb.bench(
        model,
        as_json,
        only=keys_of(only),
        kv_dtype=kv_dtype,
        weights=weights,
        invariant=invariant,
        curves=curves,
        gap=gap,
        device=device,
        dtype=dtype,
        max_batch=max_batch,
        max_len=max_len,
        budget=budget,
        command=shlex.join(["qwen3", *sys.argv[1:]]),
    )


@app.command(
    help="Accuracy against the thinking budget. SUITE: tasks (all families of the package's own problems, none of them "
    "trained on), steps, controls, families' names with commas, or a suite of `qwen3 eval --list`, for which each "
    "budget is a run that can be resumed.",
    short_help="How much thinking buys: accuracy against budget.",
    epilog="Example: qwen3 curve tasks --budgets 0,16,64,none --problems 200",
)
def curve(
    suite: Annotated[str, typer.Argument(metavar="[SUITE]", help="What is asked.")] = "tasks",
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)] = None,
    budgets: Annotated[
        str | None, typer.Option("--budgets", metavar="LIST", help="Tokens, with commas; 'none' is unlimited.")
    ] = None,
    problems: Annotated[
        int | None,
        typer.Option("--problems", "--limit", metavar="N", min=1, help="Of each budget (2000; of a suite: all)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the problems and the sampling.")] = 1,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 …; none: the best there is.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32.")] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", metavar="N", min=1, help="Most sequences at once.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="Write the JSON object there; of a suite: its folder.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", min=1, help="Of a suite: per item.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help="Of a suite: as for eval.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Of a suite: of a turn, with thinking.")
    ] = None,
    api: Annotated[str | None, typer.Option("--api", metavar="URL", help="Of a suite: ask this endpoint.")] = None,
    api_model: Annotated[str | None, typer.Option("--api-model", metavar="NAME", help="The model there.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="The environment variable with the key.")
    ] = None,
    as_json: Json = False,
) -> int:
    import shlex
    import sys

    from qwen3.cli import curve as verb

    return verb.measure(
        suite,
        model,
        as_json,
        budgets=budgets,
        problems=problems,
        seed=seed,
        device=device,
        dtype=dtype,
        max_batch=max_batch,
        out_file=out,
        command=shlex.join(["qwen3", *sys.argv[1:]]),
        samples=samples, data=data, max_tokens=max_tokens, api=api, api_model=api_model, api_key_env=api_key_env,
    )  # fmt: skip


@app.command(
    help="Serve models over the protocols of OpenAI, Anthropic and Ollama, with a chat page. MODEL: as for the other "
    "verbs, or NAME=MODEL to serve it as NAME; the first is the default one, and 'embedded' where none is given.",
    short_help="Serve models over HTTP, with a chat page.",
    epilog="Example: qwen3 serve qwen3:8b --port 8080. Guide: docs/serving.md",
)
def serve(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help=MODEL_HELP)] = None,
    host: Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="127.0.0.1; others need keys.")] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="8000; 0: any that is free.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="Lines of id:secret or id:sha256=HEX.")
    ] = None,
    make_key: Annotated[
        str | None, typer.Option("--make-key", metavar="NAME", help="Make a key, print it, and end.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let the network in without keys.")] = False,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-hosts", metavar="NAME", help="The server goes by this name, too; may be repeated."),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option("--allowed-origins", metavar="URL", help="Web pages from there may use it; may be repeated."),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option("--max-queue", metavar="N", help="Most answers that wait, per model (256).")
    ] = None,
    max_per_key: Annotated[
        int | None, typer.Option("--max-per-key", metavar="N", help="Most requests at once of a key (64).")
    ] = None,
    max_loaded: Annotated[
        int | None, typer.Option("--max-loaded", metavar="N", help="Most models in memory; none: all.")
    ] = None,
    idle_unload: Annotated[
        float | None, typer.Option("--idle-unload", metavar="S", help="Unload a model nobody asked for S seconds.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", metavar="N", help="Most sequences computed at once.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", help="Tokens of a request at most; none: all there are.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 …; none: the best there is.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="NAME", help="fp8, int8 or int4: of the weights.")
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option("--kv-dtype", metavar="NAME", help="fp8: of the KV cache.")] = None,
    speculation: Annotated[
        str | None, typer.Option("--speculation", metavar="NAME", help="Guess tokens ahead: ngram, or a small model.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=DIR", help="A LoRA adapter of the first model; may be repeated."),
    ] = None,
    drain: Annotated[
        float | None, typer.Option("--drain", metavar="S", help="Seconds that running answers get at the end (30).")
    ] = None,
    reasoning_field: Annotated[
        str | None,
        typer.Option("--reasoning-field", metavar="NAME", help="Thinking goes to: both, content, reasoning or none."),
    ] = None,
    reasoning_memory: Annotated[
        bool, typer.Option("--reasoning-memory/--no-reasoning-memory", help="Put back thinking that clients drop.")
    ] = True,
    shared_prefix: Annotated[
        bool, typer.Option("--shared-prefix", help="One prefix cache for all keys: timing shows what others asked.")
    ] = False,
    files_dir: Annotated[
        Path | None, typer.Option("--files-dir", metavar="DIR", help="Where files and batches live on.")
    ] = None,
    max_body: Annotated[int | None, typer.Option("--max-body", metavar="BYTES", help="Of a request (32 MiB).")] = None,
    max_header: Annotated[
        int | None, typer.Option("--max-header", metavar="BYTES", help="Of a request's headers (64 KiB).")
    ] = None,
    max_file: Annotated[
        int | None, typer.Option("--max-file", metavar="BYTES", help="Of an uploaded file (256 MiB).")
    ] = None,
    max_connections: Annotated[
        int | None, typer.Option("--max-connections", metavar="N", help="Open at once (1024).")
    ] = None,
    header_timeout: Annotated[
        float | None, typer.Option("--header-timeout", metavar="S", help="For a request's headers (10).")
    ] = None,
    body_timeout: Annotated[
        float | None, typer.Option("--body-timeout", metavar="S", help="For a request's body (60).")
    ] = None,
    write_timeout: Annotated[
        float | None, typer.Option("--write-timeout", metavar="S", help="For a reader that takes nothing (60).")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", metavar="NAME", help="plain or json, one line per request.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="NAME", help="debug, info, warning or error.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="URL", help="OpenTelemetry spans go there (OTLP over HTTP).")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The chat page and the status page.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON on stdout when ready: url, port, pid, models.")
    ] = False,
) -> int:
    given = {name: value for name, value in locals().items() if name not in ("models", "make_key", "as_json")}
    from qwen3.cli import serve as verb

    if make_key is not None:
        return verb.make_key(make_key, api_key_file, as_json)
    for name in ("allowed_hosts", "allowed_origins", "adapters"):
        given[name] = tuple(given[name] or ())
    return verb.serve(models or [], as_json, given)


@app.command(
    help="Is this machine ready: Python, PyTorch, device, memory, disk, cache, hub, package data. "
    "Exit code 1 if something will not work.",
    short_help="Is this machine ready, and if not, why.",
    epilog="Example: qwen3 doctor --json",
)
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the hub.")] = False,
    as_json: Json = False,
) -> int:
    from qwen3.cli import doctor as verb

    return verb.doctor(offline, as_json)


@app.command(help="The versions of qwen3, Python and PyTorch.", epilog="Example: qwen3 version --json")
def version(as_json: Json = False) -> int:
    from qwen3.cli import version as verb

    return verb.version(as_json)


@app.command(
    help="Train by a RECIPE: a name (qwen3 train alone lists them), or a Python file with a function recipe(). Keys of "
    "the recipe are set with NAME=VALUE; --keys lists them. A run that was ended goes on when it is started again. "
    "report FOLDER draws a run, also one that goes on.",
    short_help="Train a model, or an adapter, by a recipe.",
    epilog="Example: qwen3 train sft data=chats.jsonl model=embedded lora.rank=16 out=./mine",
)
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or file.")] = "",
    words: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Keys of the recipe.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", metavar="M", min=0, help="End then, with a checkpoint.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List the recipe's keys, their values and meanings.")] = False,
    as_json: Json = False,
) -> int:
    from qwen3.cli.console import note, out_json
    from qwen3.train.start import main

    told = [*([recipe] if recipe else []), *(words or ()), *(["--keys"] if keys else ())]
    return main(told, note, max_minutes, out_json if as_json else None)


app.command(help=app_diff.HELP, short_help="What a variant of a model costs, in figures.",
            epilog="Example: qwen3 diff embedded embedded+int4 --html report.html")(app_diff.diff)  # fmt: skip
app.command(help=app_quantize.HELP, short_help="Write a model in fewer bits.", epilog=app_quantize.EPILOG)(
    app_quantize.quantize
)
app.command(help=app_convert.HELP, short_help="Write a model as GGUF, folder or ONNX.", epilog=app_convert.EPILOG)(
    app_convert.convert
)
app.command("eval", help=app_eval.HELP, short_help="Ask a model a benchmark, with intervals and costs.",
            epilog=app_eval.EPILOG)(app_eval.evaluate)  # fmt: skip
app.command(help=app_eval.COMPARE_HELP, short_help="Two runs of a benchmark, paired by item.",
            epilog=app_eval.COMPARE_EPILOG)(app_eval.compare)  # fmt: skip
