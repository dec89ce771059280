"""Real clients, each in an environment of its own, against `qwen3 serve` with the embedded model.

`python tools/client_envs.py FOLDER` makes the environments and QWEN3_CLIENTS=FOLDER lets these tests find them. A
client's script runs once and reports on every check; each check is a test here.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import checks
from tests.fixtures import random_checkpoint, tiny_config
from tests.serve.conftest import Running, start_server

FOLDER = os.environ.get("QWEN3_CLIENTS", "")
HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="QWEN3_CLIENTS is not set; tools/client_envs.py makes the environments"),
    pytest.mark.timeout(180),
]

OPENAI = ("models", "completions", "logprobs", "responses", "responses_stream", "responses_tools", "embeddings",
          "batch", "asynchronous")  # fmt: skip
NODE = ("openai_plain", "openai_stream", "openai_tools", "openai_errors", "openai_retry", "openai_disconnect",
        "openai_embeddings", "openai_responses", "anthropic_plain", "anthropic_stream", "anthropic_errors",
        "ollama_plain", "ollama_stream", "ollama_errors", "ollama_disconnect")  # fmt: skip
# name → environment, script with arguments after address and key, its checks
CLIENTS: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "openai3": ("openai3", ["openai_client.py"], checks.CHECKS + OPENAI),
    "openai2": ("openai2", ["openai_client.py"], checks.CHECKS + OPENAI),
    "anthropic": ("anthropic", ["anthropic_client.py"], (*checks.CHECKS, "counting", "models")),
    "ollama": ("ollama", ["ollama_client.py"], (*checks.CHECKS, "generate", "models", "embed", "latest")),
    "litellm": ("openai2", ["litellm_client.py"], checks.CHECKS),
    "langchain-openai": ("openai2", ["langchain_client.py", "openai"], (*checks.CHECKS, "reasoning_memory")),
    "langchain-qwq": ("openai2", ["langchain_client.py", "qwq"], (*checks.CHECKS, "reasoning_memory")),
    "qwen-agent": ("qwen-agent", ["qwen_agent_client.py"], checks.CHECKS),
    "llm": ("llm", ["llm_client.py"], (*checks.CHECKS, "efforts", "models")),
    "ai-sdk": ("node", ["ai_sdk.cjs"], checks.CHECKS),
    "node-clients": ("node", ["node_clients.cjs"], NODE),
}


def secret(client: str) -> str:
    return f"secret-of-{client}-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With a key for each client, few requests at once for each key, and a second model for embeddings."""
    folder = tmp_path_factory.mktemp("clients")
    vectors = random_checkpoint(folder / "tiny-embedding", tiny_config(), tokenizer=True)
    keys = folder / "keys.txt"
    keys.touch(0o600)
    keys.write_text("".join(f"{name}:{secret(name)}\n" for name in CLIENTS))
    running = start_server(
        folder, checks.MODEL, f"{checks.VECTORS}={vectors}", "--api-key-file", str(keys),
        "--max-per-key", str(checks.PER_KEY), "--files-dir", str(folder / "files"),
    )  # fmt: skip
    yield running
    running.stop()


def environment(name: str, home: Path) -> tuple[str, dict[str, str]]:
    """Interpreter and environment variables: nothing of this one's, so that a client is as it is for a user."""
    kept = {key: value for key in ("PATH", "LANG", "TMPDIR") if (value := os.environ.get(key))}
    env = kept | {"HOME": str(home), "NO_PROXY": "127.0.0.1"}
    if name != "node":
        return f"{FOLDER}/{name}/bin/python", env
    asked = {key: value for key, value in vars(checks).items() if key.isupper()}
    return "node", env | {"NODE_PATH": f"{FOLDER}/node/node_modules", "QWEN3_QUESTIONS": json.dumps(asked)}


@pytest.fixture(scope="module")
def report(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, dict[str, Any]]]:
    """What a client's script said of each check; it runs when first asked for."""
    reports: dict[str, dict[str, dict[str, Any]]] = {}

    def of(client: str) -> dict[str, dict[str, Any]]:
        if client not in reports:
            name, (script, *more), _ = CLIENTS[client]
            if not Path(FOLDER, name).is_dir():
                pytest.skip(f"QWEN3_CLIENTS has no {name}; tools/client_envs.py makes it")
            interpreter, env = environment(name, tmp_path_factory.mktemp(client))
            done = subprocess.run(
                [interpreter, str(HERE / script), server.url, f"{client}.{secret(client)}", *more],
                env=env, cwd=env["HOME"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150,
                check=False,
            )  # fmt: skip
            lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
            reports[client] = {line["check"]: line for line in lines}
            assert done.returncode == 0, done.stderr[-3000:]
            assert lines, done.stdout + done.stderr[-3000:]
        return reports[client]

    return of


@pytest.mark.parametrize(
    ("client", "check"),
    [
        pytest.param(client, check, marks=pytest.mark.xdist_group(client))
        for client, (_, _, names) in CLIENTS.items()
        for check in names
    ],
)
def test_client(report: Callable[[str], dict[str, dict[str, Any]]], client: str, check: str) -> None:
    said = report(client)
    assert set(said) == set(CLIENTS[client][2])
    line = said[check]
    assert line["ok"], line["detail"]
    if not line["offered"]:
        pytest.skip(f"not offered by the client: {line['detail']}")
