"""Run `qwenvl.tools.bench_train`: speed and memory of the training command."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwenvl.tools.bench_train import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
