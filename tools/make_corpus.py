#!/usr/bin/env python3
"""Writes the seed corpora of the file readers' fuzzers, tests/fuzz/corpus/<target>/.

Small valid files, each trick a hostile file could try, and a few seeded mutations. The same run gives the same bytes, given the same
numpy, Pillow and torch. The folder is committed; run this again only to add cases:

    tools/make_corpus.py tests/fuzz/corpus
"""
import io
import json
import os
import random
import struct
import sys
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image, PngImagePlugin

OUT = sys.argv[1] if len(sys.argv) > 1 else "tests/fuzz/corpus"
RNG = random.Random(20240607)


def save(target, name, data):
    folder = os.path.join(OUT, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)


def mutations(target, name, data, count):
    """Bit flips, cuts, repeats and borrowed lengths."""
    for i in range(count):
        b = bytearray(data)
        for _ in range(RNG.randint(1, 4)):
            kind = RNG.randrange(4)
            at = RNG.randrange(max(len(b), 1))
            if kind == 0 and b:
                b[at] ^= 1 << RNG.randrange(8)
            elif kind == 1:
                del b[at:at + RNG.randint(1, 16)]
            elif kind == 2:
                b[at:at] = b[at:at + RNG.randint(1, 16)]
            elif b:
                b[at:at + 4] = struct.pack("<I", RNG.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(b)]))
        save(target, f"mut-{name}-{i}", bytes(b))


# ---- safetensors ----

def st(header, data=b"", length=None):
    h = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(h) if length is None else length) + h + data


def entry(dtype, shape, a, b):
    return {"dtype": dtype, "shape": shape, "data_offsets": [a, b]}


def safetensors_corpus():
    t = "safetensors"
    good = st({"__metadata__": {"heads": "2", "format": "pt"}, "a": entry("F32", [2, 2], 0, 16), "b": entry("BF16", [3], 16, 22),
               "c": entry("I64", [], 22, 30), "e": entry("F16", [0], 30, 30)}, bytes(range(30)))
    save(t, "good", good)
    blocks = {}
    at = 0
    for i in range(2):
        for name, shape in (("attn1.to_q.weight", [2, 2]), ("attn1.to_k.weight", [2, 2]), ("attn1.to_v.weight", [2, 2]),
                            ("attn1.to_q.bias", [2]), ("attn1.to_k.bias", [2]), ("attn1.to_v.bias", [2]),
                            ("norm1.emb.class_embedder.embedding_table.weight", [3, 2]), ("ff.net.2.bias", [2])):
            n = 4 * int(np.prod(shape))
            blocks[f"transformer_blocks.{i}.{name}"] = entry("F32", shape, at, at + n)
            at += n
    blocks["proj_out_1.weight"] = entry("F32", [4, 2], at, at + 32)
    save(t, "diffusers", st(blocks, bytes(at + 32)))
    save(t, "empty", st({}))
    save(t, "header-too-long", st({}, length=2**63))
    save(t, "overlap", st({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)))
    save(t, "hole", st({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 12, 16)}, bytes(16)))
    save(t, "product", st({"a": entry("F32", [2**32, 2**32, 2], 0, 8)}, bytes(8)))
    save(t, "zero-product", st({"a": entry("F32", [0, 2**53, 2**53], 0, 0)}))
    save(t, "twice", st(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"12"))
    save(t, "deep", st(b'{"a":' + b"[" * 3000))
    save(t, "nul", st(b'{"a\\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"))
    save(t, "f4", st({"a": entry("F4", [4], 0, 2)}, b"12"))
    save(t, "dims", st({"a": entry("U8", [1] * 9, 0, 1)}, b"1"))
    save(t, "exponent", st(b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1e0]}}', b"1"))
    mutations(t, "good", good, 24)


# ---- npy ----

def npy(header, data=b"", version=1, length=None):
    h = header.encode() + b"\n"
    n = len(h) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + (struct.pack("<H", n) if version == 1 else struct.pack("<I", n)) + h + data


def npy_corpus():
    t = "npy"
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for name, a in (("f4", x), ("f2", x.astype(np.float16)), ("f8", x.astype(np.float64)), ("i8", x.astype(np.int64)),
                    ("i4", x.astype(np.int32)), ("u1", x.astype(np.uint8)), ("fortran", np.asfortranarray(x)),
                    ("scalar", np.float32(7)), ("vector", x.ravel()[:5]), ("empty", x[:0])):
        f = io.BytesIO()
        np.lib.format.write_array(f, np.asarray(a), allow_pickle=False)
        save(t, name, f.getvalue())
        if name == "f4":
            mutations(t, "f4", f.getvalue(), 16)
    for v in (2, 3):
        f = io.BytesIO()
        np.lib.format.write_array(f, x, version=(v, 0))
        save(t, f"version{v}", f.getvalue())
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    save(t, "python2", npy(shape % "2L, 3L", bytes(24)))
    save(t, "big-endian", npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", bytes(4)))
    save(t, "records", npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)))
    save(t, "object", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(4)))
    save(t, "product", npy(shape % "4294967296, 4294967296", bytes(4)))
    save(t, "digits", npy(shape % ("9" * 40), bytes(4)))
    save(t, "dims", npy(shape % ("1," * 9), bytes(4)))
    save(t, "long-header", npy("{", version=2, length=0xFFFFFFFF))
    save(t, "short-data", npy(shape % "3,", bytes(8)))
    save(t, "unclosed", npy("{'descr': '<f4"))


