"""What `qwen3 diff` measures: against direct computations, on tiny models."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.evaluate import difference as whole
from qwen3.evaluate.difference import Difference, difference
from qwen3.evaluate.difference_page import page, rows, verdict
from qwen3.evaluate.divergence import Text, layer_errors, score, summary
from qwen3.evaluate.measured import Answers, Settings, meant, weight_bytes
from qwen3.evaluate.paired import bootstrap, share, sign_test
from qwen3.kernels.packed import PackedWeight
from qwen3.model import Qwen3
from qwen3.model.pack import pack_model
from qwen3.tokenizer import Tokenizer
from tests.cli.conftest import EMBEDDED
from tests.fixtures import UNUSED_ROWS, random_checkpoint, random_model, tiny_config

SMALL = Settings(problems=6, tokens=200, max_tokens=12, speed=False)


def texts(seed: int, count: int = 7, vocab: int = 600) -> list[Text]:
    rng = random.Random(seed)
    lengths = [rng.randint(2, 90) for _ in range(count)]
    return [Text([rng.randrange(vocab) for _ in range(n)], rng.randint(1, n - 1)) for n in lengths]


def disturbed(model: Qwen3, size: float, layer: int = 0) -> Qwen3:
    """A copy with noise on one layer's matrices."""
    copy = random_model(model.config)
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in copy.layers[layer].parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * size * parameter.std())
    return copy


# Distributions


@pytest.mark.parametrize("moe", [False, True])
def test_divergence_is_that_of_the_two_softmaxes(moe: bool) -> None:
    config = tiny_config(moe)
    models = [random_model(config, seed) for seed in (0, 1)]
    some, width = texts(random.randrange(1 << 30)), config.vocab_size - UNUSED_ROWS
    found = score(models, some, width, ["a", "b"])
    nats, kl, agrees = [], [], []
    for text in sorted(some, key=lambda text: len(text.ids)):
        with torch.inference_mode():
            logs = [m(torch.tensor([text.ids]))[0, :, :width].double().log_softmax(-1) for m in models]
        for k in range(text.first, len(text.ids)):
            a, b = (log[k - 1] for log in logs)
            nats.append([-float(a[text.ids[k]]), -float(b[text.ids[k]])])
            kl.append(float((a.exp() * (a - b)).sum()))
            agrees.append(float(a.argmax() == b.argmax()))
    np.testing.assert_allclose(found.nats.T, nats, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found.kl[0], kl, rtol=2e-3, atol=2e-4)
    np.testing.assert_array_equal(found.agrees[0], agrees)
    assert found.kl.mean() > 0.1


def test_a_model_is_no_distance_from_itself() -> None:
    config = tiny_config()
    models = [random_model(config), random_model(config)]
    found = score(models, texts(1, 40), config.vocab_size, ["a", "b"])
    about = summary(found.kl[0], found.agrees[0])
    assert (about["mean"], about["max"], about["agreement"]) == (0.0, 0.0, 1.0)
    assert about["tokens"] == sum(len(text.ids) - text.first for text in texts(1, 40)) > 128  # several parts
    for layer in layer_errors(*models, torch.randint(600, (2, 30))):
        assert layer[1:] == (0.0, 0.0)


def test_more_noise_is_more_divergence() -> None:
    model = random_model(tiny_config())
    some = texts(2)
    means, losses = [], []
    for size in (0.01, 0.1, 1.0):
        found = score([model, disturbed(model, size)], some, 634, ["a", "b"])
        means.append(found.kl.mean())
        losses.append(found.agrees.mean())
    assert 0 < means[0] < means[1] < means[2]
    assert losses[0] >= losses[1] > losses[2]


