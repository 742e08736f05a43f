#!/usr/bin/env python3
"""test_photos.py PATH/TO/difffit-cl docs/photographs.md [--photos DIR] [--device D] [--keep DIR]: the whole job, by the commands of the page.

Pictures (made here, or those of --photos) -> info -> encode (killed once, gone on with, compared with an unbroken one) -> train -> sample, a grid and a folder (interrupted). On
pictures made here with the sizes of SMALL, else as the page has them. `--list` prints the commands and runs nothing.
"""
import argparse
import json
import math
import os
import random
import re
import shlex
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
arguments.add_argument("page")
arguments.add_argument("--photos", help="folder of pictures, a sub-folder a class")
arguments.add_argument("--device", default="host")
arguments.add_argument("--keep", help="work in this new folder, and leave it")
arguments.add_argument("--list", action="store_true")
args = arguments.parse_args()
CLI = os.path.abspath(args.cli)
SMALL = {"--size 256": "--size 64", "--input 32": "--input 8"}
STEPS = ["init", "info pictures", "encode", "info latents", "train", "info run", "sample", "sample"]

with open(args.page, encoding="utf-8") as f:
    blocks = re.findall(r"^```\n(.*?)^```$", f.read(), re.M | re.S)
commands = [line for block in blocks for line in block.splitlines() if line.startswith("difffit-cl ")]
if args.list:
    print("\n".join(commands))
    sys.exit()
assert len(commands) == len(STEPS) and all(c.startswith(f"difffit-cl {s}") for c, s in zip(commands, STEPS)), commands
if not args.photos:
    for a, b in SMALL.items():
        assert sum(a in c for c in commands) == 1, a
        commands = [c.replace(a, b) for c in commands]
size = int(re.search(r"--size (\d+)", commands[2]).group(1))

temporary = None if args.keep else tempfile.TemporaryDirectory(prefix="dfcl-photos-")
T = os.path.abspath(args.keep) if args.keep else temporary.name
os.makedirs(T, exist_ok=not args.keep)
os.chdir(T)
os.environ.update(XDG_CACHE_HOME=os.path.join(T, "cache"), DIFFFIT_CL_DEVICE=args.device)
rng = random.Random(3)


def words(command):
    return [CLI, *shlex.split(command)[1:]]


def run(command, where=".", code=0):
    print(f"$ {command}", flush=True)
    start = time.monotonic()
    p = subprocess.run(words(command), capture_output=True, text=True, timeout=3000, cwd=where)
    assert p.returncode == code, f"{command}: exit code {p.returncode}, expected {code}\n{p.stdout}\n{p.stderr}"
    last = p.stderr.strip().splitlines()[-1:]
    print(f"  {time.monotonic() - start:.1f} s" + "".join(f": {x}" for x in last), flush=True)
    return p.stdout


# ---- pictures and an autoencoder ----

def png(name, w, h, pixels):
    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))  # noqa: E731
    rows = b"".join(b"\0" + pixels[3 * w * y:3 * w * (y + 1)] for y in range(h))
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def make_pictures():
    """Skies over fields, and discs on a ground."""
    for i in range(20):
        w, h = rng.randint(66, 100), rng.randint(66, 100)
        hue, at, cx, cy = rng.random(), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
        pixels = bytearray()
        for y in range(h):
            for x in range(w):
                u, v = x / w, y / h
                if i % 2:
                    c = (90 + 80 * v, 140 + 60 * v, 230) if v < at else (40 + 120 * hue, 160 - 90 * v, 30)
                else:
                    inside = (u - cx) ** 2 + (v - cy) ** 2 < 0.06
                    c = (230, 200 * hue, 40) if inside else (30 + 60 * u, 40, 70 + 60 * v)
                pixels += bytes(min(max(int(k + rng.randrange(-6, 7)), 0), 255) for k in c)
        png(f"pictures/{('discs', 'fields')[i % 2]}/{i:02d}.png", w, h, bytes(pixels))
    with open("pictures/discs/cut.jpg", "wb") as f:
        f.write(b"\xff\xd8\xff\xe0 cut")


