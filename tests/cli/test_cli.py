#!/usr/bin/env python3
"""The command as a user meets it: help, messages, exit codes, files.   test_cli.py PATH/TO/difffit-cl GOLDEN [pattern]"""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib

CLI, GOLDEN = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
PATTERN = sys.argv[3] if len(sys.argv) > 3 else ""
COMMANDS = ["devices", "demo", "encode", "train", "sample", "info", "init", "merge", "verify", "selftest", "doctor"]
DEVICELESS = ["devices", "info", "init", "merge", "doctor"]
tmp = tempfile.TemporaryDirectory(prefix="dfcl-cli-")
T = tmp.name
os.environ["XDG_CACHE_HOME"] = os.path.join(T, "cache")


def run(*words, code=0, timeout=600, env=None):
    p = subprocess.run([CLI, *map(str, words)], capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})})
    assert p.returncode == code, f"{' '.join(map(str, words))}: exit code {p.returncode}, expected {code}\n{p.stdout}\n{p.stderr}"
    return p.stdout, p.stderr


def fails(code, *words, says):
    """One clear line on standard error, with every text of `says`, and the documented code."""
    out, err = run(*words, code=code)
    lines = [x for x in err.strip().split("\n") if "warning" not in x]
    assert len(lines) == 1, f"{words}: expected one line, found:\n{err}"
    assert lines[0].startswith("difffit-cl"), lines[0]
    for text in says if isinstance(says, (list, tuple)) else [says]:
        assert text in lines[0], f"{words}: expected '{text}' in: {lines[0]}"


def path(name):
    return os.path.join(T, name)


def png(name, side, value, channels=1):
    rows = b"".join(b"\0" + bytes(((value + 7 * x + 3 * y) % 256) for x in range(side) for _ in range(channels)) for y in range(side))
    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))  # noqa: E731
    head = struct.pack(">IIBBBBB", side, side, 8, 0 if channels == 1 else 2, 0, 0, 0)
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def make_base(name, classes=3, seed=1, **more):
    words = {"depth": 2, "hidden": 32, "heads": 2, "patch": 2, "input": 8, "channels": 1, "classes": classes, "seed": seed, "scale": 0.1, **more}
    run("init", *[w for k, v in words.items() for w in (f"--{k}", v)], "--out", path(name))
    return path(name)


def make_images(name, classes=("a", "b"), n=4, side=10):
    for c, k in enumerate(classes):
        for i in range(n):
            png(os.path.join(T, name, k, f"{i}.png"), side, 40 * c + 11 * i)
    return path(name)


def tensors(file):
    with open(file, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(n))
        data = f.read()
    return {k: (v["shape"], data[v["data_offsets"][0]:v["data_offsets"][1]]) for k, v in head.items() if k != "__metadata__"}, head.get("__metadata__", {})


def test_help():
    out, _ = run("--help")
    for c in COMMANDS:
        assert re.search(rf"^  {c} ", out, re.M), c
        text, err = run(c, "--help")
        assert "usage: difffit-cl " + c in text and ("--device" in text) == (c not in DEVICELESS) and not err, c
        assert max(len(line) for line in text.split("\n")) <= 140, c
    _, err = run(code=2)
    assert "usage" in err
    assert re.match(r"difffit-cl \d+\.\d+\.\d+\n$", run("--version")[0])


def test_usage():
    for c in DEVICELESS:
        fails(2, c, "--device", "host", says=["no device", c])
    fails(2, "trian", says="trian")
    for c in COMMANDS:
        fails(2, c, "--no-such-thing", says=["--no-such-thing", f"difffit-cl {c} --help"])
    fails(2, "train", "--modell", "x", says="did you mean --model?")
    fails(2, "train", "--steps", says="needs a value")
    fails(2, "train", "--steps", "many", says=["--steps", "many"])
    fails(2, "train", "--steps", "0", says=["--steps", "from 1"])
    fails(2, "train", "--model", "a", says="--out")
    fails(2, "sample", "--model", "a", "--out", "b", "--sampler", "euler", says="dpm++")
    fails(2, "init", "--size", "DiT-Q/2", "--out", path("q"), says="DiT-Q/2")
    fails(2, "info", says="one path")


def test_devices():
    found = json.loads(run("devices", "--json")[0])
    assert any(d["selector"] == "host" for d in found)
    for i, d in enumerate(found):
        assert d["index"] == i and d["name"] and d["memory_bytes"] > 0 and d["max_alloc_bytes"] > 0
    text = run("devices")[0]
    for d in found:
        assert d["selector"] in text and d["name"] in text
    off = json.loads(run("devices", "--json", env={"DIFFFIT_CL_BF16_DOT": "0"})[0])
    assert not any(d["bf16_dot"] for d in off) and not any(d["bf16_dot"] for d in found if d["type"] != "CPU" or d["vector_bits"] < 512)
    assert ("bf16 dot yes" in text) == any(d["bf16_dot"] for d in found)
    fails(3, "selftest", "--device", "opencl:99", says=["opencl:99", "host"])
    fails(3, "selftest", "--device", "1234", says="1234")


def test_doctor():
    """Says what is there; drivers that are missing, none, or end the process are findings, never the end."""
    d = json.loads(run("doctor", "--json")[0])
    assert d["program"]["version"] in run("--version")[0] and d["machine"]["processors"] >= 1
    names = {x["name"]: x for x in d["libraries"]}
    assert {"zlib", "libpng", "libjpeg", "cJSON", "libcrypto"} <= set(names) and all(x["built_with"] for x in d["libraries"])
    assert {x["selector"]: x["opens"] for x in d["devices"]} == {x["selector"]: "yes" for x in json.loads(run("devices", "--json")[0])}
    assert d["cache"]["path"] == path("cache/difffit-cl") and d["cache"]["state"].endswith("can be written")
    text = run("doctor")[0]
    for x in d["devices"]:
        assert x["selector"] in text and x["name"] in text
    # the state of the self-test, before and after
    env = {"XDG_CACHE_HOME": path("doctor-cache")}
    state = lambda: {x["selector"]: x["selftest"] for x in json.loads(run("doctor", "--json", env=env)[0])["devices"]}["host"]  # noqa: E731
    assert state() == "not run yet"
    run("sample", "--device", "host", "--model", make_base("doctor.safetensors"), "--steps", 1, "-n", 1, "--out", path("doctor.png"), env=env)
    assert state() == "passed before"
    d = json.loads(run("doctor", "--json", env=env)[0])
    assert {x["name"]: x["files"] for x in d["cache_folders"]}["selftest"] == 1 and d["cache"]["files"] >= 1, d
    # what breaks
    os.makedirs(path("icd"))
    icds = {"missing": path("nothing.so"), "none": "libz.so.1", "empty": ""}
    compiler = shutil.which("cc")
    if compiler:
        with open(path("crash.c"), "w") as f:
            f.write("#include <stdlib.h>\n__attribute__((constructor)) static void end(void) { abort(); }\n")
        subprocess.run([compiler, "-shared", "-fPIC", path("crash.c"), "-o", path("crash.so")], check=True)
        icds["crash"] = path("crash.so")
    for name, library in icds.items():
        with open(path(f"icd/{name}.icd"), "w") as f:
            f.write(library)
    d = json.loads(run("doctor", "--json", env={"OCL_ICD_VENDORS": path("icd/"), "XDG_CACHE_HOME": "/proc/nowhere", "POCL_DEVICES": "cpu\x01"})[0])
    found = {os.path.basename(x["file"]): x for x in d["drivers"]}
    assert "nothing.so" in found["missing.icd"]["problem"] and "is no OpenCL driver" in found["none.icd"]["problem"], found
    assert "empty" in found["empty.icd"]["problem"]
    assert d["environment"]["OCL_ICD_VENDORS"] == path("icd/") and d["environment"]["POCL_DEVICES"] == "cpu?"
    hints = "\n".join(d["hints"])
    assert "/proc/nowhere/difffit-cl cannot be written" in hints, hints
    if compiler and d["loader"]["path"] != "none":
        assert "signal 6" in found["crash.icd"]["problem"] and "listing the devices: ended the process with signal 6" in hints, (found, hints)
    else:
        assert "no OpenCL device" in hints or d["loader"]["path"] == "none"
    text = run("doctor", env={"OCL_ICD_VENDORS": path("icd/"), "HOME": "", "XDG_CACHE_HOME": ""})[0]
    assert "neither XDG_CACHE_HOME nor HOME" in text and "hints\n" in text
    fails(2, "doctor", "now", says="now")


def test_no_device():
    """Without any platform only the host reference is left, and asking for another is a clear error."""
    empty = path("no-vendors")
    os.makedirs(empty, exist_ok=True)
    env = {"OCL_ICD_VENDORS": empty + "/"}
    found = json.loads(run("devices", "--json", env=env)[0])
    assert [d["selector"] for d in found] == ["host"], found
    out, err = run("selftest", "--device", "opencl:0", code=3, env=env)
    assert "opencl:0" in err


