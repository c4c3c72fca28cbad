#!/usr/bin/env bash
# Sets up and passes all tests, on a machine with python3.11 and a package registry.
# Arguments go to pytest:
#
#   bash scripts/test.sh                     everything
#   bash scripts/test.sh -m 'not slow'       what takes seconds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/environment.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -p no:cacheprovider -q "$@"
