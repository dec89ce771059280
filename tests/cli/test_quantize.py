"""`qwen3 quantize`, from the command line to a folder that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen3.cli.quantize import Line, clock, parse_rule, parse_size
from qwen3.errors import UsageError
from qwen3.quantize.spec import Rule
from tests.cli.conftest import Command
from tests.fixtures import random_checkpoint, tiny_config

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "dtype": "bfloat16"}
FEW = ("--samples", 2, "--sequence-length", 64)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("quantize") / "small", tiny_config(**SIZES), tokenizer=True)


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(True, **SIZES | {"moe_intermediate_size": 64})
    return random_checkpoint(tmp_path_factory.mktemp("quantize") / "sparse", config, tokenizer=True)


def test_writes_what_runs(qwen3: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "four"
    ran = qwen3("quantize", small, "gptq", "--out", out, *FEW)
    assert ran.code == 0, ran.err
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert " → " in lines["size"]
    assert lines["size"].endswith("bits per weight")
    assert lines["agreement"].startswith("KL ")
    assert lines["calibrated"].startswith("qwen3: 128 tokens of ")
    assert lines["worst"].endswith("(error of their outputs)")
    assert ran.out.splitlines()[-1] == f'Run it:    qwen3 run {out} "What is 27 * 14?"'
    assert f"{small} to {out}: gptq, 4 bits, groups of 128, in the format gptq" in ran.err
    assert qwen3("run", out, "-p", "hi", "-n", 3, "--temperature", 0).code == 0
    assert qwen3("verify", out).code == 0
    again = qwen3("quantize", small, "gptq", "--out", out, *FEW)
    assert again.code == 2
    assert again.error.startswith(f"{out} exists already, a checkpoint in gptq: run it (qwen3 run {out}), give another")
    forced = qwen3("quantize", small, "rtn", "--bits", 8, "--group", 32, "--out", out, "--force", "--json")
    told = json.loads(forced.out)
    assert told["format"] == "compressed-tensors"
    assert told["spec"]["bits"] == 8
    assert told["agreement"]["top1"] > 0.8
    assert told["bytes_after"] < told["bytes_before"]
    assert len(told["matrices"]) == 14
    assert told["run"] == f'qwen3 run {out} "What is 27 * 14?"'
    assert json.loads((out / "qwen3.manifest.json").read_text())["made"]["spec"] == told["spec"]


def test_experts_are_counted(qwen3: Command, sparse: Path, tmp_path: Path) -> None:
    ran = qwen3("quantize", sparse, "awq", "--group", 64, "--out", tmp_path / "out", *FEW)
    assert ran.code == 0, ran.err
    assert "experts    2 layers × 8: " in ran.out
    assert "of 8 experts saw fewer than 128 calibration tokens" in ran.err
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "awq"
    assert "lm_head" in told["modules_to_not_convert"]


@pytest.mark.parametrize(
    ("args", "key", "found"),
    [
        (("w8a8", *FEW), "format", "int-quantized"),
        (("fp8",), "quant_method", "fp8"),
        (("fp8", "--fp8-scale", "channel"), "format", "float-quantized"),
        (("rtn", "--asym", "--format", "gptq_v2"), "checkpoint_format", "gptq_v2"),
        (("gptq", "--no-static-groups", "--group", 64, *FEW), "desc_act", True),
        (("gptq", "--no-act-order", *FEW), "desc_act", False),
    ],
)
def test_methods(args: tuple[Any, ...], key: str, found: Any, qwen3: Command, small: Path, tmp_path: Path) -> None:
    method, *rest = args
    ran = qwen3("quantize", small, method, "--out", tmp_path / "out", *rest)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"][key] == found
    assert qwen3("run", tmp_path / "out", "-p", "hi", "-n", 2).code == 0


def test_mlx_takes_its_own_group(qwen3: Command, small: Path, tmp_path: Path) -> None:
    rule = "model.embed_tokens=bits:8"
    assert qwen3("quantize", small, "rtn", "--format", "mlx", "--rule", rule, "--out", tmp_path / "out").code == 0
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert told == {"group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 64, "bits": 8}}


def test_dry_run(qwen3: Command, small: Path, tmp_path: Path) -> None:
    rules = ("--rule", "*down_proj=bits:8,group:32", "--rule", "model.layers.0.*=keep")
    ran = qwen3("quantize", small, "gptq", "--dry-run", *rules)
    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines()]
    assert rows[1][:7] == ["2", "model.layers.*.mlp.down_proj", "8", "bits,", "groups", "of", "32"]
    assert ["1", "model.layers.*.mlp.gate_proj", "kept", "in", "bfloat16"] in rows
    assert ran.out.splitlines()[-1].endswith("in the format gptq")
    told = json.loads(qwen3("quantize", small, "gptq", "--dry-run", "--json", *rules).out)
    assert told["modules"]["model.layers.1.mlp.down_proj"]["kind"] == "8 bits, groups of 32"
    assert "model.layers.0.self_attn.q_proj" in told["kept"]
    assert not list(tmp_path.glob("*.safetensors"))
    published = qwen3("quantize", "qwen3:8b", "awq", "--dry-run")  # not on this disk, and not fetched
    assert published.code == 0
    assert "16.4 GB → 6.1 GB" in published.out


def test_to_a_size(qwen3: Command, small: Path, tmp_path: Path) -> None:
    plain = json.loads(qwen3("quantize", small, "rtn", "--format", "gptq", "--dry-run", "--json").out)
    target = f"{plain['bytes_after'] * 0.97 / 1000:.1f}kB"
    flags = ("--format", "gptq", "--calibration", "qwen3", *FEW, "--json")
    ran = qwen3("quantize", small, "rtn", "--target-size", target, "--out", tmp_path / "out", *flags)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["spec"]["rules"]
    header = 5000
    assert told["bytes_after"] - header < parse_size(target) < told["bytes_after"] * 1.05
    bits = qwen3("quantize", small, "rtn", "--target-bits", 5, "--dry-run", *flags[2:])
    assert {module["kind"][:6] for module in json.loads(bits.out)["modules"].values()} <= {"2 bits", "4 bits", "8 bits"}
    small_one = qwen3("quantize", small, "rtn", "--target-size", "9kB", "--dry-run", *flags[2:])
    assert small_one.code == 2
    assert "more than the target" in small_one.error


WRONG: list[tuple[tuple[Any, ...], str]] = [
    (("q4",), "METHOD 'q4' is none of rtn, gptq, awq, w8a8, fp8, gguf"),
    (("gptq",), "say where to write it: --out FOLDER (or --dry-run)"),
    (("gptq", "--dry-run", "--asym", "--sym"), "--asym and --sym contradict each other; give one"),
    (("fp8", "--dry-run", "--bits", 4), "--bits does not go with fp8"),
    (("w8a8", "--dry-run", "--group", 64), "--group does not go with w8a8"),
    (("gptq", "--dry-run", "--type", "q4_0"), "--type does not go with gptq"),
    (("rtn", "--dry-run", "--fp8-scale", "block"), "--fp8-scale does not go with rtn"),
    (("rtn", "--dry-run", "--no-act-order"), "--act-order does not go with rtn"),
    (("awq", "--dry-run", "--static-groups"), "--static-groups does not go with awq"),
    (("fp8", "--dry-run", "--samples", 9), "--samples, --sequence-length and --seed are of --calibration, which fp8"),
    (("rtn", "--dry-run", "--bits", 7), "bits must be one of 2, 3, 4, 5, 6, 8, not 7"),
    (("rtn", "--dry-run", "--format", "exl2"), "--format exl2: there is no such format; take gptq, gptq_v2, awq"),
    (("rtn", "--dry-run", "--rule", "down_proj"), "--rule 'down_proj' must be PATTERN=keep or PATTERN=bits:8,group:32"),
    (
        ("rtn", "--dry-run", "--rule", "*=width:8"),
        "--rule '*=width:8': 'width:8' is not understood; take keep, or bits:…",
    ),
    (("rtn", "--dry-run", "--rule", "*nothing=keep"), "rule '*nothing' matches no module that can be quantized"),
    (("rtn", "--dry-run", "--target-bits", 4), "losses need calibration data: give calibration 'qwen3'"),
    (("gptq", "--dry-run", "--target-bits", 4, "--bits", 4), "give one of --bits, --target-size and --target-bits"),
    (("gptq", "--dry-run", "--target-size", "big"), "--target-size 'big' is no size; write it as 300MB or 1.5GB"),
    (("gguf", "--out", "x.gguf"), "say which type: --type q4_k_m"),
    (("gguf", "--type", "q4_0"), "say where to write it: --out FILE.gguf"),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_one_line_says_what_is_wrong(args: tuple[Any, ...], message: str, qwen3: Command, small: Path) -> None:
    ran = qwen3("quantize", small, *args)
    assert ran.code == 2
    assert ran.error.startswith(message)
    assert ran.out == ""


def test_no_such_model(qwen3: Command, tmp_path: Path) -> None:
    assert qwen3("quantize", tmp_path / "nothing", "rtn", "--out", tmp_path / "out").code == 3


def test_interrupted(qwen3: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qwen3.quantize.checkpoint as verb

    whole = verb.quantize_tensors

    def cut(*args: Any, **how: Any) -> Any:
        for i, each in enumerate(whole(*args, **how)):
            if i == 5:
                raise KeyboardInterrupt
            yield each

    monkeypatch.setattr(verb, "quantize_tensors", cut)
    ran = qwen3("quantize", small, "rtn", "--out", tmp_path / "out")
    assert ran.code == 130
    assert ran.error == "interrupted"
    assert not (tmp_path / "out").exists()


def test_gguf(qwen3: Command, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    ran = qwen3("quantize", small, "gguf", "--type", "q8_0", "--out", file)
    assert ran.code == 0, ran.err
    assert "Q8_0" in ran.out
    assert "agreement  KL " in ran.out
    assert qwen3("run", file, "-p", "hi", "-n", 2).code == 0
    again = qwen3("quantize", small, "gguf", "--type", "q8_0", "--out", file)
    assert again.code == 2
    assert str(file) in again.error


def test_rules_and_sizes() -> None:
    assert parse_rule("*down_proj=bits:8, group:32") == Rule("*down_proj", bits=8, group=32)
    assert parse_rule("re:.*=x=keep") == Rule("re:.*=x", skip=True)
    assert parse_rule("a=symmetric:false,method:rtn") == Rule("a", symmetric=False, method="rtn")
    for wrong in ("=keep", "a=", "a=symmetric:maybe", "a=bits:four"):
        with pytest.raises(UsageError, match="--rule"):
            parse_rule(wrong)
    assert [parse_size(text) for text in ("300MB", "1.5 GB", "2 GiB", "17")] == [300e6, 1.5e9, 2 << 30, 17]
    for wrong in ("", "MB", "3 tons", "1.2.3MB"):
        with pytest.raises(UsageError, match="--target-size"):
            parse_size(wrong)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    line.every = 0.0
    monkeypatch.setattr("time.monotonic", lambda: line.started + 3600.0)
    line.show("layer 3", 0.25)
    assert capsys.readouterr().err == "25 %  1:00:00, 3:00:00 left  layer 3\n"
    line.every = 10.0
    line.show("layer 4", 0.5)
    assert capsys.readouterr().err == ""
    assert [clock(seconds) for seconds in (0, 7.4, 62, 3723)] == ["0:00", "0:07", "1:02", "1:02:03"]
