# Sourced by the scripts: runs `adalink` with this checkout's .venv, or with the Python in PYTHON.
# shellcheck shell=bash
here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-$([[ -x $here/../.venv/bin/python ]] && echo "$here/../.venv/bin/python" || echo python)}

adalink() { "$python" -m adalink_jax "$@"; }
