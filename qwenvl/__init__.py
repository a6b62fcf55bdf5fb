"""Fine-tune Qwen3-VL on your own images and text, with its own vision encoder or one of your choice."""
