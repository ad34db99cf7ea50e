#!/usr/bin/env bash
# From nothing to a trained GPT-2, a perplexity and text, in a few minutes on two cores.
#   bash scripts/quickstart.sh              on the text of Python's own help topics, which every machine has
#   bash scripts/quickstart.sh my_text.txt  on your text (some hundred kilobytes or more; also x.txt.gz, x.jsonl, a folder)
# Everything lands in output/quickstart of the checkout (OUTPUT=folder for another place), and is replaced by the next
# run. my_text.txt and folder are relative to where you are.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
text=${1:-}
if [ -n "$text" ]; then
    text=$(absolute "$text")
    [ -e "$text" ] || { echo "error: there is no text file $text" >&2; exit 2; }
fi
out=$(absolute "${OUTPUT:-$repo/output/quickstart}")
began=$SECONDS
make_environment "[plot]"
cd "$repo"
config=configs/gpt2/pretrain_gpt2_quickstart.yaml
data_tool=tools/dataset_preprocess/text_to_mindrecord.py
step() { printf '\n== %s\n' "$1"; }
run() {
    printf '$ python'
    printf ' %q' "$@"
    printf '\n'
    "$PYTHON" "$@"
}

step "1/5 text, split into a part to train on and a part to judge by"
run tools/split_text.py ${text:+--input_file "$text"} --output_dir "$out/text"

step "2/5 tokenizer: byte-level BPE with 4096 tokens, learnt from the training text"
run tools/train_tokenizer.py --input_file "$out/text/train.txt" --vocab_size 4096 --output_dir "$out/tokenizer" --overwrite

# A short or repetitive text gives fewer tokens than the configuration has; the model is then made for as many.
tokens=$("$PYTHON" -c 'import json, sys; print(len(json.load(open(sys.argv[1], encoding="utf-8"))))' \
    "$out/tokenizer/vocab.json")
sizes=()
[ "$tokens" -eq 4096 ] || sizes=(--options "model.model_config.vocab_size=$tokens")

step "3/5 data: text -> tokens -> MindRecord"
for part in train valid; do
    run $data_tool --input_file "$out/text/$part.txt" --output_file "$out/data/$part.mindrecord" \
        --max_length 129 --tokenizer_type "$out/tokenizer" --overwrite
done

step "4/5 training, with an evaluation before and after"
run run_mindformer.py --config $config --run_mode train --output_dir "$out/run" --do_eval True \
    --train_dataset_dir "$out/data/train.mindrecord" --eval_dataset_dir "$out/data/valid.mindrecord" \
    ${sizes[@]+"${sizes[@]}"}

step "5/5 evaluation and text by the trained model"
run run_mindformer.py --config $config --run_mode eval --output_dir "$out/run" --epochs 1 \
    --eval_dataset_dir "$out/data/valid.mindrecord" --load_checkpoint "$out/run/checkpoint" \
    ${sizes[@]+"${sizes[@]}"}
run run_mindformer.py --config $config --run_mode predict --output_dir "$out/run" \
    --load_checkpoint "$out/run/checkpoint" --tokenizer "$out/tokenizer" \
    --predict_data "The following" "If the object" "A function" ${sizes[@]+"${sizes[@]}"}

"$PYTHON" - "$out" $((SECONDS - began)) <<'P'
import json
import sys

out, seconds = sys.argv[1:]
lines = [json.loads(line) for line in open(f"{out}/run/log/eval.jsonl", encoding="utf-8")]
before, after = lines[0]["PPL"], lines[-1]["PPL"]
print(f"""
== done in {seconds} s: perplexity {before:.0f} -> {after:.1f} ({before / after:.0f} times lower)

text and tokenizer   {out}/text, {out}/tokenizer
data                 {out}/data
model                {out}/run/checkpoint/rank_0
losses, step by step {out}/run/log/train.jsonl, drawn in {out}/run/plot.png
texts                {out}/run/predictions.jsonl

Next: more epochs       --epochs 10 on the training command above
      your own prompts  --run_mode predict ... --predict_data "your words" --do_sample True --top_k 50
      a larger model    configs/gpt2/pretrain_gpt2_small_fp16.yaml (docs/guide.md)""")
P
