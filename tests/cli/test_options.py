#!/usr/bin/env python3
"""Options from every source, and what is generated from their table: test_options.py PATH/TO/difffit-cl PATH/TO/difffit-bench"""
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib

CLI, BENCH = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
PROGRAMS = {CLI: "DIFFFIT_CL_", BENCH: "DIFFFIT_BENCH_"}
tmp = tempfile.TemporaryDirectory(prefix="dfcl-options-")
T = tmp.name
ENV = {k: v for k, v in os.environ.items() if not k.startswith("DIFFFIT_")}
ENV.update(XDG_CACHE_HOME=os.path.join(T, "cache"), DIFFFIT_CL_DEVICE="host")


def run(*words, code=0, env=None, program=CLI):
    p = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=300, env={**ENV, **(env or {})})
    assert p.returncode == code, f"{words}: exit code {p.returncode}, expected {code}\n{p.stdout}\n{p.stderr}"
    return p.stdout, p.stderr


def fails(code, *words, says, env=None):
    err = run(*words, code=code, env=env)[1].strip()
    assert "\n" not in err and err.startswith("difffit-cl"), f"{words}: expected one line, found:\n{err}"
    for text in says:
        assert text in err, f"{words}: expected '{text}' in: {err}"


def path(name):
    return os.path.join(T, name)


def config(content, name="config.json"):
    with open(path(name), "w") as f:
        f.write(content if isinstance(content, str) else json.dumps(content))
    return path(name)


def init(name, *words, env=None):
    """The shape of a base made with these options."""
    run("init", "--out", path(name), *words, env=env)
    return json.loads(run("info", path(name), "--json")[0])


TINY = {"depth": 1, "hidden": 16, "heads": 2, "patch": 2, "input": 4, "channels": 1, "classes": 3}


def commands(program):
    return re.findall(r"^  (\w+) +\S", run("--help", program=program)[0], re.M)


def options(program, command):
    """Options of a command with their arguments, as --help has them."""
    return dict(re.findall(r"^  (--?[\w-]+)(?: (\S+))?(?: |$)", run(command, "--help", program=program)[0], re.M))


def test_precedence():
    c = config({"classes": 5, "init": {**TINY, "classes": 6, "scale": 0.5}})
    assert init("a", "--config", c)["classes"] == 6
    assert init("a", "--config", c, env={"DIFFFIT_CL_CLASSES": "7"})["classes"] == 7
    assert init("a", "--config", c, "--classes", 8, env={"DIFFFIT_CL_CLASSES": "7"})["classes"] == 8
    assert init("a", "--classes", 8, "--config", c)["classes"] == 8, "the order of words does not matter"
    assert init("a", env={"DIFFFIT_CL_CONFIG": c, "DIFFFIT_CL_HIDDEN": ""})["hidden"] == 16
    assert init("a", "--config", config(TINY, "top.json"))["classes"] == 3
    err = run("init", "--config", c, "--out", path("a"), "--verbose", env={"DIFFFIT_CL_SEED": "3"})[1]
    assert "--scale comes from the configuration file" in err and "--seed comes from the environment" in err, err
    # a flag can be taken back
    assert run("devices", env={"DIFFFIT_CL_JSON": "on"})[0].startswith("[")
    assert not run("devices", "--json=off", env={"DIFFFIT_CL_JSON": "on"})[0].startswith("[")
    assert run("devices", env={"DIFFFIT_CL_JSON": "off", "DIFFFIT_CL_CONFIG": config({"json": True}, "top.json")})[0][0] != "["
    assert run("devices", "--config", config({"devices": {"json": True}}, "top.json"))[0].startswith("[")


