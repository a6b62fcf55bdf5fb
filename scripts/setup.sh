# Sourced by the scripts beside it: what they share, first of all finding Python and installing what is needed, once.

ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# given FLAG [arguments]: print the last value that the arguments have for a flag, or fail. As the program reads them:
# --some-flag is --some_flag, and a flag without a value is True.
given() {
    local flag=$1 name value
    shift
    while (($#)); do
        name=${1%%=*}
        if [[ ${name//-/_} == "__$flag" ]]; then
            if [[ $1 == *=* ]]; then
                value=${1#*=}
            elif [[ $# == 1 || $2 == --* ]]; then
                value=True
            else
                value=$2
            fi
        fi
        shift
    done
    [[ -v value ]] && printf '%s' "$value"
}

# is_true VALUE: whether the program takes it for True.
is_true() {
    [[ ${1,,} =~ ^(true|t|yes|y|1)$ ]]
}

# Whether conda's environment is one that was made for something: its base is where conda itself lives.
in_named_conda() {
    [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} != base && ! -d $CONDA_PREFIX/condabin ]]
}

# Set PYTHON: the one given in the environment, the active environment's, the repository's .venv, or the system's.
# Conda's base counts as the system: nobody wants 5 GB in it unasked.
find_python() {
    local prefix=${VIRTUAL_ENV:-}
    if [[ -z $prefix ]] && in_named_conda; then
        prefix=$CONDA_PREFIX
    fi
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
    for name in python3 python python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH; install one (for example: apt-get install python3.11 python3.11-venv)"
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# setup_environment EXTRAS: set PYTHON to one that has the requirements and the named extras of pyproject.toml.
# Makes .venv if no environment is active. A stamp in the environment tells what was installed, so that a second call
# with the same files installs nothing.
setup_environment() {
    local extras=$1 hash stamp
    find_python
    if [[ $PYTHON == "$ROOT/.venv/bin/python" ]] && ! is_new_enough "$PYTHON"; then
        fail "$ROOT/.venv is not of Python 3.11 or newer; remove it and run this again"
    fi
    is_new_enough "$PYTHON" || fail "$PYTHON is not Python 3.11 or newer; activate an environment that is, or deactivate it"
    if [[ $("$PYTHON" -c 'import sys; print(sys.prefix == sys.base_prefix)') == True ]] && ! in_named_conda; then
        echo "making $ROOT/.venv with $PYTHON; for commands of your own: source $ROOT/.venv/bin/activate"
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