def test_errors_are_found_in_the_layer_that_has_them() -> None:
    model = random_model(tiny_config(num_hidden_layers=4))
    ids = torch.randint(600, (2, 40))
    errors = layer_errors(model, disturbed(model, 0.1, layer=1), ids)
    assert [error.layer for error in errors] == [0, 1, 2, 3, 4]
    assert [error.whole > 0 for error in errors] == [False, False, True, True, True]
    assert [error.alone > 0 for error in errors] == [False, False, True, False, False]
    assert errors[2].whole == pytest.approx(errors[2].alone)
    assert layer_errors(model, disturbed(model, 0.2, layer=1), ids)[2].alone > 1.5 * errors[2].alone
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


def test_weights_of_few_bits_are_run_and_counted_as_they_are() -> None:
    model, packed = random_model(tiny_config()), pack_model(random_model(tiny_config()), "int4")
    assert isinstance(packed.layers[0].self_attn.qkv_proj.weight, PackedWeight)
    assert weight_bytes(packed) < 0.35 * weight_bytes(model) == 0.35 * 4 * model.config.num_parameters()
    found = score([model, packed], texts(3), 634, ["a", "b"])
    assert 0 < found.kl.mean() < 1
    assert 0 < layer_errors(model, packed, torch.randint(600, (1, 20)))[1].alone < 0.3


def test_a_broken_model_is_named() -> None:
    model, broken = random_model(tiny_config()), random_model(tiny_config())
    with torch.no_grad():
        broken.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(CorruptFileError, match="mine: its logits are NaN or infinite"):
        score([model, broken], texts(4), 634, ["a", "mine"])


# Statistics


def test_sign_test_is_the_coins() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(0, 5) == sign_test(5, 5) == pytest.approx(2 / 32)
    assert sign_test(2, 10) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(5, 10) == 1
    assert 0 < sign_test(300, 1000) < 1e-30
    assert sign_test(0, 20_000) >= 0


def test_bootstrap_covers_what_it_should() -> None:
    rng = np.random.default_rng()
    inside = 0
    for seed in range(100):
        low, high = bootstrap(lambda x: x.mean(-1), rng.normal(3, 1, 60), seed=seed)
        inside += low <= 3 <= high
    assert 82 <= inside <= 100  # 95 expected, a little less at 60 values
    assert bootstrap(lambda x: x.mean(-1), [2.0] * 9) == (2.0, 2.0)
    assert bootstrap(share, [1.0, 1.0], [0.0, 0.0]) == (math.inf, math.inf)
    with pytest.raises(ValueError, match="nothing to draw"):
        bootstrap(share, [], [])


def answers(right: list[int], tokens: list[int]) -> Answers:
    numbers = [np.array(column, np.float64) for column in (right, tokens, [0] * len(right))]
    return Answers(*numbers, cut=0, looped=0, texts=[], families={})


def test_pairs_are_compared_question_by_question() -> None:
    reference = answers([1, 1, 1, 1, 0, 1, 1, 1] * 4, [10] * 32)
    same = whole._paired(reference, reference, 1)
    assert (same["points"], same["p"], same["length_ratio"], same["length_p"]) == (0, 1, 1, 1)
    assert same["points_interval"] == (0, 0)
    assert same["tokens_per_right_ratio_interval"] == [1, 1]
    worse = whole._paired(reference, answers([1, 0, 1, 1, 0, 0, 1, 1] * 4, [12, 9, 20, 12, 10, 15, 16, 18] * 4), 1)
    assert (worse["only_reference_right"], worse["only_variant_right"]) == (8, 0)
    assert worse["p"] == pytest.approx(2 / 256)
    assert worse["points"] == -25
    assert worse["points_interval"][1] < 0
    assert (worse["longer"], worse["shorter"]) == (24, 4)
    assert worse["length_ratio"] == pytest.approx(1.4)
    assert worse["tokens_per_right_ratio"] == pytest.approx(1.4 * 28 / 20)
    assert worse["tokens_per_right_ratio_interval"][0] > 1
    hopeless = whole._paired(reference, answers([0] * 32, [10] * 32), 1)
    assert hopeless["tokens_per_right_ratio"] is None
    json.dumps(hopeless, allow_nan=False)


