"""Configure the logging of a command."""

import logging
import warnings

import huggingface_hub


def configure_logging(level: int = logging.INFO) -> None:
    """Log this package's messages from `level` on, and the warnings of libraries, to standard error with the time."""
    # Deprecations inside of Transformers and PEFT do not concern the user.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("qwenvl").setLevel(level)
    # It has its own handler; with propagation, each message would appear twice.
    huggingface_hub.logging.disable_propagation()
