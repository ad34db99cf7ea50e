"""The help of each subcommand, on one screen. `--help-all` prints every flag, from the parsers."""

_MODEL = """\
  --model PATH           weights of any kind: a Hugging Face, UER-py, ModelScope or GPT2_ML folder or file,
                         a .ckpt, the output folder of a run"""
_TOKENIZER = """\
  --tokenizer DIR        the tokenizer, where none lies beside the weights"""
_DATA = """\
  --data FILE...         text, .jsonl, .csv, .parquet, compressed or not; folders; patterns in quotes;
                         or MindRecord of `mindgpt prepare`. Rows made of text are kept in the cache"""
_YAML = """\
with a YAML file, ours or of MindFormers:
  --config FILE          its settings, in place of --model
  --load_checkpoint PATH the weights
  --set KEY=VALUE        any key, dotted, such as optimizer.weight_decay=0; may be repeated"""
_TRAINING = """\
  --eval_data FILE...    to evaluate on after each epoch (the last tenth of --data); none: no evaluation
  --epochs N  --batch_size N  --seq_length N  --learning_rate X    defaults are chosen, and printed
  --resume_training True go on where a run with this output folder stopped
  --device_target CPU    or Ascend, which is the default where there is a card"""

HELP: dict[str, str] = {
    "train": f"""\
usage: mindgpt train --model SIZE|PATH --data FILE... [flags]
       mindgpt train --config FILE [flags]

Train a language model: from random weights if --model is the name of a size (gpt2_small, gpt3_base,
gpt2_chinese_base, ...) or a folder with a config.json alone, else from the weights there.

  --model SIZE|PATH
{_TOKENIZER.replace("where none lies beside the weights", "which a size needs (mindgpt tokenizer makes one)")}
{_DATA}
  --output DIR           for checkpoints, logs and train_config.yaml, all settings of the run (./output)
{_TRAINING}

{_YAML}

  mindgpt train --model gpt2_small --tokenizer tokenizer/ --data 'corpus/*.txt' --output pretrained/

More flags: mindgpt train --help-all. docs/command_line.md, docs/guide.md""",
    "finetune": f"""\
usage: mindgpt finetune --model PATH --data FILE... [flags]
       mindgpt finetune --config FILE --load_checkpoint PATH [flags]

Fine-tune trained weights on your text: all of them, or LoRA factors alone.

{_MODEL}
{_TOKENIZER}
{_DATA}
  --lora                 train LoRA factors alone; --lora_rank N (8)
  --output DIR           for checkpoints, logs and finetune_config.yaml, all settings of the run (./output)
{_TRAINING}

{_YAML}

  mindgpt finetune --model gpt2-hf/ --data my.txt --output out/
  mindgpt predict --model out/ "Once upon a time"

More flags: mindgpt finetune --help-all. docs/fine_tuning.md""",
    "eval": f"""\
usage: mindgpt eval --model PATH --data FILE... [flags]
       mindgpt eval --config FILE --eval_dataset_dir FILE [flags]

Perplexity of a model on a text; of a classifier, with a YAML file, accuracy.

{_MODEL}
{_TOKENIZER}
{_DATA}
  --seq_length N         context length (the model's, 1024 at most)
  --batch_size N         rows at once
  --adapter PATH         a LoRA adapter to put on the weights
  --output DIR           for eval_result.json (./output)

{_YAML}

  mindgpt eval --model gpt2-hf/ --data valid.txt

More flags: mindgpt eval --help-all. docs/guide.md""",
    "predict": f"""\
usage: mindgpt predict --model PATH TEXT... [flags]
       mindgpt predict --config FILE TEXT... [flags]

Continue prompts, or label texts with a classifier. A TEXT is a prompt, or a file or folder of prompts.
Results are printed, and written to predictions.jsonl and predictions.txt.

{_MODEL}
{_TOKENIZER}
  --max_new_tokens N     tokens to add (64)
  --do_sample True       sample; otherwise the likeliest token is taken
  --temperature X  --top_k K  --top_p P    of sampling; --seed N repeats it
  --predict_batch_size N prompts at once (8)
  --adapter PATH         a LoRA adapter to put on the weights
  --output DIR           for the results (./output)

{_YAML}
                         model.model_config.num_beams=4 is beam search

  mindgpt predict --model gpt2-hf/ "Once upon a time" --do_sample True --top_p 0.9

More flags: mindgpt predict --help-all. docs/generation.md""",
    "chat": f"""\
usage: mindgpt chat --model PATH [flags]
       mindgpt chat --config FILE [flags]

Type a prompt; what follows is printed as it is generated. An empty line goes on with the last text.
GPT-2 continues texts: a model tuned on instructions answers if --template words prompts as its data were.

{_MODEL}
{_TOKENIZER}
  --template NAME|FILE   word prompts as alpaca, or as a JSON file for `prepare instructions` says
  --max_new_tokens N  --do_sample True|False  --temperature X  --top_k K  --top_p P  --seed N
                         sampling with top_p 0.95, 128 tokens, unless you say otherwise

while it runs:
  /set KEY VALUE         change a setting: temperature, top_k, top_p, max_new_tokens, seed, ...
  /settings, /help, /quit (or Ctrl-D)

  mindgpt chat --model out/ --template alpaca

More flags: mindgpt chat --help-all. docs/generation.md""",
    "score": f"""\
usage: mindgpt score --model PATH TEXT... [flags]
       mindgpt score --config FILE --load_checkpoint PATH TEXT... [flags]

Log-probability, number of tokens and perplexity of each text. A TEXT is a text, or a file or folder of texts,
one a line.

{_MODEL}
{_TOKENIZER}
  --output FILE          write a JSON line for each text
  --per_token            with every token's log-probability in it
  --adapter PATH         a LoRA adapter to put on the weights

{_YAML}

  mindgpt score --model gpt2-hf/ "The cat sat on the mat." texts.txt --output scores.jsonl --per_token

More flags: mindgpt score --help-all. docs/generation.md""",
    "prepare": """\
usage: mindgpt prepare text|instructions|classification|wikitext|split [flags]

Make MindRecord, the files that training and evaluation read, or split a text.
(`mindgpt finetune --data my.txt` does it on the way; this is for more control.)

  text             documents in rows of one length
  instructions     prompts and responses; prompts are masked in the loss
  classification   labelled texts
  wikitext         WikiText's files of tokens
  split            a text into train.txt and valid.txt

  mindgpt prepare text --input_file corpus/ --output_file train.mindrecord --max_length 1025 --tokenizer_type tokenizer/

mindgpt prepare text --help tells more of one. docs/data.md""",
    "prepare text": """\
usage: mindgpt prepare text --input_file FILE... --output_file NAME.mindrecord [flags]

Text (.txt, .json, .jsonl, .csv, .tsv, .parquet, compressed or not) to rows of tokens.

  --input_file FILE...   files, folders or patterns in quotes
  --output_file FILE     its name ends in 'mindrecord'
  --tokenizer_type DIR   folder of the tokenizer
  --max_length N         tokens of a row: seq_length + 1 to train, seq_length to evaluate (1025)
  --field KEY            in JSON and tables: the key or column of the text (text)
  --document_per line    a document is a line, not a file
  --packing none         no row holds two documents
  --num_splits N         spread the rows over N files
  --skip_bad             leave out broken records, and count them
  --overwrite            replace the output

  mindgpt prepare text --input_file corpus/ --output_file train.mindrecord --max_length 1025 --tokenizer_type tokenizer/

More flags: mindgpt prepare text --help-all. docs/data.md""",
    "prepare instructions": """\
usage: mindgpt prepare instructions --input_file FILE... --output_file NAME.mindrecord [flags]

Prompts and responses (.json, .jsonl, .csv, .tsv, .parquet) to rows whose loss counts the responses alone.

  --input_file FILE...   files, folders or patterns in quotes
  --output_file FILE     its name ends in 'mindrecord'
  --tokenizer_type DIR   folder of the tokenizer
  --max_length N         tokens of a row: seq_length + 1 to train, seq_length to evaluate (1025)
  --format NAME          the keys (by the first record); --prompt_key, --response_key, --input_key name others
  --template FILE        how prompts are worded
  --pack                 several examples in a row
  --too_long drop        drop what is too long; otherwise its end is truncated
  --layout modelscope    rows as ModelScope trains its Chinese GPT-3 on

  mindgpt prepare instructions --input_file alpaca.json --output_file a.mindrecord --tokenizer_type tokenizer/ --pack

More flags: mindgpt prepare instructions --help-all. docs/fine_tuning.md""",
    "prepare classification": """\
usage: mindgpt prepare classification --dataset_name NAME --input_file FILE... --output_file NAME.mindrecord [flags]

Labelled texts to rows for a classifier.

  --dataset_name NAME    sst_2, cola, ag_news, imdb, chnsenticorp, uer, or a kind of file: csv, tsv, json, parquet
  --input_file FILE...   files, folders or patterns in quotes
  --output_file FILE     its name ends in 'mindrecord'
  --tokenizer_type DIR   folder of the tokenizer
  --max_length N         tokens of a text at most (1024)
  --text_column NAME     and --label_column NAME: where they are
  --label_names NAME...  the labels in the order of their numbers

  mindgpt prepare classification --dataset_name sst_2 --input_file train.tsv --output_file train.mindrecord \\
      --tokenizer_type tokenizer/

More flags: mindgpt prepare classification --help-all. docs/classification.md""",
    "prepare wikitext": """\
usage: mindgpt prepare wikitext --input_file FILE... --output_file NAME.mindrecord [flags]

WikiText's tokens (wiki.train.tokens) to rows; each article, detokenised, is a document.

  --input_file FILE...   wiki.train.tokens, or .parquet with a line in each row
  --output_file FILE     its name ends in 'mindrecord'
  --tokenizer_type DIR   folder of the tokenizer
  --max_length N         tokens of a row: seq_length + 1 to train, seq_length to evaluate (1024)
  --compat mindformers   MindFormers 1.5's rows, to compare with its published perplexities

  mindgpt prepare wikitext --input_file wiki.train.tokens --output_file train.mindrecord --max_length 1025 \\
      --tokenizer_type tokenizer/

More flags: mindgpt prepare wikitext --help-all. docs/data.md""",
    "prepare split": """\
usage: mindgpt prepare split --input_file FILE... --output_dir DIR [flags]

Split a text at a line end into train.txt and valid.txt.

  --input_file FILE...   files, folders or patterns in quotes (Python's help topics)
  --output_dir DIR       for the two files, which are replaced
  --valid_fraction X     the part to validate on, from the end (0.1)
  --field KEY            in JSON and tables: the key or column of the text (text)

  mindgpt prepare split --input_file my.txt --output_dir parts/

docs/data.md""",
    "tokenizer": """\
usage: mindgpt tokenizer --input_file FILE... --vocab_size N --output_dir DIR [flags]

Learn a vocabulary from text.

  --input_file FILE...   files, folders or patterns in quotes
  --vocab_size N         tokens in all
  --output_dir DIR       for the tokenizer's files
  --kind KIND            bpe: GPT-2's bytes (default); wordpiece: Chinese GPT-2's; jieba: ModelScope's GPT-3's
  --field KEY            in JSON and tables: the key or column of the text (text)
  --min_frequency N      merge pairs that occur so often (2)
  --overwrite            replace the tokenizer there

  mindgpt tokenizer --input_file corpus/ --vocab_size 8000 --output_dir tokenizer/

More flags: mindgpt tokenizer --help-all. docs/data.md""",
    "convert": """\
usage: mindgpt convert --input_path PATH --output_path PATH [flags]

Convert weights; what the source is follows from its files. From: Hugging Face, MindSpore .ckpt, UER-py and
TencentPretrain, DeepSpeed, GPT2_ML (TensorFlow, PyTorch), ModelScope's GPT-3. To: .ckpt, else a Hugging Face folder.

  --input_path PATH      weights of any kind; of a run, its folder `checkpoint`
  --output_path PATH     a .ckpt, or a folder
  --target_format NAME   huggingface, mindspore, uer, gpt2_ml_torch, modelscope, ... (by the name of the output)
  --dtype float16        of the weights written (float32)
  --vocab_size ROWS      pad the token table, or remove its padding
  --config PATH          in place of the config beside the weights
  --vocab FILE           the vocab.txt, if it does not lie with the weights
  --tensor_parallel N    for modelscope: shard over N ranks

  mindgpt convert --input_path gpt2-hf/ --output_path gpt2.ckpt
  mindgpt convert --input_path out/checkpoint --output_path mine-hf/

More flags: mindgpt convert --help-all. docs/guide.md, docs/chinese_gpt2.md, docs/chinese_gpt3.md, docs/gpt2_ml.md""",
    "merge": """\
usage: mindgpt merge --src_ckpt_dir DIR --dst_ckpt_dir DIR [flags]

Merge the checkpoint shards of a parallel run into one file, or shard them for another layout. Needs no card.

  --src_ckpt_dir DIR        folder of rank_0, rank_1, ..., or a whole .ckpt
  --src_ckpt_strategy PATH  strategy files of the source (those beside it)
  --dst_ckpt_dir DIR        of the result
  --dst_ckpt_strategy PATH  strategy of the result (one whole file)
  --step EPOCH_STEP         which checkpoint, such as 1_500 (the newest)
  --prefix NAME             of the result's names (checkpoint_)
  --vocab_size ROWS         pad the token table, or remove its padding

  mindgpt merge --src_ckpt_dir output/checkpoint --dst_ckpt_dir merged --prefix gpt2_

More flags: mindgpt merge --help-all. docs/parallel.md""",
    "lora": """\
usage: mindgpt lora merge|convert [flags]

  merge     LoRA into its base weights: a plain checkpoint that computes the same
  convert   LoRA to and from Hugging Face's PEFT and TencentPretrain

  mindgpt lora merge --src_ckpt_path_or_dir out/checkpoint --dst_ckpt_dir merged
  mindgpt lora convert --mindspore_path out/checkpoint_trainable --peft_dir peft/

mindgpt lora merge --help tells more of one. To train LoRA: mindgpt finetune --lora. docs/fine_tuning.md""",
    "lora merge": """\
usage: mindgpt lora merge --src_ckpt_path_or_dir PATH --dst_ckpt_dir DIR [flags]

Merge LoRA into its base weights. The result is DIR/rank_0/PREFIX0.ckpt, which computes the same.

  --src_ckpt_path_or_dir PATH  a LoRA checkpoint, a run's folder of them, or base weights
  --adapter PATH               the LoRA, if the checkpoint holds the base weights alone
  --dst_ckpt_dir DIR           of the result
  --prefix NAME                of the result's name (checkpoint_)
  --lora_alpha X               or --lora_scaling X, for checkpoints of MindFormers, which do not tell

  mindgpt lora merge --src_ckpt_path_or_dir out/checkpoint --dst_ckpt_dir merged --prefix gpt2_

More flags: mindgpt lora merge --help-all. docs/fine_tuning.md""",
    "lora convert": """\
usage: mindgpt lora convert --mindspore_path PATH --peft_dir DIR [flags]
       mindgpt lora convert --mindspore_path PATH --tencentpretrain_path FILE [flags]

LoRA to PEFT or TencentPretrain, and with --reversed from them, exactly.

  --mindspore_path PATH        a LoRA checkpoint, adapter or their folder; with --reversed what to write
  --peft_dir DIR               folder of adapter_model.safetensors
  --tencentpretrain_path FILE  LoRA .bin of TencentPretrain
  --reversed                   write --mindspore_path from the other
  --lora_alpha A               where no file tells
  --config PATH                with --reversed: config of the base, to lie beside the adapter

  mindgpt lora convert --mindspore_path out/checkpoint_trainable --peft_dir peft/

docs/fine_tuning.md""",
    "plan": """\
usage: mindgpt plan --config FILE|--model SIZE --rank_size N [flags]
       mindgpt plan --dry_run --config FILE|--model SIZE --rank_size N [flags]

Find the layout of a training on N Ascend cards, on any machine; or with --dry_run compile the one that the
configuration has: is it legal, memory and collectives of each card, its speed. Nothing is trained.

  --config FILE          the training; or --model SIZE, its shipped configuration (gpt3_13b)
  --rank_size N[,N...]   cards
  --objective NAME       tokens_per_second (default), or fewest_cards
  --rows N               rows of a step (those of the configuration)
  --compile N            how many layouts to compile (1; 0: none)
  --output FILE          a YAML with the chosen layout
  --hardware FILE        the kind of card
  --set KEY=VALUE        any key of the configuration

  mindgpt plan --model gpt2_13b --rank_size 8 --output plan.yaml
  mindgpt plan --dry_run --config plan.yaml --rank_size 8

Exit status 3: legal, and does not fit. More flags: mindgpt plan --help-all. docs/parallel.md""",
    "plot": """\
usage: mindgpt plot DIR... [--output FILE]

Draw loss, evaluations, learning rate and gradient norm of runs, from their logs, as a PNG.

  DIR...         output folders; several are drawn over one another
  --output FILE  the picture (of one run, plot.png in its folder)

  mindgpt plot out/
  mindgpt plot outA outB --output compared.png

Needs pip install 'mindgpt[plot]'. docs/guide.md""",
    "info": """\
usage: mindgpt info [--json] PATH...

Say what a file or folder is, without loading its tensors: weights of any format and their family, size,
parameters and dtype; a tokenizer; MindRecord; a run's output folder; a YAML file; a name of a size.

  --json     one JSON object a line
  --tensors  also every tensor's name, shape and dtype

  mindgpt info gpt2-hf/ out/ train.mindrecord

Exit status 2: it is nothing known, or damaged; a line says which. docs/command_line.md""",
    "launch": """\
usage: mindgpt launch [-n N] [flags] train|finetune|eval|predict [its flags]

Run a subcommand in several processes: a card each, or shares of this machine's cores. --use_parallel True is added.

  -n N, --workers N     processes on all machines (8)
  --local_workers N     those of this machine (all)
  --master_addr ADDR    the machine with --node_rank 0 (127.0.0.1)
  --master_port PORT    a port of it
  --node_rank R         number of this machine, from 0
  --log_dir DIR         for worker_0.log, ... (output/msrun_log)
  --background          return at once
  --time_out S          seconds within which all must connect (7200)

  mindgpt launch -n 2 train --config configs/gpt2/pretrain_gpt2_small_fp16.yaml --train_dataset_dir train.mindrecord

docs/parallel.md""",
    "serve": """\
usage: mindgpt serve --model PATH [flags]

A server with the interface of OpenAI's completions, and a page to try the model at its address.

  --model PATH      weights of any kind, or the output folder of a run
  --tokenizer DIR   the tokenizer, where none lies beside the weights
  --host ADDR       the address to listen on (127.0.0.1)
  --port N          the port

  mindgpt serve --model gpt2-hf/

Needs pip install 'mindgpt[serve]'. More flags: mindgpt serve --help-all. docs/serving.md""",
    "lm_eval": """\
usage: mindgpt lm_eval --model_args pretrained=PATH --tasks NAMES [flags]

Evaluate a model with the tasks of EleutherAI's lm-evaluation-harness. All flags are those of its own program lm_eval.

  --model_args A=B,...   pretrained=PATH, and tokenizer=DIR, max_length=N where they are not the model's
  --tasks NAMES          of the tasks, with commas between them
  --include_path DIR     of task files of your own
  --batch_size N         rows at a time
  --output_path DIR      where the results are written

  mindgpt lm_eval --model_args pretrained=gpt2-hf/ --tasks lambada_openai --batch_size 8

Needs pip install 'mindgpt[lm_eval]'. docs/evaluation_harness.md""",
    "completion": """\
usage: mindgpt completion bash|zsh

Print a script by which the shell completes subcommands, flags and their values.

  mindgpt completion bash > ~/.local/share/bash-completion/completions/mindgpt
  mindgpt completion zsh > ~/.zfunc/_mindgpt        # with fpath+=~/.zfunc before compinit in ~/.zshrc

docs/command_line.md""",
}
