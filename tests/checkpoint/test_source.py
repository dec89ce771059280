"""The seam between formats and networks, on safetensors: rows read alone are the rows of the whole."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen3.checkpoint import read_config
from qwen3.checkpoint.source import open_source
from qwen3.errors import CorruptFileError
from tests.checkpoint.test_fp8 import OFFICIAL, config_of, write


@pytest.mark.parametrize(
    "rows", [slice(None), slice(0, 128), slice(100, 130), slice(129, 131), slice(5, 5), slice(250, 999)]
)
def test_rows_of_fp8(tmp_path: Path, rows: slice) -> None:
    write(tmp_path, config_of(), OFFICIAL)
    twin = load_file(tmp_path / "twin" / "model.safetensors")
    with closing(open_source(tmp_path / "fp8", read_config(tmp_path / "fp8"))) as source:
        assert source.kinds == ("BF16", "F8_E4M3")
        for name, stored in source.stored.items():
            assert stored.shape == twin[name].shape
            assert torch.equal(stored.read(rows, torch.float32), twin[name].float()[rows]), name
            assert torch.equal(stored.read(rows, torch.bfloat16), twin[name].bfloat16()[rows])
        assert not source.tied_copy()
        source.check_unchanged()
        (tmp_path / "fp8" / "model-00001-of-00002.safetensors").touch()
        with pytest.raises(CorruptFileError, match="replaced or written to"):
            source.check_unchanged()


def test_experts_that_are_not_there(tmp_path: Path) -> None:
    """A count out of all proportion is refused at once, not after its experts were gone through one by one."""
    write(tmp_path, config_of(moe=True), OFFICIAL)
    config = replace(read_config(tmp_path / "twin"), num_experts=2**31 - 1)
    with pytest.raises(CorruptFileError, match=r"num_experts is 2147483647, but there are \d+ tensors"):
        open_source(tmp_path / "twin", config)


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, config_of(moe=True), OFFICIAL)
    with closing(open_source(tmp_path / "fp8", read_config(tmp_path / "fp8"))) as source:
        assert sum(stored.nbytes for stored in source.stored.values()) == source.nbytes
        assert {stored.kind for stored in source.stored.values()} == {"BF16", "F8_E4M3"}
