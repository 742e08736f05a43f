#!/usr/bin/env bash
# install_check.sh BUILD PREFIX: public headers compile alone as C and C++; the installed library is found and used through pkg-config, exports
# dfcl_ names only.
set -euo pipefail
build=$1 prefix=$2
root=$(cd "$(dirname "$0")/.." && pwd)
for header in "$root"/include/difffit-cl/*.h; do
    printf '#include <difffit-cl/%s>\nint main(void) { return 0; }\n' "$(basename "$header")" > "$build/header.c"
    gcc -std=c11 -Wall -Wextra -Wpedantic -Werror -I"$root/include" -c "$build/header.c" -o "$build/header.o"
    g++ -std=c++17 -x c++ -Wall -Wextra -Wpedantic -Werror -I"$root/include" -c "$build/header.c" -o "$build/header.o"
done
rm -rf "$prefix"
DESTDIR=$prefix meson install -C "$build" --no-rebuild > /dev/null
pc=$(dirname "$(find "$prefix" -name difffit-cl.pc)")
lib=$(dirname "$(find "$prefix" -name 'libdifffit-cl.so')")
cat > "$build/use.c" << 'C'
#include <difffit-cl/dfcl.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    dfcl_context *ctx = NULL;
    dfcl_error err = {0};
    int n = 0, found = 0;
    struct dfcl_device_info list[64];
    if (dfcl_context_create(&ctx, NULL, &err) || dfcl_device_list(ctx, list, 64, &n, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    for (int i = 0; i < n && i < 64; i++)
        found |= !strcmp(list[i].selector, "host");
    dfcl_context_destroy(&ctx);
    return !found;
}
C
export PKG_CONFIG_PATH=$pc PKG_CONFIG_SYSROOT_DIR=$prefix
# shellcheck disable=SC2046
gcc -std=c11 -Wall -Werror "$build/use.c" -o "$build/use" $(pkg-config --cflags --libs difffit-cl)
LD_LIBRARY_PATH=$lib "$build/use"
foreign=$(nm -D --defined-only "$lib/libdifffit-cl.so" | awk '$2 != "A" {print $3}' | grep -v '^dfcl_' || true)
[ -z "$foreign" ] || { echo "exported without dfcl_: $foreign"; exit 1; }
demo=$(find "$prefix" -path '*difffit-cl/demo/base.safetensors')
[ -n "$demo" ] || { echo "the demo's base was not installed"; exit 1; }
