#!/usr/bin/env bash
# Install what is missing, then train a small model on real images and evaluate it.
# Usage: bash scripts/quickstart.sh [output folder]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup_environment demo
export PYTHON
exec "$PYTHON" "$ROOT/demo/quickstart.py" "$@"
