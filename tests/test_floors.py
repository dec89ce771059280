"""The house stands: imports never go upward, and the lower floors run without what only the upper ones need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qwen3
from tests.fixtures import random_checkpoint, tiny_config

ROOT = Path(qwen3.__file__).parent  # of the installed package, which need not be this checkout's src/
CHECKOUT = Path(__file__).resolve().parents[1]
FLOORS = {
    "errors": 0, "config": 0, "family": 0, "tokenizer": 0, "chat": 0, "charts": 0, "webpage": 0,
    "kernels": 1,
    "model": 2, "checkpoint": 2, "sandbox": 2,
    "engine": 3, "llm": 3, "options": 3, "asking": 3, "plan": 3, "vectors": 3, "tasks": 3,
    "train": 4, "evaluate": 4, "serve": 4, "quantize": 4,
    "cli": 5, "__main__": 5,
}  # fmt: skip
# A door to the other floors by names that load on first use; it may be imported for `__version__` and the packages.
FRONT_DOOR = "__init__"
CORE = {"torch", "numpy", "tokenizers", "safetensors"}
SERVER = {"fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "prometheus_client", "cryptography"}
OPTIONAL = {"typer", "rich", "huggingface_hub", "jinja2", "llguidance"}
FILES = sorted(ROOT.rglob("*.py"))


def place(file: Path) -> str:
    """The folder of the package that a file is in, or its own name."""
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> list[str]:
    """Dotted names of all imports, wherever in the file they stand; `from qwen3 import x` counts as qwen3.x."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "qwen3" else [module]
    return found


def test_every_place_has_a_floor() -> None:
    assert {place(file) for file in FILES} == {*FLOORS, FRONT_DOOR}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_never_go_upward(file: Path) -> None:
    here = place(file)
    if here == FRONT_DOOR:
        return
    lazy = {"LLM": "llm", "SamplingParams": "engine", "ThinkingPolicy": "chat", "__version__": FRONT_DOOR}
    for name in imports(file):
        top, _, rest = name.partition(".")
        if top != "qwen3":
            if FLOORS[here] == 0:
                assert top != "torch", f"floor 0 imports no torch: {file}"
            continue
        target = lazy.get(rest, rest.partition(".")[0])
        if target == FRONT_DOOR:
            continue
        assert FLOORS[target] <= FLOORS[here], f"{file} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[target]})"
        if FLOORS[here] == 4:
            assert target == here or FLOORS[target] < 4, f"{file}: places of floor 4 do not import each other"


def test_lower_floors_and_training_name_only_the_core_libraries() -> None:
    """Others are imported inside functions: a hub's library where the hub is asked, jinja2 in the sandbox's process;
    the server has those of its extra."""
    allowed = {
        "chat/sandbox_worker.py": {"jinja2"},
        "checkpoint/huggingface.py": {"huggingface_hub"},
        "engine/constraint.py": {"llguidance"},
        "evaluate/suites/source.py": {"huggingface_hub", "pyarrow"},
        "serve/tracing.py": {"opentelemetry"},
        "train/corpus/readers.py": {"pyarrow"},
    }
    for file in FILES:
        if place(file) == "cli":
            continue
        foreign = {name.partition(".")[0] for name in imports(file)} - set(sys.stdlib_module_names) - CORE - {"qwen3"}
        if file.is_relative_to(ROOT / "kernels" / "gpu"):
            foreign -= {"triton"}  # imported on the first CUDA tensor, not before
        if place(file) == "serve":
            foreign -= SERVER
        assert foreign <= allowed.get(str(file.relative_to(ROOT)), set()), file


BLOCK = f"""
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Block())
"""
USE = """
import json
import random
from pathlib import Path
import torch
from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.checkpoint import list_cached, save_checkpoint, verify
from qwen3.tasks import FAMILIES
from qwen3.train.recipe import Recipe
from qwen3.train.sft import SFT, Lora
from qwen3.train.start import train

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
with LLM(folder) as llm:
    short = SamplingParams(max_tokens=8, seed=1)
    assert llm.chat("Hello", sampling=short).usage.completion_tokens
    assert [*llm.chat("Hello", thinking=ThinkingPolicy(budget=2), sampling=short, stream=True)]
    tokenizer, model = llm.tokenizer, llm.model

rng, rows = random.Random(0), []
for _ in range(4):
    problem = FAMILIES["chain"].sample(rng, 1)
    rows.append({"prompt": problem.prompt, "completion": problem.reply})
out.mkdir()
(out / "chats.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
stage = SFT("sft", data=(str(out / "chats.jsonl"),), lora=Lora(rank=0), epochs=1.0, prompts_per_update=2)
assert train(Recipe("short", str(folder), (stage,), out=str(out / "run")))["stages"]["sft"]["update"] == 2
save_checkpoint(out / "saved", model, tokenizer=tokenizer)
assert verify(out / "saved").ok
list_cached()
assert not [name for name in sys.modules if name.partition(".")[0] in OPTIONAL]
"""


def test_lower_floors_and_training_run_with_the_core_libraries_alone(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", tiny_config(num_hidden_layers=1), tokenizer=True)
    script = f"{BLOCK}OPTIONAL = {OPTIONAL!r}\n{USE}"
    done = subprocess.run(
        [sys.executable, "-c", script, folder, tmp_path / "out"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_design_page_names_what_exists() -> None:
    page = (CHECKOUT / "docs" / "design.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in FILES)
    for name in re.findall(r"`([\w/]+\.py)`", page):
        assert (ROOT / name).is_file() or (CHECKOUT / name).is_file() or name == "qwen3/__init__.py", name
    walk = page.partition("## One request")[2].partition("## Interfaces")[0]
    names = [name.rpartition(".")[2] for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", walk)]
    assert len(names) > 30
    for name in names:
        known = re.search(rf"\b(def|class) {name}\b|^\s*(self\.)?{name}\b.*=|\b{name}: ", source, re.MULTILINE)
        assert known or (ROOT / name).is_dir() or name in ("py", "OMP_NUM_THREADS"), f"docs/design.md names {name}"
