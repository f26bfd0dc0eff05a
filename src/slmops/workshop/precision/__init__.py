"""Bits where they matter: what a model's inputs look like, and rounding by it."""
