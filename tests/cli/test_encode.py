#!/usr/bin/env python3
"""test_encode.py PATH/TO/difffit-cl GOLDEN [--pictures FOLDER] [--device D] [--size N] [--kills N]: pictures to latents to a trained model to pictures.

A folder of pictures (made here, or given) is encoded, killed and gone on with; the cache must be the one of an unbroken run, value by value. Then the folder
changes; then a small model is trained on the cache and draws.
"""
import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

arguments = argparse.ArgumentParser()
arguments.add_argument("cli")
arguments.add_argument("golden")
arguments.add_argument("--pictures")
arguments.add_argument("--device", default="host")
arguments.add_argument("--size", type=int, default=32)
arguments.add_argument("--kills", type=int, default=3)
args = arguments.parse_args()
CLI, VAE = os.path.abspath(args.cli), os.path.join(os.path.abspath(args.golden), "vae")
tmp = tempfile.TemporaryDirectory(prefix="dfcl-encode-")
T = tmp.name
os.environ["XDG_CACHE_HOME"] = os.path.join(T, "cache")
rng = random.Random(5)


def path(*names):
    return os.path.join(T, *names)


def run(*words, code=0):
    p = subprocess.run([CLI, *map(str, words)], capture_output=True, text=True, timeout=600)
    assert p.returncode == code, f"{' '.join(map(str, words))}: exit code {p.returncode}, expected {code}\n{p.stdout}\n{p.stderr}"
    return p.stdout, p.stderr


def fails(code, *words, says):
    _, err = run(*words, code=code)
    for text in [says] if isinstance(says, str) else says:
        assert text in err, f"expected '{text}' in: {err}"


def words(out, *more, data=None, size=args.size):
    return ["encode", "--device", args.device, "--vae", VAE, "--data", data or path("pictures"), "--out", path(out), "--size", size, *more]


def encode(out, *more, code=0, **kw):
    return run(*words(out, *more, **kw), code=code)[1]


