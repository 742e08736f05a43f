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


# ---- PyTorch ----

def zip_bytes(entries, method=zipfile.ZIP_STORED, force64=False):
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", method) as z:
        for name, data in entries:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = method
            with z.open(info, "w", force_zip64=force64) as e:
                e.write(data)
    return f.getvalue()


def glob(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(s):
    b = s.encode()
    return b"X" + struct.pack("<I", len(b)) + b


def integer(n):
    b = n.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(b)]) + b if not -2**63 <= n < 2**63 else b"\x8a\x08" + n.to_bytes(8, "little", signed=True)


def pk_tensor(key, count, offset, shape, stride, storage="FloatStorage"):
    return (glob("torch._utils", "_rebuild_tensor_v2") + b"((" + text("storage") + glob("torch", storage) + text(key) + text("cpu") +
            integer(count) + b"tQ" + integer(offset) + b"(" + b"".join(map(integer, shape)) + b"t(" + b"".join(map(integer, stride)) +
            b"t\x89" + glob("collections", "OrderedDict") + b")RtR")


def pk_dict(items):
    return b"}(" + b"".join(text(k) + v for k, v in items) + b"u"


def pt(pickle, storages=(("0", bytes(range(64))),), **kw):
    return zip_bytes([("a/data.pkl", b"\x80\x02" + pickle + b".")] + [(f"a/data/{k}", v) for k, v in storages], **kw)