# ---- pictures ----

def quadrants(mode, w=16, h=8):
    """Top left red, top right green, bottom left blue, bottom right white (grey: 0, 80, 160, 255)."""
    im = Image.new("RGB", (w, h))
    grey = Image.new("L", (w, h))
    for i, (c, g) in enumerate((((255, 0, 0), 0), ((0, 255, 0), 80), ((0, 0, 255), 160), ((255, 255, 255), 255))):
        box = ((i % 2) * w // 2, (i // 2) * h // 2, (i % 2 + 1) * w // 2, (i // 2 + 1) * h // 2)
        im.paste(c, box)
        grey.paste(g, box)
    return grey if mode == "L" else im if mode == "RGB" else im.convert(mode)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_corpus():
    t = "image"

    def pil(name, im, fmt, **kw):
        f = io.BytesIO()
        im.save(f, fmt, **kw)
        save(t, name, f.getvalue())
        return f.getvalue()

    rgb = quadrants("RGB")
    good = pil("rgb.png", rgb, "PNG")
    pil("grey.png", quadrants("L"), "PNG")
    pil("palette.png", rgb.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    pil("one-bit.png", quadrants("L").convert("1"), "PNG")
    rgba = rgb.convert("RGBA")
    rgba.putalpha(quadrants("L"))
    pil("alpha.png", rgba, "PNG")
    la = quadrants("L").convert("LA")
    la.putalpha(128)
    pil("grey-alpha.png", la, "PNG")
    sixteen = np.zeros((8, 16), np.uint16)
    sixteen[:, 8:] = 0xFFFF
    pil("sixteen.png", Image.fromarray(sixteen), "PNG")
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "class 3")
    text.add_itxt("name", "caf\u00e9")
    pil("text.png", rgb, "PNG", pnginfo=text)
    ihdr = struct.pack(">IIBBBBB", 30000, 4000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n"
    save(t, "bomb.png", head + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    save(t, "huge.png", head + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)))
    rows = b"".join(b"\0" + bytes(3 * 16) for _ in range(8))
    small = struct.pack(">IIBBBBB", 16, 8, 8, 2, 0, 0, 1)
    save(t, "interlaced.png", head + chunk(b"IHDR", small) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    save(t, "text-bomb.png", good[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) + good[33:])
    save(t, "cut.png", good[:-20])
    mutations(t, "png", good, 16)

    jpg = pil("rgb.jpg", rgb, "JPEG", quality=95, subsampling=0)
    pil("grey.jpg", quadrants("L"), "JPEG", quality=95)
    pil("progressive.jpg", rgb, "JPEG", quality=95, progressive=True)
    pil("cmyk.jpg", rgb.convert("CMYK"), "JPEG")
    for i in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = i
        pil(f"orient{i}.jpg", rgb, "JPEG", quality=95, subsampling=0, exif=exif)
    big = struct.pack(">HIH", 0x4D4D, 0, 0)
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    save(t, "orient-big-endian.jpg", jpg[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + jpg[2:])
    loop = b"II*\0\xff\xff\xff\xff" + big
    save(t, "exif-offset.jpg", jpg[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(loop)) + b"Exif\0\0" + loop + jpg[2:])
    save(t, "cut.jpg", jpg[:-60])
    at = jpg.index(b"\xff\xc0")
    save(t, "huge.jpg", jpg[:at + 5] + struct.pack(">HH", 65500, 65500) + jpg[at + 9:])
    mutations(t, "jpg", jpg, 16)


if __name__ == "__main__":
    safetensors_corpus()
    npy_corpus()
    image_corpus()
