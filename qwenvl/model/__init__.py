"""Build, inspect and freeze Qwen3-VL models for training."""
