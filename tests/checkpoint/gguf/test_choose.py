"""Which file a quantization's name means, and the way from a hub's name to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3.checkpoint import list_cached, resolve
from qwen3.checkpoint.gguf.choose import choose
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError, UsageError
from tests.checkpoint.fake_hub import FakeHub
from tests.checkpoint.gguf.build import build, metadata, tensors

OFFICIAL = ["README.md", *(f"Qwen3-8B-{kind}.gguf" for kind in ("Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0"))]
OTHERS = [
    "Qwen3-8B-UD-Q4_K_XL.gguf", "Qwen3-8B-Q4_K_S.gguf", "Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B-IQ4_XS.gguf",
    "mmproj-F16.gguf", "imatrix_unsloth.gguf", "BF16/Qwen3-8B-BF16-00001-of-00002.gguf",
    "BF16/Qwen3-8B-BF16-00002-of-00002.gguf", "../evil-Q9.gguf", "a/b/deep-Q9.gguf",
    "Qwen3-8B-Q2_K-00001-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "quant", "expected"),
    [
        (OFFICIAL, "Q4_K_M", ["Qwen3-8B-Q4_K_M.gguf"]),
        (OFFICIAL, "q8_0", ["Qwen3-8B-Q8_0.gguf"]),
        (OFFICIAL, "Qwen3-8B-Q6_K.gguf", ["Qwen3-8B-Q6_K.gguf"]),
        (OFFICIAL, "qwen3-8b-q6_k", ["Qwen3-8B-Q6_K.gguf"]),
        (OTHERS, "Q4_K_XL", ["Qwen3-8B-UD-Q4_K_XL.gguf"]),
        (OTHERS, "UD-Q4_K_XL", ["Qwen3-8B-UD-Q4_K_XL.gguf"]),
        (OTHERS, "bf16", ["BF16/Qwen3-8B-BF16-00001-of-00002.gguf", "BF16/Qwen3-8B-BF16-00002-of-00002.gguf"]),
        (["only.gguf", "README.md"], None, ["only.gguf"]),
        (["a.Q4_0.gguf", "a.Q8_0.gguf"], "Q4_0", ["a.Q4_0.gguf"]),
        (["a-Q4_0-imat.gguf", "a-Q8_0-imat.gguf"], "Q4_0", ["a-Q4_0-imat.gguf"]),
    ],
)
def test_chosen(names: list[str], quant: str | None, expected: list[str]) -> None:
    assert choose("o/r", names, quant) == expected


@pytest.mark.parametrize(
    ("names", "quant", "message", "error"),
    [
        (OFFICIAL, "Q4_K", "o/r holds no model Q4_K; there is Q4_K_M, Q5_0, Q5_K_M, Q6_K, Q8_0", ModelNotFoundError),
        (OFFICIAL, "M", "o/r holds no model M; there is", ModelNotFoundError),
        (OTHERS, "Q9", "o/r holds no model Q9", ModelNotFoundError),
        (OFFICIAL, None, "o/r holds 5 models: Q4_K_M, .*; say which, as in o/r:Q4_K_M", UsageError),
        (["a-1B-Q8_0.gguf", "a-2B-Q8_0.gguf"], "Q8_0", "o/r:Q8_0 may be a-1B-Q8_0.gguf, a-2B-Q8_0.gguf", UsageError),
        (
            OTHERS,
            "Q2_K",
            "of 2 parts of Qwen3-8B-Q2_K Qwen3-8B-Q2_K-00002-of-00002.gguf is not there",
            CorruptFileError,
        ),
        (["config.json", "model.safetensors"], "Q8_0", "holds no GGUF file; perhaps o/r-GGUF does", ModelNotFoundError),
    ],
)
def test_refused(names: list[str], quant: str | None, message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        choose("o/r", names, quant)


def quiet(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@pytest.mark.parametrize("dialect", ["huggingface", "modelscope"])
def test_from_a_hub(hub: FakeHub, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_HUB", dialect)
    repo, data = "someone/Qwen3-Tiny-GGUF", build(metadata(), tensors())
    hub.add(repo, {f"Tiny-{kind}.gguf": data + kind.encode() for kind in ("Q4_0", "Q8_0")} | {"config.json": b"{}"})
    with pytest.raises(UsageError, match=r"holds 2 models: Q4_0, Q8_0; say which, as in someone/Qwen3-Tiny-GGUF:Q4_0"):
        resolve(repo, progress=quiet)
    found = resolve(f"{repo}:q8_0", progress=quiet)
    assert (found.kind, found.path.name, found.source) == ("gguf", "Tiny-Q8_0.gguf", "download")
    assert found.name == f"{repo}:Tiny-Q8_0"
    assert set(hub.fetched()) == {"Tiny-Q8_0.gguf"}
    assert found.sha256 is not None
    again = resolve(f"{repo}:Q8_0", offline=True)
    assert (again.path, again.source, again.sha256) == (found.path, "cache", found.sha256)
    assert resolve(repo, offline=True).path == found.path  # the only one there is
    before = len(hub.requests)
    assert resolve(f"{repo}:Q8_0").path == found.path
    assert len(hub.requests) == before
    with pytest.raises(ModelNotFoundError, match="holds no model Q4_0"):
        resolve(f"{repo}:Q4_0", offline=True)
    assert resolve(f"{repo}:Q4_0", progress=quiet).source == "download"
    with pytest.raises(ModelNotFoundError, match="holds no model Q2_K; there is Q4_0, Q8_0"):
        resolve(f"{repo}:Q2_K", progress=quiet)
    listed = next(model for model in list_cached() if model.name == repo)
    assert listed.complete


def test_another_architecture_is_refused_by_its_beginning(hub: FakeHub) -> None:
    llama = build({"general.architecture": "llama", "llama.block_count": 3}, {"a": ((1 << 14,), 0)})
    hub.add("someone/llama-GGUF", {"llama-Q8_0.gguf": llama})
    with pytest.raises(ConfigError, match=r"someone/llama-GGUF llama-Q8_0.gguf: its architecture is 'llama', but only"):
        resolve("someone/llama-GGUF:Q8_0", progress=quiet)
    assert [request[2] for request in hub.requests if request[1] == "llama-Q8_0.gguf"] == ["bytes=0-4095"]


def test_wrong_hash_is_not_kept(hub: FakeHub) -> None:
    hub.add("someone/x-GGUF", {"x-Q4_0.gguf": build(metadata(), tensors())})
    hub.wrong_hash.add("x-Q4_0.gguf")
    with pytest.raises(CorruptFileError, match=r"x-Q4_0.gguf"):
        resolve("someone/x-GGUF:Q4_0", progress=quiet)


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(build(metadata(), tensors()))
    assert resolve(tmp_path / "blob").kind == "gguf"  # by its first bytes
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"GGUF")
    found = resolve(tmp_path / "m-00002-of-00002.gguf")
    assert (found.path.name, found.name) == ("m-00001-of-00002.gguf", "m")
