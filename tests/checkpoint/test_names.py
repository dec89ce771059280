"""Official names are views of the fused parameters, nothing else."""

from __future__ import annotations

import pytest
import torch

from qwen3 import family
from qwen3.checkpoint.names import fused_shapes, official_shapes, official_views
from qwen3.model import Qwen3
from tests import fixtures

CONFIGS = {
    "tied": fixtures.tiny_config(),
    "untied": fixtures.tiny_config(tie_word_embeddings=False),
    "moe": fixtures.tiny_config(moe=True),
    "one dense layer": fixtures.tiny_config(moe=True, mlp_only_layers=(1,)),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_views_are_the_official_tensors(kind: str) -> None:
    config = CONFIGS[kind]
    model = fixtures.random_model(config)
    params = dict(model.named_parameters())
    assert {name: tuple(p.shape) for name, p in params.items()} == fused_shapes(config)
    views, official = official_views(config, params), fixtures.official_tensors(config)
    assert list(views) == sorted(official)
    for name, view in views.items():
        assert torch.equal(view, official[name]), name
        assert view.is_contiguous(), name
    assert sum(view.numel() for view in views.values()) == config.num_parameters()


@pytest.mark.parametrize("kind", CONFIGS)
def test_writing_the_views_writes_the_parameters(kind: str) -> None:
    config = CONFIGS[kind]
    source = fixtures.random_model(config, seed=1)
    target = Qwen3(config, "cpu", torch.float32)
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    wanted = official_views(config, dict(source.named_parameters()))
    for name, view in official_views(config, dict(target.named_parameters())).items():
        view.copy_(wanted[name])
    for (name, a), b in zip(target.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "tensors"),
    [("Qwen3-0.6B", 310), ("Qwen3-8B", 399), ("Qwen3-32B", 707), ("Qwen3-30B-A3B", 18867), ("Qwen3-235B-A22B", 36945)],
)
def test_published_tensor_counts(name: str, tensors: int) -> None:
    member = family.MODELS[name]
    shapes = official_shapes(member.config)
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == member.params


def test_a_missing_parameter_is_named() -> None:
    config = CONFIGS["tied"]
    params = dict(fixtures.random_model(config).named_parameters())
    del params["norm.weight"]
    with pytest.raises(KeyError, match=r"norm\.weight"):
        official_views(config, params)
