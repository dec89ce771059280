"""The bfloat16 probe: what happens in the child stays there, and the verdict decides."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from qwen3 import family
from qwen3.checkpoint.resolved import embedded_folder
from qwen3.errors import UsageError
from qwen3.model import cpu_probe, load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the probe forks")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    cpu_probe.works.cache_clear()
    yield
    cpu_probe.works.cache_clear()


def crash(number: int) -> bool:
    os.kill(os.getpid(), number)
    return True


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (lambda: True, True),
        (lambda: False, False),
        (lambda: crash(signal.SIGSEGV), False),
        (lambda: crash(signal.SIGILL), False),
        (lambda: 1 / 0 > 0, False),
    ],
)
def test_only_the_child_dies(check: Callable[[], bool], verdict: bool, capfd: pytest.CaptureFixture[str]) -> None:
    assert cpu_probe.survives(check) is verdict
    assert capfd.readouterr() == ("", "")


def test_a_child_that_hangs_is_ended() -> None:
    start = time.monotonic()
    assert not cpu_probe.survives(lambda: time.sleep(60) is None, seconds=0.2)
    assert time.monotonic() - start < 5


def test_it_works_beside_threads_that_were_used() -> None:
    x = torch.randn(300, 300)
    float((x @ x).sum())
    assert cpu_probe.right()
    assert cpu_probe.survives(cpu_probe.right)


def test_wrong_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear
    monkeypatch.setattr(cpu_probe.F, "linear", lambda x, w: linear(x, w) * 1.1)
    assert not cpu_probe.works()


def test_without_amx_where_only_amx_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_probe, "right", lambda: "ONEDNN_MAX_CPU_ISA" in os.environ or crash(signal.SIGILL))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")  # the user has decided
    assert cpu_probe.works()
    cpu_probe.works.cache_clear()
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert cpu_probe.works()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    cpu_probe.works.cache_clear()
    monkeypatch.setattr(cpu_probe, "right", lambda: crash(signal.SIGILL))
    assert not cpu_probe.works()


def test_the_verdict_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    big = family.MODELS["Qwen3-0.6B"].config
    monkeypatch.setattr(cpu_probe, "advertised", lambda: True)
    monkeypatch.setattr(cpu_probe, "works", lambda: False)
    assert not load.cpu_has_bfloat16()
    assert load.default_dtype(big, "cpu") == torch.float32
    with pytest.raises(UsageError, match="take dtype float32"):
        load.load_model(embedded_folder(), "cpu", "bfloat16")
    monkeypatch.setattr(cpu_probe, "works", lambda: True)
    assert load.cpu_has_bfloat16()
    assert load.default_dtype(big, "cpu") == torch.bfloat16


def test_the_embedded_model_needs_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_probe, "survives", lambda *_: pytest.fail("probed"))
    assert load.load_model(embedded_folder(), "cpu").dtype == torch.float32
