#!/usr/bin/env python3
"""Training on a disk that refuses: a clear line and exit code 7 (1: another process is there), the last checkpoint as it was, and the run goes on to the bits of
an unbroken one once there is room.

    test_disk.py PATH/TO/difffit-cl PICTURES limit|full|readonly|denied|lock

limit: files may not grow past a size; full, readonly: a small tmpfs (77, skipped, where this user may not mount one); denied: a folder of somebody else's (77 where
root cannot become nobody); lock: a second process."""
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CLI, PICTURES, CASE = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3]
SKIP = 77
NOBODY = 65534
T = tempfile.mkdtemp(prefix="dfcl-disk-")
os.chmod(T, 0o755)
os.environ["XDG_CACHE_HOME"] = os.path.join(T, "cache")
BASE = os.path.join(T, "base.safetensors")


def words(run, steps, *more):
    return [CLI, "train", "--device", "host", "--model", BASE, "--data", PICTURES, "--out", run, "--steps", str(steps), "--batch", "4", "--lr", "1e-3",
            "--log-every", "1", "--checkpoint-every", "3", "--resume", "auto", *more]


def train(run, steps, code=0, says=(), before=None, more=()):
    """One run; `before` is called in the new process. Failures say one line with every text of `says`."""
    p = subprocess.run(words(run, steps, *more), capture_output=True, text=True, timeout=120, preexec_fn=before)
    assert p.returncode == code, f"exit code {p.returncode}, expected {code}\n{p.stdout}{p.stderr}"
    if code:
        last = p.stderr.strip().split("\n")[-1]
        assert last.startswith("difffit-cl train: "), p.stderr
        for text in says:
            assert text in last, f"expected '{text}' in: {last}"
        print(last)


