# Sourced by the examples beside it: the Python environment, and a Chinese GPT-2 that two cores can train in minutes.
#   run ARGUMENT ...             show a command of python and run it
#   $small                       options of run_mindformer.py that make a shipped model small (3.6 million parameters)
#   vocabulary VOCAB FOLDER      a tokenizer folder from a vocab.txt

source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh"

small=(model.model_config.num_layers=4 model.model_config.hidden_size=128 model.model_config.num_heads=4
    runner_config.batch_size=16)

refuse() { echo "error: $1" >&2; exit 2; }

step() { printf '\n== %s\n' "$1"; }

run() {
    printf '$ python'
    printf ' %q' "$@"
    printf '\n'
    "$PYTHON" "$@"
}

vocabulary() {
    rm -rf "$2"
    mkdir -p "$2"
    cp "$1" "$2/vocab.txt"
}