def test_bad_sources():
    base = ["init", "--out", path("no"), "--config"]
    for content, says in (
        ({"init": {"clases": 3}}, ["init.clases", "did you mean classes?"]),
        ({"colour-of-the-sky": 3}, ["colour-of-the-sky", "unknown"]),
        ({"init": {"classes": "three"}}, ["init.classes", "a number", '"three"']),
        ({"init": {"classes": 2.5}}, ["init.classes", "whole number", "2.5"]),
        ({"init": {"classes": 0}}, ["init.classes", "from 1"]),
        ({"init": {"seed": 2**60}}, ["init.seed", "2^53"]),
        ({"init": {"size": 3}}, ["init.size", "a text", "3"]),
        ({"init": {"dtype": "f8"}}, ["init.dtype", "f32, f16 or bf16", "f8"]),
        ({"init": {"help": True}}, ["init.help", "unknown"]),
        ({"init": {"config": "x"}}, ["init.config", "unknown"]),
        ({"devices": {"json": 1}}, ["devices.json", "true or false"]),
        ({"train": {"method": "lora"}}, ["train.method", "bitfit", "lora"]),
        ({"train": 3}, ["train", "object"]),
        ({"train": {"st\neps": 3}}, ["difffit-cl init: ", "train.st?eps", "steps"]),
        ({"max-memory": 1, "init": TINY, "train": {"stepz": 3}}, ["train.stepz", "steps"]),
        ({"quiet": "yes"}, ["quiet", "true or false"]),
        ('{"init": {"classes": 3, "classes": 4}}', ["classes", "twice"]),
        ('{"init":\n {"classes" 3}}', ["line 2", "column 13"]),
        ("", ["JSON"]),
        ("[1]", ["object"]),
        ('{"init": {"size": "a\\u0000b"}}', ["\\u0000"]),
        ("{" + " " * (1 << 20) + "}", ["1 MiB"]),
        ({"format": "difffit-cl run 1"}, ["options"]),
    ):
        fails(6, *base, config(content), says=["config.json", *says])
    fails(7, *base, path("none.json"), says=["none.json"])
    fails(2, "init", "--config", says=["--config", "FILE"])
    fails(2, *base[:3], says=["DIFFFIT_CL_CLASSES", "whole number", "many"], env={"DIFFFIT_CL_CLASSES": "many"})
    fails(2, "devices", says=["DIFFFIT_CL_JSON", "on or off", "perhaps"], env={"DIFFFIT_CL_JSON": "perhaps"})
    fails(2, "devices", "--json=maybe", says=["--json", "on or off", "maybe"])
    assert not os.path.exists(path("no"))
    out, err = run("devices", env={"DIFFFIT_CL_DEVISE": "host", "DIFFFIT_CL_STEPS": "3"})
    assert out and err.count("\n") == 1 and "DIFFFIT_CL_DEVISE" in err, err
    assert not run("devices", "--quiet", env={"DIFFFIT_CL_DEVISE": "host"})[1]


def picture(name, value):
    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))  # noqa: E731
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)) +
                chunk(b"IDAT", zlib.compress((b"\0" + bytes([value] * 8)) * 8)) + chunk(b"IEND", b""))


