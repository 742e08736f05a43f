#!/usr/bin/env python3
"""Draws the image folder that the demo's base model is trained on: digits and capital letters in the fonts of Debian's packages.

    tools/make_glyphs.py --out glyphs [--variants 4] [--side 16] [--seed 0]

writes glyphs/<class>/<number>.png, 36 classes 0-9 A-Z, white on black, 8-bit grey. The fonts come from the packages listed in
tools/demo/fonts.txt (name and licence), which `apt-get install` brings. Needs Pillow (FreeType) and numpy. The same fonts and seed
give the same pictures.
"""
import argparse
import os
import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CANVAS = 96  # glyphs are drawn this large, bent, then averaged down


def font_files(packages):
    files = []
    for package in packages:
        try:
            listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            print(f"make_glyphs: package {package} is not installed, left out", file=sys.stderr)
            continue
        files += [f for f in listing.split("\n") if f.lower().endswith((".ttf", ".otf")) and os.path.isfile(f)]
    return sorted(set(files))


def draw(font, char):
    """The glyph cut to its ink, as a float array in [0, 1]; None when the font draws nothing useful."""
    left, top, right, bottom = font.getbbox(char)
    width, height = right - left, bottom - top
    if width < 4 or height < 12:
        return None
    image = Image.new("L", (width + 8, height + 8), 0)
    ImageDraw.Draw(image).text((4 - left, 4 - top), char, font=font, fill=255)
    ink = image.getbbox()
    return image.crop(ink) if ink else None


def place(glyph, side, rng, plain):
    """Fits the glyph into the frame with a random height, width, slant, turn and shift; plain: as the font has it, centred."""
    scale = 0.92 if plain else rng.uniform(0.80, 1.0)
    aspect = glyph.width / glyph.height * (1.0 if plain else rng.uniform(0.85, 1.15))
    height = CANVAS * scale
    width = min(height * aspect, CANVAS * 0.94)
    slant = 0.0 if plain else rng.normal(0.0, 0.15)
    turn = 0.0 if plain else np.deg2rad(rng.normal(0.0, 6.0))
    shift = np.zeros(2) if plain else rng.uniform(-1.0, 1.0, 2) * (CANVAS / side) * 0.6
    # frame -> glyph: undo shift, turn, slant, size
    c, s = np.cos(turn), np.sin(turn)
    forward = np.array([[c, -s], [s, c]]) @ np.array([[1.0, -slant], [0.0, 1.0]]) @ np.diag([width / glyph.width, height / glyph.height])
    inverse = np.linalg.inv(forward)
    centre = np.array([CANVAS / 2, CANVAS / 2]) + shift
    offset = np.array([glyph.width / 2, glyph.height / 2]) - inverse @ centre
    coefficients = (inverse[0, 0], inverse[0, 1], offset[0], inverse[1, 0], inverse[1, 1], offset[1])
    frame = glyph.transform((CANVAS, CANVAS), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)
    return frame.resize((side, side), Image.Resampling.BOX)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to create")
    parser.add_argument("--variants", type=int, default=4, help="pictures per font and class (the first is undistorted)")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fonts", default=os.path.join(here, "demo", "fonts.txt"), help="list of packages")
    args = parser.parse_args()

    with open(args.fonts, encoding="utf-8") as f:
        packages = [line.split()[0] for line in f if line.strip() and not line.startswith("#")]
    files = font_files(packages)
    if not files:
        sys.exit("make_glyphs: none of the listed font packages is installed")
    rng = np.random.default_rng(args.seed)
    for char in CLASSES:
        os.makedirs(os.path.join(args.out, char), exist_ok=True)
    fonts = count = 0
    for path in files:
        try:
            font = ImageFont.truetype(path, CANVAS)
            glyphs = [draw(font, char) for char in CLASSES]
        except (OSError, ValueError):
            continue
        # Symbol fonts and fonts with missing letters draw the same box for everything: leave them out.
        if any(g is None for g in glyphs) or len({g.resize((16, 16)).tobytes() for g in glyphs}) < len(CLASSES) - 2:
            continue
        fonts += 1
        for char, glyph in zip(CLASSES, glyphs):
            for v in range(args.variants):
                place(glyph, args.side, rng, v == 0).save(os.path.join(args.out, char, f"{count + v:06d}.png"))
        count += args.variants
    print(f"{fonts} fonts, {count * len(CLASSES)} pictures in {args.out}")


if __name__ == "__main__":
    main()
