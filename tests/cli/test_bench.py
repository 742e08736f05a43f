#!/usr/bin/env python3
"""difffit-bench on small models: what --json says, given inputs, pacing, comparison; tools/bench_torch.py as far as PyTorch is there.

    test_bench.py DIFFFIT-BENCH DIFFFIT-CL BENCH_TORCH.PY [pattern]
"""
import ast
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import traceback

BENCH, CLI, TORCH = (os.path.abspath(p) for p in sys.argv[1:4])
PATTERN = sys.argv[4] if len(sys.argv) > 4 else ""
tmp = tempfile.TemporaryDirectory(prefix="dfcl-bench-")
T = tmp.name
# PoCL may keep its kernels between runs: building them anew would be most of the time.
os.environ.setdefault("POCL_CACHE_DIR", os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pocl", "kcache"))
os.environ["XDG_CACHE_HOME"] = os.path.join(T, "cache")


def run(*words, code=0, program=BENCH, stdin=None):
    p = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=600, input=stdin)
    assert p.returncode == code, f"{' '.join(map(str, words))}: exit code {p.returncode}, expected {code}\n{p.stdout}\n{p.stderr}"
    return p.stdout, p.stderr


def fails(code, *words, says, stdin=None):
    _, err = run(*words, code=code, stdin=stdin)
    assert err.startswith("difffit-bench") and err.count("\n") == 1, err
    for text in [says] if isinstance(says, str) else says:
        assert text in err, f"expected '{text}' in: {err}"


def path(name):
    return os.path.join(T, name)


def devices():
    found = [d["selector"] for d in json.loads(run("devices", "--json", program=CLI)[0])]
    return [d for d in found if d == "host" or d.startswith("opencl:0")]


def base():
    """A model of a few thousand values: 2 blocks, 16 tokens."""
    if not os.path.exists(path("base.safetensors")):
        run("init", "--depth", 2, "--hidden", 32, "--heads", 2, "--patch", 2, "--input", 8, "--channels", 4, "--classes", 5, "--scale", 0.2, "--out",
            path("base.safetensors"), program=CLI)
    return path("base.safetensors")


