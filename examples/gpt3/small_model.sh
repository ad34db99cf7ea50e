# Sourced by the examples beside it: what examples/gpt2_chinese/small_model.sh defines, and a GPT-3 for two cores.
#   $small                       options of run_mindformer.py that make a shipped model small (without the vocabulary)
#   tokens_of FOLDER             the number of tokens of a tokenizer

source "$(dirname "${BASH_SOURCE[0]}")/../gpt2_chinese/small_model.sh"

small=(model.model_config.num_layers=4 model.model_config.hidden_size=128 model.model_config.num_heads=4)

tokens_of() { "$PYTHON" -c 'import sys, mindgpt; print(len(mindgpt.load_tokenizer(sys.argv[1])))' "$1"; }
