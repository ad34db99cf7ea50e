#!/usr/bin/env bash
# Tang poems by a small Chinese GPT-2 on two cores.
#   bash examples/gpt2_chinese/poems.sh POEMS OUT_DIR [VOCAB [WEIGHTS]]
# POEMS is a file of the collection chinese-poetry, such as poet.tang.10000.json: a list of objects with `paragraphs`.
# VOCAB is a vocab.txt; without it a WordPiece vocabulary is learnt from the poems. WEIGHTS are those of two_stage.sh (its
# OUT_DIR/stage2/checkpoint) with the same VOCAB: they are fine-tuned; without them a model learns from the poems alone.
set -euo pipefail
[ $# -ge 2 ] && [ $# -le 4 ] || { echo "usage: bash $0 POEMS OUT_DIR [VOCAB [WEIGHTS]]" >&2; exit 2; }
source "$(dirname "$0")/small_model.sh"
poems=$(absolute "$1") out=$(absolute "$2") vocab=${3:+$(absolute "$3")} weights=${4:+$(absolute "$4")}
[ -f "$poems" ] || refuse "there is no file $poems"
[ -z "$vocab" ] || [ -f "$vocab" ] || refuse "there is no file $vocab"
[ -z "$weights" ] || [ -e "$weights" ] || refuse "there are no weights $weights"
mkdir -p "$out"
make_environment ""
cd "$repo"

step "1/4 a poem a line, and a vocabulary"
"$PYTHON" - "$poems" "$out/poems.txt" <<'PYTHON_END'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as source, open(sys.argv[2], "w", encoding="utf-8") as lines:
    lines.writelines(f"{text}\n" for poem in json.load(source) if (text := "".join(poem["paragraphs"]).strip()))
PYTHON_END
if [ -n "$vocab" ]; then
    vocabulary "$vocab" "$out/tokenizer"
else
    run tools/train_tokenizer.py --kind wordpiece --input_file "$out/poems.txt" --vocab_size 6000 \
        --output_dir "$out/tokenizer" --overwrite
fi
tokens=$(grep -c '' "$out/tokenizer/vocab.txt")

step "2/4 rows: each poem between [CLS] and [SEP]; a tenth is held out"
run tools/split_text.py --input_file "$out/poems.txt" --output_dir "$out/lines" --valid_fraction 0.1
for part in train valid; do
    run tools/dataset_preprocess/text_to_mindrecord.py --input_file "$out/lines/$part.txt" --document_per line \
        --packing none --max_length 129 --tokenizer_type "$out/tokenizer" \
        --output_file "$out/data/$part.mindrecord" --overwrite
done

step "3/4 training"
options=("${small[@]}" "model.model_config.vocab_size=$tokens" model.model_config.seq_length=128)
[ -n "$vocab" ] || options+=(model.model_config.bos_token_id=2 model.model_config.eos_token_id=3) # [CLS] and [SEP] as learnt
if [ -n "$weights" ]; then
    begin=(--config configs/gpt2_chinese/finetune_gpt2_chinese_distil_fp16.yaml --load_checkpoint "$weights" --epochs 5)
else
    begin=(--config configs/gpt2_chinese/pretrain_gpt2_chinese_distil_seq128_fp16.yaml --epochs 15)
fi
run run_mindformer.py "${begin[@]}" --train_dataset_dir "$out/data/train.mindrecord" \
    --eval_dataset_dir "$out/data/valid.mindrecord" --do_eval True --output_dir "$out/model" --options "${options[@]}" lr_schedule.learning_rate=1.0e-3

step "4/4 poems"
run run_mindformer.py --config configs/gpt2_chinese/predict_gpt2_chinese_distil_fp16.yaml --run_mode predict \
    --load_checkpoint "$out/model/checkpoint" --tokenizer "$out/tokenizer" --output_dir "$out/model" \
    --predict_data "明月" "春風" "秋水共長天" --options "${options[@]}" model.model_config.max_new_tokens=64
