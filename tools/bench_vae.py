#!/usr/bin/env python3
"""The autoencoder against diffusers' AutoencoderKL on PyTorch, taking turns: seconds a picture, memory, and how far the numbers differ.

    tools/bench_vae.py [--pixels 512] [--image photo.jpg] [--rounds 5]

Random weights in the shape of Stable Diffusion's autoencoder ([128, 256, 512, 512], two resnets a block, 32 groups, 83.7 M parameters), f32, from a file in $TMPDIR. Each side
is a process of its own that waits for its turn on standard input; a round is a turn of each, in an order that alternates. The error is the largest absolute difference over the
range of PyTorch's values (limit 2e-4). Without --image the picture is smooth noise. Needs PyTorch and diffusers; Pillow for --image.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from bench_torch import MIB, Side, one_round, physical_cores, resident, spread  # noqa: E402

LIMIT = 2e-4


def make_model(folder):
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
        latent_channels=4, norm_num_groups=32, sample_size=512,
    )
    model.save_pretrained(folder)


def picture(image, side):
    """[1,3,side,side] in [-1,1]."""
    import torch

    if image:
        import numpy as np
        from PIL import Image

        with Image.open(image) as im:
            im = im.convert("RGB")
            k = side / min(im.size)
            im = im.resize([max(side, round(v * k)) for v in im.size], Image.BICUBIC)
            x, y = (im.width - side) // 2, (im.height - side) // 2
            return torch.from_numpy(np.asarray(im.crop((x, y, x + side, y + side)), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None].contiguous()
    coarse = torch.randn(1, 3, side // 32 + 1, side // 32 + 1, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)


def worker(c):
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(c["threads"] or physical_cores())
    model = AutoencoderKL.from_pretrained(c["vae"]).eval()
    scale = model.config.scaling_factor
    if c["what"] == "encode":
        del model.decoder
    else:
        del model.encoder
    x = load_file(c["inputs"])["x"]

    @torch.inference_mode()
    def once():
        if c["what"] == "encode":
            return model.encode(x).latent_dist.mean
        return model.decode(x / scale).sample

    save_file({"out": once().contiguous()}, c["output"])
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        once()
        print(time.perf_counter() - start, flush=True)
    print(json.dumps({"peak_memory_bytes": resident()}))


def measure(a, folder, what):
    import torch
    from safetensors.torch import load_file, save_file

    files = {k: os.path.join(folder, f"{what}-{k}.safetensors") for k in ("inputs", "ours", "peer")}
    if what == "encode":
        x = picture(a.image, a.pixels)
    else:  # the latent of that picture, as the encoder gives it: the order of measuring is encode, decode
        x = load_file(os.path.join(folder, "encode-peer.safetensors"))["out"] * 0.18215
    save_file({"x": x.contiguous()}, files["inputs"])
    config = {"vae": folder, "what": what, "inputs": files["inputs"], "output": files["peer"], "threads": a.threads}
    sides = {}
    try:
        sides["peer"] = Side([sys.executable, __file__, "--worker", json.dumps(config)])
        sides["peer"].wait_ready()
        sides["ours"] = Side([a.bench, "vae", "--vae", folder, "--what", what, "--pixels", str(a.pixels), "--inputs", files["inputs"], "--output", files["ours"],
                              "--paced", "--json", *(["--device", a.device] if a.device else [])])
        sides["ours"].wait_ready()
        rounds = [one_round(sides, {"ours": 1, "peer": 1}, i) for i in range(a.rounds)]
        ours, peer = sides["ours"].finish(), sides["peer"].finish()
    finally:
        for s in sides.values():
            s.stop()
    got, want = load_file(files["ours"])["out"], load_file(files["peer"])["out"]
    error = float((got - want).abs().max() / (want.max() - want.min()))
    ratio = spread([r["peer"] / r["ours"] for r in rounds])
    return {
        "what": what, "pixels": a.pixels, "torch": torch.__version__, "seconds": statistics.median(r["ours"] for r in rounds),
        "peer_seconds": statistics.median(r["peer"] for r in rounds), "ratio": ratio, "memory": ours["peak_memory_bytes"],
        "peer_memory": peer["peak_memory_bytes"], "plan": ours["plan"], "error": error,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=__doc__.split("\n", 4)[4], formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pixels", type=int, default=512, help="side of the picture (512)")
    p.add_argument("--image", help="picture to encode; its latent is decoded")
    p.add_argument("--rounds", type=int, default=5, help="turns of each side (5)")
    p.add_argument("--threads", type=int, default=0, help="PyTorch's threads (physical cores)")
    p.add_argument("--device", help="difffit-bench's device")
    p.add_argument("--bench", default="difffit-bench", help="program to run")
    p.add_argument("--json", metavar="FILE", help="write the results")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        return worker(json.loads(a.worker))
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as e:
        print(f"bench_vae.py: {e.name} is not installed for this Python", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="dfcl-vae-") as folder:
        make_model(folder)
        print("| work | this, s | PyTorch, s | times as fast (rounds) | memory, this / PyTorch, MiB | ratio | largest error, of the range |\n|---|---|---|---|---|---|---|")
        for what in ("encode", "decode"):
            r = measure(a, folder, what)
            rows.append(r)
            q = r["ratio"]
            print(f"| {what} {a.pixels} px | {r['seconds']:.4g} | {r['peer_seconds']:.4g} | {q['median']:.2f} ({q['min']:.2f}-{q['max']:.2f}) | "
                  f"{r['memory'] / MIB:.0f} / {r['peer_memory'] / MIB:.0f} | {r['memory'] / r['peer_memory']:.2f} | {r['error']:.1e} |", flush=True)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(rows, f, indent=1)
    return 0 if all(r["error"] <= LIMIT for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
