#!/usr/bin/env python3
"""docs_check.py PATH/TO/difffit-cl: what the documents say must exist.

Relative links point at files; files named in `code` with a folder exist (NAME stands for any); every option of a quoted
`difffit-cl COMMAND` line is in that command's help; every command answers --help and is named in README; every public function has a comment in its header.
"""
import os
import re
import subprocess
import sys

root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
cli = os.path.abspath(sys.argv[1])
bad = []


def help_of(*words):
    p = subprocess.run([cli, *words, "--help"], capture_output=True, text=True)
    if p.returncode != 0:
        bad.append(f"`difffit-cl {' '.join(words)} --help` ended with {p.returncode}")
    return p.stdout


commands = re.findall(r"^  (\w+) +\S", help_of(), re.M)
options = {c: set(re.findall(r"(?<![\w-])(--?[\w-]+)", help_of(c))) for c in commands}
documents = [os.path.join(root, f) for f in os.listdir(root) if f.endswith(".md")]
documents += [os.path.join(root, "docs", f) for f in os.listdir(os.path.join(root, "docs")) if f.endswith(".md")]
for path in sorted(documents):
    name = os.path.relpath(path, root)
    text = open(path, encoding="utf-8").read()
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link and not os.path.exists(os.path.join(os.path.dirname(path), link)):
            bad.append(f"{name}: link to {link}, which does not exist")
    for word in re.findall(r"`((?:src|cl|cuda|include|tests|tools|docs)/[\w./-]+)`", text):
        if "NAME" not in word and not os.path.exists(os.path.join(root, word.rstrip("/"))):
            bad.append(f"{name}: names {word}, which does not exist")
    joined = text.replace("\\\n", " ")
    for command, rest in re.findall(r"difffit-cl (\w+)([^\n`|]*)", joined):
        if command in options:
            for option in re.findall(r"(?<=\s)(--?[a-zA-Z][\w-]*)", rest):
                if option not in options[command]:
                    bad.append(f"{name}: `difffit-cl {command}` has no option {option}")
readme = open(os.path.join(root, "README.md"), encoding="utf-8").read()
for c in commands:
    if not re.search(rf"\b{c}\b", readme):
        bad.append(f"README.md does not name the command {c}")
headers = sorted(os.path.join(root, "include/difffit-cl", f) for f in os.listdir(os.path.join(root, "include/difffit-cl")) if f.endswith(".h"))
p = subprocess.run([sys.executable, os.path.join(root, "tools/make_api.py"), "--check", *headers], capture_output=True, text=True)
bad += (p.stdout + p.stderr).strip().splitlines()
if p.returncode and not bad:
    bad.append(f"tools/make_api.py --check ended with {p.returncode}")
for line in bad:
    print(line)
print(f"{len(documents)} documents, {len(commands)} commands: {len(bad)} findings")
sys.exit(1 if bad else 0)
