#!/usr/bin/env bash
# ModelScope's finetune_dureader.py (input and output) with a small GPT-3 from random weights on two cores: from a text and
# an answer to the question. The data is made here and looks like DuReader_robust-QG. docs/chinese_gpt3.md has the result.
#   bash examples/gpt3/dureader.sh OUT_DIR
# What is in OUT_DIR from an earlier run is replaced.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: bash $0 OUT_DIR" >&2; exit 2; }
source "$(dirname "$0")/small_model.sh"
out=$(absolute "$1")
mkdir -p "$out"
make_environment "[jieba,generation-metrics]"
cd "$repo"

step "1/4 texts about towns, each with an answer after [SEP], and the questions; a tokenizer of jieba's words"
"$PYTHON" - "$out" <<'PYTHON_END'
import json
import random
import sys
from pathlib import Path

draw, out = random.Random(0), Path(sys.argv[1])
towns = [a + b for a in "青白石云长安清龙平柳" for b in ("河镇", "桥镇", "山镇", "林镇")]
facts = {  # a sentence, the answer in it, and the question that asks for it
    "area": (lambda: f"{draw.randint(11, 99)}平方公里", "面积约{}", "{}的面积有多大？"),
    "people": (lambda: f"{draw.randint(11, 99)}万人", "人口约{}", "{}有多少人口？"),
    "founded": (lambda: f"{draw.randint(11, 19)}世纪", "始建于{}", "{}是什么时候建的？"),
    "product": (lambda: draw.choice(["茶叶", "苹果", "豆腐", "瓷器", "竹器"]), "以{}闻名", "{}的特产是什么？"),
}
rows = {"train": 400, "valid": 100}
for part, count in rows.items():
    with open(out / f"{part}.jsonl", "w", encoding="utf-8") as file:
        for _ in range(count):
            town, order = draw.choice(towns), draw.sample(sorted(facts), k=len(facts))
            answers = {name: facts[name][0]() for name in order}
            text = f"{town}" + "，".join(facts[name][1].format(answers[name]) for name in order) + "。"
            asked = draw.choice(order)
            source = f"{text}[SEP]{answers[asked]}"
            # what ModelScope's script does to the data set
            row = {"src_txt": source.replace("[SEP]", "<sep>") + "\n", "tgt_txt": facts[asked][2].format(town)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
records = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
(out / "texts.txt").write_text("".join(f"{r['src_txt']}{r['tgt_txt']}\n" for r in records), encoding="utf-8")
PYTHON_END
run tools/train_tokenizer.py --kind jieba --input_file "$out/texts.txt" --vocab_size 1000 \
    --output_dir "$out/tokenizer" --overwrite

step "2/4 rows: source, target and <sep>, of which target and <sep> are learnt; padded to 64 tokens"
for part in train valid; do
    run tools/dataset_preprocess/instruction_to_mindrecord.py --layout modelscope --input_file "$out/$part.jsonl" \
        --output_file "$out/data/$part.mindrecord" --sequence_length 64 --tokenizer_type "$out/tokenizer" --overwrite
done

step "3/4 training, 4 epochs of batches of 4"
# At its highest, after 200 steps, noam's learning rate is 0.02 / sqrt(200) = 1.4e-3: a small model from random weights
# needs more than the 7e-6 that fine-tune 2.7 billion.
small+=("model.model_config.vocab_size=$(tokens_of "$out/tokenizer")")
run run_mindformer.py --config configs/gpt3/finetune_gpt3_2.7b_dureader.yaml --run_mode train \
    --train_dataset_dir "$out/data/train.mindrecord" --eval_dataset_dir "$out/data/valid.mindrecord" \
    --output_dir "$out/model" --batch_size 4 --epochs 4 --options "${small[@]}" load_checkpoint= trainer.model_name=gpt3_small \
    recompute_config.recompute=False model.model_config.seq_length=63 lr_schedule.learning_rate=2.0e-2

step "4/4 questions to the texts that were held out, compared with the right ones"
run run_mindformer.py --config configs/gpt3/finetune_gpt3_2.7b_dureader.yaml --run_mode eval \
    --eval_dataset_dir "$out/data/valid.mindrecord" --load_checkpoint "$out/model/checkpoint" \
    --tokenizer "$out/tokenizer" --output_dir "$out/model" --batch_size 16 --options "${small[@]}" \
    trainer.model_name=gpt3_small model.model_config.seq_length=63 metric.type=GenerationMetric
head -n 5 "$out/model/eval_generations.jsonl"