def test_selftest():
    out, _ = run("selftest", "--device", "host")
    assert "passed" in out and "forward pass" in out
    for d in json.loads(run("devices", "--json")[0]):
        assert "passed" in run("selftest", "--device", d["selector"])[0]


def test_info():
    base = make_base("info.safetensors", classes=5)
    out, _ = run("info", base)
    assert "32" in out and "5" in out
    j = json.loads(run("info", base, "--json")[0])
    assert isinstance(j, dict)
    for f in ("raw_f32.pt", "raw_bf16.safetensors", "train_ckpt.pt", "diffusers"):
        run("info", os.path.join(GOLDEN, "dit/micro", f))
        json.loads(run("info", os.path.join(GOLDEN, "dit/micro", f), "--json")[0])
    images = make_images("info-images")
    out, _ = run("info", images)
    assert "a" in out and "b" in out and "8" in out
    small_train("info-run", base, images, steps=2)
    j = json.loads(run("info", path("info-run/checkpoints/step-2"), "--json")[0])
    assert j["kind"] == "checkpoint" and j["step"] == 2
    fails(7, "info", path("nothing-here"), says="nothing-here")
    with open(path("noise.bin"), "wb") as f:
        f.write(b"\x01\x02\x03 nothing that anybody writes")
    fails(6, "info", path("noise.bin"), says="noise.bin")


def test_info_pictures():
    images = make_images("survey-images", classes=("cat", "größe"), n=3)
    png(os.path.join(images, "cat", "z.png"), 33, 1)
    with open(os.path.join(images, "größe", "9.jpg"), "wb") as f:
        f.write(b"\xff\xd8\xff\xe0nothing")
    os.symlink("gone.png", os.path.join(images, "größe", "8.png"))
    d = json.loads(run("info", images, "--json")[0])
    assert d["kind"] == "pictures" and d["samples"] == 9 and d["bad"] == 2, d
    assert d["classes"] == [{"name": "cat", "samples": 4}, {"name": "größe", "samples": 5, "bad": 2}], d
    assert d["shorter_side"] == {"smallest": 10, "median": 10, "largest": 33}, d
    assert d["bytes"] == sum(os.path.getsize(os.path.join(p, f)) for p, _, fs in os.walk(images) for f in fs if f != "8.png")
    assert "8.png" in d["bad_files"][0]["error"] and "9.jpg" in d["bad_files"][1]["error"], d
    text = run("info", images)[0]
    assert "größe  5  2" in text and "9.jpg: bad JPEG" in text, text
    d = json.loads(run("info", images, "--json", "--quick")[0])
    assert d["samples"] == 9 and "bad" not in d, d


