#!/usr/bin/env python3
"""Writes the seed corpora of the file readers' fuzzers, tests/fuzz/corpus/<target>/.

Small valid files, each trick a hostile file could try, and a few seeded mutations. The same run gives the same bytes, given the same
numpy, Pillow and torch; without these three only the files that need none of them are written. The folder is committed; run this again only to
add cases:

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

try:
    import numpy as np
    import torch
    from PIL import Image, PngImagePlugin
except ImportError as missing:
    np = None
    print(f"make_corpus.py: {missing}: safetensors, torch_pt, npy and image only in part", file=sys.stderr)

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
    cmyk = pil("cmyk.jpg", rgb.convert("CMYK"), "JPEG")
    save(t, "cmyk-cut.jpg", cmyk[:-60])
    at = cmyk.index(b"\xff\xc0")
    save(t, "cmyk-huge.jpg", cmyk[:at + 5] + struct.pack(">HH", 11585, 11585) + cmyk[at + 9:])
    at = cmyk.index(b"Adobe") + 11  # how the components were transformed: not, or to YCCK
    save(t, "ycck.jpg", cmyk[:at] + b"\2" + cmyk[at + 1:])
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


# ---- what needs no packages: zip, pickle, bases, deltas, runs, requests, info; and more tricks for the targets above ----

def tensors(items, meta=None):
    """safetensors of (name, dtype, shape, bytes)."""
    head, data = {}, b""
    if meta is not None:
        head["__metadata__"] = meta
    for name, dtype, shape, value in items:
        head[name] = entry(dtype, shape, len(data), len(data) + len(value))
        data += value
    return st(head, data)


def floats(n, value=None, fmt="f"):
    return struct.pack(f"<{n}{fmt}", *(value if isinstance(value, list) else [((i * 7) % 11 - 5) / 64 if value is None else value for i in range(n)]))


def vec(name, shape, value=None, dtype="F32"):
    n = 1
    for d in shape:
        n *= d
    return name, dtype, shape, floats(n, value, {"F32": "f", "F16": "e", "F64": "d"}[dtype])


NAN, INF = float("nan"), float("inf")
TABLE = "y_embedder.embedding_table.weight"


def hostile_safetensors():
    t = "safetensors"
    save(t, "header-bomb", st({}, length=100 << 20))
    save(t, "header-4gib", st({"a": entry("U8", [1], 0, 1)}, b"1", length=(1 << 32) + 55))
    save(t, "offsets-beyond", st({"a": entry("F32", [2], 8, 16)}, bytes(12)))
    save(t, "offsets-4gib", st({"a": entry("F32", [2], 1 << 32, (1 << 32) + 8)}, bytes(8)))
    save(t, "offsets-backwards", st({"a": entry("F32", [2], 8, 0)}, bytes(8)))
    save(t, "offsets-negative", st({"a": entry("F32", [2], -8, 0)}, bytes(8)))
    save(t, "offsets-three", st(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}', b"1"))
    save(t, "shape-4gib", st({"a": entry("F32", [(1 << 32) + 2], 0, 8)}, bytes(8)))
    save(t, "shape-2-62", st({"a": entry("U8", [1 << 62], 0, 8)}, bytes(8)))
    save(t, "shape-fraction", st(b'{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}', b"1"))
    save(t, "same-bytes", st({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, bytes(8)))
    save(t, "tail", st({"a": entry("U8", [1], 0, 1)}, b"12"))
    save(t, "name-path", st({"../../../tmp/a": entry("U8", [1], 0, 1)}, b"1"))
    save(t, "name-empty", st({"": entry("U8", [1], 0, 1)}, b"1"))
    save(t, "name-control", st(b'{"a\\u001b[2J":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"))
    save(t, "not-utf8", st(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"))
    save(t, "meta-number", st({"__metadata__": {"a": 1}}))
    save(t, "meta-twice", st(b'{"__metadata__":{},"__metadata__":{}}'))
    save(t, "nan", tensors([vec("a", [2], NAN)]))


def zip_corpus():
    t = "zip"
    entries = [("a/data.pkl", b"\x80\x02N."), ("a/data/0", bytes(range(64)))]
    plain = bytearray(zip_bytes(entries))
    save(t, "stored", bytes(plain))
    save(t, "deflated", zip_bytes(entries, zipfile.ZIP_DEFLATED))
    save(t, "zip64", zip_bytes(entries, force64=True))
    save(t, "names-path", zip_bytes([("../../../tmp/a", b"1"), ("/etc/passwd", b"2"), ("a\\..\\b", b"3"), ("", b"4")]))
    save(t, "name-twice", zip_bytes([("a", b"1"), ("b", b"2")]).replace(b"b", b"a"))
    save(t, "bomb", zip_bytes([("a", bytes(1 << 20))], zipfile.ZIP_DEFLATED))
    save(t, "empty-archive", zip_bytes([]))
    save(t, "no-end", bytes(plain[:-22]))
    save(t, "comment", bytes(plain[:-2]) + struct.pack("<H", 70) + bytes(70))
    save(t, "comment-with-end", bytes(plain[:-2]) + struct.pack("<H", 22) + bytes(plain[-22:]))
    first, second, end = plain.index(b"PK\1\2"), plain.rindex(b"PK\1\2"), plain.rindex(b"PK\5\6")

    def change(name, *edits):
        b = bytearray(plain)
        for at, data in edits:
            b[at:at + len(data)] = data
        save(t, name, bytes(b))

    change("encrypted", (second + 8, b"\1\0"))
    change("method", (second + 10, b"\x0c\0"))
    change("checksum", (second + 16, b"\1\2\3\4"), (plain.rindex(b"PK\3\4") + 14, b"\1\2\3\4"))
    change("size", (second + 20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"))
    change("overlap", (second + 42, struct.pack("<I", 0)))
    change("offset-beyond", (second + 42, b"\xfe\xff\xff\xff"))
    change("directory-self", (end + 16, struct.pack("<I", 0)))
    change("directory-size", (end + 12, b"\xff" * 4))
    change("entries-65535", (end + 8, b"\xff" * 4))
    change("local-name", (first + 46, b"b"))
    big = bytearray(zip_bytes(entries, force64=True))
    at = big.rindex(b"PK\3\4")
    name, extra = struct.unpack("<HH", big[at + 26:at + 30])
    where = at + 30 + name + 4
    big[where:where + 16] = struct.pack("<QQ", (1 << 32) + 64, (1 << 32) + 64)
    save(t, "zip64-local-4gib", bytes(big))
    at = plain.rindex(b"PK\1\2")
    name, = struct.unpack("<H", plain[at + 28:at + 30])
    wide = bytearray(plain[:at + 46 + name]) + struct.pack("<HHQQ", 1, 16, (1 << 32) + 64, (1 << 32) + 64) + plain[end:]
    wide[at + 20:at + 28] = b"\xff" * 8
    wide[at + 30:at + 32] = struct.pack("<H", 20)
    at = wide.rindex(b"PK\5\6")
    wide[at + 12:at + 16] = struct.pack("<I", at - first)
    save(t, "zip64-4gib", bytes(wide))
    wide[wide.rindex(b"PK\1\2") + 10:][:2] = b"\x08\0"
    save(t, "zip64-extra-cut", bytes(wide).replace(struct.pack("<HH", 1, 16), struct.pack("<HH", 1, 8)))


def pickle_corpus():
    t = "pickle"
    w = pk_tensor("0", 16, 0, (4, 4), (4, 1))
    many = b"".join(b"h\2h\1" for _ in range(2000))
    cases = {
        "tensor": pk_dict([("w", w)]),
        "namespace": b"}(" + text("args") + glob("argparse", "Namespace") + b")\x81}" + text("heads") + b"K\2sb" + text("w") + w + b"u",
        "cycle-list": b"]q\0h\0a", "cycle-dict": b"}q\0" + text("model") + b"h\0s", "cycle-tuple": b"]q\0(h\0tq\1h\0h\1a",
        "cycle-object": glob("a", "b") + b")\x81q\0h\0b", "cycle-args": b"]q\0" + glob("a", "b") + b"h\0\x85R",
        "memo-far": b"Nr\xff\xff\xff\xff", "memo-unset": b"h\5", "memo-2-32": b"Nr\0\0\0\0j\0\0\0\0", "memo-empty-stack": b"q\0",
        "memo-under-mark": b"N(q\0", "memo-replaced": b"N" + b"q\0" * 1000 + b"h\0",
        "doubling": b"]q\0" + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(100)),
        "marks": b"(" * 65537, "nested-tuples": b")" + b"\x85" * 5000, "dup": b"N" + b"2" * 5000,
        "string-2-31": b"X\0\0\0\x80", "string-2-64": b"\x8d" + b"\xff" * 8, "long-2-31": b"\x8b\0\0\0\x80", "frame": b"\x95" + b"\xff" * 8 + b"N",
        "code-system": glob("os", "system") + text("true") + b"\x85R", "code-eval": text("builtins") + text("eval") + b"\x93" + text("1") + b"\x85R",
        "tensor-4gib": pk_tensor("0", (1 << 32) + 16, 0, (1 << 32,), (1,)), "tensor-negative": pk_tensor("0", 16, -1, (4, 4), (4, 1)),
        "storage-path": pk_tensor("../../../etc/passwd", 16, 0, (4, 4), (4, 1)), "storage-number": text("storage") + b"Q",
        "bytes": b"C\2ab", "set": b"\x8f(K\1K\2\x90", "no-stop": b"N", "opcode": b"\xff", "protocol9": b"\x80\x09N",
        "many-items": text("k") + b"q\1" + w + b"q\2}(" + many + b"u",
    }
    for name, p in cases.items():
        save(t, name, (b"" if name == "protocol9" else b"\x80\x02") + p + (b"" if name == "no-stop" else b"."))


def hostile_torch():
    """A few KB that name four million tensors: the views of so many would take more than a gigabyte."""
    w = pk_tensor("0", 16, 0, (4, 4), (4, 1))
    head = text("k") + b"q\1" + w + b"q\2}"
    save("torch_pt", "pairs-bomb", pt(head + (b"(" + b"h\1h\2" * 1024 + b"u") * 4000, method=zipfile.ZIP_DEFLATED))
    save("torch_pt", "name-path", pt(pk_dict([("../../../tmp/w", w)])))
    save("torch_pt", "storage-4gib", pt(pk_dict([("w", pk_tensor("0", (1 << 32) + 16, 0, (4, 4), (4, 1)))])))
    save("torch_pt", "view-offset-4gib", pt(pk_dict([("w", pk_tensor("0", 16, 1 << 32, (4, 4), (4, 1)))])))
    save("torch_pt", "nan", pt(pk_dict([("w", w)]), (("0", floats(16, NAN)),)))


def base_tensors(d=8, depth=1, classes=2, patch=2, side=2, dtype="F16"):
    out = [vec("pos_embed", [1, (side // patch) ** 2, d], dtype=dtype), vec("x_embedder.proj.weight", [d, 1, patch, patch], dtype=dtype),
           vec("x_embedder.proj.bias", [d], dtype=dtype), vec("t_embedder.mlp.0.weight", [d, 256], dtype=dtype),
           vec("t_embedder.mlp.0.bias", [d], dtype=dtype), vec("t_embedder.mlp.2.weight", [d, d], dtype=dtype),
           vec("t_embedder.mlp.2.bias", [d], dtype=dtype), vec(TABLE, [classes + 1, d], dtype=dtype)]
    for i in range(depth):
        for name, shape in (("attn.qkv", [3 * d, d]), ("attn.proj", [d, d]), ("mlp.fc1", [4 * d, d]), ("mlp.fc2", [d, 4 * d]),
                            ("adaLN_modulation.1", [6 * d, d])):
            out += [vec(f"blocks.{i}.{name}.weight", shape, dtype=dtype), vec(f"blocks.{i}.{name}.bias", shape[:1], dtype=dtype)]
    n = 2 * patch * patch
    for name, shape in (("final_layer.linear", [n, d]), ("final_layer.adaLN_modulation.1", [2 * d, d])):
        out += [vec(name + ".weight", shape, dtype=dtype), vec(name + ".bias", shape[:1], dtype=dtype)]
    return out


def with_tensor(items, new):
    return [new if i[0] == new[0] else i for i in items]


def base_corpus():
    t = "base"
    good, meta = base_tensors(), {"heads": "2", "class_names": '["a", "b"]'}
    save(t, "good", tensors(good, meta))
    gammas = good + [vec(f"blocks.0.{n}", [k], 1.5, "F16") for n, k in (("gamma1", 8), ("gamma2", 8), ("attn.gamma1", 24), ("attn.gamma2", 8))]
    save(t, "gammas", tensors(gammas, meta))
    for name, value in (("nan", NAN), ("inf", INF)):
        save(t, f"weight-{name}", tensors(with_tensor(good, vec("blocks.0.mlp.fc1.weight", [32, 8], [0.0] * 255 + [value], "F16")), meta))
        save(t, f"gamma-{name}", tensors(with_tensor(gammas, vec("blocks.0.gamma1", [8], [1.0] * 7 + [value], "F16")), meta))
        save(t, f"table-{name}", tensors(with_tensor(good, vec(TABLE, [3, 8], [0.0] * 23 + [value], "F16")), meta))
        save(t, f"positions-{name}", tensors(with_tensor(good, vec("pos_embed", [1, 1, 8], [0.0] * 7 + [value], "F16")), meta))
    save(t, "gamma-product", tensors([vec(n, s, 60000.0 if "gamma" in n else 1e38, "F32") if n == "blocks.0.gamma1" or n == "blocks.0.attn.proj.weight" else
                                      (n, dt, s, v) for n, dt, s, v in gammas], meta))
    save(t, "f64-too-large", tensors(with_tensor(good, vec("blocks.0.attn.proj.bias", [8], 1e300, "F64")), meta))
    for name, change in (("heads-none", {"heads": None}), ("heads-3", {"heads": "3"}), ("heads-4gib", {"heads": "4294967298"}),
                         ("heads-long", {"heads": "9" * 400}), ("names-count", {"class_names": '["a"]'}), ("names-number", {"class_names": "[1, 2]"}),
                         ("names-path", {"class_names": '["../../../tmp/a", "/etc/passwd"]'}), ("names-deep", {"class_names": "[" * 1000}),
                         ("scale-nan", {"positional_scale": "nan"}), ("scale-inf", {"positional_scale": "1e999"}),
                         ("scale-words", {"positional_scale": "sixteen"}), ("scale-negative", {"positional_scale": "-4"})):
        save(t, name, tensors(good, {k: v for k, v in {**meta, **change}.items() if v is not None}))
    alone = [i for i in good if i[0] != "pos_embed"]
    save(t, "input-none", tensors(alone, meta))
    save(t, "input-2-23", tensors(alone, {**meta, "input": str(1 << 23)}))
    save(t, "input-4096", tensors(alone, {**meta, "input": "4096"}))
    save(t, "input-4gib", tensors(alone, {**meta, "input": str((1 << 32) + 2)}))
    save(t, "missing", tensors([i for i in good if i[0] != "blocks.0.mlp.fc2.bias"], meta))
    save(t, "depth-gap", tensors([(n.replace("blocks.0", "blocks.1"), *rest) for n, *rest in good], meta))
    save(t, "shape", tensors(with_tensor(good, vec("blocks.0.attn.qkv.weight", [8, 24], dtype="F16")), meta))
    save(t, "dims", tensors(with_tensor(good, vec("x_embedder.proj.weight", [8, 4], dtype="F16")), meta))
    save(t, "zero", tensors(with_tensor(good, vec(TABLE, [0, 8], dtype="F16")), meta))
    save(t, "type", tensors(with_tensor(good, ("blocks.0.attn.proj.bias", "I16", [8], bytes(16))), meta))


def delta_corpus():
    t = "delta"
    d = 8
    items = [vec(f"blocks.{i}.{n}", [k]) for i in range(2) for n, k in (("gamma1", d), ("gamma2", d), ("attn.gamma1", 3 * d), ("attn.gamma2", d),
                                                                      ("attn.qkv.bias", 3 * d), ("mlp.fc2.bias", d))]
    table = vec(TABLE, [3, d])
    meta = {"format": "difffit-cl delta 1", "method": "difffit", "gamma_sites": "qkv,proj,attn,mlp", "gamma_blocks": "all", "base_hash": "0" * 64,
            "positional_scale": "0", "input": "4", "class_table": "own", "class_names": '["x", "y"]', "training": '{"steps": 3}'}
    save(t, "good", tensors(items + [table], meta))
    save(t, "base-classes", tensors(items + [vec(TABLE, [4, d])], {k: v for k, v in meta.items() if k != "class_names"} | {"class_table": "base"}))
    save(t, "no-table", tensors(items, {k: v for k, v in meta.items() if k != "class_names"}))
    save(t, "plain", tensors(items))
    save(t, "plain-vectors", tensors([vec("blocks.0.mlp.fc2.bias", [d])]))
    save(t, "empty", tensors([], meta))
    for name, value in (("nan", NAN), ("inf", -INF)):
        save(t, f"gamma-{name}", tensors([vec("blocks.0.gamma1", [d], [1.0] * 7 + [value])] + items[1:] + [table], meta))
        save(t, f"table-{name}", tensors(items + [vec(TABLE, [3, d], [0.0] * 23 + [value])], meta))
    save(t, "f64-too-large", tensors([vec("blocks.0.gamma1", [d], 1e300, "F64")] + items[1:], meta))
    save(t, "type", tensors([("blocks.0.gamma1", "I16", [d], bytes(2 * d))] + items[1:], meta))
    save(t, "matrix", tensors(items + [vec("blocks.0.mlp.fc1.weight", [4 * d, d])], meta))
    save(t, "stranger", tensors(items + [vec("blocks.7.gamma1", [d])], meta))
    save(t, "shape", tensors(items[1:] + [vec("blocks.0.gamma1", [d + 1])], meta))
    save(t, "scalar", tensors(items[1:] + [vec("blocks.0.gamma1", [])], meta))
    save(t, "two-dims", tensors(items[1:] + [vec("blocks.0.gamma1", [1, d])], meta))
    save(t, "vector-empty", tensors(items[1:] + [vec("blocks.0.gamma1", [0])], meta))
    save(t, "table-one-dim", tensors(items + [vec(TABLE, [d])], meta))
    save(t, "table-zero", tensors(items + [vec(TABLE, [0, d])], meta))
    save(t, "table-large", tensors(items + [vec(TABLE, [80, d])], {k: v for k, v in meta.items() if k != "class_names"}))
    for name, change in (("format", {"format": "difffit-cl delta 2"}), ("hash-short", {"base_hash": "12"}), ("hash-long", {"base_hash": "0" * 99}),
                         ("names-count", {"class_names": '["x"]'}), ("names-deep", {"class_names": "[" * 1000}), ("names-number", {"class_names": "[1, 2]"}),
                         ("names-path", {"class_names": '["../../../tmp/a", "/etc/passwd"]'}), ("names-zero", {"class_names": '["a\\u0000b", "c"]'}),
                         ("input-4gib", {"input": "4294967300"}), ("input-words", {"input": "four"}), ("input-long", {"input": "9" * 400}),
                         ("scale-nan", {"positional_scale": "nan"}), ("scale-inf", {"positional_scale": "1e999"}),
                         ("scale-words", {"positional_scale": "wide"}), ("method-long", {"method": "m" * 5000}), ("training-deep", {"training": "[" * 1000})):
        save(t, name, tensors(items + [table], {**meta, **change}))
    rgb = '{"weight":[[1],[2],[3]],"bias":[0,0,0],"rms":0.5}'
    for name, text in (("rgb", rgb), ("rgb-deep", "[" * 1000), ("rgb-rows", rgb.replace("[2],", "")), ("rgb-many", rgb.replace("[1]", str([1] * 33))),
                       ("rgb-inf", rgb.replace("[0,0,0]", "[0,0,1e999]")), ("rgb-words", "red")):
        save(t, name, tensors(items + [table], {**meta, "latent_rgb": text}))
    flat = [vec(n, [5]) for n in ("values", "ema", "exp_avg", "exp_avg_sq")]
    save(t, "checkpoint", tensors(flat, {"format": "difffit-cl checkpoint 1", "layout": "0" * 64}))


def run_corpus():
    t = "run"
    hexes = lambda x: struct.pack(">d", x).hex()
    state = {"format": "difffit-cl checkpoint 1", "step": 3, "skipped": 1, "streak": 0, "metrics_size": 10, "events_size": 20, "sum_steps": 1,
             "sum_loss": hexes(0.5), "sum_mse": hexes(0.25), "sum_vb": hexes(0.125), "recent_count": 2, "recent": [hexes(0.5), hexes(0.75)]}
    config = {"format": "difffit-cl run 1", "version": "0.1.0", "settings": {"seed": "1", "lr": 0.1, "flip": True, "method": "difffit", "micro_batch": 4},
              "model": {"path": "a", "depth": 2}, "steps": 10}

    def dump(name, o):
        save(t, name, json.dumps(o).encode())

    dump("config", config)
    dump("state", state)
    save(t, "metrics", b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n{"step":')
    save(t, "names", b"cat\ndog\r\n\nbird")
    dump("name-array", ["cat", "dog", "caf\u00e9"])
    dump("diffusers", {"_class_name": "DiTTransformer2DModel", "sample_size": 32, "num_attention_heads": 16})
    dump("vae", {"_class_name": "AutoencoderKL", "latent_channels": 4})
    for name, key, value in (("step-negative", "step", -1), ("step-huge", "step", 1e300), ("step-half", "step", 1.5), ("step-text", "step", "3"),
                             ("skipped-more", "skipped", 4), ("streak-4gib", "streak", 1 << 32), ("size-negative", "metrics_size", -1),
                             ("size-2-60", "metrics_size", 1 << 60), ("count-2-40", "recent_count", 1 << 40), ("count-less", "recent_count", 1),
                             ("recent-none", "recent", []), ("recent-short", "recent", ["0"] * 2), ("recent-numbers", "recent", [1, 2]),
                             ("recent-nan", "recent", [hexes(NAN)] * 2), ("loss-nan", "sum_loss", hexes(NAN)), ("mse-inf", "sum_mse", hexes(INF)),
                             ("vb-prefix", "sum_vb", "0x0000000000000"), ("vb-words", "sum_vb", "zz" * 8), ("format-other", "format", "difffit-cl checkpoint 9"),
                             ("format-number", "format", 7)):
        dump("state-" + name, {**state, key: value})
    dump("config-settings-array", {**config, "settings": [1, 2]})
    dump("config-settings-none", {k: v for k, v in config.items() if k != "settings"})
    dump("config-micro-4gib", {**config, "settings": {**config["settings"], "micro_batch": (1 << 32) + 4}})
    dump("config-micro-negative", {**config, "settings": {**config["settings"], "micro_batch": -4}})
    dump("config-format-long", {**config, "format": "difffit-cl run 1" + "1" * 5000})
    save(t, "config-twice", b'{"format":"difffit-cl run 1","settings":{"seed":1,"seed":2},"settings":{}}')
    save(t, "deep", b'{"a":' * 40 + b"1" + b"}" * 40)
    save(t, "deep-30", b'{"format":"difffit-cl run 1","a":' + b"[" * 30 + b"]" * 30 + b"}")
    save(t, "zero-byte", b'{"format":"a\0b"}')
    save(t, "zero-escape", b'{"format":"a\\u0000b"}')
    save(t, "surrogate", b'{"format":"\\ud800"}')
    save(t, "not-utf8", b'{"format":"\xff"}')
    save(t, "names-not-utf8", b"cat\n\xff\xfe\n")
    save(t, "number-huge", b'{"steps":1e999,"step":-1e999}')
    save(t, "number-long", b'{"steps":' + b"9" * 5000 + b"}")
    save(t, "trailing", b"{} {}")
    save(t, "cut", b'{"format":"difffit-cl run 1","settings":{')
    save(t, "empty", b"")
    save(t, "metrics-long-line", b'{"a":"' + b"x" * 70000 + b'"}\n')


def requests_corpus():
    t = "requests"
    cases = {
        "words": b"# a comment\nclass=cat seed=3 guidance=1.5 count=2\n\nclass=\"two words\" delta=a.safetensors:0.5 delta=\"b \\\"c\\\\.safetensors\" name=x\n",
        "json": b'{"class":"caf\\u00e9 \\ud83d\\ude00","delta":["a","b:0.5"],"seed":18446744073709551615,"guidance":4.0}\n{"class":"1","number":4294967295}\n',
        "hashes": b"class=1 delta=a sha256=" + b"0" * 64 + b"\n",
        "no-class": b"seed=1\n", "only-comments": b"# nothing\n", "empty": b"", "unknown-key": b"class=1 colour=red\n",
        "key-long": b"class=1 " + b"k" * 5000 + b"=1\n", "value-long": b"class=" + b"c" * 5000 + b"\n", "not-closed": b'class="cat\n',
        "escape": b'class="a\\x"\n', "json-cut": b'{"class":"1"', "json-after": b'{"class":"1"} x\n', "json-deep": b'{"class":[[["1"]]]}\n',
        "json-true": b'{"class":true}\n', "json-zero": b'{"class":"a\\u0000b"}\n', "json-surrogate": b'{"class":"\\ud800x"}\n',
        "json-low-surrogate": b'{"class":"\\udc00"}\n', "json-hex-cut": b'{"class":"\\u12', "json-comma": b'{"class":"1",}\n',
        "count-zero": b"class=1 count=0\n", "count-4gib": b"class=1 count=4294967297\n", "count-sum": b"class=1 count=1000000\nclass=1 count=1\n",
        "number-4gib": b"class=1 number=4294967296\n", "number-end": b"class=1 number=4294967295 count=2\n", "seed-2-64": b"class=1 seed=18446744073709551616\n",
        "seed-negative": b"class=1 seed=-1\n", "guidance-nan": b"class=1 guidance=nan\n", "guidance-inf": b"class=1 guidance=1e999\n",
        "guidance-hex": b"class=1 guidance=0x1p3\n", "name-path": b"class=1 name=../../../tmp/a\n", "name-absolute": b"class=1 name=/etc/passwd\n",
        "name-hidden": b"class=1 name=.bashrc\n", "name-number": b"class=1 name=000001\n", "name-long": b"class=1 name=" + b"n" * 201 + b"\n",
        "name-newline": b'{"class":"1","name":"a\\nb"}\n', "name-escape": b'{"class":"1","name":"\\u001b[2J"}\n', "name-not-utf8": b"class=1 name=\xff\n",
        "name-twice": b"class=1 name=a\nclass=2 name=a\n", "delta-nine": b"class=1" + b" delta=a" * 9 + b"\n", "delta-empty": b'class=1 delta=""\n',
        "delta-long": b"class=1 delta=" + b"d" * 5000 + b"\n", "delta-path": b"class=1 delta=../../../etc/passwd\n", "hashes-two": b"class=1 delta=a sha256=0 sha256=1\n",
        "strength-nan": b"class=1 delta=a:nan delta=a:1e999 delta=a: delta=:\n", "not-utf8": b"class=\xff\xfe\n", "class-newline": b'{"class":"a\\nb"}\n',
        "many-deltas": b"".join(b"class=1 delta=%d\n" % i for i in range(3000)),
    }
    for name, data in cases.items():
        save(t, name, data)


def describe_corpus():
    t = "describe"
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }"
    array = npy(head, bytes(6))
    save(t, "array", array)
    save(t, "arrays", zip_bytes([("arr_0.npy", array), ("arr_1.npy", array)]))
    save(t, "arrays-deflated", zip_bytes([("arr_0.npy", array)], zipfile.ZIP_DEFLATED))
    local = lambda name, size, data, extra=b"": b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, size, size, len(name), len(extra)) + name + extra + data
    save(t, "arrays-cut", zip_bytes([("arr_0.npy", array)])[:40])
    save(t, "arrays-4gib", local(b"a", 0xFFFFFFFF, array, struct.pack("<HHQQ", 1, 16, (1 << 32) + len(array), (1 << 32) + len(array))))
    save(t, "arrays-name", local(b"../../\xff\0\x1b[2J.npy", len(array), array))
    save(t, "arrays-many", local(b"", 0, b"") * 2000)
    save(t, "arrays-wrap", local(b"a", 0xFFFFFFFF, b"", struct.pack("<HHQQ", 1, 16, 2**64 - 51, 2**64 - 51)))
    sig = b"\x89PNG\r\n\x1a\n"
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    save(t, "picture", sig + ihdr + chunk(b"tEXt", b"request\0class=1") + end)
    save(t, "picture-text", sig + ihdr + chunk(b"tEXt", b"a\0\x1b[2J\xff") * 600 + end)
    save(t, "picture-size", sig + chunk(b"IHDR", struct.pack(">IIBBBBB", 0xFFFFFFFF, 0, 8, 0, 0, 0, 0)) + end)
    save(t, "tensors", tensors([vec("\u00e9", [2]), vec("../a", [])]))
    save(t, "base", tensors(base_tensors(), {"heads": "2"}))
    save(t, "delta", tensors([vec("blocks.0.gamma1", [8])], {"format": "difffit-cl delta 1", "method": "difffit", "base_hash": "0" * 64, "training": '{"a": [1]}'}))
    save(t, "base-no-side", tensors([i for i in base_tensors() if i[0] != "pos_embed"]))
    save(t, "other", b"hello")


def hostile_image():
    t = "image"
    sig = b"\x89PNG\r\n\x1a\n"
    end = chunk(b"IEND", b"")
    for name, w, h in (("zero-width.png", 0, 1), ("side-4gib.png", 0xFFFFFFFF, 1), ("pixels-2-32.png", 32768, 32768), ("side-32769.png", 32769, 1)):
        save(t, name, sig + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(100))) + end)
    save(t, "one-pixel.png", sig + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(4))) + end)
    save(t, "line.png", sig + chunk(b"IHDR", struct.pack(">IIBBBBB", 4096, 1, 1, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(513))) + end)
    save(t, "idat-bomb.png", sig + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + end)
    save(t, "chunk-4gib.png", sig + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + b"\xff\xff\xff\xffIDAT" + end)
    save(t, "soi.jpg", b"\xff\xd8\xff")
    save(t, "markers.jpg", b"\xff\xd8" + b"\xff\xe0\0\x02" * 3000)


def hostile_npy():
    t = "npy"
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    save(t, "latent", npy(shape % "1, 2, 3, 3", floats(18)))
    save(t, "latent-nan", npy(shape % "2, 3, 3", floats(18, [0.0] * 17 + [NAN])))
    label = "{'descr': '<i8', 'fortran_order': False, 'shape': (%s), }"
    save(t, "label", npy(label % "1,", struct.pack("<q", 7)))
    save(t, "label-4gib", npy(label % "1,", struct.pack("<q", (1 << 32) + 1)))
    save(t, "label-negative", npy(label % "1,", struct.pack("<q", -1)))
    save(t, "label-min", npy(label % "", struct.pack("<q", -2**63)))
    save(t, "shape-4gib", npy(shape % "4294967298,", floats(2)))
    save(t, "shape-zero", npy(shape % "0, 9223372036854775807", b""))
    save(t, "shape-negative", npy(shape % "-1,", bytes(4)))
    save(t, "order-fortran-4gib", npy(shape.replace("False", "True") % "65536, 65536", bytes(4)))
    save(t, "header-twice", npy("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8)))
    save(t, "header-code", npy("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1,), }", bytes(8)))


# ---- caches of latents ----

def latents_corpus():
    """An index beside the good shard of fuzz_latents.c, or a shard beside its good index."""
    RNG.seed(20240607)
    t = "latents"
    settings = {"vae": "a" * 64, "scale": 0.5, "shift": 0, "size": 16, "channels": 1, "side": 2, "crop": "center", "alpha": "white", "flip": False,
                "dtype": "F32"}

    def index(name, labels=(0, 1), file="shard-000000.safetensors", classes=("a", "b"), **more):
        o = {"format": "difffit-cl latents 1", "settings": settings, "source": "pictures", "skipped": 0, "classes": list(classes),
             "shards": [{"file": file, "labels": list(labels)}], **more}
        data = json.dumps(o, separators=(",", ":")).encode()
        save(t, name, data)
        return data

    def shard(name, files='["a/0.png","b/1.png"]', n=2, side=2, settings=settings, rgb=None, **change):
        h = {"__metadata__": {"format": "difffit-cl latents 1", "settings": json.dumps(settings), "files": files}}
        at = 0
        for key, dtype, shape, size in (("stat", "I64", [n, 2], 8), *([("rgb", *rgb)] if rgb else []), ("mean", "F32", [n, 1, side, side], 4), ("logvar", "F32", [n, 1, side, side], 4),
                                        ("sha256", "U8", [n, 32], 1)):
            count = size * int(np.prod(shape))
            h[key] = entry(dtype, shape, at, at + count)
            at += count
        h.update(change)
        data = st(h, bytes(at))
        save(t, name, data)
        return data

    good = index("index-good")
    index("index-path", file="../shard/shard-000000.safetensors")
    index("index-dots", file="shard-/../../x")
    index("index-missing", file="shard-000009.safetensors")
    index("index-labels-few", labels=(0,))
    index("index-labels-high", labels=(0, 2))
    index("index-labels-fraction", labels=(0, 0.5))
    index("index-labels-huge", labels=(0, 1e300))
    index("index-none-left", labels=(-1, -1))
    index("index-twice", shards=[{"file": "shard-000000.safetensors", "labels": [0, 1]}] * 2)
    index("index-no-shards", shards=[])
    index("index-shards-number", shards=7)
    index("index-no-classes", classes=())
    index("index-class-control", classes=("a\n", "b"))
    index("index-settings", settings={**settings, "side": 2**40})
    index("index-settings-side", settings={**settings, "side": 4096, "channels": 1024})
    index("index-settings-hash", settings={**settings, "vae": "A" * 64})
    index("index-settings-scale", settings={**settings, "scale": "1"})
    save(t, "index-deep", b"[" * 64 + b"]" * 64)
    save(t, "index-empty", b"")
    mutations(t, "index", good, 12)
    good = shard("shard-good")
    shard("shard-files-few", files='["a/0.png"]')
    shard("shard-files-twice", files='["a/0.png","a/0.png"]')
    shard("shard-files-number", files="[1,2]")
    shard("shard-files-object", files="{}")
    shard("shard-files-empty", files='["",""]')
    shard("shard-rows", n=3)
    shard("shard-side", side=3)
    shard("shard-settings", settings={**settings, "size": 17})
    shard("shard-no-meta", __metadata__={})
    save(t, "shard-nan", good[:-64 - 64] + b"\xff" * 64 + good[-64:])
    mutations(t, "shard", good, 12)
    rgb = {"weight": [[1.5], [-2], [0.25]], "bias": [0, 0.5, -1], "rms": 0.125}
    good = index("index-rgb", rgb=rgb)
    index("index-rgb-channels", rgb={**rgb, "weight": [[1, 2]] * 3})
    index("index-rgb-rows", rgb={**rgb, "weight": [[1]] * 2})
    index("index-rgb-many", rgb={**rgb, "weight": [[1] * 33] * 3})
    index("index-rgb-number", rgb=7)
    index("index-rgb-null", rgb=None)
    index("index-rgb-huge", rgb={**rgb, "bias": [0, 0, 1e300]})
    index("index-rgb-rms", rgb={**rgb, "rms": -1})
    mutations(t, "index-rgb", good, 8)
    good = shard("shard-rgb", rgb=("F64", [2, 12], 8))
    shard("shard-rgb-few", rgb=("F64", [2, 11], 8))
    shard("shard-rgb-type", rgb=("F32", [2, 12], 4))
    shard("shard-rgb-flat", rgb=("F64", [24], 8))
    mutations(t, "shard-rgb", good, 8)


if __name__ == "__main__":
    if np is not None:
        safetensors_corpus()
        torch_corpus()
        npy_corpus()
        image_corpus()
    for part in (hostile_safetensors, zip_corpus, pickle_corpus, hostile_torch, base_corpus, delta_corpus, run_corpus, requests_corpus,
                 describe_corpus, hostile_image, hostile_npy):
        part()
    latents_corpus()
