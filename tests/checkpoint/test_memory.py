"""How much memory there is, and the refusal when it is too little."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import pytest
import torch

from qwen3 import family
from qwen3.checkpoint import available_bytes, check_fits, required_bytes
from qwen3.checkpoint.memory import _address_space_left, _cgroup_left
from qwen3.errors import OutOfMemoryError


def test_required() -> None:
    config = family.MODELS["Qwen3-8B"].config
    assert required_bytes(config) == 8_190_735_360 * 2
    assert required_bytes(config, torch.float32) == 8_190_735_360 * 4


def test_available_is_what_the_system_says() -> None:
    free = available_bytes()
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total
    assert free <= psutil.virtual_memory().available * 1.2 + 2**28


def test_refusal_has_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 10_000_000_000)
    config = family.MODELS["Qwen3-8B"].config
    with pytest.raises(OutOfMemoryError) as caught:
        check_fits(config, name="Qwen3-8B")
    assert caught.value.exit_code == 4
    for part in (
        "Qwen3-8B needs 16,381,470,720 bytes (16.38 GB: 8,190,735,360",
        "bfloat16",
        "10,000,000,000",
        "10.00 GB",
    ):
        assert part in str(caught.value)
    small = family.MODELS["Qwen3-0.6B"].config
    check_fits(small)
    with pytest.raises(OutOfMemoryError, match="and 9,500,000,000 bytes of working memory"):
        check_fits(small, extra=9_500_000_000)
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: None)
    check_fits(config)  # a system that does not say is not second-guessed


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_cgroup_v2(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/box/inner\n")
    root = tmp_path / "fs"
    write(root / "box", memory__max="1000", memory__current="700", memory__stat="anon 400\ninactive_file 250\n")
    write(root / "box" / "inner", memory__max="max", memory__current="700", memory__stat="inactive_file 0\n")
    assert _cgroup_left(tmp_path / "membership", root) == [550]
    write(root / "box" / "inner", memory__max="900", memory__current="700", memory__stat="inactive_file 0\n")
    assert _cgroup_left(tmp_path / "membership", root) == [200, 550]


def test_cgroup_v1(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("9:cpu:/\n4:memory:/job\n0::/\n")
    root = tmp_path / "fs"
    files = {
        "memory__limit_in_bytes": "2000",
        "memory__usage_in_bytes": "1500",
        "memory__stat": "total_inactive_file 100\n",
    }
    write(root / "memory" / "job", **files)
    write(root / "memory", **files | {"memory__limit_in_bytes": str(2**63 - 4096)})
    assert _cgroup_left(tmp_path / "membership", root) == [600]
    # inside a container the named folder may not exist: then the namespace's root counts
    (tmp_path / "membership").write_text("4:memory:/docker/abc\n")
    write(root / "memory", **files)
    assert _cgroup_left(tmp_path / "membership", root) == [600]
    assert _cgroup_left(tmp_path / "absent", root) == []


def test_address_space_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _address_space_left() is None or _address_space_left() > 0
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**50, 2**50))
    left = _address_space_left()
    assert left is not None
    assert 2**50 - 2**45 < left < 2**50
