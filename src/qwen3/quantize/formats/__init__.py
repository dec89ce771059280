"""Quantized checkpoints as other tools read them, one file per format: the inverse of `checkpoint.formats`."""
