# Sourced by the scripts beside it: what they share, first of all finding Python and installing what is needed, once.

ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# given FLAG [arguments]: print the last value that the arguments have for a flag, or fail.
given() {
    local flag=$1 value
    shift
    while (($#)); do
        case $1 in
            "--$flag") value=${2-} ;;
            "--$flag="*) value=${1#*=} ;;
        esac
        shift
    done
    [[ -v value ]] && printf '%s' "$value"
}

# Set PYTHON: the one given in the environment, the active environment's, the repository's .venv, or the system's.
find_python() {
    local prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [[ -n ${PYTHON:-} ]]; then
        return
    elif [[ -n $prefix ]]; then
        PYTHON=$prefix/bin/python
    elif [[ -x $ROOT/.venv/bin/python ]]; then
        PYTHON=$ROOT/.venv/bin/python
    else
        PYTHON=$(system_python)
    fi
}

# Print the first Python on PATH that is new enough.
system_python() {
    local name
    for name in python3 python python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null && is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.10 or newer on PATH; install one (for example: apt-get install python3 python3-venv)"
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# setup_environment EXTRAS: set PYTHON to one that has the requirements and the named extras of pyproject.toml.
# Makes .venv if no environment is active. A stamp in the environment tells what was installed, so that a second call
# with the same files installs nothing.
setup_environment() {
    local extras=$1 hash stamp
    find_python
    is_new_enough "$PYTHON" || fail "$PYTHON is not Python 3.10 or newer"
    if [[ $("$PYTHON" -c 'import sys; print(sys.prefix == sys.base_prefix)') == True && -z ${CONDA_PREFIX:-} ]]; then
        echo "making $ROOT/.venv with $PYTHON"
        "$PYTHON" -m venv "$ROOT/.venv" || fail "$PYTHON cannot make environments; on Debian: apt-get install python3-venv"
        PYTHON=$ROOT/.venv/bin/python
    fi
    hash=$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" - <<<"$ROOT $extras" | sha256sum | cut -c 1-16)
    stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.qwenvl-installed-$hash
    if [[ -e $stamp ]]; then
        return
    fi
    echo "installing requirements.txt and the extras $extras into $(dirname -- "$stamp") (some 5 GB, once)"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet -r "$ROOT/requirements.txt" -e "$ROOT[$extras]" ||
        fail "pip could not install the requirements; its message is above"
    touch "$stamp"
}
