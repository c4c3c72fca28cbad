#!/usr/bin/env bash
# Trains mixtures of tasks with modules shared by all of them and with one for each, at several
# ranks and seeds, and each task alone; ends in a report with what mixing gains or costs each task.
#
#   bash scripts/multitask_sweep.sh OUT EXPERIMENT [FLAG …]
#
# EXPERIMENT is a gin file that sets RANK, e.g. experiments/glue_adalink.gin; FLAGs go to every
# train.py. A mixture stands with its number of tasks. Run it again after an interruption: a
# finished run is not run again, a stopped one goes on.
#
#   MIXTURES="glue_proportional:8"  TASKS="glue_rte glue_cola"  RANKS="4 64"  SEEDS="0 1 2"
set -euo pipefail
(($# >= 2)) || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1 experiment=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-$([[ -x $here/../.venv/bin/python ]] && echo "$here/../.venv/bin/python" || echo python)}

train() { # RUN MIXTURE ROUTES RANK SEED FLAG …
    echo "== $1"
    "$python" "$here/train.py" --gin_file="$experiment" --gin.MODEL_DIR="$1" \
        --gin.MIXTURE_OR_TASK_NAME="$2" --gin.ROUTES="$3" --gin.RANK="$4" --gin.SEED="$5" "${@:6}"
}
for rank in ${RANKS:-4}; do
    for seed in ${SEEDS:-0}; do
        for mixture in ${MIXTURES:-glue_proportional:8}; do
            name=${mixture%:*} count=${mixture##*:}
            train "$out/$name/shared/rank$rank/seed$seed" "$name" 1 "$rank" "$seed" "$@"
            train "$out/$name/per_task/rank$rank/seed$seed" "$name" "$count" "$rank" "$seed" "$@"
        done
        for task in ${TASKS:-}; do
            train "$out/$task/rank$rank/seed$seed" "$task" 1 "$rank" "$seed" "$@"
        done
    done
done
"$python" "$here/report.py" "$out" --to "$out/report" --title "Several tasks at once"
