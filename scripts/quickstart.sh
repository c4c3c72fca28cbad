#!/usr/bin/env bash
# Creates .venv, installs, and shows what AdaLink does with the embedded base. Downloads no data or
# weights. A second run shows the results at once.
#
#   bash scripts/quickstart.sh [RUNS]     RUNS is the folder of the results; default runs/quickstart
#
# If PYTHON is set, it installs nothing and uses that Python. STEPS is the number of steps: 200.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n ${PYTHON:-} ]] || bash scripts/environment.sh
source scripts/adalink.sh
adalink quickstart "$@" ${STEPS:+--steps "$STEPS"}
[[ -n ${PYTHON:-} ]] || echo "To go on in this shell:  source .venv/bin/activate"
