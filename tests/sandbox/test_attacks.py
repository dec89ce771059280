# ruff: noqa: E501  (programs in one line each)
"""Programs that want out, want more than their share, or want to be called right. None of them gets it."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from qwen3.errors import SandboxError
from qwen3.sandbox import Limits, check_calls, check_output, require, run

try:
    require()
except SandboxError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SHORT = Limits(cpu=1, wall=3, memory=256 << 20, processes=8, output=20_000)
SHORTER = dataclasses.replace(SHORT, wall=1.3)

# What each prints if it succeeds is what it must not print.
ESCAPES = {
    "read the host's accounts": "print('OUT', open('/etc/passwd').read())",
    "read a folder of the host": "import os; print('OUT', os.listdir('/home'))",
    "read the host's root home": "import os; print('OUT', os.listdir('/root'), os.listdir('/root/.ssh'))",
    "write beside the program": "open('/program.py', 'a').write('x'); print('OUT')",
    "write into the library": "import os; open(os.path.join(os.path.dirname(os.__file__), 'x'), 'w'); print('OUT')",
    "make a folder in the root": "import os; os.mkdir('/x'); print('OUT')",
    "a symbolic link to the host": (
        "import os; os.symlink('/proc/1/root/etc/shadow', '/tmp/l'); print('OUT', open('/tmp/l').read())"
    ),
    "another process's root": "import os; print('OUT', os.listdir('/proc/1/root/home'))",
    "a process of the host": "import os; pids = [p for p in os.listdir('/proc') if p.isdigit()]\n"
    "if len(pids) > 5: print('OUT', pids)",
    "a signal to all": "import os, signal\ntry:\n    os.kill(-1, signal.SIGTERM)\nexcept OSError:\n    pass\nraise SystemExit(3)",
    "a socket to this machine": "import socket; socket.create_connection(('127.0.0.1', 22), 1); print('OUT')",
    "a socket to the world": "import socket; socket.create_connection(('192.0.2.1', 80), 1); print('OUT')",
    "another network": "import os\nif len(os.listdir('/sys/class/net')) > 1: print('OUT')",
    "an abstract socket of the host": (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0/tmp/.X11-unix/X0'); print('OUT')"
    ),
    "to be root": "import os; os.setuid(0); print('OUT')",
    "to be root by saved ids": "import os; os.setresuid(-1, 0, -1); print('OUT')",
    "a new user namespace": ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('OUT')"),
    "to mount": ("import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('OUT')"),
    "to leave by chroot": "import os; os.chroot('/tmp'); print('OUT')",
    "to trace": "import ctypes\nif ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0: print('OUT')",
    "io_uring": "import ctypes\nif ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0: print('OUT')",
    "bpf": "import ctypes\nif ctypes.CDLL(None).syscall(321, 0, ctypes.create_string_buffer(72), 72) >= 0: print('OUT')",
    "a device": "open('/dev/mem', 'rb').read(1); print('OUT')",
    "a new device": "import os, stat; os.mknod('/tmp/d', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); print('OUT')",
    "a setuid program": "import subprocess; print('OUT', subprocess.run(['/usr/bin/su', '-c', 'id']).returncode)",
    "the environment": "import os\nif set(os.environ) - {'PATH', 'HOME', 'LANG', 'PWD', 'LC_CTYPE'}: print('OUT', os.environ)",
    "descriptors of the host": (
        "import os\nleft = [f for f in os.listdir('/proc/self/fd') if int(f) > 3]\nif left: print('OUT', left)"
    ),
    "more processor time than it has": (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (999, 999)); print('OUT')"
    ),
    "more processes than it has": (
        "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (999, 999)); print('OUT')"
    ),
}


@pytest.mark.parametrize("attack", ESCAPES)
def test_nothing_gets_out(attack: str) -> None:
    outcome = run(ESCAPES[attack], limits=SHORT)
    assert "OUT" not in outcome.stdout, attack
    assert not check_output(ESCAPES[attack], "", "OUT", SHORT).passed


GREED = {
    "a fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "threads without end": (
        "import threading, time\nwhile True:\n    try:\n        threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    except RuntimeError:\n        pass"
    ),
    "10 GB of memory": "x = [bytearray(1 << 28) for _ in range(40)]\nprint('OUT')",
    "a number without end": "x = 7 ** (10 ** 10)\nprint('OUT')",
    "output without end": "while True: print('x' * 1000)",
    "errors without end": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "a file without end": "f = open('/tmp/f', 'wb')\nwhile True: f.write(bytes(1 << 20))\nprint('OUT')",
    "files without end": "l = []\nwhile True: l.append(open(f'/tmp/{len(l)}', 'w'))",
    "a loop": "while True: pass",
    "sleep": "import time; time.sleep(1000); print('OUT')",
    "children that sleep on": (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        os.setsid(); time.sleep(1000)\nprint('done')"
    ),
    "signals it does not hear": (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass"
    ),
    "input it does not read": "import time; time.sleep(1000)",
    "recursion": "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1)\nf(0)\nprint('OUT')",
}


@pytest.mark.parametrize("attack", GREED)
def test_nothing_takes_more_than_its_share(attack: str) -> None:
    there = _ours()  # the judges' sandbox, which stays, if a test before wanted one
    begin = time.monotonic()
    outcome = run(GREED[attack], "y" * 200_000, SHORTER)
    assert time.monotonic() - begin < SHORTER.wall + 3, attack
    assert "OUT" not in outcome.stdout
    assert len(outcome.stdout) <= SHORT.output
    assert len(outcome.stderr) <= SHORT.output
    assert not _more_than(there), "a process outlived its sandbox"


def _ours() -> dict[str, str]:
    """Sandboxes that this process has: their numbers and command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            mine = (folder / "status").read_text().split("PPid:\t")[1].split("\n")[0] == str(os.getpid())
        except OSError:
            continue
        if b"/program.py" in line and mine:
            found[folder.name] = line.decode(errors="replace")
    return found


