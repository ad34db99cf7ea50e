# Sourced by the scripts beside it: makes a virtual environment once and installs mindgpt into it.
#   make_environment EXTRAS      EXTRAS is "" or like "[test]"; $VENV is the folder (default .venv in the checkout)
# Afterwards $PYTHON is its interpreter. PYTHON=/path/to/python3.11 chooses the one to make it with.
#   absolute PATH                the path as the caller means it, for a script that changes the folder

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)

absolute() {
    case $1 in
    "~" | "~/"*) printf '%s\n' "$HOME${1#"~"}" ;;
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
    esac
}

VENV=$(absolute "${VENV:-$repo/.venv}")

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

# A run that was interrupted, or a Python without ensurepip, leaves an environment that has no pip.
venv_works() { [ ! -e "$VENV/.unfinished" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }

make_venv() {
    local base
    if venv_works; then return; fi
    if [ ! -e "$VENV/.unfinished" ] && "$VENV/bin/python" -m ensurepip >/dev/null 2>&1 && venv_works; then
        echo "the virtual environment $VENV had no pip: added"
        return
    fi
    if [ -e "$VENV" ] && [ ! -d "$VENV" ]; then
        echo "error: $VENV is a file; name a folder with VENV=folder" >&2
        exit 2
    fi
    if [ -d "$VENV" ] && [ -n "$(ls -A "$VENV")" ]; then
        if [ ! -e "$VENV/pyvenv.cfg" ] && [ ! -e "$VENV/.unfinished" ]; then
            echo "error: $VENV is a folder, and no virtual environment; name another with VENV=folder" >&2
            exit 2
        fi
        echo "the virtual environment $VENV is broken or unfinished: making it again"
    fi
    base=$(find_python) || exit 2
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "error: $base cannot make virtual environments: it has no ensurepip or venv." >&2
        echo "Debian and Ubuntu: apt install python3-venv; or set PYTHON=/path/to/another" >&2
        exit 2
    fi
    rm -rf "$VENV"
    mkdir -p "$VENV"
    touch "$VENV/.unfinished"
    echo "making a virtual environment in $VENV with $base"
    "$base" -m venv "$VENV"
    rm "$VENV/.unfinished"
    if ! venv_works; then
        echo "error: $base made an environment without pip in $VENV; set PYTHON=/path/to/another" >&2
        exit 2
    fi
}

make_environment() {
    local stamp
    make_venv
    PYTHON=$VENV/bin/python
    stamp=$VENV/.installed$1
    if [ ! -f "$stamp" ] || [ "$repo/pyproject.toml" -nt "$stamp" ]; then
        echo "installing mindgpt$1 (MindSpore is about 400 MB to download, once)"
        if ! "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$repo$1"; then
            echo "error: pip could not install mindgpt$1 into $VENV; run this again once the reason above is gone" >&2
            exit 1
        fi
        touch "$stamp"
    fi
}
