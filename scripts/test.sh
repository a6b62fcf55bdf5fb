#!/usr/bin/env bash
# Install what is missing, then run the tests in parallel. Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup_environment demo,dev
cd "$ROOT"
# The models of the tests are so small that a second thread slows them down.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# The tests of a file run in one process, because they share trained models.
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
