#!/usr/bin/env python3
"""How much of the engine's own speed reaches the clients of `qwen3 serve`, and how much later the first token comes.

    python tools/serve_load.py --model embedded                   # CPU: the engine alone, then the server, same work
    python tools/serve_load.py --model 0.6B --clients 4           # a GPU; random weights of a published size
    python tools/serve_load.py --url http://127.0.0.1:8000        # a server that runs; its figures only
    python tools/serve_load.py --help

Prints JSON. The work: `streams` chats at once with prompts of their own, each `tokens` tokens, ends ignored, streamed;
then `singles` chats of 16 tokens, one after the other, for the time to the first token. The engine alone does that
in a process without a server, and its events are folded; over HTTP they are read by `clients` processes that look at
every byte but parse no JSON. The engine and the server run one after the other, never at once. cpu_us_per_token: of the
processor's time, which a busy machine disturbs less than speeds. Needs what the server needs, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
SHOWN = re.compile(rb'"(?:reasoning_content|reasoning|content)":"[^"]')
COMPLETED = re.compile(rb'"completion_tokens":(\d+)')
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
SINGLE_TOKENS = 16


def prompt(place: int, words: int) -> str:
    """A text like no other, so that the prefix cache has nothing of it."""
    rng = random.Random(place)
    return f"{rng.getrandbits(60)} " + " ".join(rng.choice(WORDS) for _ in range(words))


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: 1e3 * ordered[min(len(ordered) - 1, int(at * len(ordered)))] for name, at in places.items()}


def summary(streams: list[dict[str, Any]], singles: list[dict[str, Any]]) -> dict[str, Any]:
    """Each: start and end, first (of the first text), arrivals (seconds of one clock), tokens."""
    span = max(s["end"] for s in streams) - min(s["start"] for s in streams)
    tokens = sum(s["tokens"] for s in streams)
    # While all of them run: neither the prompts nor the last ones alone.
    begin, end = max(s["first"] for s in streams), min(s["end"] for s in streams)
    inside = sum(s["tokens"] * sum(begin <= t <= end for t in s["arrivals"]) / len(s["arrivals"]) for s in streams)
    gaps = [b - a for s in streams for a, b in zip(s["arrivals"], s["arrivals"][1:], strict=False)]
    return {
        "streams": len(streams),
        "tokens": tokens,
        "seconds": span,
        "tok_s": tokens / span,
        "steady_tok_s": inside / (end - begin) if end > begin else None,
        "ttft_ms": quantiles([s["first"] - s["start"] for s in streams]),
        "gap_ms": quantiles(gaps) if gaps else None,
        "news_per_token": sum(len(s["arrivals"]) for s in streams) / tokens,
        "single_ttft_ms": quantiles([s["first"] - s["start"] for s in singles]),
        "single_tok_s": statistics.median((s["tokens"] - 1) / (s["end"] - s["first"]) for s in singles),
    }


# The engine alone


def engine_alone(given: argparse.Namespace) -> dict[str, Any]:
    from qwen3 import LLM, SamplingParams, ThinkingPolicy
    from qwen3.asking import Asking, Form
    from qwen3.chat import fold

    llm = LLM(None if given.model == "embedded" else given.model, prefill_ahead=False, max_batch=given.max_batch)
    engine = llm.engine
    engine.warm_up()
    asking = Asking(llm.tokenizer, llm.config, llm.mode, llm.template)

    def run(places: range, tokens: int) -> list[dict[str, Any]]:
        runs = []
        for place in places:
            messages = [{"role": "user", "content": prompt(place, given.words)}]
            params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=place)
            start = time.monotonic()
            policy = ThinkingPolicy(loop_guard=False)
            (request,) = asking.chat(messages, Form(), policy, params, engine.check).requests
            engine.add(request)
            runs.append((request, {"start": start, "first": 0.0, "arrivals": [], "events": []}))
        left = runs
        while left:
            engine.advance()
            now = time.monotonic()
            for request, seen in left:
                if events := request.take_events():
                    seen["events"] += events
                    seen["arrivals"].append(now)
                    seen["first"] = seen["first"] or now
                if request.done:
                    seen["end"], seen["tokens"] = now, len(request.output)
                    fold(seen.pop("events"))
            left = [run for run in left if not run[0].done]
        return [seen for _, seen in runs]

    return measured(given, run, {"engine": os.getpid()})


def cpu_seconds(pid: int) -> float:
    """Of the processor, that the process has used; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(folder.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.parent.name))
        except (OSError, ValueError):
            continue
    return found


