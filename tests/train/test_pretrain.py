"""Pretraining of a tiny model: three stages, what they derive and tell, and that stopping changes nothing."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from qwen3 import LLM, SamplingParams
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, ModelNotFoundError, OutOfMemoryError, UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.shards import Shards, write_shards
from qwen3.train.mixture import Mixture, Source
from qwen3.train.optim import OptimConfig
from qwen3.train.pretrain import SHAPES, Pretrain, as_shards, derive, derive_optim, recipe, run_pretrain
from qwen3.train.recipe import Recipe, override
from qwen3.train.samples import TokenSample
from qwen3.train.start import Job, train
from tests.fixtures import random_model, tiny_config
from tests.train.recorder import Recorder

TOK = Tokenizer.from_pretrained().prefix(608)


def write_texts(folder: Path, count: int = 60) -> Path:
    """Sentences that a tiny model can learn."""
    folder.mkdir()
    rng = random.Random(0)
    words = ["sun", "moon", "tree", "river", "stone"]
    rows = [
        " ".join(f"the {rng.choice(words)} is {rng.choice(words)}." for _ in range(rng.randint(2, 12)))
        for _ in range(count)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


def draw(rng: random.Random) -> TokenSample:
    size = rng.randint(8, 30)
    return TokenSample(np.array([rng.randrange(5) for _ in range(size)], np.int32), np.arange(size) > 0)


def job(run: Recorder, model: Qwen3 | None = None) -> Job:
    return Job(model or random_model(tiny_config()), TOK, run, 1, "base", "qwen3", "tiny", {})


SMALL: dict[str, Any] = {
    "sources": (Source("drawn", 1.0, draw),), "tokens_per_update": 128, "tokens_per_micro_batch": 64, "length": 64,
}  # fmt: skip


def parameters(model: Qwen3) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_three_stages_make_a_model_of_texts(tmp_path: Path) -> None:
    model = tiny_config(bos_token_id=512, eos_token_id=512, rope_theta=1e4, max_position_embeddings=64).to_dict()
    words = [f"data={write_texts(tmp_path / 'texts')}", f"out={tmp_path / 'run'}", "long.evaluate_every=0"]
    for name, updates, length in (("general", 8, 64), ("reasoning", 4, 64), ("long", 3, 128)):
        words += [f"{name}.updates={updates}", f"{name}.length={length}", f"{name}.tokens_per_update=256"]
        words.append(f"{name}.tokens_per_micro_batch={2 * length}")
    made = override(replace(recipe(), model=model, tokenizer=""), words)
    said: list[str] = []
    found = train(made, said.append)
    assert found["finished"]
    log = lines(tmp_path / "run")
    losses = {
        s: [x["loss"] for x in log if x.get("stage") == s and "norm" in x] for s in ("general", "reasoning", "long")
    }
    assert [len(part) for part in losses.values()] == [8, 4, 3]
    assert losses["long"][-1] < losses["reasoning"][0] < losses["general"][0] - 1
    rates = [x["lr"] for x in log if x.get("stage") in losses and "norm" in x]
    assert rates == pytest.approx([1] * 8 + [1, 0.775, 0.55, 0.325] + [0.1, 0.1 * 2 / 3, 0.1 / 3])
    bits = [x["bits_per_byte"] for x in log if "bits_per_byte" in x]
    assert bits[0] > bits[-1] > 0
    text = "\n".join(said)
    assert "reasoning: the optimiser goes on from general" in text
    assert "long: rotary base 1,000,000, for 128 positions" in text
    assert "8 updates of 256 tokens, 2,048 in all: as given" in text
    assert any(x.get("event") == "samples" and "▸" in x["texts"][0] for x in log)
    config = ModelConfig.from_pretrained(tmp_path / "run" / "model")
    assert (config.rope_theta, config.max_position_embeddings) == (1e6, 128)
    assert ModelConfig.from_pretrained(tmp_path / "run" / "after-general").rope_theta == 1e4
    with LLM(str(tmp_path / "run" / "model"), device="cpu") as llm:
        assert llm.mode == "base"
        assert llm.generate("the sun is", SamplingParams(max_tokens=5, temperature=0))[0].text
    assert log[-1].keys() >= {"epochs", "finished"}


def test_a_stopped_run_goes_on_bitwise_with_any_workers(tmp_path: Path) -> None:
    stage = Pretrain(**SMALL, updates=7, save_every=2, evaluate_every=0)
    whole, model = Recorder(tmp_path / "whole"), random_model(tiny_config())
    run_pretrain(stage, job(whole, model))
    resumed = model
    for stop_after, workers in ((3, 0), (1, 1), (99, 0)):
        again, resumed = Recorder(tmp_path / "parts", stop_after), random_model(tiny_config())
        summary = run_pretrain(replace(stage, workers=workers), job(again, resumed))
        assert summary["finished"] is (stop_after == 99)
    assert all(value.equal(parameters(resumed)[name]) for name, value in parameters(model).items())
    found, wanted = ([x["loss"] for x in lines(tmp_path / name) if "loss" in x] for name in ("parts", "whole"))
    assert found == wanted
    with pytest.raises(UsageError, match=r"begun with updates=7, not 8: give another folder"):
        run_pretrain(replace(stage, updates=8), job(Recorder(tmp_path / "parts")))
    other = replace(stage, sources=(Source("other", 1.0, draw),))
    with pytest.raises(UsageError, match="begun with data="):
        run_pretrain(other, job(Recorder(tmp_path / "parts")))


def test_what_was_logged_before_the_first_checkpoint_is_not_logged_twice(tmp_path: Path) -> None:
    """Of a run that was killed there."""
    run = Recorder(tmp_path)
    run.log(stage="before", update=2, loss=1.0)
    run.log(stage="pretrain", update=1, loss=7.0)
    run_pretrain(Pretrain(**SMALL, updates=2, evaluate_every=0), job(run))
    assert [(x["stage"], x["update"]) for x in lines(tmp_path) if "update" in x] == [
        ("before", 2), ("pretrain", 1), ("pretrain", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_optimiser_goes_on_bitwise_from_stage_to_stage(tmp_path: Path, kind: Any) -> None:
    """Two stages of three updates with one learning rate: the moments that the second begins with are the first's."""
    first = Pretrain("a", **SMALL, updates=3, decay=0.0, warmup=0.0, evaluate_every=0, optim=kind)
    run, model = Recorder(tmp_path / "run"), random_model(tiny_config())
    run.mark_done("a", run_pretrain(first, job(run, model)))
    states = []
    for carry in (True, False):
        again = random_model(tiny_config())
        again.load_state_dict(model.state_dict())
        run_pretrain(replace(first, name=f"b{carry}", updates=1, carry=carry), job(run, again))
        states.append(parameters(again))
    assert any("bTrue: the optimiser goes on from a" in line for line in run.said)
    assert not all(states[0][name].equal(states[1][name]) for name in states[0])
    other: Any = "adamw" if kind == "muon" else "muon"
    run_pretrain(replace(first, name="c", updates=1, optim=other), job(run, random_model(tiny_config())))
    assert any("c: the optimiser begins anew" in line for line in run.said)