# Names


def test_names_say_how_a_model_is_loaded(tmp_path: Path) -> None:
    assert meant("embedded") == ("embedded", None, None)
    assert meant("embedded+int4") == ("embedded", "int4", None)
    assert meant("a/b+c+bfloat16") == ("a/b+c", None, "bfloat16")
    (tmp_path / "x+old").mkdir()
    assert meant(f"{tmp_path}/x+old") == (f"{tmp_path}/x+old", None, None)
    assert meant(f"{tmp_path}/x+old+int8") == (f"{tmp_path}/x+old", "int8", None)
    with pytest.raises(UsageError, match="'q4' behind the \\+ must be one of"):
        meant("embedded+q4")


# The whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models with one tokenizer, of which the second has more padding and a name to escape."""
    base = tmp_path_factory.mktemp("models")
    first = random_checkpoint(base / "plain", tiny_config(), tokenizer=True)
    second = random_checkpoint(
        base / '<b>&"odd"', tiny_config(vocab_size=656, bos_token_id=608, eos_token_id=610), seed=1
    )
    for file in first.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, second)
    return first, second


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path]) -> list[Difference]:
    first, second = map(str, folders)
    return difference(first, [first, f"{first}+int8", second], SMALL)


def test_a_whole_comparison(found: list[Difference], folders: tuple[Path, Path]) -> None:
    same, int8, other = found
    for one in found:
        assert one.reference["name"] == str(folders[0])
        assert set(one.divergence) == {"text", "answers"}
        assert one.divergence["text"]["tokens"] == SMALL.tokens
        assert set(one.tasks) == {"thinking", "direct"}
        assert len(one.layers) == 3
        json.dumps(one.to_dict(), allow_nan=False)
    assert same.divergence["text"]["max"] == same.divergence["answers"]["max"] == 0
    assert same.divergence["answers"]["agreement"] == 1
    assert same.reference["text"] == same.variant["text"]
    assert same.tasks["thinking"]["length_ratio"] == 1
    assert 0 < int8.divergence["text"]["mean"] < 0.1 < other.divergence["text"]["mean"]
    assert 0 < int8.layers[-1].whole < 0.1 < other.layers[-1].whole
    assert int8.variant["memory_bytes"] < 0.4 * int8.variant["disk_bytes"]
    assert int8.variant["bits_per_weight"] == 32
    assert other.variant["tasks"]["thinking"]["cut"] > 0
    assert found[0].head["settings"]["problems"] == 6


def test_the_page_stands_alone(found: list[Difference]) -> None:
    html = page(found)
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}

    Reader().feed(html)
    assert not set(seen) & {"script", "link", "img", "iframe", "b", "object"}
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    drawn = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawn) >= 6
    for svg in drawn:
        assert "nan" not in svg
        ElementTree.fromstring(svg)
    assert "&lt;b&gt;&amp;" in html
    for row in rows(found):
        assert len(row) == 5
    assert "no difference in what is right that 6 questions can show" in verdict(found[0])


def test_different_tokenizers_leave_bits_a_byte_and_tasks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = random_checkpoint(tmp_path / "other", tiny_config(vocab_size=660), tokenizer=True)
    [one] = difference(str(folders[0]), str(other), SMALL)
    assert not one.divergence
    assert not one.layers
    assert any("tokenizers differ" in note for note in one.notes)
    assert one.reference["text"]["bits_per_byte"] > 0 < one.variant["text"]["bits_per_byte"]
    assert one.tasks
    assert "tokenizers differ" in page([one])