def limit(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def content(folder):
    """Hash of every file below a folder, hidden ones too."""
    out = {}
    for at, _, files in os.walk(folder):
        for f in files:
            with open(os.path.join(at, f), "rb") as h:
                out[os.path.relpath(os.path.join(at, f), folder)] = hashlib.sha256(h.read()).hexdigest()
    return out


def same_result(a, b):
    for name in ("delta.safetensors", "delta-live.safetensors"):
        with open(os.path.join(a, name), "rb") as x, open(os.path.join(b, name), "rb") as y:
            assert x.read() == y.read(), f"{name} differs"


def checkpoints(run):
    return sorted(os.listdir(os.path.join(run, "checkpoints")))


def whole(steps):
    run = os.path.join(T, "whole")
    train(run, steps)
    return run


def case_limit():
    run = os.path.join(T, "run")
    train(run, 12)
    kept = content(os.path.join(run, "checkpoints"))
    assert checkpoints(run) == ["step-12", "step-9"]
    tensors = os.path.getsize(os.path.join(run, "checkpoints/step-12/tensors.safetensors"))
    metrics = os.path.getsize(os.path.join(run, "metrics.jsonl"))
    config = os.path.getsize(os.path.join(run, "config.json"))
    assert config < metrics < tensors - 4096
    # the checkpoint of step 15
    train(run, 18, code=7, says=["tensors.safetensors", "File too large"], before=limit(tensors - 1000))
    assert content(os.path.join(run, "checkpoints")) == kept
    # the log
    train(run, 18, code=7, says=["metrics.jsonl", "File too large"], before=limit(metrics + 10))
    assert content(os.path.join(run, "checkpoints")) == kept
    # the configuration, before anything else
    train(run, 18, code=7, says=["config.json", "File too large"], before=limit(config - 100))
    assert content(os.path.join(run, "checkpoints")) == kept
    assert not [f for f in os.listdir(run) if ".tmp-" in f]
    train(run, 18)
    same_result(whole(18), run)


def mount(options):
    at = os.path.join(T, "mount")
    os.makedirs(at)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", at], capture_output=True).returncode:
        print("SKIPPED: this user may not mount a tmpfs")
        sys.exit(SKIP)
    return at


def case_full():
    disk = mount("size=256k")
    try:
        run = os.path.join(disk, "run")
        train(run, 3)
        kept = content(os.path.join(run, "checkpoints"))
        room = os.statvfs(disk)
        with open(os.path.join(disk, "filler"), "wb") as f:
            f.write(bytes(max(room.f_bavail * room.f_bsize - 20000, 0)))
        train(run, 9, code=7, says=["tensors.safetensors", "No space left"])
        assert content(os.path.join(run, "checkpoints")) == kept and checkpoints(run) == ["step-3"]
        os.remove(os.path.join(disk, "filler"))
        train(run, 9)
        same_result(whole(9), run)
    finally:
        subprocess.run(["umount", disk], check=True)


def case_readonly():
    disk = mount("size=1m")
    try:
        run = os.path.join(disk, "run")
        train(run, 3)
        kept = content(run)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        train(run, 6, code=7, says=[run, "Read-only file system"])
        train(os.path.join(disk, "new"), 6, code=7, says=["new", "Read-only file system"])
        assert content(run) == kept
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        train(run, 6)
        same_result(whole(6), run)
    finally:
        subprocess.run(["umount", disk], check=True)


def become_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def case_denied():
    """Root is refused nothing, so there the runs are somebody else's."""
    before = become_nobody if os.geteuid() == 0 else None
    place = os.path.join(T, "place")
    run = os.path.join(place, "run")
    os.makedirs(place)
    if before:
        try:
            subprocess.run([CLI, "--version"], check=True, capture_output=True, preexec_fn=before)
            subprocess.run(["ls", PICTURES], check=True, capture_output=True, preexec_fn=before)
        except (OSError, subprocess.SubprocessError):
            print("SKIPPED: nobody cannot run the command or read the pictures")
            sys.exit(SKIP)
        for folder, _, files in os.walk(os.environ["XDG_CACHE_HOME"]):
            for name in [folder, *(os.path.join(folder, f) for f in files)]:
                os.chown(name, NOBODY, NOBODY)
        os.chown(place, NOBODY, NOBODY)
    train(run, 3, before=before)
    kept = content(run)
    parts = {}
    for folder in (place, run, os.path.join(run, "checkpoints")):
        parts[folder] = os.stat(folder)
    # no new run, no lock, no checkpoint; each time the folder is opened again afterwards
    for folder, target, says in ((place, os.path.join(place, "new"), "new"), (run, run, "config.json"), (os.path.join(run, "checkpoints"), run, "checkpoints")):
        os.chmod(folder, 0o555)
        train(target, 6, code=7, says=[says, "Permission denied"], before=before)
        os.chmod(folder, 0o755)
        assert content(os.path.join(run, "checkpoints")) == {k[len("checkpoints/"):]: v for k, v in kept.items() if k.startswith("checkpoints/")}
    os.chmod(os.path.join(run, "lock"), 0o444)
    train(run, 6, code=7, says=["lock", "Permission denied"], before=before)
    os.chmod(os.path.join(run, "lock"), 0o644)
    train(run, 6, before=before)
    same_result(whole(6), run)


def case_lock():
    run = os.path.join(T, "run")
    first = subprocess.Popen(words(run, 100000), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = os.path.join(run, "metrics.jsonl")
    while first.poll() is None and not (os.path.exists(log) and os.path.getsize(log)):
        time.sleep(0.02)
    train(run, 100000, code=1, says=[run, "another process is training"])
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130 and "saved" in err, err
    steps = max(int(c[5:]) for c in checkpoints(run)) + 1
    train(run, steps)  # the lock went with the process
    same_result(whole(steps), run)


try:
    subprocess.run([CLI, "init", "--depth", "2", "--hidden", "32", "--heads", "2", "--patch", "2", "--input", "8", "--channels", "1", "--classes", "10", "--scale",
                    "0.1", "--out", BASE], check=True, stdout=subprocess.DEVNULL)
    os.chmod(BASE, 0o644)
    subprocess.run(words(os.path.join(T, "warm"), 1), check=True, capture_output=True)  # the self-test
    {"limit": case_limit, "full": case_full, "readonly": case_readonly, "denied": case_denied, "lock": case_lock}[CASE]()
    print("passed")
finally:
    shutil.rmtree(T, ignore_errors=True)