def test_wrong_keys_and_other_tokenizers_are_told(tmp_path: Path) -> None:
    for keys, message in (
        ({"length": 1}, r"pretrain\.length must be a whole number from 2, not 1"),
        ({"lr": 0.0}, r"pretrain\.lr must be a number above 0"),
        ({"warmup": 0.7, "decay": 0.7}, r"warmup and decay are 1\.4 of the updates"),
        ({"optim": "sgd"}, r"optim='sgd' must be muon or adamw"),
        ({"final": 2.0}, r"final is a share"),
        ({"yarn": 0.5}, r"yarn must be a number from 1"),
    ):
        with pytest.raises(UsageError, match=message):
            Pretrain(**keys)
    for keys, message in (
        ({}, r"pretrain\.data is missing: data=FOLDER"),
        ({"data": ("a",), "sources": SMALL["sources"]}, "given beside sources"),
        ({"data": ("a",), "shares": (1.0, 2.0)}, "one number from 0 for each of the 1 data"),
        ({**SMALL, "tokens": 5, "updates": 5}, "tokens and updates are both given"),
        ({**SMALL, "lr": 0.1, "optim": OptimConfig()}, "lr and an optimiser are both given"),
    ):
        with pytest.raises(UsageError, match=message):
            run_pretrain(Pretrain(**keys), job(Recorder(tmp_path / "r")))
    write_shards(tmp_path / "other", [[1, 2, 3]] * 3, Tokenizer.from_pretrained().prefix(1000))
    with pytest.raises(UsageError, match="made with another tokenizer"):
        run_pretrain(Pretrain(data=(str(tmp_path / "other"),)), job(Recorder(tmp_path / "r")))
    with pytest.raises(UsageError, match="tokens_per_update=100 is not made of micro-batches of 1 × 64"):
        run_pretrain(Pretrain(**SMALL | {"tokens_per_update": 100}, updates=1), job(Recorder(tmp_path / "r")))


