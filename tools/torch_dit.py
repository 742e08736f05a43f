"""A Diffusion Transformer in PyTorch as it is usually written, for comparison: adaLN-Zero blocks, fused qkv, F.scaled_dot_product_attention, tanh GELU;
the hybrid loss, DiffFit's roles, DDIM with guidance. Parameter names are the original's. Formulas: tests/golden/README.md. Needs PyTorch only.
"""
import ctypes
import json
import math
import struct

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TAGS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def positions(rows, cols, width, step=1.0):
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    col = step * torch.arange(cols, dtype=torch.float64).repeat(rows)[:, None] * omega
    row = step * torch.arange(rows, dtype=torch.float64).repeat_interleave(cols)[:, None] * omega
    return torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], 1).float()[None]


class Attention(nn.Module):
    def __init__(self, d, heads, gamma):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.gamma1 = nn.Parameter(torch.ones(3 * d)) if gamma else None
        self.gamma2 = nn.Parameter(torch.ones(d)) if gamma else None

    def forward(self, x):
        B, T, d = x.shape
        qkv = self.qkv(x)
        if self.gamma1 is not None:
            qkv = qkv * self.gamma1
        q, k, v = qkv.reshape(B, T, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, d))
        return x if self.gamma2 is None else x * self.gamma2


class Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, d, heads, gamma):
        super().__init__()
        self.attn, self.mlp = Attention(d, heads, gamma), Mlp(d)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.gamma1 = nn.Parameter(torch.ones(d)) if gamma else None
        self.gamma2 = nn.Parameter(torch.ones(d)) if gamma else None

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, 1)
        a = self.attn(modulate(x, shift1, scale1))
        x = x + gate1[:, None] * (a if self.gamma1 is None else self.gamma1 * a)
        m = self.mlp(modulate(x, shift2, scale2))
        return x + gate2[:, None] * (m if self.gamma2 is None else self.gamma2 * m)


class TimestepEmbedder(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))

    def forward(self, t):
        f = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        a = t[:, None].float() * f
        return self.mlp(torch.cat([a.cos(), a.sin()], 1).to(self.mlp[0].weight.dtype))


class ClassEmbedder(nn.Module):
    def __init__(self, classes, d):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, d)


