"""Print the registered encoders, one line each: `python -m qwenvl.vision`."""

import sys

from qwenvl.utils.tables import format_table
from qwenvl.vision.registry import encoder_class, list_encoders

COLUMNS = ("NAME", "CLASS", "DEFAULT WEIGHTS", "WIDTH", "INPUT", "TOKENS", "LICENSE", "GATE")
OTHER_FORMS = (
    "also: hf:ORG/MODEL (any vision model of Transformers), timm:MODEL_NAME (any ViT, Swin, ConvNeXt or ResNet of "
    "timm), path/to/file.py:CLASS (your own; docs/custom_encoder.md)"
)


def encoder_table() -> str:
    """Return the registered encoders as aligned text: class, width, input size in pixels, tokens per image, terms."""
    rows = [COLUMNS]
    for name in list_encoders():
        cls = encoder_class(name)
        card = cls.card
        if card is None:
            rows.append((name, cls.__name__, *("-",) * 6))
            continue
        size = f"{card.input_size}x{card.input_size}"
        sizes = (str(card.hidden_size), size, str(card.tokens))
        rows.append((name, cls.__name__, card.default_path, *sizes, card.license, card.gate))
    return f"{format_table(rows, align='<', has_header=False)}\n{OTHER_FORMS}"


if __name__ == "__main__":
    sys.stdout.write(encoder_table() + "\n")
