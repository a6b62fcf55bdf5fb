"""Set up what a command tells on standard error."""

import logging
import warnings

import huggingface_hub


def configure_logging(level: int = logging.INFO) -> None:
    """Tell this package's lines from `level` on with their times, other warnings, and each of them once."""
    # What Transformers and PEFT will rename is no concern of the user.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("qwenvl").setLevel(level)
    # It has a handler of its own, and would hand each line to the root's as well.
    huggingface_hub.logging.disable_propagation()
