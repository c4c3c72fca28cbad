#!/usr/bin/env bash
# The paper's experiment on images, in the image world: both bases, methods, tasks, seeds.
#
#   bash scripts/image_experiment.sh OUT [FLAG …]
#
#   SEEDS="0 1"  TASKS="textvqa coco"  METHODS="modality unified …"  JOBS=1
#
# Each method's learning rate is chosen on training examples that are left out, with the raw base,
# the first task and seed 0. Then come the frozen bases, all trainings, seed after seed, and the
# report. Run it again after an interruption; FLAGS, e.g. --gin.TRAIN_STEPS=300, go to trainings.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
out=$1
shift
seeds=(${SEEDS:-0 1}) tasks=(${TASKS:-textvqa coco})
methods=(${METHODS:-modality unified small_lora prompt full lora projection})
steps=(--gin.TRAIN_STEPS=100 --gin.EVAL_PERIOD=100 --gin.BATCH_SIZE=16 "$@")
rates() { # Those that are tried.
    case $1 in
    modality | unified | small_lora) echo 0.01 0.03 ;;
    prompt) echo 0.03 0.1 ;;
    *) echo 0.003 0.01 ;;
    esac
}
method() { # All but lora, projection and full train 2,048 parameters.
    case $1 in
    modality) echo --gin_file=methods/adalink_by_modality.gin --gin.RANK=4 ;;
    unified) echo --gin_file=methods/adalink.gin --gin.RANK=8 ;;
    lora) echo --gin_file=methods/lora_by_modality.gin --gin.RANK=4 ;;
    small_lora) echo --gin_file=methods/lora.gin --gin.RANK=2 "--gin.lora.LoRA.layers='(0,)'" \
        "--gin.lora.LoRA.linears='(\"attention/*\",)'" ;;
    prompt) echo --gin_file=methods/prompt_tuning.gin --gin.PROMPT_LENGTH=16 ;;
    *) echo "--gin_file=methods/$1.gin" ;;
    esac
}
training() { # FOLDER BASE METHOD TASK SEED RATE [FLAG …]
    echo --gin_file=experiments/mini_images.gin "$(method "$3")" "${steps[@]@Q}" \
        "--gin.MODEL_DIR=$1" "--gin.INITIAL_CHECKPOINT_PATH=$2" "--gin.MIXTURE_OR_TASK_NAME=mini_$4" \
        "--gin.SEED=$5" "--gin.LEARNING_RATE=$6" "${@:7}"
}
for method in "${methods[@]}"; do for rate in $(rates "$method"); do
    training "$out/rates/$method/$rate" mini_images_raw "$method" "${tasks[0]}" 0 "$rate" \
        --gin.Data.held_out=0.2 --gin.Evaluation.split=held_out
done; done | adalink sweep --jobs "${JOBS:-1}"
declare -A best
for method in "${methods[@]}"; do best[$method]=$(adalink learning-rates "$out/rates/$method"); done
for base in mini_images mini_images_raw; do for task in "${tasks[@]}"; do
    [[ -e $out/runs/frozen/$base/$task/results.json ]] || adalink eval --gin_file=runs/eval.gin \
        --gin.ADAPTER_PATH=None --gin.EVAL_OUTPUT_DIR="$out/runs/frozen/$base/$task" \
        --gin.INITIAL_CHECKPOINT_PATH=$base --gin.MIXTURE_OR_TASK_NAME="mini_$task" \
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 16}" \
        --gin.Images.encoder=mini_images_encoder --gin.Evaluation.mode=greedy
done; done
for seed in "${seeds[@]}"; do for method in "${methods[@]}"; do for task in "${tasks[@]}"; do
    for base in mini_images mini_images_raw; do
        training "$out/runs/$base/$method/$task/seed$seed" $base "$method" "$task" "$seed" \
            "${best[$method]}"
    done
done; done; done | adalink sweep --jobs "${JOBS:-1}"
adalink report "$out/runs" --to "$out/report"
