#!/usr/bin/env bash
# Trains mixtures of tasks with modules shared by all of them and with one for each, at several
# ranks and seeds, and each task alone; ends in a report with what mixing gains or costs each task.
#
#   bash scripts/multitask_sweep.sh OUT EXPERIMENT [FLAG …]
#
# EXPERIMENT is a gin file that sets RANK, e.g. experiments/glue_adalink.gin; FLAGs go to every
# training. A mixture stands with its number of tasks; glue_equal_2:2 and glue_equal_4:4 are the
# first tasks of glue_equal:8. Run it again after an interruption: a finished run is not run again, a
# stopped one goes on. JOBS is how many are trained at a time (on CPU; each takes its share of the
# cores).
#
#   MIXTURES="glue_proportional:8"  TASKS="glue_rte glue_cola"  RANKS="4 64"  SEEDS="0 1 2"  JOBS=1
set -euo pipefail
(($# >= 2)) || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/trainings.sh"
out=$1 experiment=$2
shift 2

run() { # RUN MIXTURE ROUTES RANK SEED FLAG …
    training "--gin_file=$experiment" "--gin.MODEL_DIR=$1" "--gin.MIXTURE_OR_TASK_NAME=$2" \
        "--gin.ROUTES=$3" "--gin.RANK=$4" "--gin.SEED=$5" "${@:6}"
}
for rank in ${RANKS:-4}; do
    for seed in ${SEEDS:-0}; do
        for mixture in ${MIXTURES:-glue_proportional:8}; do
            name=${mixture%:*} count=${mixture##*:}
            run "$out/$name/shared/rank$rank/seed$seed" "$name" 1 "$rank" "$seed" "$@"
            run "$out/$name/per_task/rank$rank/seed$seed" "$name" "$count" "$rank" "$seed" "$@"
        done
        for task in ${TASKS:-}; do
            run "$out/$task/rank$rank/seed$seed" "$task" 1 "$rank" "$seed" "$@"
        done
    done
done | train_all
"$python" "$here/report.py" "$out" --to "$out/report" --title "Several tasks at once"
