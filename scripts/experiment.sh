#!/usr/bin/env bash
# The paper's experiment: {raw, tuned} base × {full, LoRA, prompt tuning, AdaLink} × tasks, one at a
# time and mixed, ranks, equal parameters, seeds. First it chooses learning rates, for each base and
# method on a grid with one seed and two tasks. It ends in tables and plots, OUT/report.
#
#   JOBS=2 bash scripts/experiment.sh OUT [FLAG …]
#
# On the small world by default, with the bases that come with the package: an hour and a half on
# two cores. Run it again after an interruption: finished runs are kept, stopped ones go on. FLAGs
# go to every training. On GLUE:
#
#   WORLD=glue RAW=checkpoints/t5_1_1_base TUNED=checkpoints/flan_t5_base MODEL=flan_t5_base \
#       BUDGET=6144 GLUE_DIR=glue VOCABULARY=spiece.model \
#       bash scripts/experiment.sh OUT --gin.TRAIN_STEPS=5000
#
# WORLD names the gin files, experiments/WORLD_METHOD.gin, and the tasks. BUDGET is the number of
# parameters (of MODEL, a file of gin/models) at which methods are made equal. What is run:
#
#   STAGES="rates alone single mixed ranks equal report"  TASKS="cola sst2"  METHODS="adalink full"
#   SEEDS="0 1 2"  RANKS="1 4 16 64"  TUNING_TASKS="cola mnli"
set -euo pipefail
(($# >= 1)) || { sed -n '2,23s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/trainings.sh"
out=$1
shift
world=${WORLD:-mini}
shipped=$here/../adalink_jax/bases
declare -A base_of=([tuned]=${TUNED:-$shipped/mini} [raw]=${RAW:-$shipped/mini_raw})
tasks=${TASKS:-cola sst2 mrpc qqp stsb mnli qnli rte}
tuning_tasks=${TUNING_TASKS:-cola mnli}
methods=${METHODS:-adalink lora prompt_tuning full}
seeds=${SEEDS:-0 1 2}
flags=("$@") mixed_flags=() mixture=glue_equal lengths="{'inputs': 512, 'targets': 16}"
if [[ $world == mini ]]; then
    flags=(--gin.TRAIN_STEPS=300 --gin.EVAL_PERIOD=100 "$@")
    mixed_flags=(--gin.TRAIN_STEPS=800 --gin.EVAL_PERIOD=400)
    mixture=mini_glue_equal lengths="{'inputs': 256, 'targets': 16}"
fi
declare -A rate_of

run() { # RUN BASE METHOD TASK SEED RATE FLAG …
    training "--gin_file=experiments/${world}_$3.gin" "--gin.MODEL_DIR=$out/$1" \
        "--gin.INITIAL_CHECKPOINT_PATH=${base_of[$2]}" "--gin.MIXTURE_OR_TASK_NAME=$4" \
        "--gin.SEED=$5" "--gin.LEARNING_RATE=$6" "${flags[@]}" "${@:7}"
}

rates() {
    local base method rate task grid
    for method in $methods; do
        grid="0.0003 0.001 0.003 0.01 0.03 0.1"
        # A trained weight moves in proportion to its size.
        [[ $method != full ]] || grid="0.0003 0.001 0.003 0.01 0.03"
        for base in tuned raw; do
            for rate in ${RATES:-$grid}; do
                for task in $tuning_tasks; do
                    run "rates/$base/$method/$rate/$task" "$base" "$method" "${world}_$task" 0 "$rate"
                done
            done
        done
    done
}

choose() { # The best of the grid, into rate_of[BASE/METHOD].
    local base method
    for base in tuned raw; do
        for method in $methods; do
            rate_of[$base/$method]=$("$python" "$here/learning_rates.py" "$out/rates/$base/$method")
        done
    done
}

alone() { # The frozen bases, with and without examples in context.
    local base count to
    for base in tuned raw; do
        for count in 0 4; do
            to=$out/alone/$base/in_context$count
            [[ -e $to/results.json ]] || "$python" "$here/eval.py" --gin_file=runs/eval.gin \
                --gin.ADAPTER_PATH=None "--gin.EVAL_OUTPUT_DIR=$to" \
                "--gin.INITIAL_CHECKPOINT_PATH=${base_of[$base]}" \
                "--gin.MIXTURE_OR_TASK_NAME=$mixture" "--gin.TASK_FEATURE_LENGTHS=$lengths" \
                "--gin.runs.evaluate.in_context=$count"
        done
    done
}

single() {
    local base method task seed
    for seed in $seeds; do
        for task in $tasks; do
            for base in tuned raw; do
                for method in $methods; do
                    run "single/$base/$method/$task/seed$seed" "$base" "$method" \
                        "${world}_$task" "$seed" "${rate_of[$base/$method]}"
                done
            done
        done
    done
}

mixed() {
    local base method seed routes sharing
    for seed in $seeds; do
        for method in $methods; do
            for base in tuned raw; do
                for sharing in shared per_task; do
                    routes=("--gin.ROUTES=$([[ $sharing == shared ]] && echo 1 || echo 8)")
                    if [[ $method == full ]]; then
                        [[ $sharing == shared ]] || continue
                        routes=()
                    fi
                    run "mixed/$base/$method/$sharing/seed$seed" "$base" "$method" "$mixture" \
                        "$seed" "${rate_of[$base/$method]}" "${mixed_flags[@]}" "${routes[@]}"
                done
            done
        done
    done
}

ranks() {
    local base rank task seed
    for seed in $seeds; do
        for rank in ${RANKS:-1 4 16 64}; do
            for base in tuned raw; do
                for task in $tuning_tasks; do
                    run "ranks/$base/rank$rank/$task/seed$seed" "$base" adalink \
                        "${world}_$task" "$seed" "${rate_of[$base/adalink]}" "--gin.RANK=$rank"
                done
            done
        done
    done
}

equal() { # Every method at one number of parameters; LoRA then has room in one layer alone.
    local base method task seed line
    for method in adalink lora prompt_tuning; do
        line=$("$python" "$here/cost.py" --model "${MODEL:-mini}" --method "$method" \
            --budget "${BUDGET:-1024}")
        if [[ $line != *"  "* ]]; then # It says why the method cannot.
            echo "left out: $line" >&2
            continue
        fi
        for seed in $seeds; do
            for base in tuned raw; do
                for task in $tuning_tasks; do
                    echo "$(run "equal/$base/$method/$task/seed$seed" "$base" "$method" \
                        "${world}_$task" "$seed" "${rate_of[$base/$method]}") ${line#*  }"
                done
            done
        done
    done
}

report() { # Of what has been run so far; a cell of fewer seeds than its neighbours says so.
    local part parts=()
    local -A title_of=([ranks]="AdaLink's rank" [equal]="Equal parameters")
    mkdir -p "$out/report"
    "$python" "$here/learning_rates.py" "$out/rates" --to "$out/report/learning_rates.md"
    for part in alone single mixed; do [[ ! -d $out/$part ]] || parts+=("$out/$part"); done
    "$python" "$here/report.py" "${parts[@]}" --to "$out/report/methods" \
        --title "Methods, one task at a time and mixed"
    for part in ranks equal; do
        [[ ! -d $out/$part ]] || "$python" "$here/report.py" "$out/$part" \
            --to "$out/report/$part" --title "${title_of[$part]}"
    done
}

for stage in ${STAGES:-rates alone single mixed ranks equal report}; do
    echo "== $stage"
    case $stage in
        rates) rates | train_all ;;
        alone) alone ;;
        single | mixed | ranks | equal) choose; "$stage" | train_all ;;
        report) report ;;
        *) echo "error: no stage '$stage'" >&2; exit 2 ;;
    esac
done
