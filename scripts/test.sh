#!/usr/bin/env bash
# Make the test environment, then run ruff, mypy (the folders named in pyproject.toml) and pytest.
#   bash scripts/test.sh             what CI runs
#   bash scripts/test.sh --quick     an answer in 5 minutes on two cores: every room, without the tests that start programs
#                                    or compile for simulated Ascend (tests/quick.py finds them)
#   bash scripts/test.sh --slow      also the tests marked slow, and every program started from nothing (tests/programs.py)
#   bash scripts/test.sh ARGUMENTS   handed to pytest, e.g. tests/models -k loss
# TEST_WORKERS=N: N files are tested at a time (2: most of the time goes into programs that start on one core).
set -euo pipefail
source "$(dirname "$0")/environment.sh"
make_environment "[test]"
cd "$repo"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
