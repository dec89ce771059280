#!/usr/bin/env python3
"""Our GPTQ beside GPTQModel's, matrix by matrix, on the same weights and the same activations.

    python tools/gptq_beside.py --layers 0,3 --out benchmarks/DATE-gptq-beside.json

Loss is ‖(W - Ŵ) X‖² over calibration tokens. Orders: "plain" (columns as they lie), "groups" (theirs: act_group_aware,
ours: act_order), "columns" (theirs: desc_act, ours: act_order without static_groups). Needs gptqmodel.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src")]
GROUP, DAMP = 128, 0.01
SETTINGS = ((4, True), (4, False), (3, True))
ORDERS: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {
    "plain": ({"desc_act": False, "act_group_aware": False}, {"act_order": False}),
    "groups": ({"desc_act": False, "act_group_aware": True}, {}),
    "columns": ({"desc_act": True, "act_group_aware": False}, {"static_groups": False}),
}


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--model", default="embedded")
    options.add_argument("--layers", default="0,3")
    options.add_argument("--samples", type=int, default=16)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    from qwen3.checkpoint import resolve
    from qwen3.evaluate.machine import commit, describe
    from qwen3.quantize.calibration import load_calibration
    from qwen3.quantize.collect import moments
    from qwen3.quantize.layers import Walk

    path = resolve(None if chosen.model == "embedded" else chosen.model).path
    data = load_calibration(path, "qwen3", samples=chosen.samples, length=512)
    layers = [int(layer) for layer in chosen.layers.split(",")]
    losses: dict[str, dict[str, list[float]]] = {}
    with torch.no_grad(), Walk(path, data) as walk:
        next(walk.ends())
        for i, opened in enumerate(walk.layers()):
            for stage in walk.stages(opened, advance=True):
                if i not in layers or not stage.inputs:
                    continue
                x = torch.cat(list(stage.inputs()))
                seen = moments([x])
                assert seen is not None
                assert seen.hessian is not None
                for module in stage.modules:
                    for bits, symmetric in SETTINGS:
                        label = f"{bits} bits, group {GROUP}, {'symmetric' if symmetric else 'asymmetric'}"
                        for name, loss in compare(opened.weight(module), x, seen.hessian, bits, symmetric).items():
                            losses.setdefault(label, {}).setdefault(name, []).append(loss)
            if i == max(layers):
                break
    result = {
        "what": "loss of rounded matrices: geometric mean of the ratio to GPTQModel's, same order of columns",
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(torch.device("cpu")),
        "commit": commit(),
        "reference": f"gptqmodel {version('gptqmodel')}",
        "calibration": data.to_dict(),
        "matrices": len(next(iter(next(iter(losses.values())).values()))),
        "table": {label: {name: ratios(name, own) for name in own} for label, own in losses.items()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    return 0


def compare(weight: Tensor, x: Tensor, hessian: Tensor, bits: int, symmetric: bool) -> dict[str, float]:
    """Loss of each way to round [N, K]."""
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    from qwen3.quantize.gptq import factor, round_gptq, row_losses
    from qwen3.quantize.rtn import round_rtn

    def loss(made: Tensor) -> float:
        return float(row_losses(made - weight, hessian).sum())

    found = {}
    for order, (theirs, ours) in ORDERS.items():
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        config = QuantizeConfig(bits=bits, group_size=GROUP, sym=symmetric, damp_percent=DAMP, **theirs)
        reference = GPTQ(linear, config)
        reference.quantizer.configure(perchannel=True)
        reference.add_batch(x[None], None)
        found[f"{order}, GPTQModel"] = loss(reference.quantize()[0].float())
        factored = factor(hessian, GROUP, damp=DAMP, **ours)
        for search in (False, True):
            made = round_gptq(weight, factored, bits, GROUP, symmetric, search=search)
            found[f"{order}, ours, scales {'searched' if search else 'as GPTQModel has them'}"] = loss(
                made.dequantize()
            )
    found["groups, rounded to nearest"] = loss(round_rtn(weight, bits, GROUP, symmetric, search=False).dequantize())
    return found


def ratios(name: str, losses: dict[str, list[float]]) -> dict[str, Any]:
    """To GPTQModel's loss in the same order."""
    base = losses[f"{name.split(',')[0]}, GPTQModel"]
    each = [own / other for own, other in zip(losses[name], base, strict=True)]
    mean = math.exp(sum(map(math.log, each)) / len(each))
    return {"mean": round(mean, 4), "least": round(min(each), 4), "most": round(max(each), 4)}


if __name__ == "__main__":
    raise SystemExit(main())
