#!/usr/bin/env bash
# Makes .venv, installs, and adapts the embedded base with AdaLink and beside it with LoRA, prompt
# tuning and full fine-tuning: no download of data or weights. Run again, it shows the same at once.
#
#   bash scripts/quickstart.sh [RUNS]     RUNS takes the results; default runs/quickstart
#
# With PYTHON set it installs nothing and runs that Python. STEPS is how long to train: 200.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n ${PYTHON:-} ]] || bash scripts/environment.sh
source scripts/adalink.sh
adalink quickstart "$@" --base adalink_jax/bases/mini ${STEPS:+--steps "$STEPS"} ${JOBS:+--jobs "$JOBS"}