def png(name, pixels, w, h):
    rows = b"".join(b"\0" + pixels[3 * w * y:3 * w * (y + 1)] for y in range(h))
    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))  # noqa: E731
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def read_png(name):
    """Width, height, bytes of an 8-bit RGB picture."""
    with open(name, "rb") as f:
        data = f.read()
    w, h, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and (depth, kind, data[28]) == (8, 2, 0), name
    at, packed = 8, b""
    while at < len(data):
        n, what = struct.unpack(">I4s", data[at:at + 8])
        packed += data[at + 8:at + 8 + n] if what == b"IDAT" else b""
        at += 12 + n
    raw, out, row = zlib.decompress(packed), b"", bytes(3 * w)
    for y in range(h):
        kind, line = raw[y * (3 * w + 1)], bytearray(raw[y * (3 * w + 1) + 1:(y + 1) * (3 * w + 1)])
        for x in range(3 * w if kind else 0):
            a, b, c = (line[x - 3], row[x], row[x - 3]) if x >= 3 else (0, row[x], 0)
            near = min((a, b, c), key=lambda v: abs(a + b - c - v))  # noqa: B023
            line[x] = (line[x] + (0, a, b, (a + b) // 2, near)[kind]) & 255
        row = bytes(line)
        out += row
    return w, h, out


def read_tensor(name, key):
    with open(name, "rb") as f:
        head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    a, b = head[key]["data_offsets"]
    return head[key]["shape"], struct.unpack(f"<{(b - a) // 4}f", data[a:b])


def scene(w, h):
    a, b, c = rng.uniform(1, 6), rng.uniform(1, 6), rng.randrange(256)
    return bytes(int(a * x * k + b * y + c + rng.randrange(8)) % 256 for y in range(h) for x in range(w) for k in (1, 2, 3))


def make_pictures():
    if args.pictures:
        shutil.copytree(args.pictures, path("pictures"))
        return
    for i in range(30):
        w, h = rng.randint(20, 70), rng.randint(20, 70)
        png(path("pictures", ("blätter", "stones")[i % 2], f"{i:02d}.png"), scene(w, h), w, h)


def cache(name):
    """index, and {picture: {tensor: bytes of its row}} of what the index says is in the set."""
    with open(path(name, "index.json"), encoding="utf-8") as f:
        index = json.load(f)
    rows = {}
    for shard in index["shards"]:
        with open(path(name, shard["file"]), "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            head = json.loads(f.read(n))
            data = f.read()
        files = json.loads(head["__metadata__"]["files"])
        assert len(files) == len(shard["labels"])
        for i, (file, label) in enumerate(zip(files, shard["labels"])):
            if label < 0:
                continue
            assert file not in rows and index["classes"][label] == file.split("/")[0]
            row = {}
            for key, t in head.items():
                if key != "__metadata__":
                    a, b = t["data_offsets"]
                    each = (b - a) // len(files)
                    row[key] = data[a + i * each:a + (i + 1) * each]
            rows[file] = row
    return index, rows


def info(name):
    return json.loads(run("info", path(name), "--json")[0])


def same(a, b):
    (x, p), (y, q) = cache(a), cache(b)
    assert all(x[k] == y[k] for k in ("classes", "settings", "skipped", "rgb")), (x, y)
    assert p.keys() == q.keys(), p.keys() ^ q.keys()
    for file in p:
        for key in p[file]:
            assert key == "stat" or p[file][key] == q[file][key], (file, key)
    assert info(a)["fingerprint"] == info(b)["fingerprint"]


def shards(name):
    return [f for f in os.listdir(path(name)) if f.startswith("shard-") and ".tmp-" not in f] if os.path.isdir(path(name)) else []


make_pictures()
everything = sorted(os.path.join(d, f) for d, _, files in os.walk(path("pictures")) for f in files)
start = time.monotonic()
err = encode("whole", "--flip", "--preview", path("preview.png"))
took = time.monotonic() - start
assert f"{len(everything)} pictures encoded, 0 kept, 0 bad" in err, err
with open(path("preview.png"), "rb") as f:
    head = f.read(24)
side = struct.unpack(">II", head[16:24])
assert side == (8 * (args.size + 2) + 2, 2 * (args.size + 2) + 2), side
d = info("whole")
assert d["samples"] == len(everything) and d["size"] == args.size and d["side"] == args.size // 2 and d["flip"] is True, d
print(f"{len(everything)} pictures in {took:.1f} s")

# Killed, gone on with, killed ...; once interrupted.
for k in range(args.kills):
    before = len(shards("killed"))
    p = subprocess.Popen([CLI, *map(str, words("killed", "--flip", "--save-every", 0.02))], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while p.poll() is None and len(shards("killed")) < before + 2:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    p.kill()
    p.wait()
    done = len(shards("killed"))
    if p.returncode == 0:
        break
    assert done > before, "nothing was saved before the kill"
    assert not os.path.exists(path("killed", "index.json"))
    fails(6, "info", path("killed"), says="not finished")
err = encode("killed", "--flip")
kept = int(err.split(" pictures encoded, ")[1].split(" kept")[0])
assert kept > 0, err
same("whole", "killed")
assert sorted(f for f in os.listdir(path("killed")) if "tmp" in f) == []
print(f"killed {k + 1} times: {kept} pictures kept")

p = subprocess.Popen([CLI, *map(str, words("interrupted", "--flip", "--save-every", 0.02))], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
while p.poll() is None and not shards("interrupted"):
    time.sleep(0.005)
p.send_signal(signal.SIGINT)
_, err = p.communicate(timeout=120)
assert p.returncode == 130 and "saved. The same command goes on" in err, (p.returncode, err)
err = encode("interrupted", "--flip")
same("whole", "interrupted")
assert f"{len(everything)} kept" in encode("interrupted", "--flip")  # nothing left to do
same("whole", "interrupted")

# The folder changes: one touched, one changed, one gone, two new: one the other's mirror image.
first = everything[0]
os.utime(first, (1, 1))
w = h = args.size
pixels = scene(w, h)
png(os.path.join(os.path.dirname(everything[1]), "zz-left.png"), pixels, w, h)
mirrored = b"".join(pixels[3 * (w * y + x):3 * (w * y + x) + 3] for y in range(h) for x in reversed(range(w)))
png(os.path.join(os.path.dirname(everything[1]), "zz-right.png"), mirrored, w, h)
if not args.pictures:
    png(everything[2], scene(w, h + 3), w, h + 3)
os.remove(everything[3])
err = encode("whole", "--flip")
assert f"{2 + (not args.pictures)} pictures encoded, {len(everything) - 1 - (not args.pictures)} kept, 0 bad" in err, err
encode("fresh", "--flip")
same("whole", "fresh")
_, rows = cache("whole")
left, right = (next(v for k, v in rows.items() if k.endswith(f"zz-{side}.png")) for side in ("left", "right"))
for a, b in (("mean", "mean_flip"), ("logvar", "logvar_flip")):
    assert left[a] == right[b] and left[b] == right[a] and left[a] != right[a], a

# Files that cannot be read.
bad = os.path.join(os.path.dirname(first), "broken.jpg")
with open(bad, "wb") as f:
    f.write(b"\xff\xd8\xff\xe0 cut")
fails(6, *words("bad", "--flip"), says="broken.jpg")
err = encode("bad", "--flip", "--skip-bad")
assert "1 bad" in err and "broken.jpg" in err, err
assert info("bad")["skipped"] == 1 and info("bad")["samples"] == len(everything) + 1
os.remove(bad)

# Other settings, other places.
fails(6, *words("whole", "--flip", size=args.size // 2), says="expected pictures of")
fails(6, *words("whole"), says="mirror images")
fails(2, *words("odd", size=args.size + 1), says="multiple of 2")
for out in "pictures", "pictures/latents", "pictures/new/":
    fails(2, *words(out), says="expected a folder outside of the pictures")
os.makedirs(path("mine"))
open(path("mine", "thesis.txt"), "w").close()
fails(2, *words("mine"), says=["thesis.txt", "expected a new folder or a cache of latents"])
assert os.listdir(path("mine")) == ["thesis.txt"]
fails(2, *words("again", data=path("whole")), says="expected a folder of pictures")
fails(6, "encode", "--device", args.device, "--vae", path("pictures"), "--data", path("pictures"), "--out", path("x"), says="pictures")
assert not os.path.exists(path("odd")) and not os.path.exists(path("x"))

# Random crops: one for each file and seed.
encode("random", "--crop", "random", "--seed", 3)
encode("random-again", "--crop", "random", "--seed", 3)
encode("random-other", "--crop", "random", "--seed", 4, "--dtype", "f16")
same("random", "random-again")
assert info("random")["seed"] == "3" and info("random-other")["dtype"] == "F16"
one, other = cache("random")[1], cache("random-other")[1]
differ = [f for f in one if any(abs(a - b) > 1e-2 for a, b in zip(struct.unpack(f"<{len(one[f]['mean']) // 4}f", one[f]["mean"]),
                                                                  struct.unpack(f"<{len(other[f]['mean']) // 2}e", other[f]["mean"])))]
assert len(differ) > len(one) // 2, len(differ)

# No squares: width x height, rows first in tensors.
high = args.size // 2 * 3
for i in range(4):
    png(path("few", "ab"[i % 2], f"{i}.png"), scene(50 + i, 40), 50 + i, 40)
few = {"data": path("few"), "size": f"{high}x{args.size}"}
encode("wide", **few)
encode("wide-random", "--crop", "random", "--flip", **few)
d, (_, rows) = info("wide"), cache("wide")
assert d["size"] == f"{high}x{args.size}" and d["side"] == f"{high // 2}x{args.size // 2}", d
assert {len(row["mean"]) for row in rows.values()} == {4 * 4 * (high // 2) * (args.size // 2)}
fails(6, *words("wide"), says=["expected pictures of", f"found {high}x{args.size}"])
fails(2, *words("odd", size=f"{args.size}x{args.size + 1}"), says="multiple of 2")
encode("wide", "--preview", path("wide.png"), **few)
w, h, _ = read_png(path("wide.png"))
assert w == 4 * (high + 2) + 2 and h == 2 * (args.size + 2) + 2, (w, h)

# Another encoder than the cache's is refused, another decoder is none of its business.
for part in "encoder", "decoder":
    shutil.copytree(VAE, path(f"vae-{part}"))
    file = path(f"vae-{part}", "diffusion_pytorch_model.safetensors")
    os.chmod(file, 0o644)
    with open(file, "r+b") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        at = json.loads(f.read(n))[f"{part}.conv_in.bias"]["data_offsets"][0]
        f.seek(8 + n + at)
        f.write(struct.pack("<f", 0.123))
with open(os.path.join(VAE, "diffusion_pytorch_model.safetensors"), "rb") as f:  # the same in a whole checkpoint
    head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    data = f.read()
head = json.dumps({k if k == "__metadata__" else "first_stage_model." + k: v for k, v in head.items()}).encode()
with open(path("whole.safetensors"), "wb") as f:
    f.write(struct.pack("<Q", len(head)) + head + data)
base, side = path("base.safetensors"), args.size // 2
run("init", "--depth", 2, "--hidden", 32, "--heads", 2, "--patch", 2, "--input", side, "--channels", 4, "--classes", 3, "--out", base)
train = ["train", "--device", args.device, "--model", base, "--data", path("whole"), "--batch", 4, "--steps", 50, "--flip", "--lr", "1e-3", "--log-every", 1]
fails(6, *train, "--vae", path("vae-encoder"), "--out", path("run"), says="another VAE")
fails(2, *train, "--data", path("pictures"), "--out", path("run"), says="encode them first")

# Trained, and drawn with.
run(*train, "--vae", path("whole.safetensors"), "--out", path("one-step"), "--steps", 1)
run(*train, "--vae", path("vae-decoder"), "--out", path("run"))
losses = [json.loads(x)["loss"] for x in open(path("run", "metrics.jsonl"))]
assert len(losses) == 50 and all(0 < x < 10 for x in losses), losses
sample = ["sample", "--device", args.device, "--model", base, "--delta", path("run", "delta.safetensors"), "--steps", 5, "--sampler", "ddim", "-n", 2]
run(*sample, "--save-latents", path("latents.safetensors"), "--classes", info("whole")["classes"][0]["name"])
run(*sample, "--vae", VAE, "--out", path("grid.png"))

# The same with latents that are no squares.
high = f"{args.size // 4 * 3}x{args.size // 2}"
train[train.index("--data") + 1] = path("wide-random")
fails(6, *train, "--out", path("wide-run"), says=[f"input can be set to theirs, {high}"])
run(*train, "--input", high, "--steps", 2, "--vae", VAE, "--sample-every", 2, "--out", path("wide-run"))
drawn = ["sample", "--device", args.device, "--model", base, "--delta", path("wide-run", "delta.safetensors"), "--steps", 2, "--sampler", "ddim", "-n", 1, "--classes", 0]
run(*drawn, "--vae", VAE, "--out", path("wide-drawn"), "--preview-every", 1)
assert read_png(path("wide-drawn", "000000.png"))[:2] == (args.size // 2 * 3, args.size)
with open(path("wide-drawn", "..", "wide-drawn.preview.png"), "rb") as f:
    w, h = struct.unpack(">II", f.read(24)[16:])
assert (w - 4) * 2 == (h - 4) * 3, (w, h)
w, h, _ = read_png(path("wide-run", "samples", "step-000002-ema.png"))
assert (w - 2) // 4 - 2 == args.size // 2 * 3 * max(64 // args.size, 1), (w, h)

# Previews: the predicted pictures through the linear approximation that the cache brought and the delta carries. After the last step of DDIM the
# prediction is the latent itself.
one = info("whole")["classes"][0]["name"]
run(*sample, "--save-latents", path("seen.safetensors"), "--classes", one, "--preview-every", 2)
assert open(path("seen.safetensors"), "rb").read() == open(path("latents.safetensors"), "rb").read()
rgb = cache("whole")[0]["rgb"]
with open(path("run", "delta.safetensors"), "rb") as f:
    carried = json.loads(json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))["__metadata__"]["latent_rgb"])
assert carried == rgb, (carried, rgb)
shape, latents = read_tensor(path("seen.safetensors"), "latents")
n, C, S = shape[:3]
w, h, pixels = read_png(path("seen.preview.png"))
zoom = 128 // S
assert (n, C) == (2, 4) and (w, h) == (n * (S * zoom + 2) + 2, S * zoom + 4), (shape, w, h)
for i in range(n):
    for y in range(S):
        for x in range(S):
            at = 3 * ((2 + y * zoom + zoom // 2) * w + 2 + i * (S * zoom + 2) + x * zoom + zoom // 2)
            for k in range(3):
                v = rgb["bias"][k] + sum(rgb["weight"][k][c] * latents[((i * C + c) * S + y) * S + x] for c in range(C))
                want = min(max(127.5 * v + 128, 0), 255)
                assert abs(pixels[at + k] + 0.5 - want) < 0.6, (i, y, x, k, pixels[at + k], want)
text = json.loads(run("info", path("seen.preview.png"), "--json")[0])["text"]["Comment"]
assert "pictures 0 to 1 of 2 as predicted at step 5 of 5" in text, text
run(*sample, "--vae", VAE, "--out", path("pngs/"), "--preview-every", 3)
assert os.path.isfile(path("pngs.preview.png")) and len(os.listdir(path("pngs"))) == 2 * len(info("whole")["classes"])
bare = ["sample", "--device", args.device, "--model", base, "--steps", 2, "--sampler", "ddim", "-n", 1, "--classes", 0, "--preview-every", 1]
fails(2, *bare, "--save-latents", path("bare.safetensors"), says=["no linear approximation", "encode", "train --data CACHE", "--preview-from"])
assert not os.path.exists(path("bare.safetensors"))
run(*bare, "--save-latents", path("bare.safetensors"), "--preview-from", path("whole"))
assert os.path.isfile(path("bare.preview.png"))
fails(2, *bare, "--save-latents", path("bare.safetensors"), "--preview-from", base, says="no linear approximation")
fails(2, *bare[:-2], "--save-latents", path("bare.safetensors"), "--preview-from", path("whole"), says="goes with --preview-every")
with open(path("grid.png"), "rb") as f:
    head = f.read(24)
assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:24])[1] >= args.size, head
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
