#!/usr/bin/env bash
# Trains a task on few examples; see `adalink few-shot --help`.
#
#   bash scripts/few_shot.sh OUT EXPERIMENT BASE TASK [FLAG …]
#
#   SHOTS="4 16 32 64"  SEEDS="0 1 2 3 4"  IN_CONTEXT="0 4"  JOBS=1
#   EVAL_FLAGS="--gin.Precision.dtype=bfloat16", for the frozen base alone
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink few-shot "$@" ${EVAL_FLAGS:+"--eval-flags=$EVAL_FLAGS"} \
    ${SHOTS:+--shots "$SHOTS"} ${SEEDS:+--seeds "$SEEDS"} \
    ${IN_CONTEXT:+--in-context "$IN_CONTEXT"} ${JOBS:+--jobs "$JOBS"}