def make_vae(path):
    """The layers of Stable Diffusion's autoencoder, 16 channels wide. All residual branches end in zeros, so what a convolution passes on gets through: means of 8 x 8 pixels. Beside
    the colours, 13 channels hold constants that sum up to 0: against them GroupNorm and SiLU are nearly linear."""
    C, K, gain = 16, 20.0, 10.0
    sigma = K * math.sqrt(12 / C)  # of a position's channels
    tensors = {}

    def put(name, shape, values=None, fill=0.0):
        n = math.prod(shape)
        data = [fill] * n
        for index, v in (values or {}).items():
            at = 0
            for i, d in zip(index, shape):
                at = at * d + i
            data[at] = v
        tensors[name] = (shape, struct.pack(f"<{n}f", *data))

    def conv(name, out, into, taps, bias=None, k=3):
        """taps: {(output, input, row, column): value}"""
        put(name + ".weight", (out, into, k, k), taps)
        put(name + ".bias", (out,), bias)

    def norm(name):
        put(name + ".weight", (C,), fill=1.0)
        put(name + ".bias", (C,))

    def resnet(name):
        norm(name + ".norm1")
        tensors[name + ".conv1.weight"] = ((C, C, 3, 3), struct.pack(f"<{C * C * 9}f", *(rng.gauss(0, 0.1) for _ in range(C * C * 9))))
        put(name + ".conv1.bias", (C,))
        norm(name + ".norm2")
        conv(name + ".conv2", C, C, {})

    def middle(name):
        for i in (0, 1):
            resnet(f"{name}.mid_block.resnets.{i}")
        norm(f"{name}.mid_block.attentions.0.group_norm")
        for k in ("to_q", "to_k", "to_v", "to_out.0"):
            tensors[f"{name}.mid_block.attentions.0.{k}.weight"] = ((C, C), struct.pack(f"<{C * C}f", *(rng.gauss(0, 0.1) * (k[3] != "o") for _ in range(C * C))))
            put(f"{name}.mid_block.attentions.0.{k}.bias", (C,))

    constants = {(c,): 0.0 if c == C - 1 else K if c % 2 else -K for c in range(3, C)}
    conv("encoder.conv_in", C, 3, {(c, c, 1, 1): 1.0 for c in range(3)}, constants)
    for i in range(4):
        resnet(f"encoder.down_blocks.{i}.resnets.0")
        if i < 3:
            conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", C, C, {(c, c, y, x): 0.25 for c in range(C) for y in (0, 1) for x in (0, 1)})
    middle("encoder")
    norm("encoder.conv_norm_out")
    # SiLU(x) is about x / 2; the fourth latent is how green changes to the right
    taps = {(c, c, 1, 1): 2 * sigma * gain for c in range(3)} | {(3, 1, 1, 1): -2 * sigma * gain, (3, 1, 1, 2): 2 * sigma * gain}
    conv("encoder.conv_out", 8, C, taps, {(c,): -6.0 for c in range(4, 8)})
    conv("quant_conv", 8, 8, {(c, c, 0, 0): 1.0 for c in range(8)}, k=1)
    conv("post_quant_conv", 4, 4, {(c, c, 0, 0): 1.0 for c in range(4)}, k=1)
    conv("decoder.conv_in", C, 4, {(c, c, 1, 1): 1 / gain for c in range(3)}, constants)
    middle("decoder")
    for i in range(4):
        for j in (0, 1):
            resnet(f"decoder.up_blocks.{i}.resnets.{j}")
        if i < 3:
            conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", C, C, {(c, c, 1, 1): 1.0 for c in range(C)})
    norm("decoder.conv_norm_out")
    conv("decoder.conv_out", 3, C, {(c, c, 1, 1): 2 * sigma for c in range(3)})

    head, data = {}, b""
    for name, (shape, values) in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(path)
    with open(os.path.join(path, "diffusion_pytorch_model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump({"_class_name": "AutoencoderKL", "norm_num_groups": 1, "scaling_factor": 0.18215, "latent_channels": 4, "block_out_channels": [C] * 4}, f)


# ---- what was made ----

def cache(folder):
    """index, and {picture: {tensor: bytes of its row}}."""
    with open(f"{folder}/index.json", encoding="utf-8") as f:
        index = json.load(f)
    rows = {}
    for shard in index["shards"]:
        with open(f"{folder}/{shard['file']}", "rb") as f:
            head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            data = f.read()
        files = json.loads(head["__metadata__"]["files"])
        for i, (name, label) in enumerate(zip(files, shard["labels"])):
            assert name not in rows and index["classes"][label] == name.split("/")[0], name
            spans = {k: t["data_offsets"] for k, t in head.items() if k != "__metadata__"}
            rows[name] = {k: data[a + i * ((b - a) // len(files)):a + (i + 1) * ((b - a) // len(files))] for k, (a, b) in spans.items()}
    return index, rows


def shards(folder):
    return [x for x in (os.listdir(folder) if os.path.isdir(folder) else []) if x.startswith("shard-") and ".tmp-" not in x]


def picture_size(name):
    with open(name, "rb") as f:
        head = f.read(24)
    with open(name, "rb") as f:
        assert f.read()[-8:-4] == b"IEND", name  # whole
    assert head[:8] == b"\x89PNG\r\n\x1a\n", name
    return struct.unpack(">II", head[16:24])


def info(name):
    return json.loads(subprocess.run([CLI, "info", name, "--json"], capture_output=True, text=True, check=True).stdout)


if args.photos:
    os.symlink(os.path.realpath(args.photos), "pictures")
else:
    make_pictures()
make_vae("vae")
init, info_pictures, encode, info_latents, train, info_run, sample, sample_folder = commands
run(init)
out = run(info_pictures)
counted = info("pictures")
good = counted["samples"] - counted["bad"]
print(f"  {good} pictures in {len(counted['classes'])} classes, {counted['bad']} cannot be read; shorter sides {counted['shorter_side']}")
if not args.photos:
    assert (good, counted["bad"]) == (20, 1) and "cut.jpg" in out, out

# Killed once it has saved something, gone on with; beside it an unbroken one.
print(f"$ {encode}")
p = subprocess.Popen(words(encode), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "DIFFFIT_CL_SAVE_EVERY": "0.02"})
while p.poll() is None and len(shards("latents")) < 2:
    time.sleep(0.005)
p.kill()
p.wait()
assert p.returncode == -signal.SIGKILL, "it ended before it could be killed"
assert not os.path.exists("latents/index.json")
print(f"  killed, with {len(shards('latents'))} shards written")
run(encode)
os.makedirs("unbroken")
for name in ("pictures", "vae"):
    os.symlink(os.path.join("..", name), os.path.join("unbroken", name))
run(encode, where="unbroken")
(a, rows), (b, whole) = cache("latents"), cache("unbroken/latents")
assert len(rows) == good and rows == whole, "the latents differ"
assert all(a[k] == b[k] for k in ("settings", "classes", "skipped", "rgb")), (a, b)
with open("preview.png", "rb") as f, open("unbroken/preview.png", "rb") as g:
    assert f.read() == g.read()
print(f"  latents, linear approximation and preview are those of the unbroken run: {len(shards('latents'))} shards and {len(shards('unbroken/latents'))}")
run(info_latents)
d = info("latents")
assert d["samples"] == good and d["skipped"] == counted["bad"] and d["flip"] and [c["name"] for c in d["classes"]] == [c["name"] for c in counted["classes"]], d
# This autoencoder keeps colours, so the approximation is nearly exact (colours from -1 to 1): 0.03 of which is SiLU's bend.
assert d["latent_rgb_rms"] < 0.05, d["latent_rgb_rms"]
columns = min(8, good)
assert picture_size("preview.png") == (columns * (size + 2) + 2, 2 * (size + 2) + 2)

run(train)
with open("run/metrics.jsonl", encoding="utf-8") as f:
    lines = [json.loads(x) for x in f]
assert lines[-1]["step"] == 50 and all(math.isfinite(x["loss"]) for x in lines) and lines[-1]["val_loss"] is not None, lines[-1]
assert os.path.isfile("run/samples/step-000050-ema.png")
print(f"  loss {lines[0]['loss']:.3f} -> {lines[-1]['loss']:.3f}, held out {lines[-1]['val_loss']:.3f}")
run(info_run)

run(sample)
classes = len(counted["classes"])
assert picture_size("grid.png") == tuple(n * (size * (2 if size <= 64 else 1) + 2) + 2 for n in (4, classes)), picture_size("grid.png")
picture_size("grid.preview.png")
assert "by a linear approximation" in info("grid.preview.png")["text"]["Comment"]

# A thousand a class would take long: interrupted, it keeps what is done.
print(f"$ {sample_folder}")
p = subprocess.Popen(words(sample_folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
while p.poll() is None and not os.path.isfile("drawn/000002.png"):
    time.sleep(0.005)
p.send_signal(signal.SIGINT)
err = p.communicate(timeout=600)[1]
assert p.returncode == 130, (p.returncode, err)
names = sorted(os.listdir("drawn"))
assert 3 <= len(names) < 1000 * classes and names == [f"{i:06}.png" for i in range(len(names))], names
assert f"{len(names)} of {1000 * classes} pictures done and kept" in err, err
assert all(picture_size(os.path.join("drawn", n)) == (size, size) for n in names)
print(f"  interrupted: {err.strip().splitlines()[-1]}")
if args.keep:
    shutil.rmtree("cache", ignore_errors=True)
print("done")
