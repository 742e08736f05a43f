#!/usr/bin/env python3
"""What difffit-cl exchanges with PyTorch programs, checked by these programs.

    test_torch.py torch|diffusers|tensorboard DIFFFIT-CL GOLDEN TOOLS [pattern]

torch: state dicts, the published reproduction of DiffFit, tools/difffit_delta.py, guidance by domain. diffusers: the folders that merge writes.
tensorboard: event files. Runs under $DFCL_PYTHON where that is set. Ends with 77 where the package is absent.
"""
import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

OTHER = os.environ.get("DFCL_PYTHON")
if OTHER and os.environ.get("DFCL_PYTHON_RUNS") != "1":
    os.environ["DFCL_PYTHON_RUNS"] = "1"
    os.execv(OTHER, [OTHER, *sys.argv])
PART, CLI, GOLDEN, TOOLS = sys.argv[1], *(os.path.abspath(p) for p in sys.argv[2:5])
PATTERN = sys.argv[5] if len(sys.argv) > 5 else ""
for package in {"torch": ["torch"], "diffusers": ["torch", "diffusers"], "tensorboard": ["tensorboard"]}[PART]:
    if importlib.util.find_spec(package) is None:
        print(f"Python's {package} is not installed for {sys.executable} (DFCL_PYTHON names another interpreter)")
        sys.exit(77)
if PART != "tensorboard":
    import torch

    sys.path.insert(0, TOOLS)
    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        print(f"PyTorch {torch.__version__} is too old, 2.0 is needed")
        sys.exit(77)
    import difffit_delta
    import make_interchange
    import make_rectangle
    import torch_dit
    from make_interchange import ddim

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
if PART == "diffusers":
    os.environ["HF_HUB_OFFLINE"] = "1"
    from diffusers import DiTTransformer2DModel
tmp = tempfile.TemporaryDirectory(prefix="dfcl-torch-")
T = tmp.name
os.environ["XDG_CACHE_HOME"] = os.path.join(T, "cache")
BASE = os.path.join(GOLDEN, "dit", "dit.safetensors")
GAMMAS = os.path.join(GOLDEN, "dit", "gamma_random.safetensors")
SIZE, CLASSES = (4, 96, 4, 2), 10  # of the golden model: depth, width, heads, patch


