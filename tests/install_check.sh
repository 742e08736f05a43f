#!/usr/bin/env bash
# install_check.sh BUILD [DEVICE]: what is installed works by itself. Public headers compile alone as C and C++; in a clean directory the examples are built
# against the installed library through pkg-config, and run; the library exports all that the headers declare and nothing else; manual pages, completions and
# the interface's description are there.
set -euo pipefail
build=$1 device=${2:-host}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
fail() { echo "$*" && exit 1; }
command -v pkg-config > /dev/null || { echo "pkg-config is not installed" && exit 77; }
command -v c++ > /dev/null || { echo "no C++ compiler is installed" && exit 77; }
cc=${CC:-cc} cxx=${CXX:-c++}

DESTDIR=$prefix meson install -C "$build" --no-rebuild > /dev/null
pc=$(dirname "$(find "$prefix" -name difffit-cl.pc)")
lib=$(dirname "$(find "$prefix" -name 'libdifffit-cl.so')")
share=$(dirname "$(find "$prefix" -path '*share/difffit-cl')")
export PKG_CONFIG_PATH=$pc PKG_CONFIG_SYSROOT_DIR=$prefix LD_LIBRARY_PATH=$lib XDG_CACHE_HOME=$work/cache
cflags=$(pkg-config --cflags difffit-cl)
libs=$(pkg-config --libs difffit-cl)

mkdir "$work/clean"
cd "$work/clean"
for header in "$root"/include/difffit-cl/*.h; do
    printf '#include <difffit-cl/%s>\nint main(void) { return 0; }\n' "$(basename "$header")" > header.c
    # shellcheck disable=SC2086
    $cc -std=c11 -Wall -Wextra -Wpedantic -Werror $cflags -c header.c -o header.o
    # shellcheck disable=SC2086
    $cxx -std=c++17 -x c++ -Wall -Wextra -Wpedantic -Werror $cflags -c header.c -o header.o
done

cp "$share"/doc/difffit-cl/examples/* .
# shellcheck disable=SC2086
$cc -std=c11 -Wall -Wextra -Wpedantic -Werror finetune.c -o finetune $cflags $libs
# shellcheck disable=SC2086
$cc -std=c11 -Wall -Wextra -Wpedantic -Werror memory.c -o memory $cflags $libs -lm
# shellcheck disable=SC2086
$cxx -std=c++17 -Wall -Wextra -Wpedantic -Werror domains.cpp -o domains $cflags $libs
"$(find "$prefix" -path '*bin/difffit-cl')" init --depth 2 --hidden 32 --heads 2 --patch 2 --input 8 --channels 1 --classes 10 --scale 0.1 --quiet \
    --out base.safetensors
digits=$share/difffit-cl/demo/digits/heldout
for run in a b; do
    ./finetune base.safetensors "$digits" $run $run.png "$device" 3 > $run.log || fail "finetune: $(cat $run.log)"
    grep -q '^step 3: loss' $run.log || fail "finetune: expected three steps, found: $(cat $run.log)"
done
cmp a/delta.safetensors b/delta.safetensors # the same seed, the same bits
./memory base.safetensors m "$device" 3 > m.log || fail "memory: $(cat m.log)"
grep -q '^on pictures not trained on: loss' m.log || fail "memory: expected a held-out loss, found: $(cat m.log)"
./domains "$device" base.safetensors domains.png a/delta.safetensors b/delta.safetensors > domains.log || fail "domains: $(cat domains.log)"
grep -q '^host ' domains.log || fail "domains: expected the device host, found: $(cat domains.log)"
python3 - << 'PY'
# Rows of domains.png: the base, the delta, the same delta again.
import struct, zlib
data, at, rows, head = open("domains.png", "rb").read(), 8, b"", None
while at < len(data):
    n, kind = struct.unpack(">I4s", data[at:at + 8])
    body = data[at + 8:at + 8 + n]
    head = struct.unpack(">IIBB", body[:10]) if kind == b"IHDR" else head
    rows += body if kind == b"IDAT" else b""
    at += 12 + n
width, height, bits, colour = head
assert (bits, colour) == (8, 0) and height % 3 != 0, head
raw, lines = zlib.decompress(rows), []
for y in range(height):  # the five filters of PNG
    f, line = raw[y * (width + 1)], list(raw[y * (width + 1) + 1:(y + 1) * (width + 1)])
    up = lines[-1] if lines else [0] * width
    for x in range(width):
        a, b, c = line[x - 1] if x else 0, up[x], up[x - 1] if x else 0
        p = a + b - c
        paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        line[x] = (line[x] + (0, a, b, (a + b) // 2, paeth)[f]) & 255
    lines.append(line)
step = (height - 2) // 3
base, one, two = (lines[2 + i * step:(i + 1) * step] for i in range(3))
assert one == two, "two domains of the same delta differ"
assert base != one, "a domain is the base"
PY
code=0
./domains "$device" none.safetensors x.png 2> bad.log > /dev/null || code=$?
[ $code -eq 7 ] && grep -q none.safetensors bad.log || fail "domains: expected 7 and the file's name, found $code: $(cat bad.log)"

nm -D --defined-only "$lib/libdifffit-cl.so" | awk '$2 != "A" {print $3}' | sort > exported
python3 "$root/tools/make_api.py" --names "$root"/include/difffit-cl/*.h | sort > declared
diff declared exported > symbols.diff || fail "declared (<) and exported (>) names differ: $(cat symbols.diff)"
for file in man/man1/difffit-cl.1 man/man1/difffit-bench.1 bash-completion/completions/difffit-cl.bash bash-completion/completions/difffit-bench.bash \
    zsh/site-functions/_difffit-cl zsh/site-functions/_difffit-bench doc/difffit-cl/api.md; do
    [ -s "$share/$file" ] || fail "share/$file was not installed"
done
while read -r name; do
    grep -q "### .*\`$name\`" "$share/doc/difffit-cl/api.md" || fail "api.md: no $name"
done < declared
echo "$(wc -l < declared) functions, 3 examples"