def torch_corpus():
    t = "torch_pt"

    def torch_save(name, obj, **kw):
        f = io.BytesIO()
        torch.save(obj, f, **kw)
        save(t, name, f.getvalue())
        return f.getvalue()

    base = torch.arange(24, dtype=torch.float32)
    state = {"blocks.0.attn.qkv.weight": base[:6].reshape(3, 2), "view": base[6:].reshape(3, 6).t(), "half": base[:3].half(),
             "bf16": base[:2].bfloat16(), "i64": torch.tensor([1, -2]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    good = torch_save("state-dict", state)
    for p in (3, 4, 5):
        torch_save(f"protocol{p}", state, pickle_protocol=p)
    import argparse
    args = argparse.Namespace(model="DiT-XL/2", num_classes=5, lr=1e-4, difffit=True, ckpt=None)
    module = torch.nn.Linear(2, 2)
    opt = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    opt.step()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape))
    ckpt = torch_save("checkpoint", {"model": module.state_dict(), "ema": {k: v + 1 for k, v in module.state_dict().items()},
                                     "opt": opt.state_dict(), "args": args})
    torch_save("parameters", {"module.w": torch.nn.Parameter(base[:4].clone()), "module.b": torch.nn.Parameter(base[:2].clone())})
    torch.serialization.set_crc32_options(False)
    torch_save("no-crc", {"w": base})
    torch.serialization.set_crc32_options(True)
    f = io.BytesIO()
    torch.save({"w": base}, f, _use_new_zipfile_serialization=False)
    save(t, "legacy", f.getvalue()[:32])  # what follows holds addresses
    save(t, "module-object", pt(glob("torch.nn.modules.linear", "Linear") + b")\x81}(" + text("w") +
                                pk_tensor("0", 16, 0, (4, 4), (4, 1)) + b"ub"))
    torch_save("list", [base])

    w = pk_tensor("0", 16, 0, (4, 4), (4, 1))
    save(t, "plain", pt(pk_dict([("w", w)])))
    save(t, "deflated", pt(pk_dict([("w", w)]), method=zipfile.ZIP_DEFLATED))
    save(t, "zip64", pt(pk_dict([("w", w)]), force64=True))
    names = []
    for i in range(2):
        for q in "qkv":
            names += [(f"transformer_blocks.{i}.attn1.to_{q}.weight", pk_tensor("0", 16, "qkv".index(q) * 4, (2, 2), (1, 2))),
                      (f"transformer_blocks.{i}.attn1.to_{q}.bias", pk_tensor("0", 16, 12 + "qkv".index(q), (1,), (1,)))]
        names.append((f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight", pk_tensor("0", 16, 0, (3, 2), (2, 1))))
    names.append(("proj_out_1.weight", w))
    floats = (("0", np.arange(16, dtype=np.float32).tobytes()),)
    save(t, "diffusers-strided", pt(pk_dict(names), floats))
    save(t, "diffusers", pt(pk_dict([(k, v.replace(b"(" + integer(1) + integer(2) + b"t\x89", b"(" + integer(2) + integer(1) + b"t\x89"))
                                     for k, v in names]), floats))
    tricks = {
        "beyond": pk_tensor("0", 16, 1, (4, 4), (4, 1)),
        "stride-beyond": pk_tensor("0", 16, 0, (4, 4), (5, 1)),
        "negative": pk_tensor("0", 16, -1, (4, 4), (4, 1)),
        "negative-stride": pk_tensor("0", 16, 15, (4, 4), (-4, 1)),
        "stride-overflow": pk_tensor("0", 16, 0, (2, 2), (2**62, 2**62)),
        "offset-overflow": pk_tensor("0", 16, 2**63 - 1, (2,), (1,)),
        "product": pk_tensor("0", 16, 0, (2**32, 2**32), (0, 0)),
        "expanded": pk_tensor("0", 16, 0, (2**40,), (0,)),
        "huge-storage": pk_tensor("0", 2**62, 0, (2**62,), (1,)),
        "4gib": pk_tensor("0", 2**30, 0, (2**30,), (1,)),
        "many-dims": pk_tensor("0", 16, 0, (1,) * 9, (1,) * 9),
        "dims-differ": pk_tensor("0", 16, 0, (4, 4), (4,)),
        "no-storage": pk_tensor("7", 16, 0, (4, 4), (4, 1)),
        "path-storage": pk_tensor("../../../etc/passwd", 16, 0, (4, 4), (4, 1)),
        "odd-type": pk_tensor("0", 16, 0, (4, 4), (4, 1), "EvilStorage"),
    }
    for name, p in tricks.items():
        save(t, "view-" + name, pt(pk_dict([("w", p)])))
    save(t, "same-name", pt(pk_dict([("w", w), ("w", w)])))
    save(t, "odd-name", pt(b"}(" + text("a\0b") + w + b"u"))
    pickles = {
        "system": glob("os", "system") + b"(" + text("true") + b"tR",
        "posix-build": glob("builtins", "eval") + b"(" + text("1") + b"tR" + b"}b",
        "unknown-beside": pk_dict([("x", glob("os", "system") + b"(" + text("true") + b"tR"), ("w", w)]),
        "cycle-list": b"]q\0h\0a",
        "cycle-dict": b"}q\0" + text("model") + b"h\0s" + text("ema") + b"h\0s",
        "cycle-root": b"}q\0" + text("w") + w + b"s" + text("args") + b"h\0s",
        "cycle-object": b"}q\0(" + text("args") + glob("argparse", "Namespace") + b")\x81q\1h\0b" + text("w") + w + b"u",
        "doubling": b"]q\0" + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(100)),
        "memo-far": b"Nr\xff\xff\xff\xff",
        "memo-unset": b"h\5",
        "marks": b"(" * 100000,
        "nested": b"]" * 2000 + b"a" * 1999,
        "pop-under-mark": b"N(0" + b"N0N00",
        "string-long": b"X\xff\xff\xff\xff",
        "string-longer": b"\x8d" + b"\xff" * 8,
        "text-opcode": b"I1\n",
        "extension": b"\x82\1",
        "odd-dict": b"(Nd",
        "persid": b"NQ",
        "empty": b"",
        "long": b"\x8b\xff\xff\xff\x7f",
        "frame": b"\x95" + b"\xff" * 8 + b"N",
        "setitem-none": b"NNNs",
        "reduce-none": b"N)R",
        "newobj-ex": glob("a", "b") + b")}\x92",
        "stack-global": text("a") + b"N\x93",
    }
    for name, p in pickles.items():
        save(t, "pickle-" + name, pt(p))
    for name, p in (("protocol0", b"(dp0\n."), ("protocol9", b"\x80\x09N.")):
        save(t, "pickle-" + name, zip_bytes([("a/data.pkl", p)]))

    plain = bytearray(pt(pk_dict([("w", w)])))
    central = plain.rindex(b"PK\1\2")
    first = plain.index(b"PK\1\2")
    end = plain.rindex(b"PK\5\6")

    def change(name, at, data):
        b = bytearray(plain)
        b[at:at + len(data)] = data
        save(t, "zip-" + name, bytes(b))

    change("encrypted", central + 8, b"\1\0")
    change("method", central + 10, b"\x0c\0")
    change("crc", central + 16, b"\1\2\3\4")
    change("local-crc", plain.rindex(b"PK\3\4") + 14, b"\1\2\3\4")
    change("size", central + 20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f")
    change("size-64", central + 20, b"\xff" * 8)
    change("overlap", central + 42, struct.pack("<I", 0))
    change("offset", central + 42, b"\xfe\xff\xff\xff")
    change("offset-64", central + 42, b"\xff" * 4)
    change("name", first + 46, b"b")
    change("directory", end + 16, struct.pack("<I", 0))
    change("directory-size", end + 12, b"\xff" * 4)
    change("entries", end + 8, b"\xff" * 4)
    change("disk", end + 4, b"\1\0")
    save(t, "zip-comment", bytes(plain[:end + 20]) + struct.pack("<H", 5) + b"hello")
    save(t, "zip-prefix", b"junk" + bytes(plain))
    save(t, "zip-empty", zip_bytes([]))
    save(t, "zip-other", zip_bytes([("word/document.xml", b"<x/>")]))
    save(t, "zip-two", zip_bytes([("a/data.pkl", b"\x80\x02N."), ("b/data.pkl", b"\x80\x02N.")]))
    save(t, "zip-big-endian", zip_bytes([("a/data.pkl", b"\x80\x02" + pk_dict([("w", w)]) + b"."), ("a/byteorder", b"big"), ("a/data/0", bytes(64))]))
    bomb = zip_bytes([("a/data.pkl", b"\x80\x02" + b"N0" * (1 << 20) + b"N.")], zipfile.ZIP_DEFLATED)
    save(t, "zip-bomb", bomb)
    deflated = bytearray(pt(pk_dict([("w", w)]), method=zipfile.ZIP_DEFLATED))
    at = deflated.index(b"PK\3\4")
    size, = struct.unpack("<I", deflated[at + 22:at + 26])
    for where in (at + 22, deflated.index(b"PK\1\2") + 24):
        deflated[where:where + 4] = struct.pack("<I", size - 1)
    save(t, "zip-inflates-further", bytes(deflated))
    mutations(t, "plain", bytes(plain), 24)
    mutations(t, "state-dict", good, 12)
    mutations(t, "checkpoint", ckpt, 12)


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
    save(t, "chunk-length.png", good[:33] + struct.pack(">I", 0x0E695458) + b"iTXt" + b"name\0\0\0\0\0" + good[33:])
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
    torch_corpus()
    npy_corpus()
    image_corpus()
