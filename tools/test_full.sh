# The stages of test.sh --full; sourced, uses its functions and counters.

stage "what the stages need"
try_packages clang oclgrind valgrind libc6-dbg python3-venv python3-pip zsh groff-base
# The sanitizers' runtime is a package of its own where clang's release says so (Debian 12 on), part of clang elsewhere.
major=$(clang -dumpversion 2> /dev/null | cut -d. -f1 || true)
if [ -n "$major" ] && apt-cache show "libclang-rt-$major-dev" > /dev/null 2>&1; then
    try_packages "libclang-rt-$major-dev"
fi
venv=$work/venv
wheels() {
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" || { echo "no virtual environment could be made"; return 77; }
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@" || { echo "pip could not install them"; return 77; }
}
step "wheels: Intel's OpenCL runtime" wheels intel-opencl-rt intel-cmplr-lib-rt || true
if step "wheels: NVRTC" wheels nvidia-cuda-nvrtc-cu12; then
    DFCL_NVRTC=$(ls "$venv"/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12)
    export DFCL_NVRTC
fi
# PyTorch and diffusers are gigabytes: an interpreter that has them is named by the caller (docs/testing.md).
if [ -z "${DFCL_PYTHON-}" ] && step "wheels: TensorBoard" wheels tensorboard; then
    export DFCL_PYTHON=$venv/bin/python
fi

cli=$work/gcc/tools/difffit-cl/difffit-cl
golden=$root/tests/golden
stage "gcc: build"
gcc_build || return 0 # nothing below could run
gcc_suites
if step "wheels: Pillow, NumPy" wheels Pillow numpy; then
    step "pictures against Pillow" "$venv/bin/python" "$root/tests/cli/test_pillow.py" "$work/gcc/tests/cli/dump_pictures" || true
fi

stage "kernels: Intel's OpenCL runtime"
intel() { bash "$root/tests/with_intel.sh" "$venv" "$@"; }
step "Intel: every kernel builds" intel "$work/gcc/tests/check/kernel_build" "$root/cl/build_options" || true
step "Intel: every op against the reference" intel "$work/gcc/tests/check/check_ops" opencl || true
step "Intel: verify" intel "$cli" verify --golden "$golden" --device opencl:0 || true

stage "valgrind: training and sampling on PoCL"
step "valgrind" bash "$root/tests/with_valgrind.sh" "$cli" || true

stage "clang: build"
step "clang builds without warnings" make_build clang "$work/clang" --buildtype=release --werror -Dtests=enabled || true

# The sanitizers see the host backend, one thread a test; the OpenCL loader and its drivers are left out on purpose.
stage "address and undefined-behaviour sanitizers"
if step "sanitized build" make_build clang "$work/asan" --buildtype=debugoptimized --werror -Dtests=enabled -Dopencl=disabled \
    -Db_sanitize=address,undefined -Db_lundef=false; then
    ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 MESON_TESTTHREADS=$cores \
        suite "$work/asan" --timeout-multiplier 8 --no-suite kernels
fi

# Only what starts threads on the host: the loader of pictures, alone and under the trainer; contexts side by side.
stage "thread sanitizer"
if step "thread-sanitized build" make_build clang "$work/tsan" --buildtype=debugoptimized --werror -Dtests=enabled -Dopencl=disabled \
    -Db_sanitize=thread -Db_lundef=false -- tests/unit/test_dataset tests/model/test_trainer tests/model/test_contexts tests/model/test_weights \
    tests/unit/test_latents; then
    TSAN_OPTIONS=halt_on_error=1 suite "$work/tsan" --timeout-multiplier 8 dataset trainer-host contexts weights-host latents
fi

stage "documents"
step "documents agree with the program" python3 "$root/tests/docs_check.py" "$cli" || true
