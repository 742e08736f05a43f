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
work=$root/build
mkdir -p "$work"
passed=0 failed=0 skipped=0 finished=0
cores=$(nproc)
export MESON_TESTTHREADS=${MESON_TESTTHREADS:-1} # kernels use every core already

# cpu : user and system seconds of everything run so far.
cpu() {
    times > "$work/times"
    awk 'NR == 2 {split($1, u, /[ms]/); split($2, s, /[ms]/); printf "%d", 60 * (u[1] + s[1]) + u[2] + s[2]}' "$work/times"
}

# stage TITLE : ends the stage before with what it took.
stage_cpu=0 stage_start=$SECONDS stage_open=0
stage() {
    local now
    cpu > "$work/cpu" # not in $(), where the shell's children are not counted
    now=$(cat "$work/cpu")
    [ $stage_open = 0 ] || echo "   took $((SECONDS - stage_start)) s, $((now - stage_cpu)) s of processor time"
    stage_cpu=$now stage_start=$SECONDS stage_open=1
    say "$1"
}

sum() {
    local code=$?
    [ $finished = 1 ] || { echo "stopped before its end" && failed=$((failed + 1)); }
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $code -eq 0 ] && [ $failed -eq 0 ] && exit 0
    exit 1
}
trap sum EXIT

# count DIR : adds the results of the last `meson test` in DIR; names what was skipped or failed.
count() {
    local sums ok bad skip
    sums=$(python3 - "$1/meson-logs/testlog.json" << 'PY'
import json, sys
ok = bad = skip = 0
for line in open(sys.argv[1], encoding="utf-8"):
    t = json.loads(line)
    r, out, err = t["result"], t.get("stdout", ""), t.get("stderr", "")
    if r in ("OK", "EXPECTEDFAIL"):
        ok += 1
    elif r == "SKIP":
        skip += 1
        print(f"skipped: {t['name']}: {((out + err).strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
    else:
        bad += 1
        print(f"FAILED ({r}): {t['name']}\n{out[-3000:]}\n{err[-3000:]}", file=sys.stderr)
print(ok, bad, skip)
PY
    )
    read -r ok bad skip <<< "$sums"
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    echo "-- $ok passed, $bad failed, $skip skipped"
}

# step NAME COMMAND... : one result; exit code 77 is a skip. True when it passed.
step() {
    local name=$1 code=0
    shift
    "$@" > "$work/step.log" 2>&1 || code=$?
    case $code in
    0) passed=$((passed + 1)) && echo "ok: $name" ;;
    77) skipped=$((skipped + 1)) && echo "skipped: $name: $(tail -n 1 "$work/step.log")" ;;
    *) failed=$((failed + 1)) && echo "FAILED: $name" && tail -n 40 "$work/step.log" ;;
    esac
    [ $code -eq 0 ]
}

# make_build COMPILER DIR OPTION... [-- TARGET...]
make_build() {
    local compiler=$1 dir=$2 options=()
    shift 2
    command -v "$compiler" || { echo "$compiler is not installed"; return 77; }
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        case $1 in
        -Db_sanitize=*)
            echo 'int main(void) { return 0; }' | "$compiler" "-fsanitize=${1#*=}" -x c -o "$work/sanitized" - ||
                { echo "$compiler has no runtime for ${1#*=}"; return 77; }
            ;;
        esac
        options+=("$1")
        shift
    done
    [ $# -eq 0 ] || shift
    CC=$compiler configure "$dir" "${options[@]}" && ninja -C "$dir" "$@"
}

# suite DIR [meson test options]
suite() {
    local dir=$1
    shift
    rm -f "$dir/meson-logs/testlog.json"
    meson test -C "$dir" --no-rebuild "$@" > "$dir.tests.log" 2>&1 || true
    if [ -s "$dir/meson-logs/testlog.json" ]; then
        count "$dir"
    else
        failed=$((failed + 1))
        echo "FAILED: no test ran in $dir" && tail -n 20 "$dir.tests.log"
    fi
}

gcc_build() { step "gcc builds without warnings" make_build gcc "$work/gcc" --buildtype=release --werror -Dtests=enabled; }
gcc_suites() {
    stage "tests on the host and on PoCL"
    suite "$work/gcc" --timeout-multiplier 2 --no-suite kernels
    # One thread each, so as many at a time as there are cores.
    stage "kernels: every set of options through PoCL, clang and NVRTC; oclgrind"
    MESON_TESTTHREADS=$cores suite "$work/gcc" --timeout-multiplier 2 --suite kernels
}

# shellcheck disable=SC2086
install_packages $build_packages g++ libcmocka-dev python3
if [ $full = 1 ]; then
    . "$root/tools/test_full.sh"
else
    stage "gcc: build"
    if gcc_build; then
        gcc_suites
    fi
fi

stage "sum"
finished=1