def save(name, **tensors):
    """safetensors of flat f32 lists with shapes: name=(shape, values)."""
    head, data = {}, b""
    for k, (shape, values) in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        head[k] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(head).encode()
    with open(path(name), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    return path(name)


def read(name):
    with open(path(name), "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(n))
        data = f.read()
    a, b = head["out"]["data_offsets"]
    return head["out"]["shape"], struct.unpack(f"<{(b - a) // 4}f", data[a:b])


def measure(kind, *words):
    return json.loads(run(kind, "--repeat", 3, "--json", *words)[0])


def check(r, kind, batch, device, weights="f32"):
    s = r["seconds_per_image"]
    assert r["benchmark"] == kind and r["batch"] == batch and r["repeat"] == 3
    assert 0 < s["min"] <= s["median"] <= s["max"]
    assert r["gflops"] > 0 and r["gflop_per_image"] > 0 and abs(r["gflops"] - r["gflop_per_image"] / s["median"]) < 1e-3 * r["gflops"]
    assert r["peak_memory_bytes"] > 0 and r["planned_bytes"] > 0 and r["device_bytes"] > 0 and r["load_seconds"] > 0 and r["first_run_seconds"] > 0
    assert r["device"] and r["driver"] and r["commit"] and r["version"] and r["weights"] == weights
    assert r["variants"]["linear_fwd"] and r["variants"]["attn_fwd"]
    if device == "host":
        assert r["fraction_of_peak"] is None and r["variants"]["linear_fwd"] == "host"
    else:
        assert 0 < r["fraction_of_peak"] < 1.5 and r["peak_gflops"] > 0 and r["peak_gflops_after"] > 0


def test_help():
    out, _ = run("--help")
    for b in ("peak", "ops", "forward", "train", "sample", "vae", "compare"):
        assert re.search(rf"^  {b} ", out, re.M), b
        text, err = run(b, "--help")
        assert f"usage: difffit-bench {b}" in text and not err
    assert "usage" in run(code=2)[1]
    fails(2, "forwards", says="forwards")
    fails(2, "forward", "--steps", 3, says="--steps")
    fails(2, "forward", "--size", "DiT-Q/2", says="DiT-Q/2")
    fails(2, "forward", "--size", "DiT-S/8", "--model", "x", says=["--model", "--size"])
    fails(2, "train", "--model", base(), "--method", "lora", says=["lora", "difffit"])
    fails(2, "train", "--model", base(), "--recompute", "all", says=["recompute", "all", "cheap"])
    fails(2, "forward", "--model", base(), "--weights", "f8", says=["--weights", "f8"])
    fails(2, "sample", "--model", base(), "--sampler", "euler", says=["euler", "dpm++"])
    fails(2, "forward", "--model", base(), "--weights", "f8", says=["--weights", "bf16"])
    fails(7, "forward", "--model", path("nothing"), says="nothing")


def test_measures():
    """Every benchmark on every kind of device, from a file and with random weights."""
    for d in devices():
        at = ["--device", d, "--model", base()]
        f32, bf16 = measure("forward", *at, "--batch", 2), measure("forward", *at, "--batch", 2, "--weights", "bf16")
        check(f32, "forward", 2, d)
        check(bf16, "forward", 2, d, "bf16")
        assert bf16["device_bytes"] < f32["device_bytes"]
        check(measure("sample", *at, "--steps", 2, "--batch", 2), "sample", 2, d)
        for method in ("difffit", "difffit-block", "bitfit", "full") if d == "host" else ("difffit", "full"):
            r = measure("train", *at, "--batch", 2, "--method", method)
            check(r, "train", 2, d)
            first = r["first_step"]
            assert r["method"] == method and abs(first["loss"] - first["mse"] - first["vb"]) < 1e-5 and first["grad_norm"] > 0
            assert r["variants"]["linear_dx"] and ("linear_dw" in r["variants"]) == (method == "full")
        levels = [measure("train", *at, "--batch", 2, "--micro-batch", 2, "--recompute", level) for level in ("none", "cheap", "block")]
        assert [r["recompute"] for r in levels] == ["none", "cheap", "block"]
        assert levels[0]["planned_bytes"] > levels[1]["planned_bytes"] > levels[2]["planned_bytes"]
        assert len({(r["first_step"]["loss"], r["first_step"]["grad_norm"], r["gflop_per_image"]) for r in levels}) == 1
        r = measure("forward", "--device", d, "--size", "DiT-S/8", "--pixels", 128)
        check(r, "forward", 1, d)
        half = measure("forward", "--device", d, "--size", "DiT-S/8", "--pixels", 128, "--weights", "bf16")
        check(half, "forward", 1, d, "bf16")
        assert half["planned_bytes"] < 0.6 * r["planned_bytes"]
        assert (r["size"], r["input"], r["channels"], r["classes"]) == ("DiT-S/8", 16, 4, 1000)
        wide = measure("forward", "--device", d, "--size", "DiT-S/8", "--pixels", "256x64")  # 4 x 1 tokens: as many, the same work
        check(wide, "forward", 1, d)
        assert (wide["input"], wide["gflop_per_image"], wide["planned_bytes"]) == ("32x8", r["gflop_per_image"], r["planned_bytes"])


def test_flops():
    """Counted by hand: 2 blocks of width 32, 16 tokens, patch 2, 4 channels, learned range."""
    d, n, rows = 32, 16, 1
    block = 2 * n * (3 * d * d + d * d + 8 * d * d) + 4 * n * n * d
    ends = 2 * n * (16 * d + d * 32)
    cond = 2 * rows * (256 * d + d * d + 2 * 6 * d * d + 2 * d * d)
    forward = 2 * block + ends + cond
    r = measure("forward", "--device", "host", "--model", base())
    assert abs(r["gflop_per_image"] * 1e9 - forward) < 1e-4 * forward, (r["gflop_per_image"] * 1e9, forward)
    step = 2 * forward + 2 * 4 * n * n * d - 2 * n * 16 * d - 2 * 256 * d
    r = measure("train", "--device", "host", "--model", base())
    assert abs(r["gflop_per_image"] * 1e9 - step) < 1e-4 * step, (r["gflop_per_image"] * 1e9, step)
    r = measure("sample", "--device", "host", "--model", base(), "--steps", 3, "--cfg", 2)
    assert abs(r["gflop_per_image"] * 1e9 - 6 * forward) < 1e-4 * 6 * forward


def test_inputs():
    """Given inputs reach the network: the same twice, other outputs for another class; a sampled latent is what difffit-cl draws from that noise."""
    x = [((7 * i) % 23 - 11) / 8 for i in range(256)]
    shape = [1, 4, 8, 8]
    out = {}
    for name, y in (("a", 0), ("b", 0), ("c", 3)):
        given = save(f"{name}.in", x=(shape, x), t=([1], [321]), y=([1], [y]))
        run("forward", "--device", "host", "--model", base(), "--repeat", 1, "--inputs", given, "--output", path(f"{name}.out"))
        s, out[name] = read(f"{name}.out")
        assert s == [1, 8, 8, 8]
    assert out["a"] == out["b"] != out["c"]
    given = save("s.in", x=(shape, x), y=([1], [2]))
    run("sample", "--device", "host", "--model", base(), "--steps", 3, "--cfg", 2, "--repeat", 1, "--inputs", given, "--output", path("s.out"))
    z = save("z.in", z=(shape, x))
    run("sample", "--device", "host", "--model", base(), "--classes", 2, "-n", 1, "--sampler", "ddim", "--steps", 3, "--cfg", 2, "--init-noise", z,
        "--save-latents", path("l.out"), program=CLI)
    with open(path("l.out"), "rb") as f:
        drawn = f.read()[-1024:]
    assert struct.unpack("<256f", drawn) == read("s.out")[1]
    loss = []
    for noise in (0.5, -0.25):
        given = save("t.in", x=(shape, x), noise=(shape, [noise] * 256), t=([1], [400]), y=([1], [5]))
        loss.append(measure("train", "--device", "host", "--model", base(), "--inputs", given)["first_step"]["loss"])
    assert loss[0] != loss[1]
    wrong = save("w.in", x=([1, 4, 4, 4], x[:64]), t=([1], [3]), y=([1], [0]))
    fails(6, "forward", "--device", "host", "--model", base(), "--inputs", wrong, says=["w.in", "x"])
    wrong = save("w.in", x=(shape, x), t=([1], [1000]), y=([1], [0]))
    fails(2, "forward", "--device", "host", "--model", base(), "--inputs", wrong, says="1000")


def test_domains():
    """Pictures of several domains in a batch: each as in a batch of its domain alone, to the bit; every run is paired with one of one domain."""
    for d in devices():
        at = ["--device", d, "--model", base(), "--batch", 3]
        x = [((7 * i) % 23 - 11) / 8 for i in range(256)]
        given = save("d.in", x=([3, 4, 8, 8], 3 * x), t=([3], [321] * 3), y=([3], [2] * 3))
        out = {}
        for n in (1, 2, 3):
            r = json.loads(run("forward", *at, "--domains", n, "--repeat", 2, "--inputs", given, "--output", path("d.out"), "--json")[0])
            assert r["domains"] == n and r["ratio"]["min"] > 0 and r["cpu_ratio"]["max"] > 0 and r["one_domain_seconds_per_image"]["min"] > 0 and r["repeat"] == 2
            values = read("d.out")[1]
            out[n] = [values[i:i + 512] for i in (0, 512, 1024)]
        assert out[1][0] == out[1][1] == out[2][0] == out[2][2] == out[3][0]
        assert out[2][1] == out[3][1] and len({out[3][0], out[3][1], out[3][2]}) == 3
        assert measure("sample", *at, "--steps", 2, "--domains", 2)["domains"] == 2
    fails(2, "train", "--model", base(), "--domains", 2, says="--domains")


def test_paced():
    """A run for each line, answered at once; the result comes when the input ends."""
    out, _ = run("forward", "--device", "host", "--model", base(), "--paced", "--json", stdin="\n\n\n\n")
    lines = out.split("\n", 5)
    assert lines[0] == "ready" and all(float(v) > 0 for v in lines[1:5])
    r = json.loads(lines[5])
    assert r["repeat"] == 4 and r["seconds_per_image"]["max"] == max(float(v) for v in lines[1:5])
    fails(2, "forward", "--device", "host", "--model", base(), "--paced", "--repeat", 3, says="--repeat")
    fails(2, "forward", "--device", "host", "--model", base(), "--paced", says="line", stdin="")


def test_vae():
    """The reference's picture and latent there and back, on every device."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "vae")
    with open(os.path.join(folder, "io.safetensors"), "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head, data = json.loads(f.read(n)), f.read()

    def golden(key):
        a, b = head[key]["data_offsets"]
        return head[key]["shape"], list(struct.unpack(f"<{(b - a) // 4}f", data[a:b]))

    shape, z = golden("a.dec_in")
    save("v-decode.safetensors", x=(shape, [0.18215 * v for v in z]))
    save("v-encode.safetensors", x=golden("a.image"))
    for device in devices():
        for what, key in (("encode", "a.mean"), ("decode", "a.dec_out")):
            out, _ = run("vae", "--device", device, "--vae", folder, "--what", what, "--pixels", 32, "--inputs", path(f"v-{what}.safetensors"), "--output",
                         path("v-out.safetensors"), "--paced", "--json", stdin="\n\n")
            lines = out.split("\n", 3)
            r = json.loads(lines[3])
            assert lines[0] == "ready" and r["repeat"] == 2 and r["what"] == what and r["peak_memory_bytes"] > 0 and r["whole_bytes"] >= r["least_bytes"] > 0, r
            got, want = read("v-out.safetensors"), golden(key)
            assert got[0] == want[0]
            worst = max(abs(p - q) for p, q in zip(got[1], want[1]))
            assert worst < 1e-4 * (max(want[1]) - min(want[1])), (device, what, worst)
    words = ["vae", "--device", "host", "--vae", folder]
    assert "s per image" in run(*words, "--pixels", 16, "--repeat", 1)[0]
    fails(2, *words, "--pixels", 33, says=["--pixels", "33"])
    fails(2, *words, "--paced", "--repeat", 3, says="--repeat")
    fails(2, "vae", says="--vae")
    fails(4, *words, "--pixels", 2048, "--max-memory", "1M", "--repeat", 1, says="MiB")


def test_compare():
    def write(name, r):
        with open(path(name), "w") as f:
            json.dump(r, f)
        return path(name)

    r = measure("forward", "--device", "host", "--model", base())
    half = json.loads(json.dumps(r))
    half["seconds_per_image"] = {k: v / 2 for k, v in r["seconds_per_image"].items()}
    a, b = write("a.json", r), write("b.json", half)
    row = [x for x in run("compare", a, b)[0].split("\n") if x.startswith("per image")][0].split()
    assert row[4] == "2.000" and float(row[5]) <= 2 <= float(row[6]), row
    fails(6, "compare", a, write("c.json", {**r, "batch": 4}), says=["do not match", "batch", "1 and 4"])
    fails(6, "compare", a, write("d.json", {**r, "benchmark": "train"}), says=["do not match", "benchmark"])
    fails(6, "compare", a, write("e.json", {k: v for k, v in r.items() if k != "seconds_per_image"}), says="seconds_per_image")
    fails(6, "compare", a, write("f.json", [1, 2]), says="f.json")
    fails(7, "compare", a, path("missing.json"), says="missing.json")
    deep = 1
    for _ in range(60):
        deep = {"a": deep}
    g, h = write("g.json", {**r, "batch": deep}), write("h.json", {**r, "batch": deep})
    fails(6, "compare", g, h, says=["do not match", "batch"])  # at once: comparing nested values takes twice as long a level
    g, h = (write(n, {"benchmark": "ops", "ops": [{"op": str(i)} for i in range(10001)]}) for n in ("i.json", "j.json"))
    fails(6, "compare", g, h, says=["i.json", "at most 10000 rows"])
    fails(2, "compare", a, says="two files")
    ops = {"benchmark": "ops", "ops": [{"op": "o", "variant": v, "case": "c", "seconds": {"median": 2, "min": 1, "max": 3}} for v in ("cpu", "host")]}
    a = write("o.json", ops)
    out, _ = run("compare", a, a)
    assert "o/cpu c" in out and "geometric mean" in out and "1.000" in out
    b = write("p.json", {"benchmark": "ops", "ops": ops["ops"][:1]})
    out, err = run("compare", a, b, code=6)
    assert "only in A" in out and "do not match" in err


def test_ops():
    for d in devices():
        r = json.loads(run("ops", "--device", d, "--filter", "linear_step", "--repeat", 1, "--json")[0])
        assert r["benchmark"] == "ops" and r["ops"] and all(o["op"] == "linear_step" and o["seconds"]["median"] > 0 for o in r["ops"])
        if d != "host":
            only = json.loads(run("ops", "--device", d, "--filter", "linear_step", "--variants", "-cpu", "--repeat", 1, "--json")[0])
            assert only["ops"] and all("cpu" not in o["variant"] for o in only["ops"])
            r = json.loads(run("peak", "--device", d, "--repeat", 1, "--json")[0])
            assert r["peak_gflops"] > 0 and r["read_gbytes_per_second"] > 0 and (r["bf16_gflops"] is None or r["bf16_gflops"] > r["peak_gflops"] / 2)
    fails(2, "ops", "--device", "host", "--filter", "no-such-op", says="no-such-op")


def test_torch():
    """Without PyTorch: the script parses, has help and says what is missing. With it: both sides agree."""
    for script in [TORCH] + [os.path.join(os.path.dirname(TORCH), name) for name in ("torch_dit.py", "bench_vae.py")]:
        with open(script) as f:
            ast.parse(f.read())
    assert "--table" in run(TORCH, "--help", program=sys.executable)[0]
    run(TORCH, "backward", program=sys.executable, code=2)
    words = [TORCH, "forward", "--size", "DiT-S/8", "--pixels", 128, "--rounds", 1, "--turn-seconds", 0.01, "--bench", BENCH, "--device", "host", "--json",
             path("t.json")]
    if importlib.util.find_spec("torch"):
        run(*words, program=sys.executable)
        with open(path("t.json")) as f:
            assert json.load(f)[0]["check"]["ok"]
    else:
        assert "not installed" in run(*words, program=sys.executable, code=1)[1]


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
