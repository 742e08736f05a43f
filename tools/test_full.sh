# The second half of test.sh --full; sourced, uses its functions and counters.

say "clang: build without warnings"
if command -v clang > /dev/null; then
    CC=clang configure "$work/clang" --buildtype=release --werror -Dtests=enabled
    step "clang builds without warnings" build "$work/clang"
else
    step "clang builds without warnings" sh -c 'echo "clang is not installed"; exit 77'
fi

# AddressSanitizer and UndefinedBehaviorSanitizer on the host backend; the OpenCL loader and its drivers are left out on purpose.
say "address and undefined-behaviour sanitizers"
CC=clang configure "$work/asan" --buildtype=debugoptimized --werror -Dtests=enabled -Dopencl=disabled \
    -Db_sanitize=address,undefined -Db_lundef=false
step "sanitized build" build "$work/asan"
ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 suite "$work/asan" --timeout-multiplier 8 --no-suite kernels

say "thread sanitizer"
CC=clang configure "$work/tsan" --buildtype=debugoptimized --werror -Dtests=enabled -Dopencl=disabled -Db_sanitize=thread -Db_lundef=false
step "thread-sanitized build" build "$work/tsan"
TSAN_OPTIONS=halt_on_error=1 suite "$work/tsan" --timeout-multiplier 8 --suite unit --suite model

say "second OpenCL runtime and NVRTC"
venv=$work/venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv" > "$work/venv.log" 2>&1 || true
wheels() { "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
have_wheels=1
wheels intel-opencl-rt intel-cmplr-lib-rt nvidia-cuda-nvrtc-cu12 > "$work/pip.log" 2>&1 || have_wheels=0
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null || true)
cli=$work/gcc/tools/difffit-cl/difffit-cl
golden=$root/tests/golden
intel() {
    [ $have_wheels = 1 ] || { echo "the wheels could not be installed"; return 77; }
    bash "$root/tests/with_intel.sh" "$venv" "$@"
}
step "Intel: every kernel builds" intel "$work/gcc/tests/check/kernel_build" "$root/cl/build_options"
step "Intel: every op against the reference" intel "$work/gcc/tests/check/check_ops" opencl
step "Intel: verify" intel "$cli" verify --golden "$golden" --device opencl:0
nvrtc() {
    [ $have_wheels = 1 ] || { echo "the wheels could not be installed"; return 77; }
    DFCL_NVRTC=$(ls "$site"/nvidia/cuda_nvrtc/lib/libnvrtc.so.12) "$work/gcc/tests/check/nvrtc_matrix" "$root/cl/build_options"
}
step "NVRTC: every portable kernel for sm_70 to sm_120" nvrtc

say "installed library"
step "headers alone, install, pkg-config" bash "$root/tests/install_check.sh" "$work/gcc" "$work/installed"

say "documentation"
step "documents agree with the program" python3 "$root/tests/docs_check.py" "$cli"
