# Sourced by the other scripts: find Python, install what is needed (once), and read flags.

ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# given FLAG [arguments]: print the last value of a flag in the arguments, or fail if it is not there. As in the training
# program, --some-flag is --some_flag, and a flag without a value is True.
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

# is_true VALUE: whether the training program reads the value as True.
is_true() {
    [[ ${1,,} =~ ^(true|t|yes|y|1)$ ]]
}

# Whether a conda environment other than base is active.
in_named_conda() {
    [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} != base && ! -d $CONDA_PREFIX/condabin ]]
}

# Set PYTHON, unless it is set: to that of the active environment, of the repository's .venv, or of the system.
# Conda's base counts as the system, because the requirements are 5 GB and should not go there.
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

# Print the path of the first Python on PATH that is new enough.
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

# setup_environment EXTRAS: set PYTHON to one with the requirements and these extras of pyproject.toml installed.
# Creates .venv if no environment is active. A stamp file in the environment records what was installed, so that a second
# call with the same files installs nothing.
setup_environment() {
    local extras=$1 hash stamp
    find_python
    if [[ $PYTHON == "$ROOT/.venv/bin/python" ]] && ! is_new_enough "$PYTHON"; then
        fail "the Python of $ROOT/.venv is not Python 3.11 or newer; remove that folder and run this again"
    fi
    is_new_enough "$PYTHON" || fail "$PYTHON is not Python 3.11 or newer; activate another environment, or deactivate this one"
    if [[ $("$PYTHON" -c 'import sys; print(sys.prefix == sys.base_prefix)') == True ]] && ! in_named_conda; then
        echo "creating $ROOT/.venv with $PYTHON; to use it in your shell: source $ROOT/.venv/bin/activate"
        "$PYTHON" -m venv "$ROOT/.venv" || fail "$PYTHON cannot create environments; on Debian: apt-get install python3-venv"
        PYTHON=$ROOT/.venv/bin/python
    fi
    hash=$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" - <<<"$ROOT $extras" | sha256sum | cut -c 1-16)
    stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.qwenvl-installed-$hash
    if [[ -e $stamp ]]; then
        return
    fi
    echo "installing requirements.txt and the extras $extras into $(dirname -- "$stamp") (about 5 GB, only once)"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet -r "$ROOT/requirements.txt" -e "$ROOT[$extras]" ||
        fail "pip could not install the requirements; see its message above"
    touch "$stamp"
}
