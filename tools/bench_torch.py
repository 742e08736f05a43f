#!/usr/bin/env python3
"""difffit-bench and PyTorch at the same work, taking turns: seconds per image, ratios with their spread, memory, and how far their numbers differ.

    tools/bench_torch.py forward --size DiT-XL/2 --pixels 256 --batch 1 --weights f32
    tools/bench_torch.py --table --json results.json

Needs PyTorch. Each side is a process of its own that holds the same random weights and inputs and waits for its turn on standard input; a round is a turn of
each, in an order that alternates. PyTorch takes the number of threads that is fastest for it. The weights pass through a file in $TMPDIR, removed once read.
"""
import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Relative L2 error of an output, relative error of a first loss and its gradient's norm, at f32: the two sum in different orders.
LIMITS = {"forward": 2e-5, "sample": 5e-4, "loss": 1e-5, "grad_norm": 1e-4}
MIB = 1048576

SMALL = [(s, m, b, w) for s in ("DiT-B/4", "DiT-S/8") for m in ("forward", "train") for b in (1, 4) for w in ("f32", "bf16")]
TABLE = (
    [dict(mode=m, size="DiT-XL/2", pixels=256, batch=b, weights=w) for m in ("forward", "train") for w in ("f32", "bf16") for b in (1, 4)]
    + [dict(mode=m, size="DiT-XL/2", pixels=512, batch=1, weights=w) for m in ("forward", "train") for w in ("f32", "bf16")]
    + [dict(mode="full-train", size="DiT-XL/2", pixels=256, batch=1, weights="f32")]
    + [dict(mode="sample", size="DiT-XL/2", pixels=256, batch=4, weights=w) for w in ("f32", "bf16")]
    + [dict(mode=m, size=s, pixels=256, batch=b, weights=w) for s, m, b, w in SMALL]
)


