#!/usr/bin/env python3
"""Writes tests/golden/interchange: what PyTorch and diffusers compute from files of this project, so that tests can compare without them.

    python3 tools/make_interchange.py DIFFFIT-CL [FOLDER]     # FOLDER: tests/golden, which holds dit/micro; needs PyTorch and diffusers

delta.safetensors is drawn first (random values, a table of its own for three classes, scale vectors in both blocks), reference.safetensors from it; an existing delta
is kept. tests/golden/README.md describes both. tests/cli/test_torch.py compares what is stored with what `compute` gives.
"""
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import warnings

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import difffit_delta  # noqa: E402
import torch_dit  # noqa: E402

SIZE, SIDE, CLASSES = (2, 32, 2, 2), 8, 5  # of dit/micro: depth, width, heads, patch
NAMES = ["one", "two", "three"]
CFG, GUIDED_STEPS, APPLIED_STEPS = 2.5, 6, 3


def base_net(golden):
    model = torch_dit.DiT(SIZE, SIDE, classes=CLASSES)
    model.load_state_dict(torch_dit.load(os.path.join(golden, "dit", "micro", "raw_f32.safetensors")), strict=True)
    return model.eval()


def draw_delta(golden, path):
    model, g, tensors = base_net(golden), torch.Generator().manual_seed(5), {}
    for name, p in model.named_parameters():
        if name.endswith(".bias"):
            tensors[name] = p.detach() + 0.1 * torch.randn(p.shape, generator=g)
    for i in range(SIZE[0]):
        for name, layer in difffit_delta.GAMMAS.items():
            n = model.get_submodule(f"blocks.{i}.{layer}").out_features
            tensors[f"blocks.{i}.{name}"] = 1 + 0.3 * torch.randn(n, generator=g)
    table = model.y_embedder.embedding_table.weight
    tensors["y_embedder.embedding_table.weight"] = table.std() * torch.randn(len(NAMES) + 1, SIZE[1], generator=g)
    torch_dit.save(path, tensors, {"format": "difffit-cl delta 1", "method": "difffit", "gamma_sites": "qkv,proj,attn,mlp", "gamma_blocks": "0-1",
                                   "base_hash": difffit_delta.base_hash(model), "input": str(SIDE), "positional_scale": "0", "class_table": "own",
                                   "class_names": json.dumps(NAMES), "training": "{}"})


def inputs():
    g = torch.Generator().manual_seed(6)
    return {"x": torch.randn(3, 4, SIDE, SIDE, generator=g), "t": torch.tensor([3, 421, 977]), "y": torch.arange(3), "z": torch.randn(3, 4, SIDE, SIDE, generator=g)}


def ddim(x, steps, eps_of):
    """DDIM, eta 0, evenly spaced, in float64: eps_of(x, t) is the guided prediction."""
    abar = torch_dit.Schedule().abar
    used = [round(i * 999 / (steps - 1)) for i in range(steps)]
    x = x.double()
    for i in reversed(range(steps)):
        a, b = float(abar[used[i]]), float(abar[used[i - 1]]) if i else 1.0
        e = eps_of(x.float(), torch.full((len(x),), used[i]))
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e
    return x.float()


def tensors_hash(path):
    """SHA-256 over the tensors of a safetensors file, sorted by name (byte order): "NAME\\nTYPE\\nSHAPE\\n", then the values."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head, data = json.loads(f.read(n)), f.read()
    for name in sorted(k for k in head if k != "__metadata__"):
        v = head[name]
        h.update(f"{name}\n{v['dtype']}\n{','.join(map(str, v['shape']))}\n".encode() + data[slice(*v["data_offsets"])])
    return h.hexdigest()


@torch.no_grad()
def compute_torch(golden):
    """(a) guidance from a second model, (c) the delta on the original's network by tools/difffit_delta.py."""
    delta = os.path.join(golden, "interchange", "delta.safetensors")
    given, out = inputs(), {}
    x, t, y, z = (given[k] for k in "xtyz")
    domain, base = base_net(golden), base_net(golden)
    applied = difffit_delta.apply(domain, delta)
    null = torch.full((3,), CLASSES)
    out["applied.out"] = domain(x, t, y)
    out["applied.drawn"] = ddim(z, APPLIED_STEPS, lambda x, t: domain(x, t, y)[:, :4].double())
    for key, n in (("guided.3", 3), ("guided.all", 4)):
        def guided(x, t):
            cond, ref = domain(x, t, y)[:, :4].double(), base(x, t, null)[:, :4].double()
            return torch.cat([ref[:, :n] + CFG * (cond[:, :n] - ref[:, :n]), cond[:, n:]], 1)

        out[key] = ddim(z, GUIDED_STEPS, guided)
    applied.remove()
    difffit_delta.apply(domain, delta, strength=0.5)
    out["applied.half_drawn"] = ddim(z, APPLIED_STEPS, lambda x, t: domain(x, t, y)[:, :4].double())
    return out


@torch.no_grad()
def compute_diffusers(cli, golden):
    """(b) a merged folder in diffusers' own class, and the hash of what it read."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from diffusers import DiTTransformer2DModel

    given = inputs()
    micro = os.path.join(golden, "dit", "micro", "raw_f32.safetensors")
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.join(tmp, "merged")
        subprocess.run([cli, "merge", "--model", micro, "--heads", "2", "--delta", os.path.join(golden, "interchange", "delta.safetensors"), "--names", "diffusers",
                        "--out", folder], check=True, stdout=subprocess.DEVNULL)
        model = DiTTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()
        difffit_delta.original_frequencies(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model(given["x"], given["t"], given["y"]).sample
        return {"merged.out": out}, tensors_hash(os.path.join(folder, "diffusion_pytorch_model.safetensors"))


def main():
    cli = os.path.abspath(sys.argv[1])
    golden = os.path.abspath(sys.argv[2] if len(sys.argv) > 2 else os.path.join(os.path.dirname(__file__), "..", "tests", "golden"))
    folder = os.path.join(golden, "interchange")
    os.makedirs(folder, exist_ok=True)
    torch.set_num_threads(1)
    if not os.path.exists(os.path.join(folder, "delta.safetensors")):
        draw_delta(golden, os.path.join(folder, "delta.safetensors"))
    merged, digest = compute_diffusers(cli, golden)
    given = inputs()
    given["t"], given["y"] = given["t"].float(), given["y"].float()
    import diffusers

    torch_dit.save(os.path.join(folder, "reference.safetensors"), {**given, **compute_torch(golden), **merged},
                   {"merged_sha256": digest, "torch": torch.__version__, "diffusers": diffusers.__version__})


if __name__ == "__main__":
    main()
