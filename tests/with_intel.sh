#!/bin/sh
# Runs a command under Intel's OpenCL CPU runtime from the Python wheels intel-opencl-rt and intel-cmplr-lib-rt (any x86-64 processor).
#
#   tests/with_intel.sh VENV COMMAND...          VENV: the virtual environment's folder, or its site-packages
#
# Exit 77 when the runtime is not there. Only Intel's platform is visible to the command.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: with_intel.sh VENV COMMAND..." >&2
    exit 2
fi
venv=$1
shift
lib=
for dir in "$venv/lib" "$venv" "$venv/../../.." "$venv/../.."; do
    for file in "$dir/libintelocl.so" "$dir/lib/libintelocl.so"; do
        [ -z "$lib" ] && [ -e "$file" ] && lib=$(cd "$(dirname "$file")" && pwd)
    done
done
if [ -z "$lib" ]; then
    echo "with_intel.sh: SKIP: no libintelocl.so under $venv" >&2
    exit 77
fi
icd=$(mktemp -d)
trap 'rm -rf "$icd"' EXIT INT TERM
echo "$lib/libintelocl.so" >"$icd/intel.icd"
OCL_ICD_VENDORS=$icd LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$@"
