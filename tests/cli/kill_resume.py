#!/usr/bin/env python3
"""A training run killed (SIGKILL) at random moments and resumed each time must end like one that nothing happened to: the same bytes in the deltas, the
same metrics and TensorBoard events, times aside.

    kill_resume.py PATH/TO/difffit-cl PICTURES [--kills N] [--steps N] [--device D] [--seed N]

PICTURES is an image folder. One moment in five lies before a process's first step, the others are uniform over what follows. `--keep` changes from process to process. Each time the
folder is looked at as the killed process left it: every checkpoint there must be whole, the newest must not be older than before, and the log must not be further
ahead of it than --checkpoint-every."""
import argparse
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("cli")
parser.add_argument("pictures")
parser.add_argument("--kills", type=int, default=5)
parser.add_argument("--steps", type=int, help="of the run (30 and 6 more for each kill)")
parser.add_argument("--every", type=int, default=5, help="steps between checkpoints (5)")
parser.add_argument("--device", default="host")
parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
args = parser.parse_args()
CLI = os.path.abspath(args.cli)
STEPS = args.steps or 30 + 6 * args.kills
rng = random.Random(args.seed)
tmp = tempfile.TemporaryDirectory(prefix="dfcl-kill-")
os.environ["XDG_CACHE_HOME"] = os.path.join(tmp.name, "cache")
BASE, WHOLE, BROKEN = (os.path.join(tmp.name, n) for n in ("base.safetensors", "whole", "broken"))


def words(run, keep, steps=STEPS):
    return [CLI, "train", "--device", args.device, "--model", BASE, "--data", args.pictures, "--out", run, "--steps", str(steps), "--batch", "4", "--lr",
            "1e-3", "--flip", "--log-every", "1", "--checkpoint-every", str(args.every), "--keep", str(keep), "--val-fraction",
            "0.02", "--resume", "auto"]