def test_perplexity_of_a_text(folders: tuple[Path, Path]) -> None:
    text = "The cat sat on the mat. " * 30
    [one] = difference(str(folders[0]), str(folders[1]), Settings(problems=0, text=text, tokens=100, speed=False))
    tokenizer = Tokenizer.from_pretrained(folders[0])
    ids = tokenizer.encode_plain(text)[:101]
    with torch.inference_mode():
        logs = random_model(tiny_config())(torch.tensor([ids]))[0, :-1, :634].double().log_softmax(-1)
    nats = -logs.gather(-1, torch.tensor(ids[1:])[:, None]).sum()
    about: dict[str, Any] = one.reference["text"]
    assert about["tokens"] == 100
    assert about["perplexity"] == pytest.approx(math.exp(nats / 100), rel=1e-3)
    assert about["bits_per_byte"] == pytest.approx(float(nats) / math.log(2) / about["bytes"], rel=1e-3)
    assert about["bytes"] == len(tokenizer.decode(ids[1:]).encode())
    assert set(one.divergence) == {"text"}
    assert not one.tasks
    assert page([one])


def test_what_cannot_be_is_said_first(folders: tuple[Path, Path]) -> None:
    name = str(folders[0])
    with pytest.raises(UsageError, match="at least two models"):
        difference(name, [])
    with pytest.raises(ModelNotFoundError):
        difference(name, [f"{name}-missing"], say=lambda line: pytest.fail("it began"))
    with pytest.raises(UsageError, match="no suite or family"):
        Settings(suite="cooking")
    with pytest.raises(UsageError, match="tokens=3 must be 16 or more"):
        Settings(tokens=3)
    with pytest.raises(UsageError, match=r"book\.txt is empty"):
        Settings(text=" \n", text_name="book.txt")
    with pytest.raises(UsageError, match="fewer than two tokens"):
        difference(name, name, Settings(problems=0, text="a", text_name="a.txt", speed=False))


def test_a_broken_variant_is_refused_before_it_is_asked(folders: tuple[Path, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    said: list[str] = []
    with pytest.raises(CorruptFileError, match="broken: its logits are NaN or infinite"):
        difference(str(folders[0]), str(broken), SMALL, said.append)
    assert not [line for line in said if line.startswith(f"{broken}, ")]


@pytest.mark.slow
@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded model is not in this checkout")
def test_the_embedded_model_in_eight_and_four_bits() -> None:
    int8, int4 = difference("embedded", ["embedded+int8", "embedded+int4"], Settings(problems=48, tokens=1024))
    assert int8.divergence["answers"]["mean"] < 1e-3 < int4.divergence["answers"]["mean"]
    assert int8.divergence["answers"]["agreement"] > 0.99
    assert abs(int8.tasks["thinking"]["points"]) < 5
    assert int8.layers[-1].whole < 0.1 < int4.layers[-1].whole
    assert int8.reference["tasks"]["thinking"]["percent"] > 85
    assert "thinking" in verdict(int4)


def test_speed_is_of_both_in_turn(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Any] = []

    def decode(subject: Any, streams: int, tokens: int, repeats: int) -> tuple[list[float], list[Any]]:
        turns.append(subject.model)
        return [100.0 if subject.model is turns[0] else 150.0 * streams], []

    monkeypatch.setattr(whole.workloads, "decode", decode)
    [one] = difference(str(folders[0]), str(folders[1]), Settings(problems=0, tokens=32))
    assert one.speed == {"1": 1.5, "8": 12}
    assert one.reference["speed"] == {"1": 100, "8": 100}
    assert len(turns) == 12
    assert all(a is not b for a, b in pairwise(turns))


def test_timing_a_model_that_is_loaded(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = whole.workloads.Scale(1, {1: 4, 8: 2}, (), 1, 1, 1, 4)
    monkeypatch.setattr(whole.workloads, "scale_for", lambda device, config: small)
    [one] = difference(str(folders[0]), f"{folders[0]}+int8", Settings(problems=0, tokens=32))
    assert one.variant["speed"]["1"] > 0 < one.variant["speed"]["8"]
    assert any(row[0] == "tok/s, 8 streams" for row in rows([one]))
