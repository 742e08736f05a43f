# Shared by demo.sh and test.sh: find the source tree, install packages.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build_packages="gcc libc6-dev meson ninja-build pkg-config ocl-icd-opencl-dev pocl-opencl-icd libpng-dev libjpeg-dev zlib1g-dev libcjson-dev libssl-dev"

say() { printf '\n== %s\n' "$*"; }

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install NAME... : installs; the package lists are read anew once a run.
apt_lists=old
apt_install() {
    if [ $apt_lists = old ]; then
        as_root apt-get update -qq || return 1
        apt_lists=new
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

# install_packages NAME... : nothing is asked of the package manager when all are there.
install_packages() {
    local missing=() name
    if ! command -v dpkg-query > /dev/null; then
        echo "not a Debian or Ubuntu system: what these packages hold has to be there: $*"
        return 0
    fi
    for name in "$@"; do
        installed "$name" || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || { echo "could not install ${missing[*]}" >&2; return 1; }
}

# try_packages NAME... : the same one by one, for what the tests can do without; not every release has all of them.
try_packages() {
    local name
    for name in "$@"; do
        install_packages "$name" || echo "going on without $name"
    done
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
