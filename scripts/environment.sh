# Sourced by the scripts beside it: makes a virtual environment once and installs mindgpt into it.
#   make_environment EXTRAS      EXTRAS is "" or like "[test]"; $VENV is the folder (default .venv in the checkout)
# Afterwards $PYTHON is its interpreter. PYTHON=/path/to/python3.11 chooses the one to make it with.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$repo/.venv}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.10 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: mindgpt needs Python 3.10, 3.11 or 3.12 (MindSpore has no wheel for others); set PYTHON=/path/to/it" >&2
    return 1
}

make_environment() {
    local base stamp
    if [ ! -x "$VENV/bin/python" ]; then
        base=$(find_python) || exit 2
        echo "making a virtual environment in $VENV with $base"
        "$base" -m venv "$VENV"
    fi
    PYTHON=$VENV/bin/python
    stamp=$VENV/.installed$1
    if [ ! -f "$stamp" ] || [ "$repo/pyproject.toml" -nt "$stamp" ]; then
        echo "installing mindgpt$1 (MindSpore is about 400 MB to download, once)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$repo$1"
        touch "$stamp"
    fi
}
