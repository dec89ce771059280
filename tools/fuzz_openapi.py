#!/usr/bin/env python3
"""schemathesis over our own OpenAPI: no 500, documented statuses, content types and answers, whatever is sent.

    python tools/client_envs.py FOLDER schemathesis
    python tools/fuzz_openapi.py FOLDER --cases 20000 --out runs/fuzz.jsonl     # minutes; again: it goes on

Seed after seed until there are as many cases: a seed's line in --out is not run again. Odd seeds send bodies as the
document describes them; even ones leave out what contradicts itself, so that more requests reach the models, which are
random and tiny. Between seeds the server must be healthy, hold no cache blocks and have logged no internal error.
Exit code 1 if anything failed, with what schemathesis says of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.fixtures import random_checkpoint, tiny_config
from tests.serve.conftest import Running, start_server

KEY = "fuzz", "secret-of-the-fuzzer-0123456789"
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "ignored_auth",
)  # fmt: skip
# What bodies keep where they are to be answered rather than refused.
PLAIN = {
    "model", "messages", "prompt", "input", "query", "documents", "text_1", "text_2", "tokens", "content", "role",
    "system", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "top_p", "top_k",
    "seed", "stop", "presence_penalty", "enable_thinking", "think", "encoding_format", "dimensions", "top_n",
    "logprobs", "type", "text", "purpose", "file", "endpoint", "completion_window", "input_file_id", "instructions",
    "id", "action",
}  # fmt: skip


def served(folder: Path) -> Running:
    """A server with three tiny models, one of each kind, that asks for a key and takes at most 96 tokens a request."""
    models = []
    for name in ("chat", "embedding", "reranker"):
        path = random_checkpoint(folder / f"tiny-{name}", tiny_config(max_position_embeddings=128), tokenizer=True)
        models.append(f"{name}={path}")
    keys = folder / "keys.txt"
    keys.touch(0o600)
    keys.write_text(f"{KEY[0]}:{KEY[1]}\n")
    flags = ("--api-key-file", str(keys), "--context", "96", "--files-dir", str(folder / "files"))
    return start_server(folder / "home", *models, *flags)


def narrowed(document: dict[str, Any], plain: bool) -> dict[str, Any]:
    """The document with the models there are. plain: and with what a request needs, in small amounts."""
    document["security"] = [{"bearer": []}]
    for name, schema in document["components"]["schemas"].items():
        if not isinstance(fields := schema.get("properties"), dict) or "Body" not in name:
            continue
        if "model" in fields:
            kind = "embedding" if "Embed" in name else "reranker" if name.startswith(("Rerank", "Score")) else "chat"
            fields["model"] = {"enum": [kind]}
        if "n" in fields:
            fields["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
        if plain:
            schema["properties"] = {field: value for field, value in fields.items() if field in PLAIN}
            schema["additionalProperties"] = False
            for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if field in schema["properties"]:
                    schema["properties"][field] = {"type": "integer", "minimum": 1, "maximum": 16}
    return document


def fuzz(clients: Path, server: Running, seed: int, examples: int, phases: str, folder: Path) -> dict[str, Any]:
    """One run of schemathesis: its figures, and `failures`: a line for each kind, its whole output among them."""
    token = f"{KEY[0]}.{KEY[1]}"
    document = httpx.get(server.url + "/openapi.json", headers={"authorization": f"Bearer {token}"}).json()
    file, report = folder / "openapi.json", folder / "report.json"
    file.write_text(json.dumps(narrowed(document, plain=seed % 2 == 0)))
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [
            str(clients / "schemathesis/bin/schemathesis"), "run", str(file), "--url", server.url,
            "--checks", ",".join(CHECKS), "--phases", phases, "--max-examples", str(examples), "--seed", str(seed),
            "--header", f"Authorization: Bearer {token}", "--continue-on-failure", "--no-shrink", "--no-color",
            "--generation-database", "none", "--warnings", "off", "--report-json-path", str(report),
            "--request-timeout", "60",
        ],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found: dict[str, Any] = {"seed": seed, "cases": 0, "accepted": 0, "failures": []}
    if report.is_file():
        said = json.loads(report.read_text())
        rates = [phase for operation in said["valid_rates"].values() for phase in operation.values()]
        found |= {
            "cases": said["test_cases"]["generated"],
            "operations": said["operations"]["tested"],
            "accepted": sum(phase["accepted"] for phase in rates),
            "failures": [f"{each['title']} x {each['count']}" for each in said["failures"] + said["errors"]],
            "schemathesis": said["schemathesis_version"],
        }
    found["failures"] += ill(server)
    if done.returncode or not report.is_file():
        found["failures"] += [line[:400] for line in (done.stdout + done.stderr).splitlines()][:400]
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def ill(server: Running) -> list[str]:
    """What is wrong with the server after all that."""
    found = []
    end = time.monotonic() + 10
    while True:
        status = httpx.get(server.url + "/status.json", headers={"authorization": f"Bearer {'.'.join(KEY)}"}).json()
        busy = [f"{m['name']}: {m['state']}, {m}" for m in status["models"] if m["state"] not in ("ready", "unloaded")]
        busy += [f"{m['name']} still holds blocks: {m}" for m in status["models"] if m.get("used_blocks")]
        if not busy or time.monotonic() > end:
            break
        time.sleep(0.2)
    for line in server.log.read_text(errors="replace").splitlines():
        if "internal error" in line or "Traceback" in line or "status=500" in line or "model died" in line:
            found.append(line)
    return busy + found[:20]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", type=Path, help="the folder that tools/client_envs.py made")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=50, help="of random bodies, for each operation and seed")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--out", type=Path, help="a line of JSON for each seed")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new seed after that")
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out and args.out.is_file() else []
    results: list[dict[str, Any]] = [json.loads(line) for line in lines]
    end, seed = time.monotonic() + 60 * args.minutes, args.seed
    with tempfile.TemporaryDirectory() as room:
        server = served(Path(room))
        try:
            while sum(each["cases"] for each in results) < args.cases and time.monotonic() < end:
                if all(each["seed"] != seed for each in results):
                    phases = "coverage,fuzzing"
                    results.append(fuzz(args.clients.resolve(), server, seed, args.examples, phases, Path(room)))
                    print(json.dumps(results[-1] | {"failures": len(results[-1]["failures"])}), flush=True)
                    if args.out:
                        args.out.parent.mkdir(parents=True, exist_ok=True)
                        with open(args.out, "a") as file:
                            file.write(json.dumps(results[-1]) + "\n")
                    if results[-1]["failures"]:
                        break
                seed += 1
        finally:
            server.stop()
    failures = [line for each in results for line in each["failures"]]
    cases, accepted = (sum(each[name] for each in results) for name in ("cases", "accepted"))
    print("\n".join(failures))
    print(f"{cases:,} cases in {len(results)} seeds, {accepted:,} of them answered, {len(failures)} failures")
    return bool(failures or cases < args.cases)


if __name__ == "__main__":
    sys.exit(main())
