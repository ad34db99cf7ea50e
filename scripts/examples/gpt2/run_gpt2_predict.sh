#!/usr/bin/env bash
# Text by GPT-2, with MindFormers 1.5's arguments, from any folder; docs/generation.md tells more.
#   bash scripts/examples/gpt2/run_gpt2_predict.sh PARALLEL CONFIG CKPT DEVICE_NUM [TOKENIZER] [PROMPT or FILE ...]
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
refuse() {
    cat >&2 <<USAGE
error: $1
usage: bash $0 PARALLEL CONFIG CKPT DEVICE_NUM [TOKENIZER] [PROMPT or FILE ...]
  PARALLEL    single: one process; parallel: DEVICE_NUM processes, which on a CPU share the prompts, and on Ascend
              the heads and widths of the model, or the prompts where DEVICE_NUM does not divide these
  CONFIG      YAML file, such as configs/gpt2/predict_gpt2_small_fp16.yaml
  CKPT        the weights: a .ckpt, or a folder
  DEVICE_NUM  processes, of which each has a card to itself, or a part of the CPU; 1 with single
  TOKENIZER   its folder, or a SentencePiece model; absent or "": the one beside the weights
  PROMPT, FILE  texts, .txt files with one prompt a line, .jsonl files, or folders of such; absent: three examples
USAGE
    exit 2
}
[ $# -ge 4 ] || refuse "four arguments or more are needed, and there are $#"
parallel=$1 config=$2 ckpt=$3 devices=$4 tokenizer=${5:-}
shift $(( $# < 5 ? $# : 5 ))
home() { # a path in quotes whose ~ the shell has left alone
    case $1 in "~" | "~/"*) printf '%s' "$HOME${1#\~}" ;; *) printf '%s' "$1" ;; esac
}
config=$(home "$config") ckpt=$(home "$ckpt") tokenizer=$(home "$tokenizer")
[[ $devices =~ ^[1-9][0-9]*$ ]] || refuse "DEVICE_NUM must be a whole number from 1, not '$devices'"
[ -f "$config" ] || refuse "CONFIG: there is no file $config (looked from $PWD)"
if [[ $tokenizer == *.model && ! -e $tokenizer ]]; then # as MindFormers' page has it
    refuse "TOKENIZER: there is no SentencePiece model $tokenizer. GPT-2's own tokenizer is not one: name the folder of its \
vocab.json and merges.txt, or of its tokenizer.json, such as $(dirname "$tokenizer")"
fi
[ -z "$tokenizer" ] || [ -e "$tokenizer" ] || refuse "TOKENIZER: there is no folder $tokenizer (looked from $PWD)"
[ $# -gt 0 ] || set -- "I love Beijing, because" "GPT2 is a" "Huawei is a company that"
words=(--config "$config" --run_mode predict --load_checkpoint "$ckpt" --predict_data "$@")
[ -z "$tokenizer" ] || words+=(--tokenizer "$tokenizer")
python=${PYTHON:-$(command -v python || command -v python3 || true)}
[ -n "$python" ] || { echo "error: there is no python on the PATH; set PYTHON=/path/to/it" >&2; exit 2; }
model_can_be_cut() { # a YAML that cannot be read is told of by the run itself
    PYTHONPATH="$repo" "$python" - "$config" "$devices" 2>/dev/null <<'PYTHON_END'
import sys
from mindgpt.config.layout import divides_layers
from mindgpt.config.loader import load_config
config, _ = load_config(sys.argv[1])
sys.exit(not divides_layers(config, int(sys.argv[2])))
PYTHON_END
}
case $parallel in
single)
    [ "$devices" = 1 ] || refuse "single runs on 1 device, not on $devices; write parallel, or 1"
    exec "$python" "$repo/run_mindformer.py" "${words[@]}" --use_parallel False
    ;;
parallel)
    if [ -e /dev/davinci_manager ] && model_can_be_cut; then # an Ascend driver
        words+=(--use_parallel True --options parallel.parallel_mode=semi_auto_parallel parallel_config.data_parallel=1
            "parallel_config.model_parallel=$devices")
    else
        words+=(--use_parallel True --options parallel.parallel_mode=data_parallel
            "parallel_config.data_parallel=$devices" parallel_config.model_parallel=1)
    fi
    words+=(parallel_config.pipeline_stage=1 parallel_config.optimizer_shard=False
        parallel.enable_parallel_optimizer=False)
    command="'${repo//\'/\'\\\'\'}/run_mindformer.py'" # the launcher takes one string, which it splits as a shell does
    for word in "${words[@]}"; do command+=" '${word//\'/\'\\\'\'}'"; done
    exec bash "$repo/scripts/msrun_launcher.sh" "$command" "$devices"
    ;;
*) refuse "PARALLEL must be single or parallel, not '$parallel'" ;;
esac
