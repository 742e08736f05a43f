#!/usr/bin/env bash
# Installs what is needed (Debian, Ubuntu), builds and runs the tests.
#   tools/test.sh [--full]
# --full also: clang, sanitizers, Intel's OpenCL runtime for CPUs, NVRTC, oclgrind, the installed library, the documentation check.
# What cannot be had is skipped and counted. The last line is the sum.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
full=0
case "${1-}" in
'') ;;
--full) full=1 ;;
*)
    echo "usage: tools/test.sh [--full]" >&2
    exit 2
    ;;
esac
# shellcheck disable=SC2086
install_packages $build_packages g++ libcmocka-dev python3
if [ $full = 1 ]; then
    install_packages clang valgrind oclgrind python3-venv python3-pip
    # The sanitizers' runtime is a package of its own where clang's release says so (Debian 12 on), part of clang elsewhere.
    major=$(clang -dumpversion | cut -d. -f1)
    if apt-cache show "libclang-rt-$major-dev" > /dev/null 2>&1; then
        install_packages "libclang-rt-$major-dev"
    fi
fi
work=$root/build
mkdir -p "$work"
passed=0 failed=0 skipped=0
export MESON_TESTTHREADS=${MESON_TESTTHREADS:-1} # kernels use every core already

# count DIR : adds the results of the last `meson test` in DIR; names what failed.
count() {
    local sums
    sums=$(python3 - "$1/meson-logs/testlog.json" << 'PY'
import json, sys
ok = bad = skip = 0
for line in open(sys.argv[1], encoding="utf-8"):
    t = json.loads(line)
    r = t["result"]
    if r in ("OK", "EXPECTEDFAIL"):
        ok += 1
    elif r == "SKIP":
        skip += 1
        print(f"skipped: {t['name']}", file=sys.stderr)
    else:
        bad += 1
        print(f"FAILED ({r}): {t['name']}\n{t.get('stdout','')[-3000:]}\n{t.get('stderr','')[-3000:]}", file=sys.stderr)
print(ok, bad, skip)
PY
    )
    read -r ok bad skip <<< "$sums"
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    echo "-- $ok passed, $bad failed, $skip skipped"
}

# step NAME COMMAND... : one result; exit code 77 is a skip.
step() {
    local name=$1 code=0
    shift
    "$@" > "$work/step.log" 2>&1 || code=$?
    case $code in
    0) passed=$((passed + 1)) && echo "ok: $name" ;;
    77) skipped=$((skipped + 1)) && echo "skipped: $name: $(tail -n 1 "$work/step.log")" ;;
    *) failed=$((failed + 1)) && echo "FAILED: $name" && tail -n 40 "$work/step.log" ;;
    esac
}

build() { ninja -C "$1" > "$1.log" 2>&1; }

# suite DIR [meson test options]
suite() {
    local dir=$1
    shift
    rm -f "$dir/meson-logs/testlog.json"
    meson test -C "$dir" --no-rebuild --print-errorlogs "$@" > "$dir.tests.log" 2>&1 || true
    count "$dir"
}

say "gcc: build and test"
configure "$work/gcc" --buildtype=release --werror -Dtests=enabled
step "gcc builds without warnings" build "$work/gcc"
suite "$work/gcc"

if [ $full = 1 ]; then
    . "$root/tools/test_full.sh"
fi

say "sum"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