def start(run, keep):
    return subprocess.Popen(words(run, keep), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def lines(run):
    """Whole lines of metrics.jsonl; the last may have been cut by the kill."""
    try:
        with open(os.path.join(run, "metrics.jsonl")) as f:
            return [json.loads(x) for x in f.read().split("\n")[:-1]]
    except FileNotFoundError:
        return []


def same_but_times(metrics):
    return [{k: v for k, v in m.items() if k not in ("time", "images_per_second")} for m in metrics]


def events(run):
    """Records of the event file without their times: (step, the rest)."""
    name = [f for f in os.listdir(run) if f.startswith("events.out.tfevents.")]
    assert len(name) == 1, name
    with open(os.path.join(run, name[0]), "rb") as f:
        data = f.read()
    out = []
    while data:
        n = struct.unpack("<Q", data[:8])[0]
        assert len(data) >= n + 16, "the event file ends inside a record"
        record = data[12:12 + n]
        assert record[0] == 0x09, record[0]  # field 1: the time, 8 bytes
        out.append(record[9:])
        data = data[16 + n:]
    return out


def checkpoints(run):
    """Steps of the checkpoints; each must be whole."""
    folder = os.path.join(run, "checkpoints")
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith("."):
            continue
        m = re.fullmatch(r"step-(\d+)", name)
        assert m, name
        with open(os.path.join(folder, name, "state.json")) as f:
            assert json.load(f)["step"] == int(m[1]), name
        with open(os.path.join(folder, name, "tensors.safetensors"), "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            head = json.loads(f.read(n))
            end = max(v["data_offsets"][1] for k, v in head.items() if k != "__metadata__")
            assert f.seek(0, 2) == 8 + n + end, f"{name}: tensors.safetensors is cut"
        found.append(int(m[1]))
    return sorted(found)


def hidden(run):
    folder = os.path.join(run, "checkpoints")
    return [n for n in (os.listdir(folder) if os.path.isdir(folder) else []) if n.startswith(".")]


subprocess.run([CLI, "init", "--depth", "2", "--hidden", "32", "--heads", "2", "--patch", "2", "--input", "8", "--channels", "1", "--classes", "10", "--scale",
                "0.1", "--out", BASE], check=True, stdout=subprocess.DEVNULL)
subprocess.run(words(os.path.join(tmp.name, "warm"), 1, 1), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # self-test, kernels built
begin = time.time()
p = start(WHOLE, 2)
while p.poll() is None and not lines(WHOLE):
    time.sleep(0.002)
startup = time.time() - begin
_, err = p.communicate()
assert p.returncode == 0, err
training = time.time() - begin - startup
print(f"unbroken: {STEPS} steps, start {startup:.2f} s, training {training:.2f} s", flush=True)

kills = done = lost = 0
where = {"before the first step": 0, "between checkpoints": 0, "a checkpoint half written": 0, "a checkpoint half removed": 0, "a line half written": 0,
         "after the last step": 0}
newest = 0
while kills < args.kills:
    p = start(BROKEN, rng.randint(1, 3))
    said, moment = [], rng.uniform(0, startup)
    if rng.random() > 0.2:
        while not said or (said[-1] and " images in " not in said[-1]):  # the logs have been cut back; "": it has ended
            said.append(p.stderr.readline())
        size = os.path.getsize(os.path.join(BROKEN, "metrics.jsonl"))
        while p.poll() is None and os.path.getsize(os.path.join(BROKEN, "metrics.jsonl")) <= size:
            time.sleep(0.005)
        moment = rng.uniform(0, 2 * training / args.kills)  # twice the share that a process would have if nothing were lost
    try:
        p.wait(moment)
    except subprocess.TimeoutExpired:
        pass
    p.kill()
    err = "".join(said) + p.communicate()[1]
    if p.returncode == 0:  # done before its moment came; what is left to kill is another start
        done += 1
        assert done < 20 * args.kills, "the run is too short for so many kills"
    else:
        assert p.returncode == -9, (p.returncode, err)
        kills += 1
    m = re.search(r"going on after step (\d+)", err)
    assert not m or int(m[1]) == newest, f"went on after step {m[1]}, but the newest checkpoint was {newest}"
    steps = checkpoints(BROKEN)
    assert (steps[-1] if steps else 0) >= newest, f"the newest checkpoint was {newest}, now {steps}"
    before, newest = newest, steps[-1] if steps else 0
    log = lines(BROKEN)
    seen = [x["step"] for x in log]
    assert seen == list(range(1, len(seen) + 1)), f"metrics.jsonl: {seen}"
    ahead = max(len(seen) - newest, 0)
    assert ahead <= args.every, f"{ahead} steps after the newest checkpoint are lost, with --checkpoint-every {args.every}"
    lost += ahead
    with open(os.path.join(BROKEN, "metrics.jsonl"), "rb") if os.path.exists(os.path.join(BROKEN, "metrics.jsonl")) else open(os.devnull, "rb") as f:
        text = f.read()
    kind = ("a checkpoint half removed" if any(n.startswith(".old") for n in hidden(BROKEN)) else "a checkpoint half written" if hidden(BROKEN)
            else "a line half written" if text and not text.endswith(b"\n") else "after the last step" if newest == STEPS
            else "before the first step" if len(seen) <= before else "between checkpoints")
    where[kind] += p.returncode != 0

p = start(BROKEN, 2)
_, err = p.communicate()
assert p.returncode == 0, err
for name in ("delta.safetensors", "delta-live.safetensors", "delta-best.safetensors"):
    with open(os.path.join(WHOLE, name), "rb") as a, open(os.path.join(BROKEN, name), "rb") as b:
        assert a.read() == b.read(), f"{name} differs"
a, b = lines(WHOLE), lines(BROKEN)
assert [m["step"] for m in b] == list(range(1, STEPS + 1)), [m["step"] for m in b]
assert same_but_times(a) == same_but_times(b), "metrics.jsonl differs"
assert any("val_loss" in m for m in b)
assert events(WHOLE) == events(BROKEN), "the event files differ"
left = [f for folder, _, files in os.walk(BROKEN) for f in files if ".tmp-" in f] + hidden(BROKEN)
assert not left, left
tmp.cleanup()
print(f"{kills} kills ({', '.join(f'{n} {k}' for k, n in where.items() if n)}), {lost} steps done again: deltas, metrics and events are the bits of "
      f"the unbroken run")
