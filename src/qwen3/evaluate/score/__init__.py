"""Scorers: from an answer to a Score, checked against the official ones."""
