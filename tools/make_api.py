#!/usr/bin/env python3
"""make_api.py HEADER...: the public headers as one Markdown document.   make_api.py --check HEADER...: names of functions without a comment.
make_api.py --names HEADER...: names of all public functions.

A comment belongs to the declarations that follow it without an empty line between.
"""
import os
import re
import sys


def blocks(text):
    """(comment, code) of each group of declarations."""
    body = re.sub(r'#ifdef __cplusplus\n(?:extern "C" \{|\})\n#endif\n', "\n", text)
    lines, out, i = body.split("\n"), [], 0
    while i < len(lines):
        if not lines[i].strip() or re.match(r"#(?:ifndef|endif|include|if|elif|else)|#define DFCL_(?:API|\w+_H)\b", lines[i]):
            i += 1
            continue
        comment = ""
        if lines[i].startswith("/*"):
            start = i
            while "*/" not in lines[i]:
                i += 1
            i += 1
            comment = "\n".join(lines[start:i])
        start, depth = i, 0
        while i < len(lines) and (lines[i].strip() or depth) and (depth or not lines[i].startswith(("/*", "#if", "#endif"))):
            depth += lines[i].count("{") - lines[i].count("}")
            i += 1
        out.append((plain(comment), "\n".join(lines[start:i])))
    return out


def plain(comment):
    text = re.sub(r"^/\*+ ?|\s*\*/$", "", comment)
    return "\n".join(re.sub(r"^ ?\* ?", "", line) for line in text.split("\n")).strip()


def functions(code):
    return re.findall(r"DFCL_API\b[^;(]*?\b(dfcl_\w+)\(", code)


def title(code):
    names = functions(code) or re.findall(r"^(?:typedef )?(?:struct|enum) (\w+)(?= \{|;| \w+;)", code, re.M) or re.findall(r"^typedef .*\(\*(\w+)\)", code, re.M)
    return names or re.findall(r"^#define (\w+)", code, re.M)


def page(path):
    name = os.path.basename(path)
    print(f"\n## difffit-cl/{name}\n")
    for comment, code in blocks(open(path, encoding="utf-8").read()):
        if code:
            print("### " + ", ".join(f"`{x}`" for x in title(code)) + "\n")
        if comment:
            print(comment + "\n")
        if code:
            print(f"```c\n{code.replace('DFCL_API ', '')}\n```\n")


def main():
    words = sys.argv[1:]
    check, names = "--check" in words, "--names" in words
    headers = [w for w in words if not w.startswith("--")]
    if not headers:
        sys.exit(__doc__)
    bad = 0
    if not check and not names:
        print("# The library's interface\n\nWritten by `tools/make_api.py` from the public headers. Include `difffit-cl/dfcl.h` for all of it.")
    for path in headers:
        if not check and not names:
            page(path)
            continue
        found = []
        for comment, code in blocks(open(path, encoding="utf-8").read()):
            found += functions(code)
            if names:
                print(*functions(code), sep="\n", end="\n" if functions(code) else "")
            elif not comment:
                for f in functions(code):
                    if not re.search(rf"\b{f}\([^;]*;\s*/\*", code):
                        bad += 1
                        print(f"{os.path.basename(path)}: {f} has no comment")
        if len(found) != open(path, encoding="utf-8").read().count("\nDFCL_API "):
            bad += 1
            print(f"{os.path.basename(path)}: {len(found)} functions found, but DFCL_API stands there another number of times")
    sys.exit(1 if bad else 0)


main()
