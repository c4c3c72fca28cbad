#!/usr/bin/env bash
# Trains and scores every GLUE task with every method and seed; see `adalink glue --help`.
#
#   bash scripts/glue.sh OUT BASE [FLAG …]
#
#   TASKS="glue_rte glue_cola"  METHODS="adalink lora prompt_tuning full"  SEEDS="0 1 2"  JOBS=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink glue "$@" \
    ${TASKS:+--tasks "$TASKS"} ${METHODS:+--methods "$METHODS"} ${SEEDS:+--seeds "$SEEDS"} \
    ${JOBS:+--jobs "$JOBS"}
