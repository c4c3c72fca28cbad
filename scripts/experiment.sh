#!/usr/bin/env bash
# The paper's experiment, on the small world by default; see `adalink experiment --help`.
#
#   JOBS=2 bash scripts/experiment.sh OUT [FLAG …]
#
# On GLUE:
#
#   WORLD=glue RAW=checkpoints/t5_1_1_base TUNED=checkpoints/flan_t5_base MODEL=flan_t5_base \
#       BUDGET=6144 GLUE_DIR=glue VOCABULARY=spiece.model \
#       bash scripts/experiment.sh OUT --gin.TRAIN_STEPS=5000
#
#   STAGES="rates alone single mixed ranks equal report"  TASKS="cola sst2"  METHODS="adalink full"
#   SEEDS="0 1 2"  RANKS="1 4 16 64"  RATES="0.001 0.01"  TUNING_TASKS="cola mnli"
#   BASES="tuned"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
shipped=$here/../adalink_jax/bases
adalink experiment "$@" --tuned "${TUNED:-$shipped/mini}" --raw "${RAW:-$shipped/mini_raw}" \
    ${WORLD:+--world "$WORLD"} ${STAGES:+--stages "$STAGES"} ${TASKS:+--tasks "$TASKS"} \
    ${TUNING_TASKS:+--tuning-tasks "$TUNING_TASKS"} ${METHODS:+--methods "$METHODS"} \
    ${SEEDS:+--seeds "$SEEDS"} ${RANKS:+--ranks "$RANKS"} ${RATES:+--rates "$RATES"} \
    ${BASES:+--bases "$BASES"} ${MODEL:+--model "$MODEL"} ${BUDGET:+--budget "$BUDGET"} ${JOBS:+--jobs "$JOBS"}
