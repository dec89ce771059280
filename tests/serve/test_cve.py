"""How others' servers were broken: the rows of the table in docs/security.md that no other test file holds."""

from __future__ import annotations

import ast
import base64
import json
import re
import socket
import statistics
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3
from qwen3 import LLM
from qwen3.chat import parse
from qwen3.errors import Qwen3Error
from qwen3.serve.errors import ApiError
from qwen3.serve.keys import Keys
from qwen3.serve.openai.chat import ChatBody
from qwen3.serve.thinking import spellings
from qwen3.serve.wire import Frames, pack
from tests.fixtures import random_checkpoint, tiny_config
from tests.serve.conftest import KEYS, AppClient, Running
from tests.serve.test_app import BODIES, CHAT, HELLO, json_posts, message_of

ROOT = Path(qwen3.__file__).parent
SOURCE = {path: ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
CHECKOUT = Path(__file__).resolve().parents[2]  # the package may be installed elsewhere
PAGE = CHECKOUT / "docs" / "security.md"


def test_every_row_of_the_table_has_its_tests() -> None:
    """docs/security.md lists how others were broken, and here or elsewhere there is a test of each name it gives."""
    table = PAGE.read_text(encoding="utf-8").partition("<!-- attacks -->")[2].partition("<!-- /attacks -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]
    assert len(rows) >= 24
    for attack, _, tests in rows:
        named = re.findall(r"`([\w/]+\.py)((?:::test_\w+)+)`", tests)
        assert named, f"{attack}: no test"
        for file, names in named:
            tree = ast.parse((CHECKOUT / "tests" / file).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert set(names.strip(":").split("::")) <= there, (attack, file)


# What the source may not say


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_pickle_between_processes() -> None:
    """CVE-2025-32444, -47277, CVE-2026-3059: nothing that turns bytes into code or objects is ever named. Of the
    training some talk to processes that they started themselves, by pipes without names (one tries beforehand what
    can be sent there); the server does not."""
    own = {"train/mixture.py", "train/corpus/work.py"}
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "multiprocessing"}
    functions = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load"}
    functions |= {"pickle.load", "pickle.loads"}
    for path, tree in SOURCE.items():
        tops = {name.partition(".")[0] for name in imported(tree)} | imported(tree)
        allowed = {"multiprocessing", "pickle"} if str(path.relative_to(ROOT)) in own else set()
        assert not tops & modules - allowed, path
        for call in calls(tree):
            assert call not in functions, (path, call)
            assert not call.endswith((".recv_pyobj", ".send_pyobj", ".unpickle", "Unpickler")), (path, call)
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell", "trust_remote_code"):
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40), st.lists(st.integers(1, 30), max_size=4))
def test_frames_of_anything(noise: bytes, at: int, cuts: list[int]) -> None:
    """The decoder gives plain JSON values or an error, whatever comes."""
    frames = pack(["open", 1, {"prompt": "x"}]) + pack([None, [], [[1, 0, 0, "text"]]])
    data = frames[:at] + noise + frames[at:]
    decoder = Frames()
    try:
        for cut in [*cuts, len(data)]:
            for message, _ in decoder.feed(data[:cut]):
                assert message is None or isinstance(message, (list, dict, str, int, float, bool))
            data = data[cut:]
    except (Qwen3Error, ValueError, RecursionError):
        pass  # the other process is then taken for dead


def test_sockets_between_processes(server: Running) -> None:
    """The engine's process listens nowhere; the server on its one address."""
    (listening,) = {c.laddr for c in psutil.Process(server.process.pid).net_connections("inet") if c.status == "LISTEN"}
    assert listening == ("127.0.0.1", server.info["port"])
    workers = psutil.Process(server.process.pid).children(recursive=True)
    assert workers
    for worker in workers:
        assert worker.net_connections("inet") == []
        assert "SECRET" not in " ".join(worker.cmdline()).upper()


def test_the_server_sends_no_requests() -> None:
    """CVE-2024-6587 (`api_base`), CVE-2025-6242 (`image_url`): no HTTP client is imported in the server."""
    clients = {"httpx", "requests", "aiohttp", "urllib3", "urllib.request", "http.client", "ftplib", "huggingface_hub"}
    for path, tree in SOURCE.items():
        if "serve" in path.parts:
            assert not imported(tree) & clients, path