def measured(given: argparse.Namespace, run: Any, pids: dict[str, int]) -> dict[str, Any]:
    """`run(places, tokens)`: these prompts at once. pids: processes whose time is of interest."""
    run(range(-given.streams, 0), 32)  # what is made when it is first needed
    rounds = []
    for i in range(given.rounds):
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        streams = run(range((i + 1) << 20, ((i + 1) << 20) + given.streams), given.tokens)
        spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        singles = [
            run(range(place, place + 1), SINGLE_TOKENS)[0] for place in range(i << 10, (i << 10) + given.singles)
        ]
        rounds.append(summary(streams, singles))
        per_token = {name: 1e6 * seconds / rounds[-1]["tokens"] for name, seconds in spent.items()}
        rounds[-1]["cpu_us_per_token"] = per_token
    return max(rounds, key=lambda found: found["tok_s"]) | {"rounds_tok_s": [found["tok_s"] for found in rounds]}


# Over HTTP


class Reader(asyncio.Protocol):
    """One streamed chat. Bytes are looked at as they come, nothing is parsed."""

    def __init__(self, request: bytes) -> None:
        self.request, self.data = request, b""
        self.arrivals: list[float] = []
        self.start = self.first = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport, self.start = transport, time.monotonic()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.data = self.data[-1024:] + data
        if SHOWN.search(data):
            self.arrivals.append(now)
            self.first = self.first or now
        if b"data: [DONE]" in self.data:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def seen(self) -> dict[str, Any]:
        found = COMPLETED.findall(self.data)
        if not found or not self.arrivals:
            raise SystemExit(f"no whole answer came: {self.data[-600:].decode(errors='replace')}")
        tokens, end = int(found[-1]), self.arrivals[-1]
        return {"start": self.start, "first": self.first, "end": end, "arrivals": self.arrivals, "tokens": tokens}


async def client(given: argparse.Namespace, places: list[int], tokens: int) -> list[dict[str, Any]]:
    url = urlsplit(given.url)
    readers = []
    for place in places:
        body = json.dumps({
            "messages": [{"role": "user", "content": prompt(place, given.words)}],
            "max_tokens": tokens, "seed": place % 2**63, "ignore_eos": True, "thinking": {"loop_guard": False},
            "stream": True, "stream_options": {"include_usage": True},
        }).encode()  # fmt: skip
        key = f"Authorization: Bearer {given.key}\r\n" if given.key else ""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n{key}Content-Type: application/json\r\n"
        readers.append(Reader(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body))
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.create_connection(lambda r=r: r, url.hostname, url.port or 80) for r in readers))
    await asyncio.gather(*(reader.done for reader in readers))
    return [reader.seen() for reader in readers]


