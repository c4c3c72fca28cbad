#!/usr/bin/env bash
# Sets up and passes the tests, on a machine with Python 3.11, 3.12 or 3.13 and a package registry.
#
#   bash scripts/test.sh           the short tier: every promise of the README, in ten minutes
#   bash scripts/test.sh --all     everything, with types, more cases and longer runs
#
# Other arguments go to pytest. WORKERS is how many processes share the tests: 2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tier=(-m "not slow")
types=false
if [[ ${1:-} == --all ]]; then
    tier=()
    types=true
    shift
fi
bash scripts/environment.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if $types; then
    .venv/bin/pyright
fi
# Many processes read the same modules: compiled to bytecode once.
unset PYTHONDONTWRITEBYTECODE
# A file's tests stay together, as they share what is compiled and trained; files go in their order,
# in which the last ones are short.
exec .venv/bin/python -m pytest -p no:cacheprovider -q -n "${WORKERS:-2}" --dist loadfile \
    --no-loadscope-reorder "${tier[@]}" "$@"
