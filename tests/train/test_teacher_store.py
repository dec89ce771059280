"""What a teacher said, on disk: the numbers of its forward, the same bytes after a stop, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.feeds import update_batches
from qwen3.train.forward import Forward, to_tensors
from qwen3.train.packing import pack
from qwen3.train.samples import TokenSample
from qwen3.train.teacher_store import Teacher, TeacherStore, write_store
from tests.fixtures import random_model, tiny_config

TOK = Tokenizer.from_pretrained().prefix(608)
ROWS, K = 640, 5


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(random_model(tiny_config(), seed=7), TOK)


def chunk(number: int) -> list[TokenSample]:
    """Samples of several lengths, some of whose tokens are trained; chunk 1 has none."""
    rng = np.random.default_rng(number)
    found = []
    for _ in range(0 if number == 1 else 4):
        n = int(rng.integers(3, 40))
        trained = rng.random(n) < 0.6
        trained[0] = False
        found.append(TokenSample(rng.integers(0, 600, n).astype(np.int32), trained))
    return found


def write(folder: Path, teacher: Teacher, samples: Any = chunk, **changes: Any) -> TeacherStore | None:
    options: dict[str, Any] = {"data": {"seed": 1}, "rows": ROWS, "k": K, "length": 64}
    return write_store(folder, 3, samples, teacher, TOK, **options | changes)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_what_is_read_is_what_the_teacher_said(tmp_path: Path, teacher: Teacher, temperature: float) -> None:
    store = write(tmp_path, teacher, temperature=temperature)
    assert store is not None
    store.verify()
    wanted = [sample for number in range(3) for sample in chunk(number)]
    assert len(store) == len(wanted) == 8
    assert store.longest == max(map(len, wanted))
    for sample, found in zip(wanted, store, strict=True):
        assert np.array_equal(sample.ids, found.ids)
        assert np.array_equal(sample.trained, found.trained)
        batch, _ = pack([sample], 1, len(sample), 0)  # each alone: packing changed nothing
        hidden = Forward(teacher.model)(to_tensors(batch, torch.device("cpu")))[0].detach()[0]
        logprob = (hidden @ teacher.head(ROWS).T / temperature).log_softmax(-1)[:-1][sample.trained[1:]]
        best, ids = logprob.topk(K, -1)
        assert np.array_equal(found.streams["teacher_ids"][sample.trained], ids.numpy())
        assert np.allclose(found.streams["teacher_logprobs"][sample.trained], best.detach().numpy(), atol=4e-3)
        tail = found.streams["teacher_tail"][sample.trained]
        assert np.allclose(tail, 1 - best.detach().exp().sum(-1).numpy(), atol=1e-3)
        assert not found.streams["teacher_ids"][~sample.trained].any()


def test_a_store_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, teacher: Teacher) -> None:
    write(tmp_path / "whole", teacher)
    asked: list[int] = []

    def counted(number: int) -> list[TokenSample]:
        asked.append(number)
        return chunk(number)

    stops = iter([False, True])
    assert write(tmp_path / "parts", teacher, counted, over=lambda: next(stops)) is None
    with pytest.raises(CorruptFileError, match="unfinished"):
        TeacherStore(tmp_path / "parts", TOK)
    (tmp_path / "parts/.0123456789abcdef.partial").write_bytes(b"half")
    assert write(tmp_path / "parts", teacher, counted) is not None
    assert asked == [0, 1, 2]
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_the_feed_takes_all_samples_once_around_and_goes_on_anywhere(tmp_path: Path, teacher: Teacher) -> None:
    store = write(tmp_path, teacher)
    assert store is not None
    order = [sample.ids.tobytes() for sample in store.feed(3)(0, 20)]
    assert len(set(order[:8])) == len(set(order[8:16])) == 8
    assert order[:8] != order[8:16]
    assert [sample.ids.tobytes() for sample in store.feed(3)(5, 20)] == order[5:]
    batch = update_batches(store.feed(3), 2, 4, 128, 0, fixed=False)(1)[0]
    assert batch.streams["teacher_ids"].shape == (*batch.ids.shape, K)


def test_refusals(tmp_path: Path, teacher: Teacher) -> None:
    with pytest.raises(ModelNotFoundError, match="no teacher's store"):
        TeacherStore(tmp_path, TOK)
    write(tmp_path / "store", teacher)
    other = Teacher(random_model(tiny_config(), seed=8), TOK)
    for changes, said in (
        ({"temperature": 2.0}, "temperature 1.0, not 2.0"),
        ({"k": 6}, "k 5, not 6"),
        ({"data": {"seed": 2}}, r"data \{'seed': 1\}, not \{'seed': 2\}"),
    ):
        with pytest.raises(UsageError, match=said):
            write(tmp_path / "store", teacher, **changes)
    with pytest.raises(UsageError, match=r"with teacher '\w{16}', not"):
        write(tmp_path / "store", other)
    with pytest.raises(UsageError, match="another tokenizer"):
        TeacherStore(tmp_path / "store", Tokenizer.from_pretrained().prefix(600))
    with pytest.raises(UsageError, match=r"another tokenizer \(634 tokens\) than the student \(626\)"):
        teacher.fits(Tokenizer.from_pretrained().prefix(600), 600)
    with pytest.raises(UsageError, match="640 rows of vocabulary, fewer than the student's 700"):
        teacher.fits(TOK, 700)
    with pytest.raises(UsageError, match="nothing to learn from"):
        write(tmp_path / "empty", teacher, lambda number: [])
    with pytest.raises(UsageError, match="k=640 must be from 1"):
        write(tmp_path / "k", teacher, k=640)
    path = tmp_path / "store/00000.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match=r"00000\.safetensors: altered"):
        TeacherStore(tmp_path / "store", TOK).verify()
    path.write_bytes(data[:-5])
    with pytest.raises(CorruptFileError, match=r"00000\.safetensors: missing or of another size"):
        TeacherStore(tmp_path / "store", TOK)


def test_the_hash_is_of_the_values(teacher: Teacher) -> None:
    small = random_model(tiny_config(), seed=7).bfloat16()
    assert Teacher(small, TOK).hash == Teacher(random_model(tiny_config(), seed=7).bfloat16().float(), TOK).hash
    assert Teacher(small, TOK).hash != teacher.hash
