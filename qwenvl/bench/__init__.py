"""Benchmarks of the data path and of training, stand-in models and synthetic X-rays."""
