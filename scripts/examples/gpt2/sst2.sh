#!/usr/bin/env bash
# Sentiment of film reviews on two cores, from nothing: a small GPT-2 first learns the language of SST-2's sentences,
# then to tell the bad ones from the good ones. docs/classification.md explains every step.
#   bash scripts/examples/gpt2/sst2.sh DATA_DIR OUT_DIR
# DATA_DIR holds SST-2's train.tsv and dev.tsv as GLUE has them. What is in OUT_DIR from an earlier run is replaced.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: bash $0 DATA_DIR OUT_DIR" >&2; exit 2; }
source "$(dirname "$0")/../../environment.sh"
data=$(absolute "$1")
out=$(absolute "$2")
for file in train.tsv dev.tsv; do
    [ -f "$data/$file" ] || { echo "error: there is no $data/$file" >&2; exit 2; }
done
mkdir -p "$out"
make_environment ""
cd "$repo"
began=$SECONDS
tools=tools/dataset_preprocess
step() { printf '\n== %s\n' "$1"; }
run() {
    printf '$ python'
    printf ' %q' "$@"
    printf '\n'
    "$PYTHON" "$@"
}

step "1/5 the sentences of the training rows, and a tokenizer learnt from them"
tail -n +2 "$data/train.tsv" | cut -f1 | sed 's/ *$//' > "$out/sentences.txt"
run tools/train_tokenizer.py --input_file "$out/sentences.txt" --vocab_size 10000 --output_dir "$out/tokenizer" --overwrite

step "2/5 data: sentences for the language model, labelled rows for the classifier"
run $tools/text_to_mindrecord.py --input_file "$out/sentences.txt" --document_per line --max_length 65 \
    --output_file "$out/data/sentences.mindrecord" --tokenizer_type "$out/tokenizer" --overwrite
for part in train dev; do
    run $tools/gpt2/txtcls_dataset_to_mindrecord.py --dataset_name sst_2 --input_file "$data/$part.tsv" \
        --output_file "$out/data/$part.mindrecord" --max_length 64 --tokenizer_type "$out/tokenizer" --overwrite
done

step "3/5 the language model"
run run_mindformer.py --config configs/gpt2/pretrain_gpt2_sst2.yaml --run_mode train \
    --train_dataset_dir "$out/data/sentences.mindrecord" --output_dir "$out/language_model"

step "4/5 the classifier, from the language model's weights"
run run_mindformer.py --config configs/gpt2/finetune_gpt2_sst2_txtcls.yaml --run_mode finetune \
    --train_dataset_dir "$out/data/train.mindrecord" --load_checkpoint "$out/language_model/checkpoint" \
    --output_dir "$out/classifier"

step "5/5 how good it is, and what it says of three sentences"
run run_mindformer.py --config configs/gpt2/finetune_gpt2_sst2_txtcls.yaml --run_mode eval --epochs 1 \
    --eval_dataset_dir "$out/data/dev.mindrecord" --load_checkpoint "$out/classifier/checkpoint" \
    --output_dir "$out/classifier"
run run_mindformer.py --config configs/gpt2/finetune_gpt2_sst2_txtcls.yaml --run_mode predict \
    --load_checkpoint "$out/classifier/checkpoint" --tokenizer "$out/tokenizer" --output_dir "$out/classifier" \
    --predict_data "a warm , funny and deeply moving film" "the plot is thin and the jokes fall flat" \
    "not a bad film at all"

printf '\n== done in %d s; the accuracy is the line ACC above and in %s\n' $((SECONDS - began)) "$out/classifier/eval_result.json"
