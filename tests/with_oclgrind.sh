#!/bin/sh
# Runs a command on Oclgrind's simulated device and fails on any out-of-bounds access, data race, or misuse that it reports.
#
#   tests/with_oclgrind.sh COMMAND...         for example: tests/with_oclgrind.sh BUILD/tests/check/check_ops opencl act
#
# Exit 77 without oclgrind. The command sees no device but the simulated one. First a kernel with a race is tried, which must be found.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: with_oclgrind.sh COMMAND..." >&2
    exit 2
fi
if ! command -v oclgrind >/dev/null || ! command -v oclgrind-kernel >/dev/null; then
    echo "with_oclgrind.sh: SKIP: oclgrind is not installed" >&2
    exit 77
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM

echo '__kernel void race(__global int *p) { p[0] = p[1] + (int)get_global_id(0); }' >"$tmp/race.cl"
printf '%s\nrace\n64 1 1\n64 1 1\n<size=8 fill=0>\n' "$tmp/race.cl" >"$tmp/race.sim"
oclgrind-kernel --data-races "$tmp/race.sim" >"$tmp/race.log" 2>&1 || true
if ! grep -q 'data race' "$tmp/race.log"; then
    echo "with_oclgrind.sh: the race in the trial kernel was not found:" >&2
    head -n 20 "$tmp/race.log" >&2
    exit 1
fi

: >"$tmp/log"
status=0
oclgrind --data-races --max-errors 40 --log "$tmp/log" "$@" || status=$?
if [ -s "$tmp/log" ]; then
    echo "with_oclgrind.sh: oclgrind reports:" >&2
    head -n 120 "$tmp/log" >&2
    exit 1
fi
exit $status
