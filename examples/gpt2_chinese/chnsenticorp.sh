#!/usr/bin/env bash
# Sentiment of Chinese reviews on two cores, from random weights: a small GPT-2 learns to tell the bad ones from the good
# ones. docs/chinese_gpt2.md has the result.
#   bash examples/gpt2_chinese/chnsenticorp.sh DATA_DIR OUT_DIR
# DATA_DIR holds chnsenticorp.train4k.tsv and chnsenticorp.dev.tsv with the columns label and text_a. What is in OUT_DIR
# from an earlier run is replaced.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: bash $0 DATA_DIR OUT_DIR" >&2; exit 2; }
source "$(dirname "$0")/small_model.sh"
data=$(absolute "$1") out=$(absolute "$2")
for part in train4k dev; do
    [ -f "$data/chnsenticorp.$part.tsv" ] || refuse "there is no file $data/chnsenticorp.$part.tsv"
done
mkdir -p "$out"
make_environment ""
cd "$repo"

step "1/4 the baseline: TF-IDF with logistic regression on the same files"
run examples/gpt2_chinese/tfidf_baseline.py "$data/chnsenticorp.train4k.tsv" "$data/chnsenticorp.dev.tsv"
began=$SECONDS

step "2/4 a vocabulary learnt from the training texts, and the data"
tail -n +2 "$data/chnsenticorp.train4k.tsv" | cut -f2 > "$out/texts.txt"
run tools/train_tokenizer.py --kind wordpiece --input_file "$out/texts.txt" --vocab_size 6000 \
    --output_dir "$out/tokenizer" --overwrite
for part in train4k dev; do
    run tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py --dataset_name chnsenticorp \
        --input_file "$data/chnsenticorp.$part.tsv" --output_file "$out/data/$part.mindrecord" --max_length 256 \
        --tokenizer_type "$out/tokenizer" --overwrite
done
options=("${small[@]}" "model.model_config.vocab_size=$(grep -c '' "$out/tokenizer/vocab.txt")"
    model.model_config.num_layers=2 runner_config.batch_size=32
    model.model_config.bos_token_id=2 model.model_config.eos_token_id=3 # [CLS] and [SEP] as learnt
    model.model_config.seq_length=256)                                  # three reviews in ten are longer than 128 tokens

step "3/4 the classifier, from random weights"
# Without correct_bias the first hundred updates of Adam are about three times as large, and the model learns little.
run run_mindformer.py --config configs/gpt2_chinese/finetune_gpt2_chinese_distil_txtcls_fp16.yaml --run_mode train \
    --train_dataset_dir "$out/data/train4k.mindrecord" --eval_dataset_dir "$out/data/dev.mindrecord" \
    --do_eval True --epochs 4 --output_dir "$out/classifier" --options "${options[@]}" \
    load_checkpoint= lr_schedule.learning_rate=1.0e-3 optimizer.correct_bias=True train_dataset.num_buckets=2 \
    model.model_config.hidden_dropout_rate=0.3 model.model_config.embedding_dropout_rate=0.3

step "4/4 what it says of two reviews"
run run_mindformer.py --config configs/gpt2_chinese/finetune_gpt2_chinese_distil_txtcls_fp16.yaml --run_mode predict \
    --load_checkpoint "$out/classifier/checkpoint" --tokenizer "$out/tokenizer" --output_dir "$out/classifier" \
    --predict_data "房间很干净，服务员也很热情，下次还会住这里。" "机器太热，风扇声音很大，后悔买了。" \
    --options "${options[@]}"

printf '\n== done in %d s; the accuracies are above: the baseline in step 1, the small model in the lines of step 3 with ACC\n' $((SECONDS - began))
