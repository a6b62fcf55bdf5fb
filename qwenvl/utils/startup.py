"""Start commands faster."""

import gc
import sys


def answer_help_without_collection() -> None:
    """Turn garbage collection off for a process that only answers `--help`, to be called before its imports.

    The flags of training come from Transformers, whose import with PyTorch takes seconds. It creates many objects that
    stay, and the search for garbage among them takes a sixth of the time.
    """
    if {"-h", "--help"} & set(sys.argv):
        gc.disable()
