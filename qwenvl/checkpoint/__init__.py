"""Checkpoints: write them whole, verify, load, and continue a run from them."""
