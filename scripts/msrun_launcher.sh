#!/usr/bin/env bash
# Run one program in several processes that work together: MindFormers 1.5's arguments, from any folder.
#   bash scripts/msrun_launcher.sh "COMMAND" [WORKER_NUM]
#   bash scripts/msrun_launcher.sh "COMMAND" WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT
#   bash scripts/msrun_launcher.sh "COMMAND" WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK LOG_DIR JOIN CLUSTER_TIME_OUT
# docs/parallel.md tells what they mean. PYTHON=/path/to/python chooses the interpreter; default: python, else python3.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python || command -v python3 || true)}
[ -n "$python" ] || { echo "error: there is no python on the PATH; set PYTHON=/path/to/it" >&2; exit 2; }
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m mindgpt.runtime.launcher "$@"
