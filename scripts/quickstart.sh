#!/usr/bin/env bash
# Creates .venv, installs, and adapts the embedded base with AdaLink, LoRA, prompt tuning and full
# fine-tuning. Downloads no data or weights. A second run shows the results at once.
#
#   bash scripts/quickstart.sh [RUNS]     RUNS is the folder of the results; default runs/quickstart
#
# If PYTHON is set, it installs nothing and uses that Python. STEPS is the number of steps: 200.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n ${PYTHON:-} ]] || bash scripts/environment.sh
source scripts/adalink.sh
adalink quickstart "$@" --base adalink_jax/bases/mini ${STEPS:+--steps "$STEPS"} ${JOBS:+--jobs "$JOBS"}
