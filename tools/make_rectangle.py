#!/usr/bin/env python3
"""Writes tests/golden/rectangle.safetensors: the network of dit/dit.safetensors on latents that are no squares, plain and with scaled positions.

    python3 tools/make_rectangle.py [FOLDER]     # FOLDER: tests/golden; needs PyTorch

tests/golden/README.md describes the file. On squares the network (tools/torch_dit.py) is first compared with the original's output.
"""
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch_dit  # noqa: E402

SIZE, SQUARE, CLASSES = (4, 96, 4, 2), 8, 10  # of dit/dit.safetensors: depth, width, heads, patch
# name: (height, width), distance between positions
CASES = {"wide": ((8, 12), 1.0), "high": ((16, 6), 1.0), "scaled": ((8, 16), 0.5)}
GRADIENTS = ["x_embedder.proj.bias", "blocks.0.attn.proj.bias", "blocks.2.mlp.fc1.bias", "blocks.3.adaLN_modulation.1.bias", "final_layer.linear.bias"]


def net(golden, side, step):
    model = torch_dit.DiT(SIZE, side, classes=CLASSES, pos_step=step)
    model.load_state_dict({k: v for k, v in torch_dit.load(os.path.join(golden, "dit", "dit.safetensors")).items() if k != "pos_embed"}, strict=False)
    return model.eval()


@torch.enable_grad()
def compute(golden):
    g, out = torch.Generator().manual_seed(11), {}
    for name, (side, step) in CASES.items():
        x, w = torch.randn(2, 4, *side, generator=g), torch.randn(2, 8, *side, generator=g)
        t, y = torch.tensor([421, 37]), torch.tensor([3, CLASSES])
        model = net(golden, side, step)
        got = model(x, t, y)
        (got * w).sum().backward()
        params = dict(model.named_parameters())
        out |= {f"{name}.x": x, f"{name}.w": w, f"{name}.t": t.float(), f"{name}.y": y.float(), f"{name}.out": got.detach()}
        out |= {f"{name}.grad.{k}": params[k].grad for k in GRADIENTS}
    return out


def main():
    golden = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "tests", "golden"))
    torch.set_num_threads(1)
    original = torch_dit.load(os.path.join(golden, "forward.safetensors"))
    with torch.no_grad():
        got = net(golden, SQUARE, 1.0)(original["x"], original["t"], original["y"])
    error = ((got - original["out"]).norm() / original["out"].norm()).item()
    print(f"on squares: {error:.1e} from the original's output")
    if not error < 1e-6:
        sys.exit(1)
    torch_dit.save(os.path.join(golden, "rectangle.safetensors"), compute(golden), {"torch": torch.__version__})


if __name__ == "__main__":
    main()