def test_bad_files():
    base = make_base("whole.safetensors")
    images = make_images("bad-images")
    with open(base, "rb") as f:
        data = f.read()
    for keep in (0, 5, 100, len(data) // 2, len(data) - 1):
        with open(path("cut.safetensors"), "wb") as f:
            f.write(data[:keep])
        fails(6, "train", "--device", "host", "--model", path("cut.safetensors"), "--data", images, "--out", path("cut-run"), says="cut.safetensors")
        assert not os.path.exists(path("cut-run/checkpoints"))
    with open(os.path.join(GOLDEN, "dit/micro/raw_f32.pt"), "rb") as f:
        data = f.read()
    with open(path("cut.pt"), "wb") as f:
        f.write(data[: len(data) // 2])
    fails(6, "info", path("cut.pt"), says="cut.pt")
    fails(7, "sample", "--device", "host", "--model", path("none.pt"), "--out", path("x.png"), says="none.pt")
    os.makedirs(path("empty-folder"), exist_ok=True)
    fails(6, "train", "--device", "host", "--model", base, "--data", path("empty-folder"), "--out", path("e-run"), says="empty-folder")
    os.makedirs(path("broken-images/k"), exist_ok=True)
    with open(path("broken-images/k/bad.png"), "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\nnot really")
    fails(6, "train", "--device", "host", "--model", base, "--data", path("broken-images"), "--out", path("b-run"), says="bad.png")


def test_wrong_paths():
    """What was expected at a path, and what lies there."""
    base, images, note = make_base("wbase.safetensors"), make_images("wimages"), path("note.txt")
    with open(note, "w") as f:
        f.write("A note that is no model at all, of some length.\n")
    fails(6, "info", note, says=[note, "not a safetensors file", "does not start with {"])
    fails(6, "train", "--device", "host", "--model", note, "--data", images, "--out", path("w"), says=[note, "does not start with {"])
    fails(6, "train", "--device", "host", "--model", base, "--data", base, "--out", path("w"), says=[base, "expected a folder of pictures or latents, found a file"])
    fails(2, "train", "--device", "host", "--model", base, "--data", images, "--out", images, says=['found "a" in it'])
    fails(7, "demo", "--device", "host", "--data", path("nowhere"), "--out", path("wdemo"), says=["nowhere/base.safetensors", "No such file", "--data"])
    fails(2, "sample", "--device", "host", "--model", base, "--delta", base + ":half", "-n", 1, "--out", path("w.png"), says=[base, "strength", "'half'"])
    assert not os.path.exists(path("w")) and not os.path.exists(path("wdemo"))
    for c, word in (("train", "another each time"), ("encode", "one for each picture")):
        assert word in " ".join(run(c, "--help")[0].split()), c


def small_train(run_dir, base, images, *more, code=0, steps=4):
    return run("train", "--device", "host", "--model", base, "--data", images, "--out", path(run_dir), "--steps", steps, "--batch", 4, "--lr", "1e-3",
               "--log-every", 1, *more, code=code)


def test_train_and_sample():
    base = make_base("base.safetensors", classes=3)
    images = make_images("images", classes=("cat", "dog"))
    small_train("run", base, images)
    delta = path("run/delta.safetensors")
    got, meta = tensors(delta)
    assert any(k.endswith("gamma1") for k in got) and "y_embedder.embedding_table.weight" in got
    assert got["y_embedder.embedding_table.weight"][0] == [3, 32], got["y_embedder.embedding_table.weight"][0]
    assert "cat" in json.dumps(meta) and "dog" in json.dumps(meta)
    assert not any(k.endswith("qkv.weight") for k in got)
    metrics = [json.loads(x) for x in open(path("run/metrics.jsonl"))]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4] and all(m["loss"] > 0 for m in metrics)
    assert "difffit" in run("info", path("run"))[0]
    assert "difffit" in run("info", delta)[0]
    common = ["--device", "host", "--model", base, "--delta", delta, "--steps", 3, "--sampler", "ddim", "-n", 2]
    run("sample", *common, "--classes", "dog", "--out", path("dog.png"), "--save-latents", path("dog.safetensors"))
    assert open(path("dog.png"), "rb").read(8) == b"\x89PNG\r\n\x1a\n"
    run("sample", *common, "--classes", "1", "--batch", 1, "--out", path("folder"), "--save-latents", path("one.safetensors"))
    assert sorted(os.listdir(path("folder"))) == ["000000.png", "000001.png"]
    a, b = tensors(path("dog.safetensors"))[0]["latents"], tensors(path("one.safetensors"))[0]["latents"]
    assert a[0] == [2, 1, 8, 8]
    worst = max(abs(x - y) for x, y in zip(struct.unpack(f"<{len(a[1])//4}f", a[1]), struct.unpack(f"<{len(b[1])//4}f", b[1])))
    assert worst < 1 / 255, worst
    fails(2, "sample", *common, "--classes", "bird", "--out", path("b.png"), says=["bird", "cat"])
    other = make_base("other.safetensors", classes=3, seed=2)
    fails(6, "sample", "--device", "host", "--model", other, "--delta", delta, "--steps", 3, "--out", path("o.png"), says="delta.safetensors")
    assert not os.path.exists(path("o.png"))
    run("merge", "--model", base, "--delta", delta, "--out", path("merged.safetensors"))
    run("sample", "--device", "host", "--model", path("merged.safetensors"), "--heads", 2, "--steps", 3, "--sampler", "ddim", "-n", 2, "--classes", "1", "--save-latents",
        path("merged-latents.safetensors"))
    c = tensors(path("merged-latents.safetensors"))[0]["latents"]
    worst = max(abs(x - y) for x, y in zip(struct.unpack(f"<{len(a[1])//4}f", a[1]), struct.unpack(f"<{len(c[1])//4}f", c[1])))
    assert worst < 1e-3, worst


def test_merge():
    """One result in every container and naming: opened again, each draws the same bits; what cannot be is refused and leaves nothing."""
    base, images = make_base("gbase.safetensors"), make_images("gimages", classes=("x", "y"))
    small_train("grun", base, images)
    delta = path("grun/delta.safetensors")
    draw = ["sample", "--device", "host", "--heads", 2, "--steps", 2, "--sampler", "ddim", "--cfg", 1, "-n", 1, "--save-latents", path("g.safetensors")]
    results = []
    for out, words in (("g1.safetensors", ()), ("g2.pt", ()), ("g3", ("--names", "diffusers")), ("g4.pth", ("--gammas", "keep"))):
        text, _ = run("merge", "--model", base, "--heads", 2, "--delta", delta, "--out", path(out), *words)
        assert text == path(out) + "\n"
        run(*draw, "--model", path(out))
        results.append(tensors(path("g.safetensors"))[0]["latents"])
    assert results[0] == results[1] == results[2] and results[3][0] == results[0][0]
    assert json.loads(run("info", path("g4.pth"), "--json")[0])["gammas"] and not json.loads(run("info", path("g2.pt"), "--json")[0])["gammas"]
    before = open(path("g2.pt"), "rb").read()
    run("merge", "--model", base, "--heads", 2, "--delta", delta, "--out", path("g2.pt"))
    assert before == open(path("g2.pt"), "rb").read()
    # a base alone, there and back: the same weights, so the same hash
    run("merge", "--model", base, "--heads", 2, "--names", "diffusers", "--out", path("gd/"))
    run("merge", "--model", path("gd"), "--out", path("gback.safetensors"))
    hashes = [json.loads(run("info", p, "--json")[0])["base_hash"] for p in (base, path("gd"), path("gback.safetensors"))]
    assert len(set(hashes)) == 1, hashes
    words = ["merge", "--model", base, "--heads", 2, "--delta", delta]
    fails(2, *words, "--names", "diffusers", "--out", path("g3"), says=["g3", "empty folder", "config.json"])
    fails(2, *words, "--names", "diffusers", "--out", path("g2.pt"), says="folder")
    fails(2, *words, "--names", "diffusers", "--gammas", "keep", "--out", path("g5"), says="gammas")
    fails(2, *words, "--names", "theirs", "--out", path("g5"), says=["theirs", "diffusers"])
    fails(2, *words, "--gammas", "drop", "--out", path("g5"), says=["drop", "keep"])
    other = make_base("gother.safetensors", seed=9)
    for out, more in (("g5.pt", ()), ("g5", ("--names", "diffusers"))):
        fails(6, "merge", "--model", other, "--heads", 2, "--delta", delta, "--out", path(out), *more, says="made on the base")
    fails(7, *words, "--out", path("nowhere/g5.pt"), says="nowhere")
    assert before == open(path("g2.pt"), "rb").read() and not [f for f in os.listdir(T) if f.startswith("g5") or ".tmp" in f]


def test_same_picture_on_every_device():
    """The same seed gives the same picture to 1/255 on every device and in any batch; on one device the same bits."""
    base = make_base("dbase.safetensors", classes=3)
    for sampler in ("ddpm", "ddim", "dpm++"):
        pictures = {}
        for d in json.loads(run("devices", "--json")[0]):
            if not d["usable"]:
                continue
            for batch in (1, 3):
                out = path(f"d-{d['index']}-{batch}.safetensors")
                run("sample", "--device", d["selector"], "--model", base, "--classes", "0,2", "-n", 2, "--sampler", sampler, "--steps", 4, "--cfg", 2, "--seed", 7,
                    "--batch", batch, "--save-latents", out)
                data = tensors(out)[0]["latents"][1]
                pictures[(d["selector"], batch)] = struct.unpack(f"<{len(data)//4}f", data)
                if batch == 3:
                    run("sample", "--device", d["selector"], "--model", base, "--classes", "0,2", "-n", 2, "--sampler", sampler, "--steps", 4, "--cfg", 2, "--seed",
                        7, "--batch", batch, "--save-latents", out)
                    assert tensors(out)[0]["latents"][1] == data, "two runs differ"
        want = pictures[("host", 1)]
        for k, got in pictures.items():
            worst = max(abs(x - y) / 2 for x, y in zip(want, got))
            assert worst < 1 / 255, (sampler, k, worst)


def test_interrupted_sampling_keeps_pictures():
    base, folder, latents = make_base("ibase.safetensors"), path("ifolder"), path("ilatents.safetensors")
    words = ["sample", "--device", "host", "--model", base, "--classes", "0", "-n", 100000, "--batch", 2, "--steps", 40, "--sampler", "ddim"]
    p = subprocess.Popen([CLI, *map(str, words), "--out", folder, "--save-latents", latents], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up = time.time() + 120
    while not os.path.exists(os.path.join(folder, "000003.png")) and time.time() < give_up and p.poll() is None:
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    err = p.communicate()[1]
    assert p.returncode == 130, (p.returncode, err)
    names = sorted(os.listdir(folder))
    assert len(names) >= 4 and names == [f"{i:06}.png" for i in range(len(names))], names
    assert f"{len(names)} of 100000 pictures done and kept" in err, err
    got = tensors(latents)[0]["latents"]
    assert got[0] == [len(names), 1, 8, 8], got[0]
    run(*words[:-6], "--steps", 40, "--sampler", "ddim", "-n", 3, "--batch", 2, "--out", path("iwhole"))
    for i in range(3):
        assert open(os.path.join(folder, names[i]), "rb").read() == open(path(f"iwhole/{names[i]}"), "rb").read(), i


def png_text(name):
    """Text chunks of a PNG."""
    data, at, found = open(name, "rb").read(), 8, {}
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"tEXt":
            k, v = data[at + 8:at + 8 + n].split(b"\0", 1)
            found[k.decode()] = v.decode("latin-1")
        at += 12 + n
    return found


def same_file(a, b):
    assert open(a, "rb").read() == open(b, "rb").read(), (a, b)


def test_resolution():
    base = make_base("rbase.safetensors", classes=2)
    images = make_images("rimages", side=20)
    at = ["--device", "host", "--model", base]
    small_train("r-large", base, images, "--pos-scale", 0.5)
    large = path("r-large/delta.safetensors")
    d = json.loads(run("info", large, "--json")[0])
    assert d["input"] == 16 and d["positional_scale"] == 4, d
    small_train("r-large", base, images, "--pos-scale", 0.5, "--resume", "auto", steps=6)
    fails(2, "train", *at, "--data", images, "--out", path("r-large"), "--resume", "auto", "--steps", 8, "--batch", 4, "--lr", "1e-3", "--log-every", 1,
          "--input", 16, "--pos-scale", 0.25, says="positional_scale")
    # the delta brings its resolution
    draw = ["-n", 2, "--classes", "a", "--steps", 3, "--sampler", "ddim", "--seed", 4]
    run("sample", *at, "--delta", large, *draw, "--out", path("r-a.png"), "--save-latents", path("r-a.safetensors"))
    shape = next(iter(tensors(path("r-a.safetensors"))[0].values()))[0]
    assert shape == [2, 1, 16, 16], shape
    # asked for, the same; other positions, another picture, drawn again from its text
    run("sample", *at, "--delta", large, *draw, "--input", 16, "--pos-scale", 0.5, "--out", path("r-b.png"), "--save-latents", path("r-b.safetensors"))
    same_file(path("r-a.safetensors"), path("r-b.safetensors"))
    run("sample", *at, "--delta", large, *draw, "--input", 16, "--pos-scale", 1, "--out", path("r-c.png"), "--save-latents", path("r-c.safetensors"))
    assert open(path("r-a.safetensors"), "rb").read() != open(path("r-c.safetensors"), "rb").read()
    assert png_text(path("r-c.png"))["pos-scale"] == "1" and "pos-scale" not in png_text(path("r-a.png"))
    run("sample", *at, "--from", path("r-c.png"), "--out", path("r-d.png"))
    same_file(path("r-c.png"), path("r-d.png"))
    # a merged base holds the positions
    run("merge", "--model", base, "--delta", large, "--out", path("r-merged.safetensors"))
    d = json.loads(run("info", path("r-merged.safetensors"), "--json")[0])
    assert d["input"] == 16 and d["positional_scale"] == 4, d
    run("sample", "--device", "host", "--model", path("r-merged.safetensors"), *draw, "--out", path("r-e.png"), "--save-latents", path("r-e.safetensors"))
    a, e = (struct.unpack("<512f", next(iter(tensors(path(n))[0].values()))[1]) for n in ("r-a.safetensors", "r-e.safetensors"))
    assert max(abs(p - q) for p, q in zip(a, e)) < 1e-4
    fails(2, "merge", "--model", base, "--delta", large, "--out", path("r-hub"), "--names", "diffusers", says="positions")
    # deltas of two resolutions
    small_train("r-small", base, images)
    with open(path("r-requests"), "w") as f:
        f.write(f"delta={large} class=a\ndelta={path('r-small/delta.safetensors')} class=a\n")
    fails(6, "sample", *at, "--requests", path("r-requests"), "--out", path("r-no"), says=["side 16", "side 8"])
    fails(2, "train", *at, "--data", images, "--out", path("r-no"), "--pos-scale", 0.7, says=["0.7", "patch"])


def test_unscaled_resolution():
    """A delta trained at a larger side without scaled positions is drawn without them too."""
    base, images = make_base("ubase.safetensors", classes=2), make_images("uimages", side=20)
    small_train("unscaled", base, images, "--input", 16, "--pos-scale", 1)
    delta, draw = path("unscaled/delta.safetensors"), ["-n", 1, "--classes", "a", "--steps", 3, "--sampler", "ddim", "--seed", 4]
    d = json.loads(run("info", delta, "--json")[0])
    assert d["input"] == 16 and d["positional_scale"] == 0, d
    for name, more in ("own", []), ("asked", ["--input", 16, "--pos-scale", 1]):
        _, err = run("sample", "--device", "host", "--model", base, "--delta", delta, *draw, *more, "--save-latents", path(f"u-{name}.safetensors"))
        assert "warning" not in err, err
    same_file(path("u-own.safetensors"), path("u-asked.safetensors"))


def test_rectangle():
    """Pictures that are no squares, from training to a merged base: width x height in options and files, rows first in tensors."""
    base = make_base("xbase.safetensors", classes=2)
    images = make_images("ximages", side=20)
    devices = [d["selector"] for d in json.loads(run("devices", "--json")[0]) if d["usable"]]
    at = ["--device", "host", "--model", base]
    small_train("x-run", base, images, "--input", "12x8", steps=6)
    small_train("x-cut", base, images, "--input", "12x8", "--checkpoint-every", 3, steps=3)
    small_train("x-cut", base, images, "--input", "12x8", "--resume", "auto", steps=6)
    delta = path("x-run/delta.safetensors")
    same_file(delta, path("x-cut/delta.safetensors"))
    fails(2, "train", *at, "--data", images, "--out", path("x-cut"), "--resume", "auto", "--steps", 8, "--batch", 4, "--lr", "1e-3", "--log-every", 1, "--input", "8x12",
          says=["input", "12x8", "8x12"])
    d = json.loads(run("info", delta, "--json")[0])
    assert d["input"] == "12x8" and d["positional_scale"] == 4, d  # the longer side spans the base's grid of 4
    assert json.load(open(path("x-run/config.json")))["options"]["train"]["input"] == "12x8"
    # drawn as it was trained, on every device; sides of the picture
    draw = ["-n", 2, "--classes", "a", "--steps", 3, "--sampler", "ddim", "--seed", 4]
    got = {}
    for i, device in enumerate(devices):
        run("sample", "--device", device, "--model", base, "--delta", delta, *draw, "--save-latents", path(f"x-{i}.safetensors"))
        shape, data = tensors(path(f"x-{i}.safetensors"))[0]["latents"]
        assert shape == [2, 1, 8, 12], shape
        got[device] = struct.unpack("<192f", data)
    for device in devices:
        assert max(abs(p - q) for p, q in zip(got["host"], got[device])) < 2 / 255, device
    run("sample", *at, "--delta", delta, *draw, "--out", path("x-folder"), "--save-latents", path("x-host.safetensors"))
    with open(path("x-folder/000000.png"), "rb") as f:
        assert struct.unpack(">II", f.read(24)[16:]) == (12, 8)
    run("sample", *at, "--from", path("x-folder/000000.png"), "--out", path("x-again"))
    same_file(path("x-folder/000000.png"), path("x-again/000000.png"))
    # from a configuration file, as a text; other positions, another picture; a grid and previews
    with open(path("x.json"), "w") as f:
        json.dump({"sample": {"input": "12x8", "pos-scale": 1}}, f)
    run("sample", *at, "--config", path("x.json"), "--delta", delta, *draw, "--preview-every", 2, "--out", path("x-grid.png"), "--save-latents", path("x-plain.safetensors"))
    assert tensors(path("x-plain.safetensors"))[0] != tensors(path("x-host.safetensors"))[0]
    assert png_text(path("x-grid.png"))["input"] == "12x8"
    for name in "x-grid.png", "x-grid.preview.png":
        with open(path(name), "rb") as f:
            w, h = struct.unpack(">II", f.read(24)[16:])
        assert (w - 6) % 24 == 0 and (h - 4) % 8 == 0 and (w - 6) // 24 == (h - 4) // 8, (name, w, h)  # two columns, margins of 2
    run("sample", *at, "--from", path("x-grid.png"), "--out", path("x-grid2.png"))
    same_file(path("x-grid.png"), path("x-grid2.png"))
    # merged, where the file can say it
    run("merge", "--model", base, "--delta", delta, "--out", path("x-merged.safetensors"))
    d = json.loads(run("info", path("x-merged.safetensors"), "--json")[0])
    assert d["input"] == "12x8" and d["positional_scale"] == 4, d
    assert tensors(path("x-merged.safetensors"))[0]["pos_embed"][0] == [1, 24, 32]
    run("sample", "--device", "host", "--model", path("x-merged.safetensors"), *draw, "--save-latents", path("x-m.safetensors"))
    merged = struct.unpack("<192f", tensors(path("x-m.safetensors"))[0]["latents"][1])
    assert max(abs(p - q) for p, q in zip(got["host"], merged)) < 1e-4
    fails(2, "merge", "--model", base, "--delta", delta, "--out", path("x-merged.pt"), says=["6 x 4 tokens", ".safetensors"])
    fails(2, "merge", "--model", base, "--delta", delta, "--out", path("x-hub"), "--names", "diffusers", says=["6 x 4 tokens", "square"])
    assert not os.path.exists(path("x-merged.pt")) and not os.path.exists(path("x-hub"))
    # a base of its own, turned; what does not fit
    wide = make_base("xwide.safetensors", classes=2, input="12x4")
    d = json.loads(run("info", wide, "--json")[0])
    assert d["input"] == "12x4" and "positional_scale" not in d, d
    text = open(wide, "rb").read()
    for size, code in ("4x12", 0), ("9x12", 6), ("8x12", 6), ("0x12", 6), ("12", 0):
        with open(path("x-other.safetensors"), "wb") as f:
            f.write(text.replace(b'"12x4"', f'"{size}"'.ljust(6).encode()))
        if size == "12":
            fails(6, "info", path("x-other.safetensors"), says=["pos_embed", "[1, 12, 32]"])
        elif code:
            fails(6, "info", path("x-other.safetensors"), says=["pos_embed", size])
        else:
            assert json.loads(run("info", path("x-other.safetensors"), "--json")[0])["input"] == size
    scaled = make_base("xscaled.safetensors", classes=2, input="12x4", **{"pos-scale": 0.5})
    assert json.loads(run("info", scaled, "--json")[0])["positional_scale"] == 3
    small_train("x-own", wide, images, "--crop", "random", "--flip")
    d = json.loads(run("info", path("x-own/delta.safetensors"), "--json")[0])
    assert d["input"] == "12x4" and d["positional_scale"] == 0, d
    small_train("x-half", wide, images, "--pos-scale", 0.5)
    d = json.loads(run("info", path("x-half/delta.safetensors"), "--json")[0])
    assert d["input"] == "24x8" and d["positional_scale"] == 6, d
    small_train("x-turned", base, images, "--input", "8x12")
    with open(path("x-requests"), "w") as f:
        f.write(f"delta={delta} class=a\ndelta={path('x-turned/delta.safetensors')} class=a\n")
    fails(6, "sample", *at, "--requests", path("x-requests"), "--out", path("x-no"), says=["side 12x8", "side 8x12"])
    fails(2, "train", *at, "--data", images, "--out", path("x-no"), "--input", "12x9", says=["9", "patch 2"])
    for bad in "12x", "x8", "12x8x4", "0x8", "12 x8", "-8", "8.5", "9000":
        fails(2, "train", *at, "--data", images, "--out", path("x-no"), f"--input={bad}", says=["--input", "width x height"])


def test_requests_and_from():
    base, images = make_base("qbase.safetensors"), make_images("qimages", classes=("cat", "dog"))
    for k in (1, 2, 3):
        small_train(f"qrun{k}", base, images, "--seed", k)
    d = {k: path(f"qrun{k}/delta.safetensors") for k in (1, 2, 3)}
    draw = ["sample", "--device", "host", "--model", base, "--steps", 3]
    lines = [f"# three domains and the base\ndelta={d[1]} class=dog seed=5 guidance=2 count=2", json.dumps({"delta": d[2] + ":0.5", "class": "cat", "seed": 6, "name": "a cat"}),
             f'delta="{d[3]}" class=null number=7', f"delta={d[1]}:0.5 delta={d[3]}:0.25 class=1 seed=8 name=blend count=2", "class=2 seed=9"]
    with open(path("requests"), "w") as f:
        f.write("\n".join(lines) + "\n")
    run(*draw, "--requests", path("requests"), "--out", path("q"), "--save-latents", path("q.safetensors"))
    names = ["000000.png", "000001.png", "000003.png", "000006.png", "a cat.png", "blend-000000.png", "blend-000001.png"]
    assert sorted(os.listdir(path("q"))) == sorted(names), os.listdir(path("q"))
    # one domain at a time: loaded and unloaded, the same pictures
    run(*draw, "--requests", path("requests"), "--out", path("q1"), "--max-domains", 1)
    for x in names:
        same_file(path("q/" + x), path("q1/" + x))
    # a request by flags
    run(*draw, "--delta", d[1], "--classes", "dog", "-n", 2, "--seed", 5, "--cfg", 2, "--out", path("q2"), "--save-latents", path("q2.safetensors"))
    a, b = tensors(path("q.safetensors"))[0]["latents"], tensors(path("q2.safetensors"))[0]["latents"]
    assert a[0] == [7, 1, 8, 8] and a[1][:512] == b[1], "requests and flags differ"
    # each picture draws itself again: alone, and as a grid
    for x in names:
        out, _ = run("sample", "--device", "host", "--from", path("q/" + x), "--out", path("again.png"))
        same_file(path("q/" + x), path("again.png"))
    run(*draw, "--requests", path("requests"), "--sampler", "ddim", "--eta", 0.3, "--guidance", "domain", "--cfg-interval", "0.1,50", "--columns", 3, "--out", path("grid.png"))
    text = png_text(path("grid.png"))
    assert text["guidance"] == "domain" and text["cfg-interval"] == "0.1,50" and len(text["request"].strip().split("\n")) == 5, text
    run("sample", "--device", "host", "--from", path("grid.png"), "--out", path("grid2.png"))
    same_file(path("grid.png"), path("grid2.png"))
    other = make_base("qother.safetensors", seed=9)
    fails(6, "sample", "--device", "host", "--from", path("q/000006.png"), "--model", other, "--out", path("no.png"), says="qother.safetensors")
    small_train("qrun4", base, images, "--seed", 4)
    os.replace(path("qrun4/delta.safetensors"), d[1])
    fails(6, "sample", "--device", "host", "--from", path("q/000000.png"), "--out", path("no.png"), says=["SHA-256", "qrun1"])
    fails(2, "sample", "--from", path("grid.png"), "--seed", 3, "--out", path("no.png"), says="--seed")
    png(path("plain.png"), 8, 3)
    fails(6, "sample", "--from", path("plain.png"), "--out", path("no.png"), says="plain.png")
    for bad, says in (("class=cat colour=red", "colour"), ("delta=x", "class"), ("class=cat seed=-1", "seed"), ("class", "byte"), ('{"class": "cat"', "byte"),
                      ("class=cat name=a/b", "name"), ("class=a name=x\nclass=b name=x", "line 1"), ("# nothing", "found none")):
        with open(path("bad"), "w") as f:
            f.write(bad)
        fails(6, *draw, "--requests", path("bad"), "--out", path("no"), says=["bad", says])
    fails(2, *draw, "--requests", path("requests"), "--classes", "0", "--out", path("no"), says="--classes")
    fails(2, *draw, "--cfg-interval", "3,1", "--out", path("no"), says="--cfg-interval")
    fails(2, *draw, "--guidance", "both", "--out", path("no"), says="--guidance")


def test_npz():
    try:
        import numpy
    except ImportError:
        print("SKIPPED test_npz: no numpy")
        return
    base = make_base("zbase.safetensors", channels=3)
    draw = ["sample", "--device", "host", "--model", base, "--steps", 2, "--classes", "2,0", "-n", 3]
    run(*draw, "--batch", 2, "--out", path("z.npz"))
    run(*draw, "--out", path("z"), "--save-latents", path("z.safetensors"))
    with numpy.load(path("z.npz")) as z:
        assert sorted(z.files) == ["arr_0", "arr_1"], z.files
        x, y = z["arr_0"], z["arr_1"]
    assert x.shape == (6, 8, 8, 3) and x.dtype == numpy.uint8 and y.dtype == numpy.int64 and y.tolist() == [2, 2, 2, 0, 0, 0], (x.shape, y)
    want = numpy.frombuffer(tensors(path("z.safetensors"))[0]["latents"][1], "<f4").reshape(6, 3, 8, 8).transpose(0, 2, 3, 1)
    want = numpy.floor(numpy.clip(numpy.float32(127.5) * want + 128, 0, 255)).astype(numpy.uint8)
    assert (x == want).all()


def samples(name):
    """Shape and bytes of an .npz's pictures."""
    with zipfile.ZipFile(path(name)) as z:
        data = z.read("arr_0.npy")
    n = struct.unpack("<H", data[8:10])[0]
    return [int(x) for x in re.search(rb"'shape': \(([^)]*)\)", data[:10 + n]).group(1).split(b",")], data[10 + n:]


def npy(name, shape, values, kind="f4"):
    head = f"{{'descr': '<{kind}', 'fortran_order': False, 'shape': {tuple(shape)}, }}".encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    os.makedirs(os.path.dirname(path(name)), exist_ok=True)
    with open(path(name), "wb") as f:
        f.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + struct.pack(f"<{len(values)}{'f' if kind == 'f4' else 'q'}", *values))


def test_autoencoder():
    """Latents become pictures: grids, folders, .npz, a picture drawn again, within a limit, and the grids of a run."""
    vae, base = os.path.join(GOLDEN, "vae"), make_base("vbase.safetensors", channels=4)
    draw = ["sample", "--device", "host", "--model", base, "--steps", 2, "--classes", "1,0", "-n", 1]
    run(*draw, "--vae", vae, "--out", path("v.npz"), "--save-latents", path("v.safetensors"))
    shape, whole = samples("v.npz")
    assert shape == [2, 16, 16, 3] and len(whole) == 2 * 16 * 16 * 3 and len(set(whole)) > 50, (shape, len(set(whole)))
    assert tensors(path("v.safetensors"))[0]["latents"][0] == [2, 4, 8, 8]
    run(*draw, "--vae", GOLDEN, "--vae-scale", 0.5, "--out", path("v2.npz"))  # the folder that has it in vae/
    assert samples("v2.npz")[1] != whole
    os.makedirs(path("v-config"))
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(os.path.join(vae, name), path("v-config"))
        os.chmod(path(f"v-config/{name}"), 0o644)
    with open(path("v-config/config.json")) as f:
        config = json.load(f)
    with open(path("v-config/config.json"), "w") as f:
        json.dump({**config, "scaling_factor": 0.5}, f)
    run(*draw, "--vae", path("v-config"), "--out", path("v3.npz"))
    assert samples("v3.npz")[1] == samples("v2.npz")[1]
    run(*draw, "--vae", vae, "--out", path("v.png"))
    text = png_text(path("v.png"))
    assert text["vae"] == vae and len(text["decoder"]) == 64, text
    run("sample", "--device", "host", "--from", path("v.png"), "--out", path("v-again.png"))
    same_file(path("v.png"), path("v-again.png"))
    fails(6, "sample", "--device", "host", "--from", path("v.png"), "--vae", damaged_vae("v-other"), "--out", path("o.png"), says=["v.png", "autoencoder", text["decoder"]])
    run(*draw, "--vae", vae, "--out", path("v-folder"))
    assert sorted(os.listdir(path("v-folder"))) == ["000000.png", "000001.png"]
    fails(2, *draw, "--out", path("o.png"), says=["latents of 4 channels", "--vae"])
    fails(2, *draw, "--vae", vae, "--save-latents", path("o.safetensors"), says=["--vae", "--out"])
    fails(7, *draw, "--vae", path("nowhere"), "--out", path("o.png"), says="nowhere")
    fails(6, *draw, "--vae", base, "--out", path("o.png"), says=["vbase.safetensors", "AutoencoderKL"])
    fails(2, "sample", "--device", "host", "--model", make_base("vpixels.safetensors"), "--steps", 2, "--vae", vae, "--out", path("o.png"), says=["works on pictures", "--vae"])
    fails(6, "sample", "--device", "host", "--model", make_base("vfive.safetensors", channels=5), "--steps", 2, "--vae", vae, "--out", path("o.png"),
          says=["latents of 5 channels", "found 4"])
    for i in range(4):
        npy(f"vdata/x_features/{i}.npy", (1, 4, 8, 8), [((i * 37 + k * 11) % 17) / 8 - 1 for k in range(256)])
        npy(f"vdata/x_labels/{i}.npy", (1,), [i % 2], "i8")
    train = ["train", "--device", "host", "--model", base, "--data", path("vdata"), "--batch", 2, "--steps", 2, "--sample-every", 2]
    run(*train, "--out", path("vrun"), "--vae", vae)
    assert os.listdir(path("vrun/samples")) == ["step-000002-ema.png"]
    with open(path("vrun/samples/step-000002-ema.png"), "rb") as f:
        assert struct.unpack(">II", f.read(24)[16:]) == (4 * 64 + 5 * 2, 2 * 64 + 3 * 2)  # 16 pixels a side, four times
    run(*train, "--out", path("vrun2"))
    assert os.listdir(path("vrun2/samples")) == ["step-000002-ema.safetensors"]
    fails(6, *train, "--out", path("vrun3"), "--vae", base, says="AutoencoderKL")
    assert not os.path.exists(path("vrun3"))
    fails(2, "train", "--model", base, "--data", path("vdata"), "--out", path("vrun3"), "--vae", vae, says=["--vae", "--sample-every"])


def damaged_vae(name):
    """The reference's autoencoder with one bias of its decoder changed."""
    os.makedirs(path(name))
    shutil.copy(os.path.join(GOLDEN, "vae", "config.json"), path(name))
    with open(os.path.join(GOLDEN, "vae", "diffusion_pytorch_model.safetensors"), "rb") as f:
        data = bytearray(f.read())
    n = struct.unpack("<Q", data[:8])[0]
    at = 8 + n + json.loads(data[8:8 + n])["decoder.conv_out.bias"]["data_offsets"][0]
    data[at:at + 4] = struct.pack("<f", 0.25)
    with open(path(f"{name}/diffusion_pytorch_model.safetensors"), "wb") as f:
        f.write(data)
    return path(name)


def test_resume_is_exact():
    base, images = make_base("rbase.safetensors"), make_images("rimages")
    small_train("straight", base, images, steps=6)
    small_train("broken", base, images, "--checkpoint-every", 3, steps=3)
    small_train("broken", base, images, "--resume", "auto", steps=6)
    for f in ("delta.safetensors", "delta-live.safetensors"):
        a, b = tensors(path("straight/" + f))[0], tensors(path("broken/" + f))[0]
        assert a == b, f
    fails(2, "train", "--device", "host", "--model", base, "--data", images, "--out", path("straight"), "--steps", 6, says="straight")


def test_skip_bad():
    """A file that cannot be read ends a run before it starts, or is left out; one that goes away half way ends it with a checkpoint."""
    base, images = make_base("kbase.safetensors"), make_images("kimages", n=6)
    bad = os.path.join(images, "b", "2.png")
    with open(bad, "rb") as f:
        good = f.read()
    with open(bad, "wb") as f:
        f.write(good[:-20])
    for crop in "center", "random":
        fails(6, "train", "--device", "host", "--model", base, "--data", images, "--crop", crop, "--out", path("k-run"), says=[bad])
        assert not os.path.exists(path("k-run"))
    _, err = small_train("k-run", base, images, "--skip-bad")
    assert f"{bad}: cannot be read, left out" in err and "11 images in 2 classes, 1 bad files left out" in err, err
    with open(bad, "wb") as f:
        f.write(good)
    words = [CLI, "train", "--device", "host", "--model", base, "--data", images, "--batch", "4", "--log-every", "1", "--crop", "random", "--seed", "3"]
    p = subprocess.Popen([*words, "--out", path("k-crop"), "--steps", "100000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = path("k-crop/metrics.jsonl")
    for _ in range(600):
        if os.path.exists(metrics) and os.path.getsize(metrics) > 0:
            break
        time.sleep(0.1)
    os.rename(bad, path("k-away.png"))
    _, err = p.communicate(timeout=120)
    assert p.returncode == 7 and bad in err and "saved after step" in err, (p.returncode, err)
    saved, = os.listdir(path("k-crop/checkpoints"))
    os.rename(path("k-away.png"), bad)
    steps = str(int(saved[len("step-"):]) + 3)
    for out, more in (("k-crop", ["--resume", "auto"]), ("k-whole", [])):
        subprocess.run([*words, "--out", path(out), "--steps", steps, "--quiet", *more], check=True, stdout=subprocess.DEVNULL)
    same_file(path("k-crop/delta-live.safetensors"), path("k-whole/delta-live.safetensors"))


def make_cache(name, classes=("cat", "dog"), n=3, channels=2, side=4, **change):
    """A cache of latents as docs/formats.md has it, in two shards."""
    settings = {"vae": "5a" * 32, "scale": 0.5, "shift": 0, "size": 8 * side, "channels": channels, "side": side, "crop": "center", "alpha": "white", "flip": True,
                "dtype": "F32", **change}
    moments = ("mean", "logvar", "mean_flip", "logvar_flip")[:4 if settings["flip"] else 2]
    rows = [(f"{c}/{i}.png", k) for i in range(n) for k, c in enumerate(classes)]
    shards = []
    os.makedirs(path(name), exist_ok=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        blobs, head, at = [], {}, 0
        shape = [len(part), channels, side, side]
        count = len(part) * channels * side * side
        for key, kind, dims, data in (("stat", "I64", [len(part), 2], struct.pack(f"<{2 * len(part)}q", *range(2 * len(part)))),
                                      *((k, "F32", shape, struct.pack(f"<{count}f", *(((7 * i + 31 * j) % 40) / 20 - 1 - 3 * (j % 2) for i in range(count))))
                                        for j, k in enumerate(moments)),
                                      ("sha256", "U8", [len(part), 32], bytes(range(32)) * len(part))):
            head[key] = {"dtype": kind, "shape": dims, "data_offsets": [at, at + len(data)]}
            at += len(data)
            blobs.append(data)
        head["__metadata__"] = {"format": "difffit-cl latents 1", "settings": json.dumps(settings), "files": json.dumps([f for f, _ in part])}
        text = json.dumps(head).encode()
        file = f"shard-{number:06d}.safetensors"
        with open(os.path.join(path(name), file), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))
        shards.append({"file": file, "labels": [k for _, k in part]})
    with open(os.path.join(path(name), "index.json"), "w") as f:
        json.dump({"format": "difffit-cl latents 1", "settings": settings, "source": "pictures", "skipped": 1, "classes": classes, "shards": shards}, f)
    return path(name)


def test_latent_cache():
    cache = make_cache("cached")
    d = json.loads(run("info", cache, "--json")[0])
    assert d["kind"] == "cached latents" and d["samples"] == 6 and d["skipped"] == 1 and d["vae"] == "5a" * 32 and d["flip"] is True and d["shards"] == 2, d
    assert d["classes"] == [{"name": "cat", "samples": 3}, {"name": "dog", "samples": 3}], d
    base = make_base("cbase.safetensors", input=4, channels=2)
    small_train("c-whole", base, cache, "--flip", steps=6)
    small_train("c-cut", base, cache, "--flip", "--checkpoint-every", 3, steps=3)
    small_train("c-cut", base, cache, "--flip", "--checkpoint-every", 3, "--resume", "auto", steps=6)
    same_file(path("c-whole/delta.safetensors"), path("c-cut/delta.safetensors"))
    whole = [json.loads(x)["loss"] for x in open(path("c-whole/metrics.jsonl"))]
    # the noise is the seed's
    small_train("c-seed", base, cache, "--flip", "--seed", 1, steps=6)
    assert whole != [json.loads(x)["loss"] for x in open(path("c-seed/metrics.jsonl"))]
    # another cache, another run
    with open(os.path.join(cache, "index.json")) as f:
        index = json.load(f)
    index["shards"][1]["labels"][0] = -1
    with open(os.path.join(cache, "index.json"), "w") as f:
        json.dump(index, f)
    fails(2, "train", "--device", "host", "--model", base, "--data", cache, "--out", path("c-cut"), "--steps", 9, "--batch", 4, "--lr", "1e-3", "--log-every", 1,
          "--flip", "--checkpoint-every", 3, "--resume", "auto", says="data")
    small = make_base("csmall.safetensors", input=8, channels=2)
    fails(6, "train", "--device", "host", "--model", small, "--data", cache, "--out", path("c-no"), says=["2 x 8 x 8", "2 x 4 x 4", "input"])
    small_train("c-input", small, cache, "--input", 4)
    d = json.loads(run("info", path("c-input/delta.safetensors"), "--json")[0])
    assert d["input"] == 4 and d["positional_scale"] == 4, d  # the base's grid of 4 x 4 tokens
    flat = make_cache("flatcache", flip=False)
    fails(2, "train", "--device", "host", "--model", base, "--data", flat, "--flip", "--out", path("c-no"), says="mirrored")
    os.remove(os.path.join(cache, "index.json"))
    open(os.path.join(cache, "latents.lock"), "w").close()
    fails(6, "train", "--device", "host", "--model", base, "--data", cache, "--out", path("c-no"), says="not finished")


def test_interrupt():
    """SIGINT and SIGTERM save and have codes of their own; the run then goes on as if nothing had happened."""
    base, images = make_base("ibase.safetensors"), make_images("iimages")
    for sig, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        run_dir = f"int-{code}"
        words = [CLI, "train", "--device", "host", "--model", base, "--data", images, "--out", path(run_dir), "--batch", "4", "--log-every", "1"]
        p = subprocess.Popen([*words, "--steps", "100000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        metrics = path(run_dir + "/metrics.jsonl")
        for _ in range(600):
            if os.path.exists(metrics) and os.path.getsize(metrics) > 0:
                break
            time.sleep(0.1)
        p.send_signal(sig)
        _, err = p.communicate(timeout=120)
        assert p.returncode == code, (p.returncode, err)
        assert "saved" in err
        saved, = os.listdir(path(run_dir + "/checkpoints"))
        step = int(saved[len("step-"):])
        log = [json.loads(x) for x in open(metrics)]
        assert step == log[-1]["step"] == len(log), (saved, len(log))
        subprocess.run([*words, "--steps", str(step + 3), "--resume", "auto", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*words, "--steps", str(step + 3), "--out", path("int-whole"), "--quiet"], check=True, stdout=subprocess.DEVNULL)
        for f in ("delta.safetensors", "delta-live.safetensors"):
            same_file(path(f"{run_dir}/{f}"), path(f"int-whole/{f}"))
        shutil.rmtree(path("int-whole"))


def test_out_of_memory():
    base, images = make_base("mbase.safetensors"), make_images("mimages")
    out, err = run("train", "--device", "host", "--model", base, "--data", images, "--out", path("oom"), "--max-memory", "1K", code=4)
    assert "weights" in err and "activations" in err, err
    assert "recompute block" in err and "no setting needs less than" in err, err
    assert "there may be 0.0 MiB" in err, err
    fails(4, "sample", "--device", "host", "--model", base, "--batch", 1, "-n", 1, "--out", path("oom.png"), "--max-memory", "10K",
          says=["there may be", "a batch of 1 is the smallest"])
    fails(2, "train", "--device", "host", "--model", base, "--data", images, "--out", path("oom"), "--recompute", "all", says="auto, none, cheap or block")
    _, err = run("train", "--device", "host", "--model", base, "--data", images, "--out", path("rc"), "--steps", 1, "--batch", 4, "--recompute", "block",
                 "--verbose")
    assert "recompute block" in err, err


def test_unwritable():
    base = make_base("wbase.safetensors")
    fails(7, "init", "--size", "DiT-S/8", "--out", "/proc/nothing/x.safetensors", says="/proc/nothing/x.safetensors")
    images = make_images("wimages")
    fails(7, "train", "--device", "host", "--model", base, "--data", images, "--out", "/proc/nothing/run", says="/proc/nothing")


def hostile_golden(name, file, change):
    """The reference data with one file changed by change(header, data)."""
    for folder, _, files in os.walk(GOLDEN):
        to = os.path.join(path(name), os.path.relpath(folder, GOLDEN))
        os.makedirs(to)
        for f in files:
            os.symlink(os.path.join(folder, f), os.path.join(to, f))
    with open(os.path.join(GOLDEN, file), "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header, data = json.loads(f.read(n)), bytearray(f.read())
    change(header, data)
    text = json.dumps(header).encode()
    os.remove(os.path.join(path(name), file))
    with open(os.path.join(path(name), file), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    return path(name)


def test_verify_hostile():
    def grid(h, d):
        h["grid4096.w16384"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(d), len(d) + 4]}
        d += bytes(4)

    def timestep(h, d):
        at = h["t"]["data_offsets"][0]
        d[at:at + 8] = struct.pack("<q", (1 << 32) + 1)

    def pair(h, d):
        at, dtype = h["t"]["data_offsets"][0], h["t"]["dtype"]
        d[at:at + {"F32": 4, "I64": 8}[dtype]] = struct.pack("<f", float("nan")) if dtype == "F32" else struct.pack("<q", (1 << 32) + 1)

    for name, file, change, says in (("grid", "posembed.safetensors", grid, ["posembed", "grid4096.w16384", "274877906944"]),
                                     ("timestep", "posembed.safetensors", timestep, ["posembed", "t: expected whole numbers", "4294967297"]),
                                     ("pair", "train_data.safetensors", pair, ["train_data", "timesteps from 0 to 999"])):
        fails(6, "verify", "--device", "host", "--golden", hostile_golden(f"golden-{name}", file, change), says=says)


def test_verify_host():
    out, _ = run("verify", "--device", "host", "--golden", GOLDEN, "--dump", path("dump"))
    for name in ("posembed", "dit/micro/io", "forward", "train_difffit", "train_difffit_t0", "train_full", "sample"):
        assert re.search(rf"^{name} +passed", out, re.M), name
    assert "out" in tensors(path("dump/forward.safetensors"))[0]
    j = json.loads(run("verify", "--device", "host", "--golden", GOLDEN, "--json")[0])
    assert j["failed"] == 0 and all(f["passed"] for f in j["files"])
    fails(7, "verify", "--device", "host", "--golden", path("no-golden"), says="no-golden")


def test_nothing_left_behind():
    """A run that cannot begin leaves no folder, and a folder of somebody else's is not touched."""
    base, images = make_base("nbase.safetensors"), make_images("nimages")
    train = ["train", "--device", "host", "--steps", 2, "--batch", 4]
    fails(7, *train, "--model", path("none.pt"), "--data", images, "--out", path("n-run"), says="none.pt")
    fails(7, *train, "--model", base, "--data", path("none"), "--out", path("n-run"), says="none")
    fails(2, *train, "--model", base, "--data", images, "--out", path("n-run"), "--method", "lora", says="lora")
    fails(2, *train, "--model", base, "--data", images, "--out", path("n-run"), "--micro-batch", 3, says="micro batch")
    fails(2, *train, "--model", base, "--data", images, "--out", "", says="run directory")
    assert not os.path.exists(path("n-run"))
    fails(2, *train, "--model", base, "--data", images, "--out", images, says="nimages")
    assert sorted(os.listdir(images)) == ["a", "b"]
    os.makedirs(path("n-empty"))
    fails(7, *train, "--model", path("none.pt"), "--data", images, "--out", path("n-empty"), says="none.pt")
    assert os.listdir(path("n-empty")) == []
    run(*train, "--model", base, "--data", images, "--out", path("n-empty"))


def test_zero_is_none():
    """Where the library takes 0 for its default, the command still lets 0 mean nothing."""
    base, images = make_base("zbase.safetensors"), make_images("zimages")
    small_train("zero", base, images, "--label-dropout", 0, "--ema", 0)
    settings = json.load(open(path("zero/config.json")))["settings"]
    assert settings["label_dropout"] == 0 and settings["ema_decay"] < 1e-300
    assert tensors(path("zero/delta.safetensors"))[0] == tensors(path("zero/delta-live.safetensors"))[0]
    fails(2, "train", "--model", base, "--data", images, "--out", path("zero2"), "--dtype", "f16", says=["--dtype", "full"])


def test_sample_places():
    """Where results go, and options that would have no effect, are looked at before hours of sampling."""
    base = make_base("pbase.safetensors")
    draw = ["sample", "--device", "host", "--model", base, "--steps", 2, "-n", 1]
    fails(7, *draw, "--out", path("no-such/x.png"), says="no-such/x.png")
    fails(7, *draw, "--out", path("no-such/folder"), says="no-such/folder")
    fails(7, *draw, "--save-latents", path("no-such/x"), says="no-such/x")
    fails(7, *draw, "--out", base, says=["pbase.safetensors", "folder"])
    fails(7, *draw, "--save-latents", T, says=[T, "found a folder"])
    fails(2, *draw, "--out", path("x.jpg"), says=[".jpg", "NAME.png"])
    assert not os.path.exists(path("x.jpg"))
    fails(2, *draw, "--out", path("x.png"), "--eta", 1, says=["--eta", "ddim"])
    fails(2, *draw, "--out", path("x.png"), "--sampler", "dpm++", "--spacing", "ddim", says="--spacing")
    fails(2, *draw, "--out", path("pictures"), "--columns", 2, says="--columns")
    run(*draw, "--out", path("x.PNG"))
    assert open(path("x.PNG"), "rb").read(8) == b"\x89PNG\r\n\x1a\n"


def poison(source, name, out, value, index=0):
    """A copy of a safetensors file in which one value of an f32 tensor is another."""
    with open(source, "rb") as f:
        data = bytearray(f.read())
    n = struct.unpack("<Q", data[:8])[0]
    at = 8 + n + json.loads(data[8:8 + n])[name]["data_offsets"][0] + 4 * index
    data[at:at + 4] = struct.pack("<f", value)
    with open(out, "wb") as f:
        f.write(data)
    return out


def test_not_finite():
    """A NaN is found when its file is read: named, exit code 5, nothing written."""
    base, images = make_base("fbase.safetensors"), make_images("fimages")
    small_train("frun", base, images)

    bad_base = poison(base, "blocks.1.mlp.fc1.weight", path("nan-base.safetensors"), float("nan"))
    bad_delta = poison(path("frun/delta.safetensors"), "blocks.0.mlp.fc1.bias", path("nan-delta.safetensors"), float("nan"))
    weight, bias = ["nan-base.safetensors", "blocks.1.mlp.fc1.weight"], ["nan-delta.safetensors", "blocks.0.mlp.fc1.bias"]
    draw, out = ["sample", "--device", "host", "--steps", 2, "--out", path("nan.png")], ["--out", path("nan.safetensors")]
    fails(5, "train", "--device", "host", "--model", bad_base, "--data", images, "--out", path("nan-run"), says=weight)
    fails(5, *draw, "--model", bad_base, says=weight)
    fails(5, *draw, "--model", base, "--delta", bad_delta, says=bias)
    fails(5, "merge", "--model", base, "--delta", bad_delta, *out, says=bias)
    fails(5, "merge", "--model", bad_base, "--delta", path("frun/delta.safetensors"), *out, says=weight)
    assert not [f for f in os.listdir(T) if f in ("nan-run", "nan.png") or f.startswith("nan.safetensors")]


def f32_safetensors(name, key, shape, values):
    head = json.dumps({key: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(values)]}}).encode()
    with open(path(name), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + struct.pack(f"<{len(values)}f", *values))
    return path(name)


def test_not_finite_while_drawing():
    """Finite weights whose products are not: latents are looked at after each step, so no file is ever written from them."""
    base, images = make_base("hbase.safetensors"), make_images("himages")
    for i in range(4):  # products with the last layer's input add up to more than f32 holds; clamping the picture would hide that
        base = poison(base, "final_layer.linear.weight", path(f"hbase{i}.safetensors"), 3e38, i)
    draw = ["sample", "--device", "host", "--model", base, "-n", 1, "--classes", "0"]
    for sampler in ("ddpm", "ddim", "dpm++"):
        for out in (["--out", path("huge.png")], ["--out", path("huge-folder")], ["--out", path("huge.npz")], ["--save-latents", path("huge.safetensors")]):
            fails(5, *draw, "--steps", 3, "--sampler", sampler, *out, says=["step 1 of 3", "picture 0", "value", "predicted noise", "inf", "expected a finite number"])
    good = make_base("gbase.safetensors")
    noise = f32_safetensors("noise.safetensors", "z", [1, 1, 8, 8], [0.5] * 9 + [float("nan")] + [0.5] * 54)
    fails(5, "sample", "--device", "host", "--model", good, "-n", 1, "--classes", "0", "--steps", 2, "--init-noise", noise, "--out", path("huge.png"),
          says=["noise.safetensors", "z", "value 9", "nan"])
    assert not [f for f in os.listdir(T) if f.startswith("huge")], os.listdir(T)
    # pictures during training: a warning, and the training decides for itself
    _, err = small_train("h-run", base, images, "--sample-every", 1, "--max-skipped", 2, code=5)
    assert "no pictures drawn" in err and "layer" in err and "tensor" in err, err
    assert not os.path.exists(path("h-run/samples")) or not os.listdir(path("h-run/samples"))


def test_diverging():
    """Training that leaves the finite numbers: skipped steps are named and counted, then the run ends with code 5 and its last good checkpoint."""
    base, images = make_base("vbase.safetensors"), make_images("vimages")
    _, err = small_train("v-run", base, images, "--method", "full", "--lr", "10", "--clip", "1e9", "--checkpoint-every", 1, "--keep", 1, "--max-skipped", 3, code=5,
                         steps=100)
    skipped = re.findall(r"warning: step (\d+) skipped: .*first non-finite value: (.+)", err)
    assert len(skipped) >= 3 and all(where for _, where in skipped), err
    first = int(skipped[-3][0])
    assert f"the last good checkpoint is {path('v-run')}/checkpoints/step-{first - 1};" in err, err
    assert os.listdir(path("v-run/checkpoints")) == [f"step-{first - 1}"]
    log = [json.loads(x) for x in open(path("v-run/metrics.jsonl"))]
    assert log[-1]["skipped"] == len(skipped) - 1 and log[-1]["loss"] is None, log[-1]  # the line of the last step is not written
    assert "z" in log[-1] and "spikes" in log[-1]
    assert not os.path.exists(path("v-run/delta.safetensors"))


def test_weights():
    """Frozen matrices in 16 bits and read in place: close to f32, recorded, and one delta for all of them."""
    base, images = make_base("wbase.safetensors"), make_images("wimages")
    small_train("w32", base, images)
    small_train("w16", base, images, "--weights", "bf16", "--pack", "never")
    settings = json.load(open(path("w16/config.json")))["settings"]
    assert (settings["weights"], settings["pack"]) == ("bf16", "never"), settings
    words = ["train", "--device", "host", "--model", base, "--data", images, "--out", path("w16"), "--steps", 6, "--batch", 4, "--lr", "1e-3", "--resume", "auto"]
    fails(2, *words, says=["weights", "bf16"])
    fails(2, *words, "--weights", "bf16", says=["pack", "never"])
    run(*words, "--weights", "bf16", "--pack", "never")
    assert tensors(path("w32/delta.safetensors"))[1]["base_hash"] == tensors(path("w16/delta.safetensors"))[1]["base_hash"]
    pictures = {}
    for weights in ("f32", "bf16", "f16"):
        for pack in ("auto", "never"):
            out = path(f"w-{weights}-{pack}.safetensors")
            run("sample", "--device", "host", "--model", base, "--delta", path("w16/delta.safetensors"), "--steps", 3, "-n", 2, "--weights", weights, "--pack", pack,
                "--sampler", "ddim", "--save-latents", out)
            data = tensors(out)[0]["latents"][1]
            pictures[weights, pack] = struct.unpack(f"<{len(data)//4}f", data)
    worst = lambda a, b: max(abs(x - y) for x, y in zip(pictures[a], pictures[b]))  # noqa: E731
    for weights, least, most in (("f32", -1, 1e-5), ("bf16", 1e-5, 0.1), ("f16", 1e-6, 0.02)):
        assert worst((weights, "auto"), (weights, "never")) < 1e-5, weights
        assert least < worst((weights, "auto"), ("f32", "auto")) < most, weights
    draw = ["sample", "--device", "host", "--steps", 2, "--out", path("w.png"), "--model"]
    fails(2, *draw, base, "--weights", "f8", says=["--weights", "bf16", "f8"])
    fails(2, *draw, base, "--pack", "always", says=["--pack", "never", "always"])
    outs = [path(f"kept-{i}.safetensors") for i in range(3)]
    time.sleep(2.1)  # a base that has just been written is not kept
    for out, pack in zip(outs, ("auto", "cache", "cache")):
        _, said = run("sample", "--model", base, "--steps", 2, "-n", 1, "--pack", pack, "--verbose", "--save-latents", out)
    if "not kept" not in said:  # a device that packs
        assert "packed weights found" in said and len(os.listdir(path("cache/difffit-cl/packed"))) == 1, said
    assert len({open(out, "rb").read() for out in outs}) == 1
    fails(2, "train", "--device", "host", "--model", base, "--data", images, "--out", path("w-full"), "--method", "full", "--weights", "f16", says=["f16", "f32"])
    large = poison(base, "blocks.1.mlp.fc1.weight", path("large.safetensors"), 7e4)
    fails(5, *draw, large, "--weights", "f16", says=["large.safetensors", "blocks.1.mlp.fc1.weight", "70000", "bf16"])
    run(*draw, large, "--weights", "bf16")
    assert not os.path.exists(path("w-full"))


def test_names():
    """Class names of every sort; bytes that are no UTF-8 could not go into JSON."""
    base, images = make_base("cbase.safetensors"), make_images("cimages", classes=("a b", "x,y", "-dash", "7", "\u00fcn\"i"))
    small_train("crun", base, images)
    draw = ["sample", "--device", "host", "--model", base, "--delta", path("crun/delta.safetensors"), "--steps", 2, "-n", 1]
    for name in ("x,y", "-dash", "7", "a b,\u00fcn\"i", "x", "null"):
        if name == "x":
            fails(2, *draw, "--out", path("c.png"), "--classes", name, says=['"x"', "x,y"])
        else:
            run(*draw, "--out", path("c.png"), "--classes", name)
    os.makedirs(os.path.join(os.fsencode(T), b"ubytes", b"\xff\xfe"))
    png(os.path.join(os.fsencode(T), b"ubytes", b"\xff\xfe", b"0.png"), 9, 3)
    fails(6, "train", "--device", "host", "--model", base, "--data", path("ubytes"), "--out", path("u-run"), says=["ubytes", "UTF-8"])


failed = passed = 0
for name, test in list(globals().items()):
    if not name.startswith("test_") or PATTERN not in name:
        continue
    start = time.time()
    try:
        test()
        passed += 1
        print(f"ok {name} ({time.time() - start:.1f} s)", flush=True)
    except Exception:  # noqa: BLE001
        failed += 1
        print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
tmp.cleanup()
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
