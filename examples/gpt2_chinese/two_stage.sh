#!/usr/bin/env bash
# UER-py's two-stage pretraining with a small model on two cores: rows of 128 tokens, then rows of 1024 from those weights,
# by the shipped YAML files and a few overrides. docs/chinese_gpt2.md explains every step.
#   bash examples/gpt2_chinese/two_stage.sh CORPUS VOCAB OUT_DIR
# CORPUS is a text with a document a line, such as UER's cluecorpussmall_sampled.txt; VOCAB its google_zh_vocab.txt. A
# tenth of the lines is held out. What is in OUT_DIR from an earlier run is replaced.
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: bash $0 CORPUS VOCAB OUT_DIR" >&2; exit 2; }
source "$(dirname "$0")/small_model.sh"
corpus=$(absolute "$1") vocab=$(absolute "$2") out=$(absolute "$3")
for file in "$corpus" "$vocab"; do [ -f "$file" ] || refuse "there is no file $file"; done
mkdir -p "$out"
make_environment ""
cd "$repo"
began=$SECONDS

step "1/4 a tenth of the lines held out; rows of 128 and of 1024 tokens"
vocabulary "$vocab" "$out/tokenizer"
run tools/split_text.py --input_file "$corpus" --output_dir "$out/lines" --valid_fraction 0.1
for part in train valid; do
    # Stage 1 as UER-py: each line in rows of its own. Stage 2 as TencentPretrain's --full_sentences: no row is padded.
    run tools/dataset_preprocess/text_to_mindrecord.py --input_file "$out/lines/$part.txt" --document_per line \
        --packing none --max_length 129 --tokenizer_type "$out/tokenizer" \
        --output_file "$out/data/$part.seq128.mindrecord" --overwrite
    run tools/dataset_preprocess/text_to_mindrecord.py --input_file "$out/lines/$part.txt" --document_per line \
        --packing full --max_length 1025 --tokenizer_type "$out/tokenizer" \
        --output_file "$out/data/$part.seq1024.mindrecord" --overwrite
done

step "2/4 stage 1: rows of 128 tokens, from nothing"
run run_mindformer.py --config configs/gpt2_chinese/pretrain_gpt2_chinese_distil_seq128_fp16.yaml \
    --train_dataset_dir "$out/data/train.seq128.mindrecord" --eval_dataset_dir "$out/data/valid.seq128.mindrecord" \
    --do_eval True --epochs 2 --output_dir "$out/stage1" --options "${small[@]}" lr_schedule.learning_rate=1.0e-3

step "3/4 stage 2: rows of 1024 tokens, from the weights of stage 1"
run run_mindformer.py --config configs/gpt2_chinese/pretrain_gpt2_chinese_distil_seq1024_fp16.yaml \
    --load_checkpoint "$out/stage1/checkpoint" \
    --train_dataset_dir "$out/data/train.seq1024.mindrecord" --eval_dataset_dir "$out/data/valid.seq1024.mindrecord" \
    --do_eval True --epochs 2 --output_dir "$out/stage2" \
    --options "${small[@]}" runner_config.batch_size=4 lr_schedule.learning_rate=5.0e-4

step "4/4 a text"
run run_mindformer.py --config configs/gpt2_chinese/predict_gpt2_chinese_distil_fp16.yaml --run_mode predict \
    --load_checkpoint "$out/stage2/checkpoint" --tokenizer "$out/tokenizer" --output_dir "$out/stage2" \
    --predict_data "这是很久之前的事情了" --options "${small[@]}"

printf '\n== done in %d s; perplexities on the held-out lines, before and after each epoch, are above\n' $((SECONDS - began))
