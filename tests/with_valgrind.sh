#!/usr/bin/env bash
# Trains a tiny base for two steps on the first OpenCL device and samples from it under valgrind; fails on any error or definite leak.
#
#   tests/with_valgrind.sh BUILD/tools/difffit-cl/difffit-cl
#
# Exit 77 without valgrind or device. Kernels are built beforehand under valgrind's `none` tool, which shows the same processor: the compiler alone
# takes minutes under memcheck. tests/valgrind.supp names what is not ours.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: with_valgrind.sh PATH/TO/difffit-cl" >&2; exit 2; }
cli=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
command -v valgrind > /dev/null || { echo "with_valgrind.sh: SKIP: valgrind is not installed"; exit 77; }
"$cli" devices | grep -q opencl || { echo "with_valgrind.sh: SKIP: no OpenCL device"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
cd "$tmp"
export XDG_CACHE_HOME=$tmp/cache POCL_CACHE_DIR=$tmp/pocl
mkdir "$POCL_CACHE_DIR"
"$cli" init --depth 1 --hidden 16 --heads 2 --patch 2 --input 4 --channels 1 --classes 2 --scale 0.1 --out base.safetensors > log
mkdir -p data/a data/b
for c in a b; do # a grey picture of 4 x 4, from the random base
    "$cli" sample --model base.safetensors --classes 0 -n 1 --steps 2 --sampler ddim --device host --seed "$(printf %d "'$c")" --out "data/$c/0.png" > log 2>&1
done
train() { rm -rf run && "$@" "$cli" train --model base.safetensors --data data --out run --steps 2 --batch 2 --device opencl:0; }
sample() { "$@" "$cli" sample --model base.safetensors --delta run/delta.safetensors --classes a,b -n 2 --steps 2 --sampler ddim --out grid.png --device opencl:0; }
check=(valgrind --error-exitcode=99 --leak-check=full --show-leak-kinds=definite,indirect --errors-for-leak-kinds=definite,indirect
    --num-callers=30 --suppressions="$here/valgrind.supp" --log-file="$tmp/log.%p")
for part in train sample; do
    $part valgrind --tool=none > log 2>&1 || { tail -n 20 log; exit 1; }
    code=0
    $part "${check[@]}" > log 2>&1 || code=$?
    if [ $code -ne 0 ]; then
        echo "with_valgrind.sh: $part ended with $code"
        tail -n 5 log
        cat "$tmp"/log.[0-9]*
        exit 1
    fi
    tail -qn 1 "$tmp"/log.[0-9]* | sed "s/==[0-9]*==/$part:/"
    rm -f "$tmp"/log.[0-9]*
done
