#!/bin/sh
# Install what lock files name into a virtual environment: torch, then the rest. pip resolves nothing and takes no file
# whose hash is not in the lock files.
#   install.sh VENV FILE...     the first FILE names torch
# TORCH_INDEX       the index of torch's CPU wheels. Empty: the CPU build if pip finds it, else the build on PyPI (CUDA)
# TORCH_UNLOCKED=1  install torch TORCH_VERSION from TORCH_INDEX, whatever that brings, without checking hashes
set -eu
locks=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$1/bin/python
first=$2
shift
pip="$python -m pip install --quiet --disable-pip-version-check --no-input ${PIP_OPTIONS:-}"
index=${TORCH_INDEX:+--index-url $TORCH_INDEX}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

lock() { # one requirements file of what lock.py prints
    "$python" "$locks/lock.py" "$@" > "$folder/$1"
}

install() {
    lock "$1" "$first"
    # shellcheck disable=SC2086  # words
    $pip --require-hashes --no-deps $index --requirement "$folder/$1"
}

lock torch "$first"
version=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$folder/torch")
if [ "${TORCH_UNLOCKED:-}" = 1 ]; then
    echo "torch ${TORCH_VERSION:-$version} and the CUDA libraries it brings are installed without a check of their hashes" >&2
    lock names "$first"
    # shellcheck disable=SC2086
    $pip --constraint "$folder/names" $index "torch==${TORCH_VERSION:-$version}"
    # its own CUDA libraries are in place
    lock rest "$@"
    sed -i -E '/^(nvidia-|cuda-|triton)/,/[^\\]$/d' "$folder/rest"
elif [ "${TORCH_VERSION:-$version}" != "$version" ]; then
    echo "install.sh: torch $TORCH_VERSION is not in $first, so its hash cannot be checked. TORCH_UNLOCKED=1 installs it all the same." >&2
    exit 2
else
    if [ -n "$index" ]; then
        install torch-cpu
    else
        install torch-cpu 2> /dev/null || install torch
    fi
    lock rest "$@"
fi
$pip --require-hashes --no-deps --requirement "$folder/rest"
