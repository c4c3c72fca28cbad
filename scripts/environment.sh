#!/usr/bin/env bash
# Creates or updates .venv with the tested versions and this checkout.
# Needs python3.11 and a package registry.
#
#   bash scripts/environment.sh [EXTRAS]     EXTRAS as in setup.py, e.g. test or test,reference
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:-}
stamp=".venv/installed${extras:+-$extras}"
wanted=$(cat requirements.lock setup.py | sha256sum)

# A virtual environment that was moved or copied points at another Python.
if ! .venv/bin/python -c 'import sys; assert sys.version_info[:2] == (3, 11)' 2>/dev/null; then
    rm -rf .venv
    python3.11 -m venv .venv
fi
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing adalink_jax${extras:+[$extras]} into .venv …"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint requirements.lock --editable ".${extras:+[$extras]}"
    echo "$wanted" >"$stamp"
fi