def test_queries_are_never_put_together() -> None:
    """CVE-2026-42208: there is no SQL; where there is one day, not from formatted strings."""
    for path, tree in SOURCE.items():
        assert not {name.partition(".")[0] for name in imported(tree)} & {"sqlite3", "sqlalchemy", "psycopg"}, path


def test_keys_are_compared_by_digest_alone() -> None:
    """CVE-2025-59425."""
    (tree,) = (tree for path, tree in SOURCE.items() if path.parts[-2:] == ("serve", "keys.py"))
    (find,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "find")
    compared = [ast.unparse(node) for node in ast.walk(find) if isinstance(node, ast.Compare)]
    assert compared == ["len(presented) > MAX_PRESENTED", "found is _NOBODY"]
    assert [call for call in calls(find) if "compare" in call] == ["hmac.compare_digest"] * 2
    for path, tree in SOURCE.items():
        if path.name in ("edge.py", "security.py"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare):
                    assert not {"presented", "token", "secret"} & {
                        n.id for n in ast.walk(node) if isinstance(n, ast.Name)
                    }


def test_key_timing(key_file: Path) -> None:
    """Coarse: an id that exists takes as long as one that does not, a nearly right secret as long as a wrong one."""
    keys = Keys(key_file)
    alice = KEYS["alice"]
    presented = [f"alice.{'x' * len(alice)}", f"nobod.{'x' * len(alice)}", f"alice.{alice[:-1]}x"]
    times: list[list[int]] = [[] for _ in presented]
    for _ in range(3000):
        for row, text in zip(times, presented, strict=True):
            start = time.perf_counter_ns()
            keys.find(text)
            row.append(time.perf_counter_ns() - start)
    medians = [statistics.median(row) for row in times]
    assert max(medians) < 1.25 * min(medians)


# What a request may not ask for


@contextmanager
def nobody_is_called() -> Iterator[int]:
    """The port of a server that no connection may reach."""
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)

        def wait() -> None:
            try:
                reached.append(canary.accept())
            except TimeoutError:
                if not stop.is_set():
                    wait()

        stop = threading.Event()
        thread = threading.Thread(target=wait)
        thread.start()
        yield canary.getsockname()[1]
        stop.set()
        thread.join()
    assert not reached


def test_image_urls(server: Running) -> None:
    """CVE-2025-6242, CVE-2026-24779: a text model takes no images, and nobody fetches any."""
    with nobody_is_called() as port, server.client() as client:
        bomb = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 64).decode()
        urls = [
            f"http://127.0.0.1:{port}/a.png", f"http://localhost:{port}", f"http://2130706433:{port}/", "file:///etc/passwd",
            f"http://a\\@127.0.0.1:{port}/", f"http://[::ffff:127.0.0.1]:{port}/", f"data:image/png;base64,{bomb}",
        ]  # fmt: skip
        for url in urls:
            part = {"type": "image_url", "image_url": {"url": url}}
            source = {"type": "url", "url": url}
            for path, content in (
                (CHAT, [part]), ("/v1/responses", [{"type": "input_image", "image_url": url}]),
                ("/v1/messages", [{"type": "image", "source": source}]),
            ):  # fmt: skip
                turn = {"role": "user", "content": content}
                body: dict[str, Any] = (
                    {"input": [turn]} if "responses" in path else {"messages": [turn], "max_tokens": 4}
                )
                answer = client.post(path, json={"model": "embedded", **body})
                assert answer.status_code == 400, (path, answer.text)
                assert "image" in message_of(answer)
        for path, body in BODIES.items():
            if path.startswith("/api/"):
                given = {**body, "model": "embedded", "images": [bomb]}
                if "messages" in given:
                    given = {
                        **body,
                        "model": "embedded",
                        "messages": [{"role": "user", "content": "x", "images": [bomb]}],
                    }
                answer = client.post(path, json=given)
                assert answer.status_code == 400
                assert "image" in message_of(answer)


