#!/usr/bin/env python3
"""Writes src/verify/selftest_data.h: what the self-test's miniature model must give.

    tools/make_selftest.py > src/verify/selftest_data.h

Weights and inputs come from Philox normals, as src/verify/selftest.c draws them; the model, loss and update are written out here in PyTorch,
float64, from the formulas in tests/golden/README.md. Needs PyTorch and numpy.
"""
import math

import numpy as np
import torch

torch.set_default_dtype(torch.float64)
L, D, H, P, S, C, K = 2, 24, 2, 2, 4, 4, 3
B, N, GAMMA_BLOCKS = 2, (S // P) ** 2, 1
SEED, STREAM = 1, 10


def philox(counter):
    """Philox4x32-10 of an array [n, 4] of counters under key SEED."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1, mask = SEED & 0xFFFFFFFF, SEED >> 32, np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), b & mask, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), a & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1)


def normals(step, sample, count):
    quads = (count + 3) // 4
    counter = np.zeros((quads, 4), np.uint64)
    counter[:, 0], counter[:, 1], counter[:, 2], counter[:, 3] = np.arange(quads), sample, step, STREAM
    u = ((philox(counter) >> np.uint64(8)).astype(np.float64) + 1) * 2.0**-24
    r, a = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    n = np.empty((quads, 4))
    n[:, 0::2], n[:, 1::2] = r * np.cos(a), r * np.sin(a)
    return torch.tensor(n.reshape(-1)[:count])


def table():
    t = [("x_embedder.proj.weight", (D, C, P, P)), ("x_embedder.proj.bias", (D,)), ("t_embedder.mlp.0.weight", (D, 256)), ("t_embedder.mlp.0.bias", (D,)),
         ("t_embedder.mlp.2.weight", (D, D)), ("t_embedder.mlp.2.bias", (D,)), ("y_embedder.embedding_table.weight", (K + 1, D))]
    for i in range(L):
        for name, o, k in (("attn.qkv", 3 * D, D), ("attn.proj", D, D), ("mlp.fc1", 4 * D, D), ("mlp.fc2", D, 4 * D), ("adaLN_modulation.1", 6 * D, D)):
            t += [(f"blocks.{i}.{name}.weight", (o, k)), (f"blocks.{i}.{name}.bias", (o,))]
        t += [(f"blocks.{i}.gamma1", (D,)), (f"blocks.{i}.gamma2", (D,)), (f"blocks.{i}.attn.gamma1", (3 * D,)), (f"blocks.{i}.attn.gamma2", (D,))]
    t += [("final_layer.linear.weight", (P * P * 2 * C, D)), ("final_layer.linear.bias", (P * P * 2 * C,)),
          ("final_layer.adaLN_modulation.1.weight", (2 * D, D)), ("final_layer.adaLN_modulation.1.bias", (2 * D,))]
    return t


params, index = {}, {}
for i, (name, shape) in enumerate(table()):
    index[name] = i
    if "gamma" in name and int(name.split(".")[1]) >= GAMMA_BLOCKS:
        continue
    n = normals(0, i, int(np.prod(shape)))
    scale = 0.5 if "embedding_table" in name else 0.2 if name.endswith("weight") or "gamma" in name else 0.1
    params[name] = (n * scale + (1.0 if "gamma" in name else 0.0)).reshape(shape).requires_grad_()
trained = [n for n in params if "bias" in n or "gamma" in n or "y_embed" in n]


def silu(z):
    return z * torch.sigmoid(z)


def gelu(z):
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def linear(name, x):
    return x @ params[name + ".weight"].reshape(params[name + ".bias"].shape[0], -1).T + params[name + ".bias"]


def norm(h, shift, scale):
    mean = h.mean(-1, keepdim=True)
    var = ((h - mean) ** 2).mean(-1, keepdim=True)
    return (h - mean) / torch.sqrt(var + 1e-6) * (1 + scale[:, None]) + shift[:, None]


def positions():
    n, w = S // P, D // 4
    omega = 10000.0 ** (-np.arange(w) / w)
    rows = [np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]) for y in range(n) for x in range(n)]
    return torch.tensor(np.array(rows))


def forward(x, t, y):
    f = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    a = t[:, None] * f
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", torch.cat([torch.cos(a), torch.sin(a)], 1))))
    c = c + params["y_embedder.embedding_table.weight"][y]
    n = S // P
    cols = x.reshape(B, C, n, P, n, P).permute(0, 2, 4, 1, 3, 5).reshape(B, N, C * P * P)
    h = linear("x_embedder.proj", cols) + positions()
    for i in range(L):
        b = f"blocks.{i}."
        g = lambda k: params.get(b + k, torch.ones(()))  # noqa: E731
        sh1, sc1, g1, sh2, sc2, g2 = linear(b + "adaLN_modulation.1", silu(c)).chunk(6, 1)
        qkv = linear(b + "attn.qkv", norm(h, sh1, sc1)) * g("attn.gamma1")
        q, k, v = (z.reshape(B, N, H, D // H).transpose(1, 2) for z in qkv.chunk(3, 2))
        o = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(D // H), -1) @ v
        o = linear(b + "attn.proj", o.transpose(1, 2).reshape(B, N, D)) * g("attn.gamma2")
        h = h + g1[:, None] * g("gamma1") * o
        h = h + g2[:, None] * g("gamma2") * linear(b + "mlp.fc2", gelu(linear(b + "mlp.fc1", norm(h, sh2, sc2))))
    shift, scale = linear("final_layer.adaLN_modulation.1", silu(c)).chunk(2, 1)
    o = linear("final_layer.linear", norm(h, shift, scale))
    return o.reshape(B, n, n, P, P, 2 * C).permute(0, 5, 1, 3, 2, 4).reshape(B, 2 * C, S, S)


beta = torch.linspace(1e-4, 0.02, 1000)
abar = torch.cumprod(1 - beta, 0)
prev = torch.cat([torch.ones(1), abar[:-1]])
lpv = torch.log(beta * (1 - prev) / (1 - abar))
lpv[0] = lpv[1]
c1, c2 = beta * torch.sqrt(prev) / (1 - abar), (1 - prev) * torch.sqrt(1 - beta) / (1 - abar)

t = torch.tensor([5, 700])
y = torch.tensor([1, K])
x0 = torch.stack([normals(1, i, C * S * S) for i in range(B)]).reshape(B, C, S, S)
noise = torch.stack([normals(2, i, C * S * S) for i in range(B)]).reshape(B, C, S, S)
at = lambda z: z[t].reshape(B, 1, 1, 1)  # noqa: E731
xt = torch.sqrt(at(abar)) * x0 + torch.sqrt(1 - at(abar)) * noise
out = forward(xt, t.double(), y)
eps, v = out.chunk(2, 1)
mse = ((noise - eps) ** 2).mean((1, 2, 3))
x0hat = torch.sqrt(1 / at(abar)) * xt - torch.sqrt(1 / at(abar) - 1) * eps.detach()
mu, mu_true = at(c1) * x0hat + at(c2) * xt, at(c1) * x0 + at(c2) * xt
frac = (v + 1) / 2
logvar = frac * torch.log(at(beta)) + (1 - frac) * at(lpv)
vb = (0.5 * (-1 + logvar - at(lpv) + torch.exp(at(lpv) - logvar) + (mu_true - mu) ** 2 * torch.exp(-logvar))).mean((1, 2, 3)) / math.log(2)
(mse + vb).mean().backward()

LR, EPS = 0.1, 0.1
lines = []
for name in trained:
    g = params[name].grad.reshape(-1)
    probe = normals(3, index[name], g.numel())
    # first AdamW step: both moments are the gradient's own after bias correction
    moved = params[name].detach().reshape(-1) - LR * g / (g.abs() + EPS)
    lines.append((name, (g @ probe).item(), g.norm().item(), (moved @ probe).item()))

eps_g = eps.detach()[0].clone()
eps_g[:3] = eps.detach()[1, :3] + 2.0 * (eps.detach()[0, :3] - eps.detach()[1, :3])
i = 500
x = xt[0]
pred = torch.sqrt(1 / abar[i]) * x - torch.sqrt(1 / abar[i] - 1) * eps_g
f = (v.detach()[0] + 1) / 2
lv = f * torch.log(beta[i]) + (1 - f) * lpv[i]
nxt = c1[i] * pred + c2[i] * x + torch.exp(0.5 * lv) * normals(4, 0, C * S * S).reshape(C, S, S)


def numbers(values):
    text = [f"{float(z):.9g}f" for z in values]
    text = [z if "." in z or "e" in z else z[:-1] + ".0f" for z in text]
    return ",\n    ".join(", ".join(text[j:j + 8]) for j in range(0, len(text), 8))


print("/* Written by tools/make_selftest.py: results of the miniature model in float64. */")
print(f"enum {{ ST_DEPTH = {L}, ST_HIDDEN = {D}, ST_HEADS = {H}, ST_PATCH = {P}, ST_SIDE = {S}, ST_CHANNELS = {C}, ST_CLASSES = {K}, ST_BATCH = {B}, ST_GAMMA_BLOCKS = {GAMMA_BLOCKS} }};")
print(f"static const float st_out[] = {{\n    {numbers(out.detach().reshape(-1))}}};")
print(f"static const float st_mse[] = {{{numbers(mse)}}};\nstatic const float st_vb[] = {{{numbers(vb)}}};")
print(f"static const float st_next[] = {{\n    {numbers(nxt.reshape(-1))}}};")
print("/* per trained tensor: gradient times probe, gradient's norm, updated values times probe */")
print("static const struct {\n    const char *name;\n    float grad, norm, moved;\n} st_params[] = {")
for name, a, b, c in lines:
    print(f'    {{"{name}", {numbers([a])}, {numbers([b])}, {numbers([c])}}},')
print("};")
