#!/usr/bin/env python3
"""Writes the demo's domain: the handwritten digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, 1998, CC BY 4.0), 1,797 pictures of 8x8.

    tools/make_digits.py --out tools/demo/digits

writes train/<digit>/<number>.png (the first 1,400 pictures) and heldout/<digit>/<number>.png (the other 397), white on black, 8-bit grey.
Needs scikit-learn and Pillow.
"""
import argparse
import os

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True)
parser.add_argument("--train", type=int, default=1400)
args = parser.parse_args()
data = load_digits()
for i, (image, label) in enumerate(zip(data.images, data.target)):
    folder = os.path.join(args.out, "train" if i < args.train else "heldout", str(label))
    os.makedirs(folder, exist_ok=True)
    pixels = np.round(image * (255.0 / 16.0)).astype(np.uint8)
    Image.fromarray(pixels).save(os.path.join(folder, f"{i:04d}.png"), optimize=True)
print(f"{len(data.images)} pictures in {args.out}")
