"""Runs: a suite asked of a model, one line per sample, resumed where it was cut off."""
