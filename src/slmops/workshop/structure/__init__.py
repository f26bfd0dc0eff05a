"""Smaller models out of a model: fewer blocks, channels, heads, tokens, weights."""