def _more_than(there: dict[str, str]) -> list[str]:
    """Command lines of sandboxes that still run and were not there before, a second's patience granted."""
    for _ in range(20):
        left = [line for pid, line in _ours().items() if pid not in there]
        if not left:
            break
        time.sleep(0.05)
    return left


TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1]\n"
CHEATS = {
    "says passed": "print('passed')\ndef f(x): return None",
    "leaves with success": "import os\ndef f(x): os._exit(0)",
    "leaves before": "raise SystemExit(0)",
    "is equal to everything": "class E:\n    def __eq__(self, o): return True\n    def __hash__(self): return 0\ndef f(x): return E()",
    "is equal to everything, as a number": "class E(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return E(9)",
    "patches assertions": "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return None",
    "turns assertions off": "import sys\nsys.flags = None\n__debug__ if True else 0\ndef f(x): return None",
    "looks into frames": (
        "import sys\ndef f(x):\n    g = sys._getframe()\n    while g:\n        g.f_globals['check'] = lambda c: None\n        g = g.f_back\n    return 0"
    ),
    "answers for the judge": (
        'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b\'passed\\n{"value": 4, "arguments": [null]}\\n\')\n'
        "    except OSError: pass\ndef f(x): return 0"
    ),
    "ends the judge": "import os, signal\ndef f(x):\n    for p in range(2, 100):\n        try: os.kill(p, signal.SIGKILL)\n        except OSError: pass\n    return 0",
    "prints a verdict at its end": "import atexit\natexit.register(lambda: print('0' * 32, 'passed'))\ndef f(x): return 0",
    "raises the judge's own end": "def f(x): raise SystemExit(0)",
    "patches the way back": 'import json\njson.dumps = lambda *a, **k: \'{"value": 4, "arguments": [null]}\'\ndef f(x): return 0',
    "floods the judge": "def f(x): return 'x' * (1 << 26)",
    "nests without end": "def f(x):\n    y = []\n    for _ in range(10 ** 5): y = [y]\n    return y",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_nothing_wrong_passes(cheat: str) -> None:
    verdict = check_calls(CHEATS[cheat], "f", TESTS, SHORT)
    assert not verdict.passed, verdict
    assert verdict.reason in ("failed", "error", "time", "output")


def test_what_is_right_passes() -> None:
    assert check_calls("def f(x): return x * 2 if isinstance(x, int) else x + x", "f", TESTS, SHORT).passed
    assert check_output("print(sum(map(int, input().split())))", "1 2 3\n", "6", SHORT).passed


def test_arguments_are_changed_and_values_come_as_they_are() -> None:
    program = (
        "def f(a, *, key=None):\n    a.sort(key=key and len)\n    return (1, {2.5: {3}}, b'x', None, float('inf'), a)"
    )
    tests = (
        "x = ['ccc', 'a']\nr = f(x, key=True)\nassert x == ['a', 'ccc']\n"
        "assert r == (1, {2.5: {3}}, b'x', None, float('inf'), ['a', 'ccc'])\nassert type(r) is tuple"
    )
    assert check_calls(program, "f", tests, SHORT).passed


def test_its_exceptions_reach_the_test() -> None:
    program = "def f(x):\n    raise ValueError('no ' + str(x))"
    tests = "try:\n    f(3)\nexcept ValueError as e:\n    assert str(e) == 'no 3'\nelse:\n    assert False"
    assert check_calls(program, "f", tests, SHORT).passed


def test_a_method_of_an_object_is_called() -> None:
    program = "class Solution:\n    def twice(self, x): return 2 * x"
    assert check_calls(program, "Solution().twice", "assert candidate(4) == 8", SHORT).passed


def test_wrong_output_is_said_by_line() -> None:
    verdict = check_output("print(1)\nprint(3)", "", "1\n2", SHORT)
    assert (verdict.reason, verdict.detail) == ("failed", "line 2 differs")
    assert check_output("1 / 0", "", "", SHORT).detail == "ZeroDivisionError: division by zero"


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    require.cache_clear()
    try:
        with pytest.raises(SandboxError, match="apt-get install bubblewrap") as caught:
            run("print(1)")
        assert caught.value.exit_code == 7
    finally:
        monkeypatch.undo()
        require.cache_clear()