def test_run_keeps_options():
    """A run says what it was started with, and can be started again from that."""
    init("base", *[w for k, v in {**TINY, "input": 8}.items() for w in (f"--{k}", v)])
    for k, v in (("x", 10), ("y", 200)):
        picture(path(f"data/{k}/0.png"), v)
        picture(path(f"data/{k}/1.png"), v + 9)
    c = config({"device": "host", "train": {"model": path("base"), "data": path("data"), "steps": 2, "batch": 2, "seed": str(2**60), "flip": True}})
    run("train", "--config", c, "--out", path("run"), "--lr", "2e-3", env={"DIFFFIT_CL_MAX_MEMORY": "1G", "DIFFFIT_CL_DEVICE": ""})
    want = {"model": path("base"), "data": path("data"), "steps": 2, "batch": 2, "seed": str(2**60), "flip": True, "out": path("run"), "lr": 2e-3,
            "max-memory": 1 << 30}
    kept = json.load(open(path("run/config.json")))
    assert kept["options"] == {"device": "host", "train": want}, kept["options"]
    assert kept["settings"]["seed"] == str(2**60) and kept["settings"]["flip"] is True and kept["settings"]["lr"] == 2e-3 and kept["max_memory"] == 1 << 30
    info = json.loads(run("info", path("run"), "--json")[0])
    assert info["config"]["options"]["train"] == want and info["config"]["keep"] == 2
    text = run("info", path("run"))[0]
    assert re.search(r"^ +weight_decay +0$", text, re.M) and re.search(r"^ +max-memory +1073741824$", text, re.M), text
    fails(2, "train", "--config", path("run/config.json"), says=["run"])  # the folder is in use
    run("train", "--config", path("run/config.json"), "--out", path("again"))
    for f in ("delta.safetensors", "delta-live.safetensors"):
        assert open(path("run/" + f), "rb").read() == open(path("again/" + f), "rb").read(), f
    run("train", "--config", path("run/config.json"), "--steps", 3, "--resume", "auto")
    assert json.load(open(path("run/config.json")))["options"]["train"]["steps"] == 3
    # a picture has its own settings; a delta in the configuration is not taken for it
    draw = ["--model", path("base"), "--steps", 2, "--classes", "1", "-n", 1]
    run("sample", *draw, "--out", path("p"))
    other = config({"sample": {"delta": [path("run/delta.safetensors")], "steps": 7, "classes": "0", "n": 4, "seed": 3, "cfg": 3}})
    run("sample", "--config", other, "--from", path("p/000000.png"), "--out", path("q.png"))
    assert open(path("p/000000.png"), "rb").read() == open(path("q.png"), "rb").read()
    # lists: one source replaces another
    run("sample", *draw[:4], "--config", other, "-n", 1, "--delta", path("run/delta.safetensors") + ":0.5", "--out", path("r"))
    assert b"request\0delta" in open(path("r/000000.png"), "rb").read()
    assert open(path("r/000000.png"), "rb").read().count(b"delta.safetensors") == 1
    run("sample", *draw[:4], "-n", 1, "--out", path("s"), "--seed", 3, "--cfg", 3, "--classes", 0, env={"DIFFFIT_CL_DELTA": path("run/delta.safetensors") + ":0.5"})
    assert open(path("r/000000.png"), "rb").read() == open(path("s/000000.png"), "rb").read()


def test_man():
    """The manual page has every command and option of --help, and is well-formed."""
    for program, prefix in PROGRAMS.items():
        page = run("--man", program=program)[0]
        plain = page.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "").replace("\\fI", "")
        for word in ("SH NAME", "SH SYNOPSIS", "SH COMMON OPTIONS", "SH EXIT STATUS", "SH SEE ALSO", prefix + "NAME", "\n143\n"):
            assert word in plain, (program, word)
        for c in commands(program):
            section = plain.split(f".SS {c}\n")[1].split("\n.SS ")[0].split("\n.SH COMMON")[0] + plain.split(".SH COMMON OPTIONS")[1]
            for o, arg in options(program, c).items():
                assert f"\n{o}{' ' + arg if arg else ''}\n" in section, (c, o, arg)
        if shutil.which("groff"):
            p = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z"], input=page, capture_output=True, text=True)
            assert not p.stderr, p.stderr
            p = subprocess.run(["groff", "-man", "-Tascii", "-P-cbou"], input=page, capture_output=True, text=True)
            assert "--completion bash|zsh" in p.stdout and "\\" not in p.stdout, p.stdout
        else:
            print("SKIPPED groff: not installed")


def complete(script, name, *words, env=None):
    """What bash offers for the last word."""
    call = f"""source {script}
        COMP_WORDS=({name} {' '.join("'" + w + "'" for w in words)}); COMP_CWORD={len(words)}
        _{name.replace('-', '_')}; printf '%s\\n' "${{COMPREPLY[@]}}"; complete -p {name}"""
    p = subprocess.run(["bash", "--norc", "-c", call], capture_output=True, text=True, cwd=T, env={**ENV, "PATH": f"{os.path.dirname(CLI)}:{ENV['PATH']}", **(env or {})})
    assert p.returncode == 0 and not p.stderr, (words, p.stderr)
    lines = p.stdout.strip().split("\n")
    assert lines[-1] == f"complete -F _{name.replace('-', '_')} {name}", lines
    return [x for x in lines[:-1] if x]


