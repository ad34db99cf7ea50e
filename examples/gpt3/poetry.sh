#!/usr/bin/env bash
# ModelScope's finetune_poetry.py (continued writing) with a small GPT-3 from random weights on two cores: its tokenizer,
# its rows, its optimizer and schedule, and the perplexity after each epoch. docs/chinese_gpt3.md has the result.
#   bash examples/gpt3/poetry.sh POEMS OUT_DIR
# POEMS is a file of the collection chinese-poetry, such as poet.tang.10000.json: a list of objects with `paragraphs`. A
# tenth of the poems is held out. What is in OUT_DIR from an earlier run is replaced.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: bash $0 POEMS OUT_DIR" >&2; exit 2; }
source "$(dirname "$0")/small_model.sh"
poems=$(absolute "$1") out=$(absolute "$2")
[ -f "$poems" ] || refuse "there is no file $poems"
mkdir -p "$out"
make_environment "[jieba]"
cd "$repo"

step "1/4 a poem a line as src_txt, and a tokenizer of jieba's words learnt from those to train on"
"$PYTHON" - "$poems" "$out" <<'PYTHON_END'
import json
import sys
from pathlib import Path

out = Path(sys.argv[2])
with open(sys.argv[1], encoding="utf-8") as source:
    poems = [text for poem in json.load(source) if (text := "".join(poem["paragraphs"]).strip())]
parts = {"valid": poems[::10], "train": [poem for number, poem in enumerate(poems) if number % 10]}
for part, texts in parts.items():
    rows = "".join(json.dumps({"src_txt": text}, ensure_ascii=False) + "\n" for text in texts)
    (out / f"{part}.jsonl").write_text(rows, encoding="utf-8")
(out / "poems.txt").write_text("".join(f"{text}\n" for text in parts["train"]), encoding="utf-8")
PYTHON_END
run tools/train_tokenizer.py --kind jieba --input_file "$out/poems.txt" --vocab_size 3000 \
    --output_dir "$out/tokenizer" --overwrite

step "2/4 rows: each poem and <sep>, padded to 128 tokens"
for part in train valid; do
    run tools/dataset_preprocess/instruction_to_mindrecord.py --layout modelscope --input_file "$out/$part.jsonl" \
        --output_file "$out/data/$part.mindrecord" --sequence_length 128 --tokenizer_type "$out/tokenizer" --overwrite
done

step "3/4 training, 10 epochs of batches of 8"
# At its highest, after 100 steps, noam's learning rate is 0.01 / sqrt(100) = 1e-3: a small model from random weights
# needs more than the 3e-5 that fine-tune 2.7 billion.
small+=("model.model_config.vocab_size=$(tokens_of "$out/tokenizer")")
run run_mindformer.py --config configs/gpt3/finetune_gpt3_2.7b_poetry.yaml --run_mode train \
    --train_dataset_dir "$out/data/train.mindrecord" --eval_dataset_dir "$out/data/valid.mindrecord" \
    --output_dir "$out/model" --batch_size 8 --options "${small[@]}" load_checkpoint= trainer.model_name=gpt3_small \
    recompute_config.recompute=False model.model_config.max_position_embeddings=128 lr_schedule.learning_rate=1.0e-2

step "4/4 poems"
run run_mindformer.py --config configs/gpt3/predict_gpt3_2.7b_fp16.yaml --run_mode predict \
    --load_checkpoint "$out/model/checkpoint" --tokenizer "$out/tokenizer" --output_dir "$out/model" \
    --predict_data "明月" "春風" "秋水" --options "${small[@]}" trainer.model_name=gpt3_small \
    model.model_config.seq_length=128 model.model_config.max_new_tokens=100 model.model_config.do_sample=True \
    model.model_config.top_p=0.9
