#!/bin/sh
# Build the wheel, install it in a fresh venv outside the checkout, and start and stop each twistd command from there.
set -eu
here=$(pwd)
python=${PYTHON_OF_CHECKS:-$here/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
git ls-files -z | tar --null --files-from=- --create --file=- | (mkdir "$work/source" && tar --extract --directory="$work/source")
"$python" -m build --quiet --wheel --no-isolation --outdir "$work/dist" "$work/source" >/dev/null
wheel=$(ls "$work"/dist/*.whl)
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[netd,dbus,compress]"
cd /
"$work/venv/bin/python" "$here/.ci/smoke.py" "$work/venv/bin"