def test_a_run_that_cannot_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3.train.memory.available_bytes", lambda device: 1_000_000)
    with pytest.raises(OutOfMemoryError, match=r"training needs .* but 0\.00 GB are free on cpu"):
        run_pretrain(Pretrain(**SMALL, updates=3), job(Recorder(tmp_path / "r")))
    assert not (tmp_path / "r" / "log.jsonl").exists()


def test_numbers_follow_from_model_and_data(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [[i % 600 for i in range(1000)]] * 400, TOK)
    work = job(Recorder(tmp_path / "r"))
    mixture = Mixture([Source("s", 1, tmp_path / "s", kept=2)], 64)
    assert mixture.tokens == pytest.approx(398_000, rel=0.02)
    count = work.model.config.num_parameters()
    plan, why = derive(Pretrain(), work, mixture, 64)
    each = plan.rows.rows * plan.rows.length * plan.rows.parts
    assert plan.updates * each == pytest.approx(min(20 * count, 4 * mixture.tokens), rel=0.01)
    assert each == pytest.approx(65_536 * (plan.updates * each / 1e8) ** 0.383, rel=0.1)
    assert f"4 times the data, where {20 * count:,}" in why[0]
    few, why = derive(Pretrain(tokens_per_parameter=1), work, mixture, 64)
    assert few.updates * few.rows.rows * few.rows.parts * 64 == pytest.approx(count, rel=0.02)
    assert f"1 for each of {count:,}" in why[0]
    given, _ = derive(Pretrain(updates=50), work, mixture, 64)
    each = given.rows.rows * given.rows.parts * 64
    assert given.updates == 50
    assert each == pytest.approx(65_536 * (50 * each / 1e8) ** 0.383, rel=0.1)
    assert (plan.warmup, plan.decay) == (-(-plan.updates // 50), round(0.4 * plan.updates))
    assert derive_optim(Pretrain(), 1024)[0].matrix_lr == 0.02
    assert derive_optim(Pretrain(optim="adamw"), 1024)[0].matrix_lr == pytest.approx(7.3e-4, rel=0.01)
    assert derive_optim(Pretrain(optim="adamw", lr=1e-4), 1024)[0].vector_lr == 1e-4
    for shape in SHAPES.values():
        assert ModelConfig.from_dict(shape).num_parameters() < 19e6
    assert max(ModelConfig.from_dict(SHAPES[name]).num_parameters() for name in ("tiny", "tiny-moe")) <= 6e6


def test_measurements_are_made_where_they_are_asked_for(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [[*TOK.encode_plain(f"text number {i} of a"), 608] for i in range(40)], TOK)
    write_shards(tmp_path / "b", [[*TOK.encode_plain(f"text {i} of b"), 608] for i in range(40)], TOK)
    asked: list[str] = []

    def evaluate(llm: LLM) -> dict[str, float]:
        asked.append(llm.mode)
        return {"mine": 0.5}

    stage = Pretrain(
        data=(str(tmp_path / "a"), str(tmp_path / "b")), shares=(3.0, 1.0), updates=4, length=64, evaluate_every=2,
        evaluate=evaluate, needle=(96,), needles=1, yarn=2.0, tokens_per_update=64, samples=1,
    )  # fmt: skip
    run = Recorder(tmp_path / "run")
    summary = run_pretrain(stage, job(run, random_model(tiny_config(max_position_embeddings=64))))
    measured = {x["update"]: x for x in run.logged if "bits_per_byte" in x}
    assert list(measured) == [2, 4]
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert measured[2].keys() >= {f"bits_per_byte/{a}", f"bits_per_byte/{b}", "needle/96", "mine"}
    assert asked == ["base", "base"]
    assert summary["epochs"].keys() == {a, b}
    held = Pretrain(data=(a,), held_out=(b,), updates=1, length=64, tokens_per_update=64)
    run_pretrain(held, job(Recorder(tmp_path / "held"), random_model(tiny_config(max_position_embeddings=64))))
    assert len(Shards(b)) == 40


def test_data_may_be_shards_a_folder_around_them_or_texts(tmp_path: Path) -> None:
    work = job(Recorder(tmp_path / "run"))
    write_shards(tmp_path / "made" / "corpus", [[1, 2, 3]] * 3, TOK)
    (tmp_path / "made" / "log.jsonl").write_text('{"text": "no text to train on"}')
    for spec in (tmp_path / "made", tmp_path / "made" / "corpus"):
        assert as_shards(str(spec), work).folder == tmp_path / "made" / "corpus"
    write_shards(tmp_path / "made" / "more", [[1, 2, 3]] * 3, TOK)
    with pytest.raises(UsageError, match=r"several folders of shards: say which, .*corpus, .*more"):
        as_shards(str(tmp_path / "made"), work)
    (tmp_path / "made" / "more" / "manifest.json").unlink()
    with pytest.raises(CorruptFileError, match="its shards are unfinished"):
        as_shards(str(tmp_path / "made" / "more"), work)
    texts = as_shards(str(write_texts(tmp_path / "texts", 5)), work)
    assert (len(texts), texts.folder.parent) == (5, tmp_path / "run" / "data")
    assert texts[0][-1] == TOK.control.endoftext
    with pytest.raises(ModelNotFoundError, match="there is no such file or folder"):
        as_shards(str(tmp_path / "nothing"), work)


def train_two(folder: Path, sharded: bool = False) -> None:
    stage = Pretrain(**SMALL, updates=4, save_every=2, sharded=sharded, evaluate_every=0, optim=OptimConfig(eps=1e-3))
    model = tiny_config(moe=True, router_aux_loss_coef=0.1).to_dict()
    train(Recipe("two", model, (stage,), out=str(folder), device="cpu"))


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    train_two(folder / "two")
    train_two(folder / "sharded", sharded=True)
    dist.destroy_process_group()


def test_two_processes_share_the_data_and_write_one_log(tmp_path: Path) -> None:
    """Replicated and sharded: the losses and the balance of one process, to tolerance."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.test_pretrain"])
    team = [context.Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in team:
        process.start()
    train_two(tmp_path / "one")
    for process in team:
        process.join(120)
    assert [process.exitcode for process in team] == [0, 0]
    names = ("one", "two", "sharded")
    logs = {name: [x for x in lines(tmp_path / name) if "norm" in x] for name in names}
    for name in names[1:]:
        assert len(logs[name]) == 4
        for mine, one in zip(logs[name], logs["one"], strict=True):
            for key in ("loss", "norm", "balance", "tokens", "load_max"):
                assert mine[key] == pytest.approx(one[key], rel=2e-4)
        assert (tmp_path / name / "model" / "config.json").exists()
    # A run of two goes on as one, from the same place in the data.
    states = [json.loads((tmp_path / n / "pretrain" / "step-00000004" / "state.json").read_text()) for n in names]
    places = [state["state"]["position"]["stage"]["stream"] for state in states]
    assert places[0] == places[1] == places[2]
