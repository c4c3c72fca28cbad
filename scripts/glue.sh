#!/usr/bin/env bash
# Trains and scores every GLUE task with every method and seed; ends with a table and a report
# (OUT/report: CSV, Markdown, HTML, plots).
#
#   bash scripts/glue.sh OUT BASE [FLAG …]
#
# OUT takes a folder per run, OUT/METHOD/TASK/seedN. BASE is a checkpoint.
# FLAGs go to every train.py, e.g. --gin.TRAIN_STEPS=2000. Run it again after an interruption: a
# finished run is not run again, a stopped one goes on. These variables choose what is run, and how
# many at a time (on CPU; each takes its share of the cores):
#
#   TASKS="glue_rte glue_cola"  METHODS="adalink lora prompt_tuning full"  SEEDS="0 1 2"  JOBS=1
set -euo pipefail
(($# >= 2)) || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/trainings.sh"
out=$1 base=$2
shift 2
tasks=${TASKS:-glue_cola glue_sst2 glue_mrpc glue_qqp glue_stsb glue_mnli glue_qnli glue_rte}

for method in ${METHODS:-adalink lora prompt_tuning full}; do
    for task in $tasks; do
        for seed in ${SEEDS:-0}; do
            training "--gin_file=experiments/glue_$method.gin" \
                "--gin.MODEL_DIR=$out/$method/$task/seed$seed" "--gin.MIXTURE_OR_TASK_NAME=$task" \
                "--gin.INITIAL_CHECKPOINT_PATH=$base" "--gin.SEED=$seed" "$@"
        done
    done
done | train_all
"$python" "$here/report.py" "$out" --to "$out/report"