def over_http(given: argparse.Namespace, server: int | None = None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--url", given.url, "--words", str(given.words), "--part", "client"]
    if given.key:
        command += ["--key", given.key]
    count = max(1, min(given.clients, given.streams))
    clients = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(count)]

    def run(places: range, tokens: int) -> list[dict[str, Any]]:
        shares = [places[i::count] for i in range(count)]
        for process, share in zip(clients, shares, strict=True):
            process.stdin.write(json.dumps([list(share), tokens]) + "\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in clients]
        if not all(lines):
            raise SystemExit("a client has ended: see above")
        return [seen for line in lines for seen in json.loads(line)]

    pids = {} if server is None else {"server": server, "worker": children(server)[0]}
    try:
        return measured(given, run, pids)
    finally:
        for process in clients:
            process.kill()


def serve_client(given: argparse.Namespace) -> None:
    for line in sys.stdin:
        places, tokens = json.loads(line)
        print(json.dumps(asyncio.run(client(given, places, tokens)) if places else []), flush=True)


@contextmanager
def served(given: argparse.Namespace, room: Path) -> Any:
    """A server of the model; its URL and its process."""
    flags = ["--port", "0", "--json", "--log-level", "error"]
    command = [sys.executable, "-m", "qwen3", "serve", f"load={given.model}", *flags]
    if given.max_batch:
        command += ["--max-batch", str(given.max_batch)]
    with open(room / "server.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"HOME": str(room)}
        )
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit((room / "server.log").read_text())
        url = json.loads(line)["url"]
        import urllib.error
        import urllib.request

        while True:
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=5).read()
                break
            except urllib.error.HTTPError:
                if process.poll() is not None:
                    raise SystemExit((room / "server.log").read_text()) from None
                time.sleep(0.2)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def random_weights(name: str, folder: Path) -> str:
    """A checkpoint of that size."""
    import torch

    from qwen3.checkpoint import save_checkpoint
    from qwen3.evaluate.workloads import random_model
    from qwen3.family import MODELS
    from qwen3.tokenizer import Tokenizer

    config = MODELS[f"Qwen3-{name}"].config
    model = random_model(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)
    save_checkpoint(folder, model, tokenizer=Tokenizer.from_pretrained())
    return str(folder)


def part(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One part in a process of its own, so that its memory is free afterwards."""
    flags = ["model", "streams", "tokens", "words", "rounds", "singles", "max_batch"]
    command = [sys.executable, __file__, "--part", name]
    for flag in flags:
        if getattr(given, flag) is not None:
            command += [f"--{flag.replace('_', '-')}", str(getattr(given, flag))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--url", help="of a server that runs; none: --model is served")
    options.add_argument("--key", help="API key for --url")
    options.add_argument("--model", help="embedded, a size with random weights (0.6B, 8B, …), or a folder")
    options.add_argument("--streams", type=int, default=64)
    options.add_argument("--tokens", type=int, default=256, help="of each stream")
    options.add_argument("--words", type=int, default=60, help="of a prompt")
    options.add_argument("--rounds", type=int, default=2, help="the best one counts")
    options.add_argument("--singles", type=int, default=20, help="chats one after the other, for the first token")
    options.add_argument("--clients", type=int, default=1, help="processes that read")
    options.add_argument("--max-batch", type=int)
    options.add_argument("--part", choices=["engine", "client", "weights"], help=argparse.SUPPRESS)
    given = options.parse_args()
    sys.path[:0] = [str(ROOT / "src")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    if given.part == "engine":
        print(json.dumps(engine_alone(given)))
    elif given.part == "client":
        serve_client(given)
    elif given.url:
        print(json.dumps({"http": over_http(given)}, indent=1))
    elif given.model:
        with tempfile.TemporaryDirectory(prefix="qwen3-load-") as room:
            print(json.dumps(compared(given, Path(room)), indent=1))
    else:
        options.error("--url or --model?")


def compared(given: argparse.Namespace, room: Path) -> dict[str, Any]:
    name = given.model
    if re.fullmatch(r"\d+(\.\d+)?B(-A\d+B)?", name):
        given.model = random_weights(name, room / f"Qwen3-{name}")
    alone = part("engine", given)
    with served(given, room) as (given.url, pid):
        http = over_http(given, pid)
    steady = http["steady_tok_s"], alone["steady_tok_s"]
    return {
        "model": name,
        "engine": alone,
        "http": http,
        "throughput_ratio": http["tok_s"] / alone["tok_s"],
        "steady_ratio": None if None in steady else steady[0] / steady[1],
        "added_ttft_ms": http["single_ttft_ms"]["p50"] - alone["single_ttft_ms"]["p50"],
    }


if __name__ == "__main__":
    main()