def resident():
    """Highest resident set of this process so far, bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))


def physical_cores():
    mine, cores, this = os.sched_getaffinity(0), set(), {}
    with open("/proc/cpuinfo") as f:
        for line in f:
            if ":" in line:
                k, v = (x.strip() for x in line.split(":", 1))
                this[k] = v
            elif this:
                if int(this["processor"]) in mine:
                    cores.add((this.get("physical id"), this.get("core id", this["processor"])))
                this = {}
    return max(len(cores), 1)


# ---- the PyTorch side ----


def worker(c):
    sys.path.insert(0, HERE)
    import torch
    import torch_dit as td

    cores = physical_cores()
    torch.set_num_threads(cores)
    torch.set_default_dtype(td.DTYPES[c["weights"]])
    side, training = c["pixels"] // 8, c["mode"].endswith("train")
    model = td.DiT(c["size"], side, gammas=training and c["mode"] != "full-train")
    if c.get("reference"):
        own = dict(model.named_parameters()) | {"pos_embed": model.pos_embed}
        td.load(c["reference"], own)
    else:
        model.draw(c["seed"])
    torch.set_default_dtype(torch.float32)
    g = torch.Generator().manual_seed(c["seed"] + 1)
    shape = (c["batch"], model.channels, side, side)
    x, noise = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    t, y = torch.randint(1, 1000, shape[:1], generator=g), torch.randint(0, model.classes, shape[:1], generator=g)
    if c.get("export"):
        tensors = {k: v for k, v in model.named_parameters() if "gamma" not in k} | {"pos_embed": model.pos_embed}
        td.save(c["export"], tensors, {"model": c["size"], "heads": str(model.blocks[0].attn.heads)})
        inputs = {"x": x, "y": y.float()}
        if c["mode"] != "sample":
            inputs["t"] = t.float()
        if training:
            inputs["noise"] = noise
        td.save(c["inputs"], inputs)
    forward = torch.compile(model) if c.get("compile") else model
    first = {}
    if training:
        trainer = td.Trainer(model, forward, full=c["mode"] == "full-train")
        first["loss"], first["grad_norm"] = trainer.gradients(x, t, y, noise), trainer.grad_norm()
        once = lambda: trainer.step(x, t, y, noise)  # noqa: E731
    else:
        schedule = td.Schedule()

        @torch.inference_mode()
        def once():
            return forward(x, t, y) if c["mode"] == "forward" else schedule.ddim(forward, x, y, c["steps"], c["cfg"])

        td.save(c["output"], {"out": once().float()})
    if c.get("reference"):
        print(json.dumps(first))
        return

    def timed():
        start = time.perf_counter()
        once()
        return time.perf_counter() - start

    trials = {}
    few = range(1, cores) if cores <= 4 else (cores // 4, cores // 2, 3 * cores // 4)
    for n in [c["threads"]] if c["threads"] else sorted({cores, *few}, reverse=True):
        torch.set_num_threads(n)
        timed()
        trials[n] = min(timed() for _ in range(2))
    threads = min(trials, key=trials.get)
    torch.set_num_threads(threads)
    timed()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(timed() / c["batch"], flush=True)
    print(json.dumps({"torch": torch.__version__, "threads": threads, "peak_memory_bytes": resident(), "first": first}))


# ---- taking turns ----


class Side:
    def __init__(self, words):
        self.p = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds = []

    def wait_ready(self):
        line = self.p.stdout.readline().strip()
        if line != "ready":
            self.p.wait()
            raise RuntimeError(f"{' '.join(self.p.args[:3])} ... ended with {self.p.returncode}")

    def once(self):
        self.p.stdin.write("\n")
        self.p.stdin.flush()
        return float(self.p.stdout.readline())

    def turn(self, runs):
        value = statistics.median(self.once() for _ in range(runs))
        time.sleep(0.02)  # its threads stop spinning
        return value

    def finish(self):
        out, _ = self.p.communicate()
        if self.p.returncode:
            raise RuntimeError(f"{' '.join(self.p.args[:3])} ... ended with {self.p.returncode}")
        return json.loads(out)

    def stop(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()


def one_round(sides, runs, number):
    """A turn of each side; what each took per image."""
    order = list(sides) if number % 2 == 0 else list(sides)[::-1]
    took = {}
    for name in order:
        took[name] = sides[name].turn(runs[name])
    return took


def difference(a, b):
    """Relative L2."""
    import torch_dit as td

    x, y = td.load(a)["out"].double(), td.load(b)["out"].double()
    return float((x - y).norm() / y.norm())


def check(work, files, ours, peer, reference):
    """Errors of this program's numbers against PyTorch's; for 16-bit weights, of both against PyTorch in f32 with the same weights."""
    result = {}
    if work["mode"].endswith("train"):
        for key in ("loss",) if work["mode"] == "full-train" else ("loss", "grad_norm"):
            want = (reference or peer["first"])[key]
            result[key] = abs(ours["first_step"][key] - want) / abs(want)
            if reference:
                result[f"{key}_peer"] = abs(peer["first"][key] - want) / abs(want)
    else:
        result[work["mode"]] = difference(files["ours"], files["reference"] if reference is not None else files["peer"])
        if reference is not None:
            result[f"{work['mode']}_peer"] = difference(files["peer"], files["reference"])
    if work["weights"] == "f32":
        result["ok"] = all(v <= LIMITS[k] for k, v in result.items())
    elif work["mode"] in result:  # 1.5 times PyTorch's own error is the limit
        result["ok"] = result[work["mode"]] <= 1.5 * result[f"{work['mode']}_peer"]
    return result


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(work, a):
    """One row: this program and each peer of a.peers, interleaved."""
    with tempfile.TemporaryDirectory(prefix="dfcl-bench-") as tmp:
        files = {k: os.path.join(tmp, f"{k}.safetensors") for k in ("weights", "inputs", "ours", "peer", "reference")}
        config = dict(work, seed=a.seed, steps=a.steps, cfg=a.cfg, threads=a.threads)
        kind = "train" if work["mode"] == "full-train" else work["mode"]
        sides = {}
        try:
            for i, peer in enumerate(a.peers):
                more = {"compile": peer == "compile", "output": files["peer"]}
                if i == 0:
                    more |= {"export": files["weights"], "inputs": files["inputs"]}
                sides[peer] = Side([sys.executable, __file__, "--worker", json.dumps(config | more)])
                sides[peer].wait_ready()
            reference = None
            if work["weights"] != "f32":
                more = {"weights": "f32", "reference": files["weights"], "output": files["reference"]}
                p = subprocess.run([sys.executable, __file__, "--worker", json.dumps(config | more)], stdout=subprocess.PIPE, text=True, check=True)
                reference = json.loads(p.stdout)
            words = [a.bench, kind, "--model", files["weights"], "--inputs", files["inputs"], "--batch", str(work["batch"]), "--paced", "--json"]
            if a.device:
                words += ["--device", a.device]
            if work["weights"] != "f32":
                words += ["--weights", work["weights"]]
            if kind == "sample":
                words += ["--steps", str(a.steps), "--cfg", str(a.cfg)]
            if kind != "train":
                words += ["--output", files["ours"]]
            sides["ours"] = Side(words + a.extra)
            sides["ours"].wait_ready()
            os.remove(files["weights"])
            runs = {name: max(1, math.ceil(a.turn_seconds / (side.once() * work["batch"]))) for name, side in sides.items()}
            rounds = [one_round(sides, runs, i) for i in range(a.rounds)]
            ours = sides["ours"].finish()
            row = dict(work, ours=spread([r["ours"] for r in rounds]), ours_result=ours, peers={})
            for peer in a.peers:
                end = sides[peer].finish()
                ratios = [r[peer] / r["ours"] for r in rounds]
                times = spread([r[peer] for r in rounds])
                row["peers"][peer] = end | {"seconds_per_image": times, "ratio": times["median"] / row["ours"]["median"], "round_ratios": spread(ratios),
                                            "memory_ratio": ours["peak_memory_bytes"] / end["peak_memory_bytes"]}
            row["check"] = check(work, files, ours, row["peers"][a.peers[-1]], reference)
            return row
        finally:
            for side in sides.values():
                side.stop()


HEAD = """| work | this, s | of peak | PyTorch, s | times as fast (rounds) | memory, this / PyTorch, MiB | ratio | error |
|---|---|---|---|---|---|---|---|"""


def line(row):
    ours, lines = row["ours_result"], []
    what = f"{row['mode']} {row['size']} {row['pixels']} px {row['weights']} batch {row['batch']}"
    error = ", ".join(f"{k} {v:.1e}" for k, v in row["check"].items() if k != "ok") + ("" if row["check"].get("ok", True) else " (past the limit)")
    peak = f"{100 * ours['fraction_of_peak']:.0f} %" if ours["fraction_of_peak"] else "-"
    for peer, p in row["peers"].items():
        r = p["round_ratios"]
        lines.append(f"| {what} | {row['ours']['median']:.4g} | {peak} | {peer} {p['seconds_per_image']['median']:.4g} | {p['ratio']:.2f} "
                     f"({r['min']:.2f}-{r['max']:.2f}) | {ours['peak_memory_bytes'] / MIB:.0f} / {p['peak_memory_bytes'] / MIB:.0f} | "
                     f"{p['memory_ratio']:.2f} | {error} |")
    return "\n".join(lines)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mode", nargs="?", choices=["forward", "train", "full-train", "sample"],
                   help="full-train: PyTorch trains everything, difffit-bench by DiffFit")
    p.add_argument("--table", action="store_true", help="every row of docs/performance.md instead of one")
    p.add_argument("--only", default="", metavar="TEXT", help="table: rows that have TEXT in 'MODE SIZE PIXELS WEIGHTS BATCH'")
    p.add_argument("--size", default="DiT-XL/2")
    p.add_argument("--pixels", type=int, default=256)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--weights", choices=["f32", "bf16", "f16"], default="f32")
    p.add_argument("--steps", type=int, default=4, help="sample: steps (4)")
    p.add_argument("--cfg", type=float, default=4.0, help="sample: guidance (4)")
    p.add_argument("--peers", default="eager", help="eager, compile, or both: eager,compile")
    p.add_argument("--threads", type=int, default=0, help="PyTorch's threads (0: the fastest of several numbers up to all cores)")
    p.add_argument("--rounds", type=int, default=5, help="turns of each side (5)")
    p.add_argument("--turn-seconds", type=float, default=0.3, help="a turn repeats until it took so long (0.3)")
    p.add_argument("--bench", default=os.path.join(HERE, "../build/tools/difffit-bench/difffit-bench"), help="the program")
    p.add_argument("--device", help="as for difffit-bench")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", metavar="FILE", help="write all results")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("extra", nargs="*", help="after --: more options for difffit-bench")
    a = p.parse_args()
    a.peers = a.peers.split(",")
    if not a.worker and not a.mode and not a.table:
        p.error("expected a mode or --table")
    return a


def main():
    a = arguments()
    if a.worker:
        worker(json.loads(a.worker))
        return 0
    try:
        import torch  # noqa: F401
    except ImportError:
        print("bench_torch.py: PyTorch is not installed for this Python", file=sys.stderr)
        return 1
    sys.path.insert(0, HERE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the sides are stopped and the weights' file is removed
    one = dict(mode=a.mode, size=a.size, pixels=a.pixels, batch=a.batch, weights=a.weights)
    works = [w for w in TABLE if a.only in "{mode} {size} {pixels} {weights} {batch}".format(**w)] if a.table else [one]
    if not works:
        print(f"bench_torch.py: --only: no row of the table has '{a.only}'", file=sys.stderr)
        return 2
    rows, bad = [], 0
    print(HEAD, flush=True)
    for work in works:
        try:
            rows.append(measure(work, a))
            bad += not rows[-1]["check"].get("ok", True)
            print(line(rows[-1]), flush=True)
        except RuntimeError as e:
            bad += 1
            print(f"bench_torch.py: {' '.join(map(str, work.values()))}: {e}", file=sys.stderr)
        if a.json:
            with open(a.json, "w") as f:
                json.dump(rows, f, indent=1)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
