#!/usr/bin/env bash
# Makes .venv, installs, and adapts the embedded base with AdaLink and beside it with LoRA, prompt
# tuning and full fine-tuning: no download of data or weights. Run again, it shows the same at once.
#
#   bash scripts/quickstart.sh [RUNS]     RUNS takes the results; default runs/quickstart
#
# With PYTHON set it installs nothing and runs that Python. STEPS is how long to train: 200.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-runs/quickstart}
base=adalink_jax/bases/mini task=mini_cola
steps=${STEPS:-200}

[[ -n ${PYTHON:-} ]] || bash scripts/environment.sh
source scripts/trainings.sh
echo
echo "1. The base, trained on instructions about a small world of generated sentences,"
echo "   meets a format that it has never seen: 'cola sentence: …' -> acceptable or unacceptable."
[[ -e $out/base/results.json ]] || "$python" scripts/eval.py \
    --gin_file=experiments/mini_eval.gin --gin.MIXTURE_OR_TASK_NAME=$task \
    --gin.ADAPTER_PATH=None --gin.INITIAL_CHECKPOINT_PATH=$base --gin.EVAL_OUTPUT_DIR="$out/base"
flags=(--gin.MIXTURE_OR_TASK_NAME=$task --gin.INITIAL_CHECKPOINT_PATH=$base)
flags+=(--gin.TRAIN_STEPS="$steps" --gin.EVAL_PERIOD="$steps")
echo
echo "2. AdaLink of rank 4 learns the format; the base stays frozen."
"$python" scripts/train.py --gin_file=experiments/mini_adalink.gin \
    --gin.MODEL_DIR="$out/adalink" "${flags[@]}"
echo
echo "3. LoRA, prompt tuning and full fine-tuning learn it too, each on a part of the cores."
for method in full lora prompt_tuning; do
    training "--gin_file=experiments/mini_$method.gin" "--gin.MODEL_DIR=$out/$method" "${flags[@]}"
done | JOBS=${JOBS:-$(($(nproc) < 3 ? $(nproc) : 3))} train_all
echo
echo "4. Side by side. The score is Matthews correlation: 0 is chance and always the same answer,"
echo "   100 perfect."
"$python" scripts/report.py "$out" --to "$out/report" --title "Quickstart: $task"
echo
echo "The adapter is in $out/adalink/adapter, plots and tables in $out/report/report.html."
echo "Next, the eight tasks and two bases of the small world:  JOBS=2 bash scripts/experiment.sh runs/mini"
