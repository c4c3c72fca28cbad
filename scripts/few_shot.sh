#!/usr/bin/env bash
# Trains on few examples of a task: each number of examples with each seed, which also chooses them
# (more examples include the fewer of the same seed). Scores the frozen base first, with none and
# with some examples in front of each input; ends in a report.
#
#   bash scripts/few_shot.sh OUT EXPERIMENT BASE TASK [FLAG …]
#
# EXPERIMENT is a gin file such as experiments/glue_adalink.gin. FLAGs go to every training, and
# EVAL_FLAGS to eval.py. Run it again after an interruption: a finished run is not run again. JOBS is
# how many are trained at a time (on CPU; each takes its share of the cores).
#
#   SHOTS="4 16 32 64"  SEEDS="0 1 2 3 4"  IN_CONTEXT="0 4"  JOBS=1
#   EVAL_FLAGS="--gin.VOCABULARY=spiece.model"
set -euo pipefail
(($# >= 4)) || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/trainings.sh"
out=$1 experiment=$2 base=$3 task=$4
shift 4

for shots in ${IN_CONTEXT:-0 4}; do
    to=$out/in_context$shots
    # shellcheck disable=SC2086 # EVAL_FLAGS are several words.
    [[ -e $to/results.json ]] || "$python" "$here/eval.py" --gin_file=runs/eval.gin \
        --gin.ADAPTER_PATH=None --gin.EVAL_OUTPUT_DIR="$to" --gin.INITIAL_CHECKPOINT_PATH="$base" \
        --gin.MIXTURE_OR_TASK_NAME="$task" --gin.runs.evaluate.in_context="$shots" \
        --gin.TASK_FEATURE_LENGTHS="{'inputs': 1024, 'targets': 16}" ${EVAL_FLAGS:-}
done
for shots in ${SHOTS:-4 16 32 64}; do
    for seed in ${SEEDS:-0 1 2 3 4}; do
        training "--gin_file=$experiment" "--gin.MODEL_DIR=$out/shots$shots/seed$seed" \
            "--gin.INITIAL_CHECKPOINT_PATH=$base" "--gin.MIXTURE_OR_TASK_NAME=$task" \
            "--gin.Batches.few_shot=$shots" "--gin.SEED=$seed" "$@"
    done
done | train_all
"$python" "$here/report.py" "$out" --to "$out/report" --title "$task from few examples"
