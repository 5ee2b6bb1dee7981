#!/bin/sh
# Make .venv and install this checkout into it: `venv.sh run` what a user needs, `venv.sh dev` what tests and checks need.
set -eu
what=${1:-run}
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || { echo "anbox-tw: $python not found; install Python 3.11 or newer" >&2; exit 6; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "anbox-tw: $("$python" --version) is too old; Python 3.11 or newer is needed (make PYTHON=/path/to/python3.11 ...)" >&2
    exit 6
}
if [ ! -x .venv/bin/pip ]; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian ships Python's venv module as a package of its own.
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            echo "anbox-tw: installing python3-venv"
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
        else
            echo "anbox-tw: this Python has no venv module; run: sudo apt install python3-venv" >&2
            exit 6
        fi
    fi
    echo "anbox-tw: making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi
case $what in
    run) extras="compress,netd" ;;
    dev) extras="dev" ;;
    *) echo "usage: venv.sh run|dev" >&2; exit 2 ;;
esac
echo "anbox-tw: installing anbox-tw[$extras] into .venv (a minute the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
touch ".venv/.ready-$what"
[ "$what" != dev ] || touch .venv/.ready-run
