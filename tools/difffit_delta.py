"""Applies a delta of difffit-cl to a Diffusion Transformer in PyTorch, without merging: the original's DiT or diffusers' DiTTransformer2DModel.

    from difffit_delta import apply

    applied = apply(model, "run/delta.safetensors")       # strength=0.5: half of the way from the base
    applied.class_names, applied.null_class                # labels are numbers in this list; the null class follows the last
    applied.remove()                                       # the base again, bit for bit

Biases and the class table take the model's places, scale vectors multiply the outputs of their layers (forward hooks), frozen matrices stay untouched in
whatever type they are. The model must be the base that the delta was made on: its hash is compared (seconds for DiT-XL/2; a model converted to another type
has another one: force=True). diffusers computes timestep frequencies in its own way; apply() gives the model the original's, with which bases and
deltas are trained, until remove(). For a folder that `difffit-cl merge --names diffusers` wrote, call original_frequencies(model).

Needs PyTorch only. Deltas: docs/formats.md; scale vectors: docs/methods.md.
"""
import hashlib
import json
import re
import struct
import warnings

import torch
from torch import nn

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TAGS = {v: k for k, v in TYPES.items()}
TABLE = "y_embedder.embedding_table"
# Layers of a block: the original's -> diffusers', and back for what lies outside the blocks.
INNER = {"adaLN_modulation.1": ["norm1.linear"], "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"], "attn.proj": ["attn1.to_out.0"],
         "mlp.fc1": ["ff.net.0.proj"], "mlp.fc2": ["ff.net.2"]}
OUTER = {"x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1", "final_layer.linear": "proj_out_2"}
SHARED = {"t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
          TABLE: "norm1.emb.class_embedder.embedding_table"}
# Scale vectors and the layers whose outputs they multiply.
GAMMAS = {"attn.gamma1": "attn.qkv", "attn.gamma2": "attn.proj", "gamma1": "attn.proj", "gamma2": "mlp.fc2"}


def load(path):
    """Tensors and metadata of a delta."""
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        if size > 100 << 20:
            raise ValueError(f"{path}: not a safetensors file")
        head = json.loads(f.read(size))
        data = f.read()
    meta = head.pop("__metadata__", {})
    if meta.get("format") != "difffit-cl delta 1":
        raise ValueError(f"{path}: expected a difffit-cl delta, found format {meta.get('format')!r}")
    tensors = {}
    for name, t in head.items():
        a, b = t["data_offsets"]
        tensors[name] = torch.frombuffer(bytearray(data[a:b]), dtype=TYPES[t["dtype"]]).reshape(t["shape"]).float()
    return tensors, meta


