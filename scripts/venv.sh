# Sourced by the scripts here: makes or reuses the virtual environment in .venv at the root of the
# repository, with the package installed in it (editable), and sets $ROOT and $PYTHON.
# EXTRAS names the optional dependency groups of pyproject.toml that the script needs.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$ROOT/.venv/bin/python

venv_fail() {
    printf '%s\n' "$*" >&2
    exit 3
}

venv_setup() {
    local extras=${EXTRAS:-} stamp want
    command -v python3 >/dev/null || venv_fail "python3 is missing: apt-get install python3 python3-venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        venv_fail "python3 is $(python3 -V 2>&1); 3.10 or newer is needed"
    if [ ! -x "$PYTHON" ]; then
        python3 -c 'import ensurepip' 2>/dev/null ||
            venv_fail "the venv module is missing: apt-get install python3-venv"
        python3 -m venv "$ROOT/.venv" || venv_fail "cannot make $ROOT/.venv"
    fi
    stamp=$ROOT/.venv/.installed-$(printf '%s' "${extras:-none}" | tr -c 'a-z\n' '-')
    want=$(cksum <"$ROOT/pyproject.toml")
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check \
            --editable "$ROOT${extras:+[$extras]}" >&2 ||
            venv_fail "installing the Python packages failed; what pip said is above"
        printf '%s\n' "$want" >"$stamp"
    fi
}

venv_setup
