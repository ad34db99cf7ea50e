#!/usr/bin/env bash
# One card, with the arguments of MindFormers' script of this name, from any folder. Its output is on the screen and in
# output_dir; MindFormers' went on in the background.
#   bash scripts/run_standalone.sh CONFIG DEVICE_ID RUN_MODE [flags of run_mindformer.py ...]
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
refuse() {
    printf 'error: %s\nusage: bash %s CONFIG DEVICE_ID train|finetune|eval|predict [flags of run_mindformer.py ...]\n' \
        "$1" "$0" >&2
    exit 2
}
[ $# -ge 3 ] || refuse "three arguments or more are needed, and there are $#"
config=$1 device=$2 mode=$3
shift 3
[ -f "$config" ] || refuse "CONFIG: there is no file $config (looked from $PWD)"
[[ $device =~ ^[0-9]+$ ]] || refuse "DEVICE_ID must be a whole number from 0, not '$device'"
[[ $mode =~ ^(train|finetune|eval|predict)$ ]] || refuse "RUN_MODE must be train, finetune, eval or predict, not '$mode'"
[ $# -eq 0 ] || [[ $1 == --* ]] || refuse "what follows RUN_MODE are flags, and '$1' is none"
python=${PYTHON:-$(command -v python || command -v python3 || true)}
[ -n "$python" ] || { echo "error: there is no python on the PATH; set PYTHON=/path/to/it" >&2; exit 2; }
exec "$python" "$repo/run_mindformer.py" --config "$config" --run_mode "$mode" --use_parallel False \
    --device_id "$device" "$@"
