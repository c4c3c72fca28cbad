#!/usr/bin/env bash
# Trains mixtures with shared modules and with one per task; see `adalink multitask --help`.
#
#   bash scripts/multitask_sweep.sh OUT EXPERIMENT [FLAG …]
#
#   MIXTURES="glue_proportional:8"  TASKS="glue_rte glue_cola"  RANKS="4 64"  SEEDS="0 1 2"  JOBS=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink multitask "$@" \
    ${MIXTURES:+--mixtures "$MIXTURES"} ${TASKS:+--tasks "$TASKS"} ${RANKS:+--ranks "$RANKS"} \
    ${SEEDS:+--seeds "$SEEDS"} ${JOBS:+--jobs "$JOBS"}
