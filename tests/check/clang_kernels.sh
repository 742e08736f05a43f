#!/bin/sh
# Reads every kernel file with clang's OpenCL front end, warnings being errors, for the targets that other vendors' compilers are made of.
#
#   clang_kernels.sh CLANG SOURCE_ROOT        exit 77 when CLANG cannot compile OpenCL C for any target
#
# Option sets come from cl/build_options. Portable files: spir64, amdgcn, nvptx64; _cpu files: the host's own target.
set -u
clang=$1
root=$2
flags="-x cl -cl-std=CL1.2 -Xclang -finclude-default-header -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -Wno-sign-compare"
flags="$flags -include $root/cl/prelude_cl.h -include $root/cl/dialect.h -emit-llvm -S -o /dev/null"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM

options_of() {
    case $1 in
    amdgcn*) echo "-target $1 -nogpulib" ;;                     # no bitcode library: the text is not linked
    nvptx64) echo "-target $1 -Xclang -cl-ext=+cl_khr_fp16" ;;  # clang's header hides vload_half from it otherwise
    x86_64*) echo "-target $1 -include $root/cl/prelude_cpu.h -Wno-psabi" ;;
    *) echo "-target $1" ;;
    esac
}
# A target counts when it takes the smallest kernel.
echo '__kernel void k(__global float *p) { p[get_global_id(0)] = fma(p[0], 2.0f, exp(p[1])); }' >"$tmp/empty.cl"
portable=
for t in spir64 amdgcn-amd-amdhsa nvptx64; do
    if "$clang" $(options_of $t) $flags "$tmp/empty.cl" 2>/dev/null; then
        portable="$portable $t"
    fi
done
if [ -z "$portable" ]; then
    echo "SKIP: $clang compiles OpenCL C for none of the targets"
    exit 77
fi
# A text that must fail, so that a pass means something.
echo 'DFCL_KERNEL(1, 1, 1) k(GLOBAL float *p) { int unused; p[0] = q; }' >"$tmp/bad.cl"
for t in $portable; do
    if "$clang" $(options_of $t) $flags "$tmp/bad.cl" 2>/dev/null; then
        echo "FAIL: $t takes a text with an unknown name"
        exit 1
    fi
done

count=0
failures=0
check() { # target file options...
    target=$1
    file=$2
    shift 2
    count=$((count + 1))
    if ! "$clang" $flags $(options_of "$target") "$@" "$file" 2>"$tmp/log"; then
        failures=$((failures + 1))
        echo "FAIL $target $(basename "$file") [$*]"
        head -n 6 "$tmp/log"
    fi
}
check_set() { # stem options...
    stem=$1
    shift
    case $1 in
    @avx512_bf16) # inline assembly is checked against the target
        shift
        set -- -mavx512f -mavx512bf16 "$@"
        ;;
    @*) shift ;;
    esac
    file=$root/cl/$stem.cl
    [ -e "$file" ] || return 0 # a .cu file
    case $stem in
    *_cpu) check x86_64-linux-gnu "$file" "$@" ;;
    *) for t in $portable; do check $t "$file" "$@"; done ;;
    esac
}
named=" "
while read -r stem options; do
    case $stem in '' | '#'*) continue ;; esac
    named="$named$stem "
    # The first word may be a feature; the dash keeps $1 from being empty.
    set -- $options
    [ $# -gt 0 ] || set -- -DDFCL_NO_OPTIONS
    check_set "$stem" "$@"
done <"$root/cl/build_options"
for file in "$root"/cl/*.cl; do
    stem=$(basename "$file" .cl)
    case $named in *" $stem "*) ;; *) check_set "$stem" -DDFCL_NO_OPTIONS ;; esac
done
echo "$("$clang" --version | head -n 1): targets$portable: $count compilations, $failures failures"
[ $failures -eq 0 ]
