# Shared by demo.sh and test.sh: find the source tree, install packages.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build_packages="gcc meson ninja-build pkg-config ocl-icd-opencl-dev pocl-opencl-icd libpng-dev libjpeg-dev zlib1g-dev libcjson-dev libssl-dev"

say() { printf '\n== %s\n' "$*"; }

# install_packages NAME... : nothing is asked of the package manager when all are there.
install_packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing ${missing[*]}"
    local sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
}

# configure DIR OPTION... : a build folder, set up once, with the given meson options.
configure() {
    local dir=$1
    shift
    if [ -f "$dir/build.ninja" ]; then
        meson configure "$dir" "$@" > /dev/null
    else
        meson setup "$dir" "$root" "$@" > "$dir.log" 2>&1 || { tail -n 30 "$dir.log"; return 1; }
    fi
}