def run(*words, code=0):
    p = subprocess.run([CLI, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert p.returncode == code, f"{' '.join(map(str, words))}: exit code {p.returncode}, expected {code}\n{p.stdout}\n{p.stderr}"
    return p.stdout + p.stderr


def path(name):
    return os.path.join(T, name)


def rel(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def near(what, a, b, limit=1e-5):
    e = rel(a, b)
    print(f"   {what}: {e:.1e}")
    assert a.shape == b.shape and e < limit, f"{what}: relative L2 distance {e}, allowed {limit}"


def golden(name):
    return torch_dit.load(os.path.join(GOLDEN, name))


def inputs():
    """Pictures, timesteps and labels of the golden forward pass; labels within three classes and their null class."""
    g = golden_forward()
    return g["x"], torch.tensor([0, 421, 999]), torch.tensor([2, 0, 3])


def golden_forward():
    file = os.path.join(GOLDEN, "forward.safetensors")
    with open(file, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(n))
        data = f.read()
    types = {"F32": torch.float32, "I64": torch.int64}
    return {k: torch.frombuffer(bytearray(data[slice(*v["data_offsets"])]), dtype=types[v["dtype"]]).reshape(v["shape"])
            for k, v in head.items() if k != "__metadata__"}


def net(state, size=SIZE, side=8, gammas=0):
    """The original's network with the weights of a state dict, loaded strictly."""
    model = torch_dit.DiT(size, side, classes=state["y_embedder.embedding_table.weight"].shape[0] - 1, gammas=gammas)
    model.load_state_dict(state, strict=True)
    return model.eval()


def base_net():
    return net(golden("dit/dit.safetensors"))


def train(name, base=BASE, *words, side=(8, 8)):
    """A few large steps on noise, so that everything trained is far from the base: a delta with three classes of its own."""
    if os.path.exists(path(name)):
        return os.path.join(path(name), "delta.safetensors")
    data = f"data{side[0]}x{side[1]}"
    for kind in ("features", "labels"):
        os.makedirs(path(f"{data}/x_{kind}"), exist_ok=True)
    with open(path(f"{data}/class_names.txt"), "w") as f:
        f.write("a\nb\nc\n")
    g = torch.Generator().manual_seed(1)
    for i in range(12):
        for kind, descr, shape, raw in (("features", "<f4", str((1, 4, *side)), torch.randn(4 * side[0] * side[1], generator=g).numpy().tobytes()),
                                        ("labels", "<i8", "(1,)", struct.pack("<q", i % 3))):
            head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            with open(path(f"{data}/x_{kind}/{i}.npy"), "wb") as f:
                f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + raw)
    run("train", "--device", "host", "--model", base, "--data", path(data), "--out", path(name), "--steps", 6, "--batch", 4, "--lr", "0.02",
        "--class-init", "random", *words)
    return os.path.join(path(name), "delta.safetensors")


def noise(n, seed=3):
    file = path(f"noise{n}.safetensors")
    z = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    torch_dit.save(file, {"z": z})
    return z, file


def latents(*words):
    out = path("latents.safetensors")
    run("sample", "--device", "host", *words, "--save-latents", out)
    return torch_dit.load(out)["latents"]


def eps(model, y):
    return lambda x, t: model(x, t, y)[:, :4].double()


def stored(found, names):
    """What tests compare with where PyTorch is not installed (tests/model/test_interchange.c) is what it computes here."""
    ref = torch_dit.load(os.path.join(GOLDEN, "interchange", "reference.safetensors"))
    given = make_interchange.inputs()
    assert all(torch.equal(ref[k], given[k].float()) for k in given) and sorted(found) == sorted(names)
    for name in names:
        near(name, found[name], ref[name])


# ---- torch ----


def torch_stored_reference():
    stored(make_interchange.compute_torch(GOLDEN), ["applied.out", "applied.drawn", "applied.half_drawn", "guided.3", "guided.all"])


def torch_stored_rectangle():
    """What tests/model/test_dit.c compares with."""
    ref, found = torch_dit.load(os.path.join(GOLDEN, "rectangle.safetensors")), make_rectangle.compute(GOLDEN)
    assert sorted(ref) == sorted(found)
    for name in ref:
        near(name, found[name], ref[name])


def torch_rectangle():
    """Trained on latents that are no squares: the delta on a network of that shape, and as `sample` draws it."""
    delta = train("wide", BASE, "--input", "16x8", side=(8, 16))  # width x height; the longer side spans the base's grid of 4
    z = torch.randn(3, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    torch_dit.save(path("wide-noise.safetensors"), {"z": z})
    ours = latents("--model", BASE, "--delta", delta, "--classes", "0,1,2", "-n", 1, "--sampler", "ddim", "--steps", 3, "--cfg", 1, "--init-noise", path("wide-noise.safetensors"))
    model = torch_dit.DiT(SIZE, (8, 16), classes=CLASSES)
    model.load_state_dict({k: v for k, v in golden("dit/dit.safetensors").items() if k != "pos_embed"}, strict=False)
    model.eval()
    plain = model.pos_embed.clone()
    applied = difffit_delta.apply(model, delta)
    assert torch.equal(model.pos_embed, torch_dit.positions(4, 8, SIZE[1], 0.5))
    near("sample and applied, three steps", ours, ddim(z, 3, eps(model, torch.arange(3))))
    applied.remove()
    assert torch.equal(model.pos_embed, plain)
    try:
        difffit_delta.apply(base_net(), delta)
        raise AssertionError("a delta of another number of positions was taken")
    except ValueError as e:
        assert "16x8" in str(e) and "16 positions" in str(e), e


def torch_merged_state_dicts():
    """Gammas folded, or kept for the reproduction's model, which has them in its first 14 blocks: loaded strictly, the golden output."""
    f = golden_forward()
    for words, gammas in (((), 0), (("--gammas", "keep"), 4)):
        run("merge", "--model", BASE, "--delta", GAMMAS, "--out", path("m.pt"), *words)
        state = torch.load(path("m.pt"), weights_only=True)
        near(f"golden output, {gammas} blocks with gammas", net(state, gammas=gammas)(f["x"], f["t"], f["y"]), f["gamma.out"])
        mapped = torch.load(path("m.pt"), weights_only=True, mmap=True)
        assert all(torch.equal(v, mapped[k]) for k, v in state.items())
        run("merge", "--model", BASE, "--delta", GAMMAS, "--out", path("m.safetensors"), *words)
        same = torch_dit.load(path("m.safetensors"))
        assert state.keys() == same.keys() and all(torch.equal(v, same[k]) for k, v in state.items())


def torch_delta_module():
    """A delta of ours on the original's network by tools/difffit_delta.py: as merged, and as `sample` draws it."""
    delta = train("run")
    x, t, y = inputs()
    model = base_net()
    before = model(x, t, y)
    applied = difffit_delta.apply(model, delta)
    assert applied.class_names == ["a", "b", "c"] and applied.null_class == 3
    out = model(x, t, y)
    assert rel(out, before) > 0.05
    run("merge", "--model", BASE, "--delta", delta, "--out", path("merged.pt"))
    near("merged and applied", net(torch.load(path("merged.pt")))(x, t, y), out)
    z, file = noise(3)
    ours = latents("--model", BASE, "--delta", delta, "--classes", "0,1,2", "-n", 1, "--sampler", "ddim", "--steps", 3, "--cfg", 1, "--init-noise", file)
    near("sample and applied, three steps", ours, ddim(z, 3, eps(model, torch.arange(3))))
    applied.remove()
    assert torch.equal(model(x, t, y), before) and difffit_delta.base_hash(model) in run("info", BASE)
    half = difffit_delta.apply(model, delta, strength=0.5)
    ours = latents("--model", BASE, "--delta", delta + ":0.5", "--classes", "0,1,2", "-n", 1, "--sampler", "ddim", "--steps", 3, "--cfg", 1, "--init-noise", file)
    near("at half strength", ours, ddim(z, 3, eps(model, torch.arange(3))))
    for again in (delta, GAMMAS):
        try:
            difffit_delta.apply(model, again)
            raise AssertionError("a delta on top of another, or a plain state dict, was taken")
        except ValueError as e:
            assert again in str(e)
    half.remove()
    assert torch.equal(model(x, t, y), before)


def torch_reproduction():
    """To the published reproduction and back: its state dict, and a training checkpoint as its script saves it, whose average has drifted."""
    delta = train("run")
    x, t, y = inputs()
    model = base_net()
    difffit_delta.apply(model, delta)
    run("merge", "--model", BASE, "--delta", delta, "--gammas", "keep", "--out", path("kept.pt"))
    theirs = net(torch.load(path("kept.pt"), weights_only=True), gammas=4)
    near("the reproduction's network", theirs(x, t, y), model(x, t, y))
    _, file = noise(3)
    words = ["--model", BASE, "--classes", "0,1,2", "-n", 1, "--sampler", "ddim", "--steps", 2, "--cfg", 1, "--init-noise", file]
    ours = latents(*words, "--delta", delta)
    assert torch.equal(latents(*words, "--delta", path("kept.pt")), ours)
    state = theirs.state_dict()
    average = {k: v.clone() for k, v in state.items()}
    for _ in range(200):  # as its script averages everything, frozen values too
        for k, v in average.items():
            if k.startswith("blocks") and k.endswith("weight"):
                v.mul_(0.9999).add_(state[k], alpha=1 - 0.9999)
    frozen = "blocks.0.attn.qkv.weight"
    assert not torch.equal(average[frozen], state[frozen])
    import argparse

    for p in theirs.parameters():
        p.requires_grad_(True)
    live = {k: v + 1 if "gamma" in k else v for k, v in state.items()}
    torch.save({"model": live, "ema": average, "opt": torch.optim.AdamW(theirs.parameters()).state_dict(),
                "args": argparse.Namespace(model="DiT-XL/2", num_classes=3, difffit=True)}, path("0024000.pt"))
    near("from its training checkpoint", latents(*words, "--delta", path("0024000.pt")), ours, 1e-7)
    run("merge", "--model", BASE, "--delta", path("0024000.pt"), "--out", path("back.pt"))
    near("merged from its training checkpoint", net(torch.load(path("back.pt")))(x, t, y), model(x, t, y))
    average["blocks.3.attn.qkv.weight"] += 0.01  # another base
    torch.save(average, path("other.pt"))
    assert "another base" in run("sample", "--device", "host", *words, "--delta", path("other.pt"), "--save-latents", path("no"), code=6)
    assert "another base" in run("merge", "--model", BASE, "--delta", path("other.pt"), "--out", path("no.pt"), code=6)
    assert not os.path.exists(path("no.pt"))


def torch_deep():
    """Scale vectors beyond the reproduction's 14 blocks are folded, the others kept."""
    run("init", "--depth", 16, "--hidden", 16, "--heads", 2, "--patch", 2, "--input", 8, "--classes", 3, "--scale", 0.2, "--out", path("deep.safetensors"))
    delta = train("deep-run", path("deep.safetensors"), "--gamma-blocks", "all", "--heads", 2)
    run("merge", "--model", path("deep.safetensors"), "--delta", delta, "--gammas", "keep", "--out", path("deep.pt"))
    state = torch.load(path("deep.pt"))
    assert "blocks.13.gamma1" in state and "blocks.14.gamma1" not in state
    x, t, y = inputs()
    size = (16, 16, 2, 2)
    model = net(torch_dit.load(path("deep.safetensors")), size)
    difffit_delta.apply(model, delta)
    near("16 blocks", net(state, size, gammas=14)(x, t, y), model(x, t, y))


def torch_domain_guidance():
    """--guidance domain is guidance from a second model, the base under its own null class."""
    delta = train("run")
    domain, base = base_net(), base_net()
    difffit_delta.apply(domain, delta)
    y, null = torch.arange(3), torch.full((3,), CLASSES)
    z, file = noise(3)
    for channels in ("3", "all"):
        def guided(x, t):
            cond, ref = domain(x, t, y)[:, :4].double(), base(x, t, null)[:, :4].double()
            n = 3 if channels == "3" else 4
            return torch.cat([ref[:, :n] + 2.5 * (cond[:, :n] - ref[:, :n]), cond[:, n:]], 1)

        words = ["--model", BASE, "--delta", delta, "--classes", "0,1,2", "-n", 1, "--sampler", "ddim", "--steps", 6, "--cfg", 2.5, "--cfg-channels", channels,
                 "--init-noise", file]
        want = ddim(z, 6, guided)
        near(f"two models, channels {channels}, six steps", latents(*words, "--guidance", "domain"), want)
        assert rel(latents(*words, "--guidance", "class"), want) > 0.01


# ---- diffusers ----


def from_diffusers(name):
    model, info = DiTTransformer2DModel.from_pretrained(path(name), output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def diffusers_merged():
    """A merged folder in diffusers' own class: the original's output, once it has the original's timestep frequencies."""
    x, t, y = inputs()
    f = golden_forward()
    run("merge", "--model", BASE, "--delta", GAMMAS, "--names", "diffusers", "--out", path("gammas"))
    model = from_diffusers("gammas")
    assert rel(model(f["x"], f["t"], f["y"]).sample, f["gamma.out"]) > 1e-3  # diffusers' own frequencies
    difffit_delta.original_frequencies(model)
    near("golden output", model(f["x"], f["t"], f["y"]).sample, f["gamma.out"])
    delta = train("run")
    run("merge", "--model", BASE, "--delta", delta, "--names", "diffusers", "--out", path("merged"))
    run("merge", "--model", BASE, "--delta", delta, "--out", path("merged.safetensors"))
    model = from_diffusers("merged")
    assert model.config.num_embeds_ada_norm == 3
    difffit_delta.original_frequencies(model)
    near("own classes", model(x, t, y).sample, net(torch_dit.load(path("merged.safetensors")))(x, t, y))
    _, file = noise(3)
    words = ["--classes", "0,1,2", "-n", 1, "--sampler", "ddim", "--steps", 2, "--cfg", 1, "--init-noise", file]
    assert torch.equal(latents("--model", path("merged"), *words), latents("--model", path("merged.safetensors"), *words))
    assert sorted(os.listdir(path("merged"))) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert "empty folder" in run("merge", "--model", BASE, "--delta", delta, "--names", "diffusers", "--out", path("merged"), code=2)


def diffusers_delta_module():
    delta = train("run")
    x, t, y = inputs()
    run("merge", "--model", BASE, "--names", "diffusers", "--out", path("base"))
    model = from_diffusers("base")
    stock = model(x, t, y).sample
    with warnings.catch_warnings(record=True):
        applied = difffit_delta.apply(model, delta)
    original = base_net()
    difffit_delta.apply(original, delta)
    near("applied to diffusers' class", model(x, t, y).sample, original(x, t, y))
    applied.remove()
    assert torch.equal(model(x, t, y).sample, stock)


def diffusers_stored_reference():
    found, digest = make_interchange.compute_diffusers(CLI, GOLDEN)
    stored(found, ["merged.out"])
    with open(os.path.join(GOLDEN, "interchange", "reference.safetensors"), "rb") as f:
        assert json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))["__metadata__"]["merged_sha256"] == digest


def diffusers_refuses_scaled_positions():
    """diffusers' class computes its positions: others are not lost silently."""
    run("init", "--depth", 1, "--hidden", 32, "--heads", 2, "--patch", 2, "--input", 8, "--classes", 3, "--out", path("small.safetensors"))
    text = open(path("small.safetensors"), "rb").read()
    n = struct.unpack("<Q", text[:8])[0]
    head = json.loads(text[8:8 + n])
    a, b = head["pos_embed"]["data_offsets"]
    data = bytearray(text[8 + n:])
    data[a:b] = data[a:b][:b - a - 128] + b"\0" * 128
    with open(path("other.safetensors"), "wb") as f:
        f.write(text[:8 + n] + data)
    assert "positions" in run("merge", "--model", path("other.safetensors"), "--heads", 2, "--names", "diffusers", "--out", path("none"), code=2)
    assert not [f for f in os.listdir(T) if f.startswith("none")]


# ---- tensorboard ----


def tensorboard_reads_events():
    """TensorBoard's own reader finds what metrics.jsonl says."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("init", "--depth", 1, "--hidden", 16, "--heads", 2, "--patch", 2, "--input", 8, "--channels", 1, "--classes", 2, "--scale", 0.1, "--out",
        path("base.safetensors"))
    data = os.path.join(os.path.dirname(TOOLS), "tools", "demo", "digits", "heldout")
    run("train", "--device", "host", "--model", path("base.safetensors"), "--heads", 2, "--data", data, "--out", path("run"), "--steps", 6, "--batch", 4,
        "--log-every", 2, "--val-fraction", 0.1, "--checkpoint-every", 3)
    events = EventAccumulator(path("run"))
    events.Reload()
    lines = [json.loads(x) for x in open(path("run/metrics.jsonl"))]
    tags = events.Tags()["scalars"]
    for tag, key in (("train/loss", "loss"), ("train/mse", "mse"), ("train/vb", "vb"), ("train/grad_norm", "grad_norm"), ("train/lr", "lr"),
                     ("val/loss", "val_loss")):
        want = [(x["step"], x[key]) for x in lines if x.get(key) is not None]
        got = [(s.step, s.value) for s in events.Scalars(tag)] if tag in tags else []
        assert len(got) == len(want) > 1 and all(a == c and math.isclose(b, d, rel_tol=1e-6) for (a, b), (c, d) in zip(got, want)), (tag, got, want)
    assert all(abs(s.wall_time - time.time()) < 3600 for s in events.Scalars("train/loss"))


failed = passed = 0
for name, test in list(globals().items()):
    if not name.startswith(PART + "_") or not callable(test) or PATTERN not in name:
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
sys.exit(1 if failed or not passed else 0)