def test_upstream_urls(server: Running) -> None:
    """CVE-2024-6587: fields that elsewhere say where to ask, or with which key, mean nothing here, and that is said."""
    with nobody_is_called() as port, server.client() as client:
        for name in ("api_base", "base_url", "api_key", "custom_llm_provider", "proxy", "url", "webhook"):
            answer = client.post(CHAT, json={**HELLO, "max_tokens": 1, name: f"http://127.0.0.1:{port}/"})
            assert answer.status_code in (200, 400)
            if answer.status_code == 200:
                assert any(name in warning for warning in answer.json()["warnings"])


def test_tensors(app_client: AppClient) -> None:
    """CVE-2025-62164: there is no way to send one."""
    names = ("prompt_embeds", "inputs_embeds", "hidden_states", "past_key_values", "kv_transfer_params")
    schema = json.dumps(app_client.app.openapi())
    for name in names:
        assert name not in schema
        for path in (CHAT, "/v1/completions"):
            answer = app_client.post(path, {**BODIES[path], name: base64.b64encode(b"PK\x03\x04tensor").decode()})
            assert answer.status_code == 400 or any(name in text for text in answer.json()["warnings"])


def test_templates_of_requests(app_client: AppClient) -> None:
    """CVE-2025-61620, CVE-2026-5760: refused wherever it stands, not ignored."""
    bomb = "{% for i in range(10**9) %}{{ ''.__class__.__mro__ }}{% endfor %}"
    for path, body in BODIES.items():
        answer = app_client.post(path, {**body, "chat_template": bomb})
        if path == "/api/generate":
            answer = app_client.post(path, {**body, "template": bomb})
        assert answer.status_code == 400, (path, answer.text)
        assert "template" in message_of(answer)
    assert app_client.backend.calls == []


KWARGS = st.text(string.ascii_letters, min_size=1) | st.sampled_from(
    ["tokenize", "chat_template", "add_generation_prompt", "continue_final_message", "return_dict", "padding", "tools",
     "messages", "template", "__class__", "add_special_tokens", "enable_thinkin", "enable_thinking"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KWARGS, st.booleans() | st.integers(0, 9) | st.text(max_size=5), min_size=1, max_size=3))
def test_template_kwargs(given: dict[str, Any]) -> None:
    """CVE-2025-62426: only the names of the list, whatever else there is."""
    body = ChatBody.model_validate({**HELLO, "chat_template_kwargs": given})
    if set(given) - {"enable_thinking", "thinking_budget"}:
        with pytest.raises(ApiError) as caught:
            spellings(body)
        assert caught.value.status == 400
        assert str(caught.value.param).startswith("chat_template_kwargs.")
    else:
        assert set(spellings(body)[0]) >= {f"chat_template_kwargs.{name}" for name in given}


def test_code_in_a_repository(tmp_path: Path) -> None:
    """CVE-2026-22807: a repository may ask for its code to be run; whatever it says, none is imported."""
    folder = random_checkpoint(tmp_path / "model", tiny_config(), tokenizer=True)
    ran = tmp_path / "ran"
    for name in ("modeling_evil", "tokenization_evil", "__init__", "setup", "conftest"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')")
    asked = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "trust_remote_code": True}
    for file, refused in (("tokenizer_config.json", False), ("generation_config.json", False), ("config.json", True)):
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | asked))
        if refused:
            with pytest.raises(Qwen3Error, match="auto_map asks to run code"):
                LLM(str(folder), device="cpu")
        else:
            LLM(str(folder), device="cpu").close()
    assert not ran.exists()


def test_models_of_requests(app_client: AppClient) -> None:
    """No name in a request becomes a path, a repository or a download; there is no way to load, make or delete one."""
    names = ["/etc/passwd", "../../x", "Qwen/Qwen3-8B", "qwen3:8b", "http://127.0.0.1/x", "x.gguf", "\x00", "fake\n"]
    for name in names:
        for path, body in BODIES.items():
            answer = app_client.post(path, {**body, "model": name})
            assert answer.status_code in (400, 404), (path, name, answer.text)
        assert app_client.get("/v1/models/" + name.replace("\x00", "%00").replace("\n", "%0Ax")).status_code == 404
        for path in ("/api/pull", "/api/create", "/api/copy", "/api/push", "/api/delete", "/api/show"):
            method = "DELETE" if path.endswith("delete") else "POST"
            answer = app_client.request(
                method, path, json={"model": name, "source": name, "destination": "y", "stream": False}
            )
            assert 400 <= answer.status_code < 502, (path, name, answer.text)
            assert "error" in answer.json()


