#!/usr/bin/env bash
# Creates or updates .venv with the tested versions and this checkout.
# Needs Python 3.11, 3.12 or 3.13 and a package registry.
#
#   bash scripts/environment.sh [EXTRAS]     EXTRAS as in setup.py, e.g. cuda12 or test,reference
#
# PYTHON_FOR_VENV names the Python of a new .venv; without it, the first of 3.11, 3.12 and 3.13.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:-}
stamp=".venv/installed${extras:+-$extras}"
wanted=$(cat requirements.lock setup.py | sha256sum)

supported() { "$1" -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14)' 2>/dev/null; }

# A virtual environment that was moved or copied points at another Python.
if ! supported .venv/bin/python; then
    for python in ${PYTHON_FOR_VENV:-python3.11 python3.12 python3.13 python3}; do
        supported "$python" && break
        python=
    done
    if [[ -z $python ]]; then
        echo "error: no Python 3.11, 3.12 or 3.13 here; PYTHON_FOR_VENV=PATH names one" >&2
        exit 2
    fi
    rm -rf .venv
    if ! said=$("$python" -m venv .venv 2>&1); then
        rm -rf .venv
        echo "error: $python cannot make .venv (Debian and Ubuntu: apt-get install $python-venv):" \
            "$(tail -n 1 <<<"$said")" >&2
        exit 2
    fi
fi
# `pip install .` puts a copy in the checkout's place, which would not follow it.
followed() { [[ $(cd / && "$OLDPWD/.venv/bin/python" -Ic "$found" 2>/dev/null) == "$PWD"/* ]]; }
found='import importlib.util as u; print(u.find_spec("adalink_jax").origin)'
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! followed; then
    echo "Installing adalink_jax${extras:+[$extras]} into .venv: two to five minutes, about 3 GB …"
    PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint requirements.lock --editable ".${extras:+[$extras]}"
    echo "$wanted" >"$stamp"
fi
