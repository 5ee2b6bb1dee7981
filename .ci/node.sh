#!/bin/sh
# Node's ADB clients, which the tests use, into .venv/node; nothing to do when they are there.
set -eu
cd "$(dirname "$0")/.."
wanted=tests/adb/node/package.json
target=.venv/node
[ -e "$target/.ready" ] && cmp -s "$wanted" "$target/package.json" && exit 0
if ! command -v npm >/dev/null 2>&1; then
    echo "anbox-tw: no npm, so the tests with Node's ADB clients are left out"
    exit 0
fi
mkdir -p "$target"
rm -f "$target/.ready"
cp "$wanted" "$target/package.json"
echo "anbox-tw: installing Node's ADB clients"
npm install --prefix "$target" --no-audit --no-fund --no-package-lock --ignore-scripts --silent
touch "$target/.ready"
