#!/usr/bin/env bash
# The cards of one machine, with the arguments of MindFormers' script of this name, from any folder: what to type for
# msrun_launcher.sh, which it calls. No rank table is needed; whatever is named as one is not read.
#   bash scripts/run_distribute.sh RANK_TABLE CONFIG [FIRST,END] RUN_MODE [RANK_SIZE] [flags of run_mindformer.py ...]
#   bash scripts/run_distribute.sh RANK_TABLE CONFIG [FIRST,END] predict [RANK_SIZE] PREDICT_DATA [flags ...]
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
refuse() {
    cat >&2 <<USAGE
error: $1
usage: bash $0 RANK_TABLE CONFIG [FIRST,END] train|finetune|eval [RANK_SIZE] [flags of run_mindformer.py ...]
       bash $0 RANK_TABLE CONFIG [FIRST,END] predict [RANK_SIZE] PREDICT_DATA [flags of run_mindformer.py ...]
  RANK_TABLE   any word: it is not needed
  [FIRST,END]  cards, such as [0,8] for 0 to 7
  RANK_SIZE    as many as these cards are
USAGE
    exit 2
}
positional=()
while [ $# -gt 0 ] && [[ $1 != --* ]]; do
    positional+=("$1")
    shift
done
set -- "${positional[@]}" "--" "$@"
[ ${#positional[@]} -ge 4 ] || refuse "four arguments or more are needed, and there are ${#positional[@]}"
config=$2 range=$3 mode=$4
shift 4
[ -f "$config" ] || refuse "CONFIG: there is no file $config (looked from $PWD)"
[[ $range =~ ^\[([0-9]+),([0-9]+)\]$ ]] || refuse "the cards must be written like [0,8], not '$range'"
first=${BASH_REMATCH[1]} end=${BASH_REMATCH[2]}
cards=$((end - first))
[ "$cards" -ge 1 ] || refuse "$range holds no card: END is the number behind the last one"
words=(--config "$config" --run_mode "$mode" --use_parallel True)
if [[ ${1} =~ ^[0-9]+$ ]] && { [ "$mode" != predict ] || [ "$2" != -- ]; }; then
    [ "$1" = "$cards" ] || refuse "RANK_SIZE $1 is not the $cards cards of $range. For several machines type on each of \
them: bash scripts/msrun_launcher.sh \"run_mindformer.py --config $config --run_mode $mode --use_parallel True\" \
$1 $cards MASTER_ADDR 8118 NODE_RANK output/msrun_log True 7200"
    shift
fi
case $mode in
predict)
    [ "$1" != -- ] || refuse "PREDICT_DATA is missing: a text, or a file of texts"
    words+=(--predict_data "$1")
    shift
    ;;
train | finetune | eval) ;;
*) refuse "RUN_MODE must be train, finetune, eval or predict, not '$mode'" ;;
esac
[ "$1" = -- ] || refuse "'$1' is one argument too many"
shift
words+=("$@")
if [ "$first" != 0 ] && [ -z "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then # the launcher counts cards from 0
    ASCEND_RT_VISIBLE_DEVICES=$(seq -s, "$first" $((end - 1)))
    export ASCEND_RT_VISIBLE_DEVICES
fi
command="'${repo//\'/\'\\\'\'}/run_mindformer.py'" # the launcher takes one string, which it splits as a shell does
for word in "${words[@]}"; do command+=" '${word//\'/\'\\\'\'}'"; done
exec bash "$repo/scripts/msrun_launcher.sh" "$command" "$cards"
