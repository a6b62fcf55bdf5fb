#!/usr/bin/env bash
# Install what is missing, then run the tests. Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup_environment demo,dev
cd "$ROOT"
# The tests' models are so small that a second thread only costs time.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest "$@"