class PatchEmbedder(nn.Module):
    def __init__(self, channels, d, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, d, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    def __init__(self, d, patch, channels):
        super().__init__()
        self.linear = nn.Linear(d, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(modulate(x, shift, scale))


class DiT(nn.Module):
    """`size`: "DiT-XL/2" ..., or (depth, width, heads, patch). `side`: of the latent, or (height, width). `pos_step`: between neighbouring tokens. `gammas`: DiffFit's scale vectors on qkv, proj and both branches of the first half of the
    blocks; a number: of so many blocks."""

    def __init__(self, size, side, classes=1000, channels=4, gammas=False, pos_step=1.0):
        super().__init__()
        if isinstance(size, str):
            letters, patch = size.removeprefix("DiT-").split("/")
            size = (*SIZES[letters], patch)
        depth, d, heads, patch = size
        gammas = depth // 2 if gammas is True else int(gammas)
        self.patch, self.channels, self.classes = int(patch), channels, classes
        self.height, self.width = side if isinstance(side, tuple) else (side, side)
        self.x_embedder = PatchEmbedder(channels, d, self.patch)
        self.t_embedder = TimestepEmbedder(d)
        self.y_embedder = ClassEmbedder(classes, d)
        self.register_buffer("pos_embed", positions(self.height // self.patch, self.width // self.patch, d, pos_step).to(torch.get_default_dtype()))
        self.blocks = nn.ModuleList(Block(d, heads, i < gammas) for i in range(depth))
        self.final_layer = FinalLayer(d, self.patch, 2 * channels)

    @torch.no_grad()
    def draw(self, seed):
        """Random values, none of them trivially zero."""
        g = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if "gamma" in name:
                p.fill_(1)
            elif p.dim() == 1:
                p.uniform_(-0.02, 0.02, generator=g)
            elif "embedder" in name and "x_embedder" not in name:
                p.normal_(0, 0.02, generator=g)
            else:
                bound = math.sqrt(6 / (p[0].numel() + p.shape[0]))
                p.uniform_(-bound, bound, generator=g)

    def forward(self, x, t, y):
        rows, cols, p = self.height // self.patch, self.width // self.patch, self.patch
        h = self.x_embedder(x.to(self.pos_embed.dtype)) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            h = block(h, c)
        o = self.final_layer(h, c).reshape(len(x), rows, cols, p, p, -1)
        return torch.einsum("bhwpqc->bchpwq", o).reshape(len(x), -1, self.height, self.width)


# ---- diffusion ----


class Schedule:
    """Linear betas of 1000 steps; tables in float64, rounded when used."""

    def __init__(self):
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        abar = torch.cumprod(1 - beta, 0)
        prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        var = beta * (1 - prev) / (1 - abar)
        self.abar = abar
        tables = {"sqrt": abar.sqrt(), "noise": (1 - abar).sqrt(), "x": (1 / abar).sqrt(), "eps": (1 / abar - 1).sqrt(),
                  "c1": beta * prev.sqrt() / (1 - abar), "c2": (1 - prev) * (1 - beta).sqrt() / (1 - abar),
                  "low": torch.cat([var[1:2], var[1:]]).log(), "high": beta.log()}
        self.tables = {k: v.float() for k, v in tables.items()}

    def at(self, name, t):
        return self.tables[name][t][:, None, None, None]

    def noised(self, x0, t, noise):
        return self.at("sqrt", t) * x0 + self.at("noise", t) * noise

    def losses(self, out, x0, xt, t, noise):
        """mse and vb of each sample; the variance's share sees the prediction as a constant."""
        eps, v = out.float().chunk(2, 1)
        mse = (noise - eps).square().mean((1, 2, 3))
        guess = self.at("x", t) * xt - self.at("eps", t) * eps.detach()
        mean = self.at("c1", t) * guess + self.at("c2", t) * xt
        true = self.at("c1", t) * x0 + self.at("c2", t) * xt
        low, high = self.at("low", t), self.at("high", t)
        frac = (v + 1) / 2
        logvar = frac * high + (1 - frac) * low
        kl = 0.5 * (-1 + logvar - low + (low - logvar).exp() + (true - mean).square() * (-logvar).exp())
        scale = (-0.5 * logvar).exp()
        cdf = lambda z: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))  # noqa: E731
        upper, lower = cdf(scale * (x0 - mean + 1 / 255)), cdf(scale * (x0 - mean - 1 / 255))
        p = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
        vb = torch.where(t[:, None, None, None] == 0, -p.clamp(min=1e-12).log(), kl)
        return mse, vb.mean((1, 2, 3)) / math.log(2)

    def ddim(self, model, x, y, steps, cfg):
        """eta 0, evenly spaced; guidance over the first three channels."""
        stride = 999 / (steps - 1) if steps > 1 else 0
        used = [round(i * stride) for i in range(steps)]
        abar = self.abar[used]
        for i in reversed(range(steps)):
            t = torch.full((len(x),), used[i])
            if cfg == 1:
                eps = model(x, t, y)[:, : x.shape[1]].float()
            else:
                null = torch.full_like(y, model.classes)
                both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))[:, : x.shape[1]].float()
                cond, ref = both.chunk(2)
                eps = torch.cat([ref[:, :3] + cfg * (cond[:, :3] - ref[:, :3]), cond[:, 3:]], 1)
            a, b = float(abar[i]), float(abar[i - 1]) if i else 1.0
            x0 = math.sqrt(1 / a) * x - math.sqrt(1 / a - 1) * eps
            x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
        return x


class Trainer:
    """DiffFit trains biases, gammas and the class table; full everything. AdamW and a moving average over what is trained."""

    def __init__(self, model, forward, full):
        self.model, self.forward, self.schedule, self.k = model, forward, Schedule(), 0
        for name, p in model.named_parameters():
            p.requires_grad_(full or any(w in name for w in ("bias", "gamma", "y_embed")))
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.opt = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0, fused=True)
        self.ema = [p.detach().clone() for p in self.trained]

    def gradients(self, x0, t, y, noise):
        self.opt.zero_grad(set_to_none=True)
        xt = self.schedule.noised(x0, t, noise)
        mse, vb = self.schedule.losses(self.forward(xt, t, y), x0, xt, t, noise)
        loss = mse.mean() + vb.mean()
        loss.backward()
        return loss.item()

    def step(self, *batch):
        loss = self.gradients(*batch)
        self.opt.step()
        self.k += 1
        decay = min(0.9999, (1 + self.k) / (10 + self.k))
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.trained, 1 - decay)
        return loss

    def grad_norm(self):
        return math.sqrt(sum(p.grad.float().square().sum().item() for p in self.trained))


# ---- safetensors ----


def raw(t):
    return (ctypes.c_char * (t.numel() * t.element_size())).from_address(t.data_ptr())


def save(path, tensors, meta=None):
    head, at = {"__metadata__": meta or {}}, 0
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    for k, v in tensors.items():
        size = v.numel() * v.element_size()
        head[k] = {"dtype": TAGS[v.dtype], "shape": list(v.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for v in tensors.values():
            f.write(raw(v))


def load(path, into=None):
    """The tensors of a file; with `into` (name -> tensor) values are copied there instead, one tensor at a time."""
    types = {v: k for k, v in TAGS.items()} | {"I64": torch.int64}
    found = {}
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(n))
        for k, v in head.items():
            if k == "__metadata__":
                continue
            a, b = v["data_offsets"]
            f.seek(8 + n + a)
            t = torch.frombuffer(bytearray(f.read(b - a)), dtype=types[v["dtype"]]).reshape(v["shape"])
            if into is None:
                found[k] = t
            else:
                into[k].data.copy_(t)
    return found