# Numbers, grammars, prompts


def numbers(
    schema: dict[str, Any], root: dict[str, Any], at: tuple[str, ...] = (), seen: tuple[str, ...] = ()
) -> Iterator[Any]:
    """(path, schema) of every number under a schema; "[]" stands for a list's items."""
    if (name := schema.get("$ref")) is not None:
        if name not in seen:
            yield from numbers(root["components"]["schemas"][name.rpartition("/")[2]], root, at, (*seen, name))
        return
    if schema.get("type") in ("integer", "number"):
        yield at, schema
    for key in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(key, ()):
            yield from numbers(inner, root, at, seen)
    for key, inner in schema.get("properties", {}).items():
        yield from numbers(inner, root, (*at, key), seen)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from numbers(schema[key], root, (*at, "[]" if key == "items" else "key"), seen)


def with_value(at: tuple[str, ...], value: str) -> str:
    """JSON that has this text there."""
    for key in reversed(at):
        value = f"[{value}]" if key == "[]" else f'{{"{key}": {value}}}'
    return value


EXTREMES = (
    "-1", "-9223372036854775809", "18446744073709551616", "1e308", "-1e308", "1e400", "1" + "0" * 400, "NaN",
    "-Infinity", "0.5", "-0.0", "true", '"1"', "null", "[]", "{}", "2147483648", "4294967297", "1e-320",
)  # fmt: skip