class Layers:
    """The layers of a model by the original's names: `places` gives the modules that hold a layer, `copies` whether each holds all of it."""

    def __init__(self, model):
        self.model = model
        self.diffusers = hasattr(model, "transformer_blocks")
        self.blocks = model.transformer_blocks if self.diffusers else model.blocks

    def paths(self, layer):
        """Module paths, and True where each is a copy of the whole layer (else they share out its rows)."""
        if not self.diffusers:
            return [layer], True
        m = re.fullmatch(r"blocks\.(\d+)\.(.*)", layer)
        if m:
            return [f"transformer_blocks.{m[1]}.{p}" for p in INNER[m[2]]], False
        if layer in SHARED:
            return [f"transformer_blocks.{i}.{SHARED[layer]}" for i in range(len(self.blocks))], True
        return [OUTER[layer]], True

    def modules(self, layer):
        """(module, tensor -> its share of a tensor of the whole layer)"""
        paths, copies = self.paths(layer)
        n = len(paths)
        for i, p in enumerate(paths):
            yield self.model.get_submodule(p), (lambda v: v) if copies else (lambda v, i=i: v.chunk(n)[i])

    def names(self):
        """All layers of a model without scale vectors."""
        inner = [f"blocks.{i}.{k}" for i in range(len(self.blocks)) for k in INNER]
        return [*OUTER, *SHARED, *inner]

    def value(self, name):
        layer, kind = name.rsplit(".", 1)
        paths, copies = self.paths(layer)
        parts = [getattr(self.model.get_submodule(p), kind).detach() for p in (paths[:1] if copies else paths)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def base_hash(model):
    """SHA-256 of the weights, as docs/formats.md defines it."""
    layers, h = Layers(model), hashlib.sha256()
    names = [f"{n}.{k}" for n in layers.names() for k in ("weight", "bias") if not (n == TABLE and k == "bias")]
    for name in sorted(names):
        v = layers.value(name).cpu().contiguous()
        if v.dtype not in TAGS:
            raise ValueError(f"{name}: type {v.dtype} has no hash")
        h.update(f"{name}\n{TAGS[v.dtype]}\n{','.join(map(str, v.shape))}\n".encode())
        h.update(v.reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def original_frequencies(model):
    """Gives a diffusers model the original's timestep frequencies, exp(-ln(10000) i / 128); diffusers divides by 127. Returns how to undo it."""
    projections = [b.norm1.emb.time_proj for b in model.transformer_blocks]
    before = [p.downscale_freq_shift for p in projections]
    for p in projections:
        p.downscale_freq_shift = 0

    def undo():
        for p, shift in zip(projections, before):
            p.downscale_freq_shift = shift

    return undo


def positions(rows, cols, width, base):
    """Sine-cosine table [1, rows*cols, width] whose coordinates along the longer side are scaled to a grid of `base` (0: not scaled)."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    step = base / max(rows, cols) if base else 1
    col = step * torch.arange(cols, dtype=torch.float64).repeat(rows)[:, None] * omega
    row = step * torch.arange(rows, dtype=torch.float64).repeat_interleave(cols)[:, None] * omega
    return torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], 1).float()[None]


class Applied:
    """What apply() did. class_names: the domain's, or None; null_class: the label of unconditional samples."""

    def __init__(self):
        self.class_names, self.null_class, self.undo = None, None, []

    def remove(self):
        while self.undo:
            self.undo.pop()()


def blend(base, value, strength):
    return value if strength == 1 else base + strength * (value - base)


class Scale:
    """Forward hook: a layer's output times a vector."""

    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, module, args, out):
        self.gamma = self.gamma.to(out.device, out.dtype)
        return out * self.gamma


def set_table(applied, layers, rows):
    def put(owner, table, classes):
        old, old_classes = owner.embedding_table, owner.num_classes if hasattr(owner, "num_classes") else None
        owner.embedding_table = table
        if old_classes is not None:
            owner.num_classes = classes

        def undo():
            owner.embedding_table = old
            if old_classes is not None:
                owner.num_classes = old_classes

        applied.undo.append(undo)

    for path in layers.paths(TABLE)[0]:
        owner = layers.model.get_submodule(path.rsplit(".", 1)[0])
        like = owner.embedding_table.weight
        table = nn.Embedding(*rows.shape, _weight=rows.to(like.device, like.dtype).clone())
        table.weight.requires_grad_(like.requires_grad)
        put(owner, table, len(rows) - 1)


def set_positions(applied, layers, path, meta):
    side, scale = meta.get("input", "0"), float(meta.get("positional_scale", 0))
    width, height = (int(v) for v in (side.split("x") * 2)[:2])  # "64" of a square, "96x64": width x height
    owner = layers.model.pos_embed if layers.diffusers else layers.model
    table = owner.pos_embed
    patch = layers.value("x_embedder.proj.weight").shape[-1]
    rows, cols = height // patch, width // patch
    if rows and rows * cols != table.shape[1]:
        raise ValueError(f"{path}: trained on latents of side {side}, the model has {table.shape[1]} positions: build it for that size")
    if not rows or (not scale and rows == cols):
        return
    old = table.data
    table.data = positions(rows, cols, old.shape[2], scale).to(old.device, old.dtype)

    def undo():
        table.data = old

    applied.undo.append(undo)


@torch.no_grad()
def apply(model, path, strength=1.0, force=False, base_classes=None):
    """Makes `model` the domain of the delta at `path`. base_classes: the base's class names, where rows of the same name are to follow `strength` too (the
    null row always does). ValueError, and an unchanged model, when the delta does not fit."""
    tensors, meta = load(path)
    layers, applied = Layers(model), Applied()
    if not force and base_hash(model) != meta["base_hash"]:
        raise ValueError(f"{path}: made on the base {meta['base_hash']}, the model is {base_hash(model)} (other weights, another type, or a delta is applied)")
    try:
        set_positions(applied, layers, path, meta)
        names = json.loads(meta["class_names"]) if "class_names" in meta else None
        applied.null_class = layers.value(f"{TABLE}.weight").shape[0] - 1
        for name, value in tensors.items():
            gamma = re.fullmatch(r"(blocks\.\d+)\.((?:attn\.)?gamma[12])", name)
            if gamma:
                for module, share in layers.modules(f"{gamma[1]}.{GAMMAS[gamma[2]]}"):
                    hook = module.register_forward_hook(Scale(share(blend(torch.ones_like(value), value, strength))))
                    applied.undo.append(hook.remove)
            elif name == f"{TABLE}.weight":
                base = layers.value(name).cpu().float()
                rows, own = value.clone(), meta.get("class_table") == "own"
                for i in range(len(rows)):
                    j = len(base) - 1 if i == len(rows) - 1 else i if not own else -1
                    if own and j < 0 and names and base_classes and names[i] in base_classes:
                        j = base_classes.index(names[i])
                    if j >= 0:
                        rows[i] = blend(base[j], value[i], strength)
                set_table(applied, layers, rows)
                applied.null_class = len(rows) - 1
            elif name.endswith(".bias"):
                full = blend(layers.value(name).cpu().float(), value, strength)
                for module, share in layers.modules(name.rsplit(".", 1)[0]):
                    old = module.bias.data
                    if share(full).shape != old.shape:
                        raise ValueError(f"{path}: {name} is {list(value.shape)}, which does not fit the model")
                    module.bias.data = share(full).to(old.device, old.dtype).clone()
                    applied.undo.append(lambda module=module, old=old: setattr(module.bias, "data", old))
            else:
                raise ValueError(f"{path}: tensor {name} is no part of a delta")
        if layers.diffusers:
            applied.undo.append(original_frequencies(model))
            if applied.null_class != 1000:
                warnings.warn(f"the null class is {applied.null_class}, DiTPipeline always takes 1000", stacklevel=2)
        applied.class_names = names
    except (AttributeError, KeyError, ValueError) as e:
        applied.remove()
        raise e if isinstance(e, ValueError) else ValueError(f"{path}: does not fit the model: {e}") from e
    return applied
