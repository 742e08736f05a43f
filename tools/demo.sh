#!/usr/bin/env bash
# Installs what is needed (Debian, Ubuntu), builds, and runs the demo on the best device found.
#   tools/demo.sh [options of `difffit-cl demo`]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2086
install_packages $build_packages
say "building"
mkdir -p "$root/build"
configure "$root/build/release" --buildtype=release
ninja -C "$root/build/release" > "$root/build/build.log" 2>&1 || { tail -n 40 "$root/build/build.log"; exit 1; }
say "devices"
"$root/build/release/tools/difffit-cl/difffit-cl" devices
say "demo"
cd "$root"
exec "$root/build/release/tools/difffit-cl/difffit-cl" demo "$@"