def test_bash():
    if not shutil.which("bash"):
        print("SKIPPED test_bash: no bash")
        return
    for program in PROGRAMS:
        name = os.path.basename(program)
        script = path(name + ".bash")
        with open(script, "w") as f:
            f.write(run("--completion", "bash", program=program)[0])
        assert set(complete(script, name, "")) >= set(commands(program)) | {"--version"}
        for c in commands(program):
            offered = complete(script, name, c, "-")
            assert sorted(offered) == sorted(options(program, c)), c
            for o, arg in options(program, c).items():
                if re.fullmatch(r"[\w+-]+(\|[\w+-]+)+", arg) and arg == arg.lower():
                    assert complete(script, name, c, o, "") == arg.split("|"), (c, o, arg)
    script = path("difffit-cl.bash")
    os.makedirs(path("a folder"), exist_ok=True)
    assert complete(script, "difffit-cl", "tr") == ["train"]
    assert complete(script, "difffit-cl", "train", "--recompute", "c") == ["cheap"]
    assert complete(script, "difffit-cl", "train", "--recompute", "=", "c") == ["cheap"]
    assert complete(script, "difffit-cl", "train", "--data", "a f") == ["a folder"]
    assert complete(script, "difffit-cl", "train", "--resume", "au") == ["auto"]
    assert complete(script, "difffit-cl", "train", "--steps", "") == []
    assert complete(script, "difffit-cl", "info", "a f") == ["a folder"]
    assert complete(script, "difffit-cl", "--completion", "z") == ["zsh"]
    assert {"auto", "host"} <= set(complete(script, "difffit-cl", "train", "--device", ""))
    fails(2, "--completion", "fish", says=["fish", "bash or zsh"])


def test_zsh():
    for program in PROGRAMS:
        text = run("--completion", "zsh", program=program)[0]
        name = os.path.basename(program)
        assert text.startswith(f"#compdef {name}\n")
        for c in commands(program):
            section = text.split(f"    {c})\n")[1].split("      ;;")[0]
            for o, arg in options(program, c).items():
                assert re.search(rf"'\*?{re.escape(o)}=?\[", section), (c, o)
        if not shutil.which("zsh"):
            print("SKIPPED zsh: not installed")
            continue
        with open(path("_" + name), "w") as f:
            f.write(text)
        # zsh on a terminal; a key of its own writes what the line has become to a file
        master, slave = pty.openpty()
        p = subprocess.Popen(["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, cwd=T, start_new_session=True,
                             env={**ENV, "TERM": "xterm", "PATH": f"{os.path.dirname(CLI)}:{os.path.dirname(BENCH)}:{ENV['PATH']}"})
        os.close(slave)
        threading.Thread(target=drain, args=(master,), daemon=True).start()
        try:
            os.write(master, f"fpath=({T} $fpath); autoload -U compinit; compinit -u -d {T}/dump\n"
                     f"show() {{ print -rn -- $BUFFER. > {T}/tmp; mv {T}/tmp {T}/line }}; zle -N show; bindkey '^Xs' show\n".encode())
            for typed, completed in COMPLETED[name]:
                os.write(master, f"\x15{name} {typed}\t\x18s".encode())
                give_up = time.monotonic() + 30
                while not os.path.exists(path("line")) and time.monotonic() < give_up:
                    time.sleep(0.05)
                got = open(path("line")).read()
                os.remove(path("line"))
                assert got == f"{name} {completed}.", (got, completed)
        finally:
            p.kill()
            p.wait()


def drain(fd):
    try:
        while os.read(fd, 4096):
            pass
    except OSError: # the other end is closed
        pass


COMPLETED = {"difffit-cl": [("tra", "train "), ("train --reco", "train --recompute="), ("train --recompute c", "train --recompute cheap "), ("train --flip --dev", "train --flip --device="),
                            ("info a\\ f", "info a\\ folder/"), ("train --resume au", "train --resume auto "), ("--completion z", "--completion zsh ")],
             "difffit-bench": [("fo", "forward "), ("train --method bit", "train --method bitfit ")]}


if __name__ == "__main__":
    failed = 0
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            try:
                test()
                print("ok:", name)
            except Exception:
                failed += 1
                print("FAILED:", name)
                traceback.print_exc(file=sys.stdout)
    sys.exit(1 if failed else 0)