def test_huge_numbers(app_client: AppClient) -> None:
    """CVE-2026-34756 (`n`), CVE-2026-21869: every number of every body is bounded, and an extreme is no 500."""
    spec = app_client.app.openapi()
    count = 0
    for path in json_posts(app_client):
        schema = spec["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        example = BODIES.get(path, {})
        for at, found in dict(numbers(schema, spec)).items():
            count += 1
            assert {"minimum", "exclusiveMinimum"} & set(found), (path, at)
            assert {"maximum", "exclusiveMaximum"} & set(found), (path, at)
            for extreme in EXTREMES:
                inner = with_value(at[1:], extreme)
                body = json.dumps({**example, at[0]: "@"}).replace('"@"', inner)
                answer = app_client.request("POST", path, content=body, headers={"content-type": "application/json"})
                assert answer.status_code in (200, 400, 404), (path, at, extreme, answer.text)
                if extreme in ("NaN", "-Infinity", "1e400", "1" + "0" * 400):
                    assert answer.status_code == 400, (path, at, extreme)
    assert count > 60


def test_huge_lists(app_client: AppClient) -> None:
    """CVE-2026-34755 and the like: lists of requests have an end."""
    for path, name, item in (
        (CHAT, "messages", HELLO["messages"][0]), (CHAT, "stop", "x"), (CHAT, "stop_token_ids", 1),
        ("/v1/completions", "prompt", "x"), ("/v1/embeddings", "input", "x"),
        (CHAT, "tools", {"type": "function", "function": {"name": "f"}}),
    ):  # fmt: skip
        body = {**BODIES.get(path, {"model": "fake"}), name: [item] * 100_000}
        answer = app_client.post(path, body)
        assert answer.status_code == 400, (path, name)
        assert name in message_of(answer)


HARD: dict[str, Any] = {
    "deep": {"type": "array", "items": None},
    "recursive": {"$ref": "#"},
    "recursive-2": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "enum": {"enum": [f"value-{i}" for i in range(200_000)]},
    "pattern": {"type": "string", "pattern": "^(a+)+(b+)+(c|c)*$"},
    "repeats": {"type": "string", "pattern": "((((a{99}){99}){99}){99})"},
    "length": {"type": "string", "minLength": 10**9},
    "items": {"type": "array", "items": {}, "minItems": 10**9},
    "properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
    "wide": {"allOf": [{"anyOf": [{"const": i}, {"const": -i}]} for i in range(2000)]},
}
for _ in range(50):
    HARD["deep"] = {"type": "array", "items": HARD["deep"]}


@pytest.mark.parametrize("name", [*HARD, "regex", "regex-2", "grammar", "grammar-2"])
def test_grammars(server: Running, name: str) -> None:
    """CVE-2025-48942, -48943, -48944, -48887: an answer or a refusal within seconds, and the server lives on."""
    form: dict[str, Any]
    if name in HARD:
        form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": HARD[name]}}}
    else:
        form = {
            "regex": {"guided_regex": "((a+)+)+$" * 500},
            "regex-2": {"guided_regex": "(((.{1000}){1000}){1000}){1000}"},
            "grammar": {"guided_grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
            "grammar-2": {"guided_grammar": "start: a\na: b\nb: a"},
        }[name]  # fmt: skip
    with server.client() as client:
        start = time.monotonic()
        answer = client.post(CHAT, json={**HELLO, "max_tokens": 4, "enable_thinking": False, **form})
        assert time.monotonic() - start < 15
        assert answer.status_code in (200, 400), answer.text[:300]
        if answer.status_code == 400:
            assert len(message_of(answer)) < 1000
        assert client.get("/ready").status_code == 200


def test_prompt_length(server: Running) -> None:
    """CVE-2025-62426: `/health` answers within 50 ms (p99), beyond what it takes at rest, while 10 MB are on their way
    in. Of a few rounds the best counts: others use this machine, too."""
    body = json.dumps({"messages": [{"role": "user", "content": 'Say "hello" \n' * 770_000}]}).encode()
    assert len(body) > 10_000_000
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    answers: list[bytes] = []

    def send() -> None:
        with socket.create_connection(("127.0.0.1", server.info["port"]), timeout=30) as connection:
            connection.sendall(request)
            answers.append(b"".join(iter(lambda: connection.recv(65_536), b"")))

    def p99(client: httpx.Client, sender: threading.Thread | None) -> float:
        times: list[float] = []
        while len(times) < 150 or (sender is not None and sender.is_alive()):
            start = time.perf_counter()
            assert client.get("/health").status_code == 200
            times.append(time.perf_counter() - start)
        return statistics.quantiles(times, n=100)[98]

    with server.client() as client:
        found = []
        for _ in range(5):
            at_rest = p99(client, None)
            sender = threading.Thread(target=send)
            sender.start()
            found.append(p99(client, sender) - at_rest)
            sender.join()
            if found[-1] < 0.05:
                break
    assert all(answer.startswith(b"HTTP/1.1 400") and b"context_length_exceeded" in answer for answer in answers)
    assert min(found) < 0.05, found


PAYLOADS = [
    '__import__("os").system("touch {canary}")', 'open("{canary}", "w")', "exec(open('{canary}','w'))",
    "`touch {canary}`", "!!python/object/apply:os.system", "{{''.__class__.__mro__[1].__subclasses__()}}",
    "$(touch {canary})",
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_tool_calls_are_data(payload: str, tmp_path: Path) -> None:
    """CVE-2025-9141: a model's tool call is parsed as JSON or not at all."""
    canary = tmp_path / "canary"
    code = payload.replace("{canary}", str(canary))
    for text in (
        f'<tool_call>\n{{"name": "f", "arguments": {{"x": {json.dumps(code)}}}}}\n</tool_call>',
        f'<tool_call>\n{{"name": "f", "arguments": {code}}}\n</tool_call>',
        f"<tool_call>\n<function=f>\n<parameter=x>\n{code}\n</parameter>\n</function>\n</tool_call>",
        f'<tool_call>\n{{"name": {json.dumps(code)}, "arguments": {json.dumps(code)}}}\n</tool_call>',
    ):
        message = parse(text)
        for call in message.tool_calls:
            assert isinstance(
                json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments, (dict, str)
            )
    assert not canary.exists()
