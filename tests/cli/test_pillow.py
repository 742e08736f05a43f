#!/usr/bin/env python3
"""test_pillow.py PATH/TO/dump_pictures [FOLDER ...]: decoding, crop and resize against Pillow.

200 pictures of every kind that PNG and JPEG know, made here, are decoded, centre-cropped and resized by the library and, as the original
DiT's data were, by Pillow: no value may differ by more than 1. Pictures below FOLDERs are compared too. Skipped without Pillow and numpy.
"""
import os
import random
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib

try:
    import numpy as np
    import PIL
    from PIL import Image, ImageOps
except ImportError as e:
    print(f"test_pillow.py: SKIP: {e}", file=sys.stderr)
    sys.exit(77)

warnings.simplefilter("ignore")
rng = random.Random(7)
COUNT, WORST = 200, 1


def scene(w, h, channels, seed):
    """Smooth colour, edges and a little noise: what filters treat differently."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    planes = []
    for _ in range(channels):
        fx, fy, p = g.uniform(0.5, 12, 3)
        v = 128 + 80 * np.sin(fx * x / w + p) * np.cos(fy * y / h) + 60 * ((x * fy + y * fx) % (h / 3 + 2) > h / 6) - 30
        planes.append(v + g.normal(0, 12, (h, w)))
    return np.clip(np.stack(planes, -1), 0, 255)


def png(path, pixels, color, depth, interlace=False, extra=b""):
    """A PNG of any colour type and depth; Pillow writes only some."""
    h, w, c = pixels.shape
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x0, y0, dx, dy in passes:
        part = pixels[y0::dy, x0::dx]
        if part.size == 0:
            continue
        for row in part:
            v = row.reshape(-1).astype(np.uint32)
            if depth == 16:
                raw += b"\0" + v.astype(">u2").tobytes()
            elif depth == 8:
                raw += b"\0" + v.astype(np.uint8).tobytes()
            else:
                bits = ((v[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)
                raw += b"\0" + np.packbits(bits).tobytes()
    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))  # noqa: E731
    head = struct.pack(">IIBBBBB", w, h, depth, color, 0, 0, int(interlace))
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e.tobytes()


def make(folder, i):
    """Picture i; returns its path."""
    w, h = rng.choice([(rng.randint(1, 40), rng.randint(1, 40)), (rng.randint(60, 300), rng.randint(60, 300)), (rng.randint(200, 900), rng.randint(30, 90))])
    kind = i % 20
    path = os.path.join(folder, f"{i:03d}-{'jpg' if kind < 10 else 'png'}-{kind}-ü." + ("jpg" if kind < 10 else "png"))
    a8 = lambda c: scene(w, h, c, i).astype(np.uint8)  # noqa: E731
    rgb = Image.fromarray(a8(3))
    if kind == 0:
        rgb.save(path, quality=rng.randint(30, 97), subsampling=rng.choice([0, 1, 2]))
    elif kind == 1:
        rgb.save(path, quality=85, progressive=True)
    elif kind == 2:
        rgb.convert("L").save(path, quality=90)
    elif kind in (3, 4):
        rgb.convert("CMYK").save(path, quality=90, progressive=kind == 4)
    elif kind in (5, 6, 7):
        rgb.save(path, quality=92, exif=exif(1 + i // 20 % 8))
    elif kind == 8:
        rgb.save(path, quality=80, optimize=True, dpi=(300, 300), icc_profile=b"not looked at")
    elif kind == 9:
        Image.merge("CMYK", [Image.fromarray(a8(1)[..., 0]) for _ in range(4)]).save(path, quality=75)
    elif kind == 10:
        png(path, a8(3), 2, 8, interlace=bool(i & 1))
    elif kind == 11:
        png(path, (scene(w, h, 3, i) * 257).astype(np.uint32), 2, 16)
    elif kind == 12:
        depth = (1, 2, 4, 8)[i // 20 % 4]
        png(path, a8(1) >> (8 - depth), 0, depth, interlace=i // 20 % 3 == 0)
    elif kind == 13:
        depth = (1, 2, 4, 8)[i // 20 % 4]
        n = 1 << depth
        palette = np.random.default_rng(i).integers(0, 256, 3 * n, dtype=np.uint8).tobytes()
        trns = chunk(b"tRNS", bytes(rng.randrange(256) for _ in range(n))) if i // 20 % 2 else b""
        png(path, a8(1) >> (8 - depth), 3, depth, extra=chunk(b"PLTE", palette) + trns)
    elif kind in (14, 15):
        png(path, a8(4), 6, 8, interlace=kind == 15)
    elif kind == 16:
        png(path, a8(2), 4, 8)
    elif kind == 17:
        png(path, (scene(w, h, 4, i) * 257).astype(np.uint32), 6, 16)
    elif kind == 18:
        png(path, a8(3), 2, 8, extra=chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0"))
    else:
        png(path, a8(3), 2, 8, extra=chunk(b"tRNS", struct.pack(">HHH", *a8(3)[0, 0])))
    return path


def whole(path, alpha):
    """As training code reads it: alpha forgotten by convert, or composed on white."""
    im = ImageOps.exif_transpose(Image.open(path)) if path.endswith((".jpg", ".jpeg")) else Image.open(path)
    im.load()
    if alpha == "white" and (im.mode in ("RGBA", "LA", "PA") or "transparency" in im.info):
        im = im.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", im.size, (255, 255, 255, 255)), im).convert("RGB")
    return im.convert("RGB")


def resize(im, w, h, how):
    """Columns first, each pass rounded to 8 bits. That is resize() of Pillow up to 12; later ones begin with the rows of tall pictures, and the
    roundings in between then fall otherwise."""
    return im.resize((w, im.size[1]), resample=how).resize((w, h), resample=how)


def adm_crop(im, side):
    while min(*im.size) >= 2 * side:
        im = resize(im, *(x // 2 for x in im.size), Image.BOX)
    scale = side / min(*im.size)
    im = resize(im, *(round(x * scale) for x in im.size), Image.BICUBIC)
    a = np.array(im)
    y, x = (a.shape[0] - side) // 2, (a.shape[1] - side) // 2
    return a[y:y + side, x:x + side]


def main():
    program, folders = os.path.abspath(sys.argv[1]), sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="dfcl-pillow-") as tmp:
        paths = [make(tmp, i) for i in range(COUNT)]
        for f in folders:
            for d, _, names in sorted(os.walk(f)):
                paths += [os.path.join(d, n) for n in sorted(names) if n.lower().endswith((".jpg", ".jpeg", ".png"))]
        p = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        out, differ, worst = {}, 0, (0, "")
        for i, path in enumerate(paths):
            side = rng.choice([8, 16, 32, 64]) if i < COUNT else 256
            alpha = ("white", "drop")[i // 20 % 2]
            p.stdin.write(f"{side} 3 {alpha} {path}\n".encode())
            p.stdin.flush()
            status = p.stdout.read(1)
            assert status == b"\0", f"{path}: status {status}"
            got = np.frombuffer(p.stdout.read(side * side * 3), np.uint8).reshape(side, side, 3).astype(int)
            want = adm_crop(whole(path, alpha), side).astype(int)
            far = int(np.abs(got - want).max())
            differ += far > 0
            worst = max(worst, (far, path))
            kind = os.path.basename(path)[4:10] if i < COUNT else "given"
            out[kind] = max(out.get(kind, 0), far)
        p.stdin.close()
        assert p.wait() == 0
    print(f"{len(paths)} pictures, Pillow {PIL.__version__}: {differ} differ, worst by {worst[0]}")
    assert worst[0] <= WORST, f"{worst[1]}: differs by {worst[0]}; by kind: {out}"


main()
