"""Floor 4: what a model and the engine are worth, measured. `python -m qwen3.evaluate.bench` needs only torch."""
