"""Quantized safetensors checkpoints of other tools, one file per format: GPTQ, AWQ, compressed-tensors, bitsandbytes,
MLX. `detect` says which it is, `layout` what a format must answer."""
