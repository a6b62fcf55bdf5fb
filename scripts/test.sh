#!/usr/bin/env bash
# Install what is missing, then run the tests, a few files at a time. Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup_environment demo,dev
cd "$ROOT"
# The tests' models are so small that a second thread only costs time.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# A file's tests stay together, because they share what they have trained.
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
