# ruff: noqa: E501  (programs in few lines each)
"""More programs that want out, want more than their share, or want to be called right: what people try at judges."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen3.errors import SandboxError
from qwen3.sandbox import Limits, check_calls, require, run

try:
    require()
except SandboxError as missing:
    pytest.skip(str(missing), allow_module_level=True)

SHORT = Limits(cpu=1, wall=3, memory=256 << 20, processes=8, output=20_000)
C = "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
CALL = C + "if c.syscall({0}) >= 0: print('OUT')"
X86 = os.uname().machine == "x86_64"

# What each prints if it succeeds is what it must not print.
ESCAPES = {
    "the environment of the first process": "print('OUT', open('/proc/1/environ').read())",
    "the environment of any process": "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and int(p) != os.getpid():\n        try: print('OUT', open(f'/proc/{p}/environ').read() or 1 / 0)\n        except (OSError, ZeroDivisionError): pass",
    "descriptors of the first process": "import os; print('OUT', os.listdir('/proc/1/fd'))",
    "memory of the first process": "open('/proc/1/mem', 'rb').read(1); print('OUT')",
    "its own root, twice up": "import os; print('OUT', os.listdir('/proc/self/root/../../root/.ssh'))",
    "a directory descriptor and up": "import os\nd = os.open('/', os.O_RDONLY)\nfor _ in range(9): d = os.open('..', os.O_RDONLY, dir_fd=d)\nprint('OUT', os.listdir(os.open('etc', os.O_RDONLY, dir_fd=d)))",
    "a link that the host could follow": "import os; os.symlink('/etc/passwd', '/tmp/x'); print('OUT', open('/tmp/x').read())",
    "a hard link to the program": "import os; os.link('/program.py', '/tmp/p'); print('OUT')",
    "the program made writable": "import os; os.chmod('/program.py', 0o777); print('OUT')",
    "into the packages": "import sysconfig; open(sysconfig.get_path('purelib') + '/x.pth', 'w'); print('OUT')",
    "into the kernel's settings": "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x'); print('OUT')",
    "the kernel's trigger": "open('/proc/sysrq-trigger', 'w').write('b'); print('OUT')",
    "into /dev": "open('/dev/x', 'w'); print('OUT')",
    "a name service": "import socket; print('OUT', socket.getaddrinfo('example.org', 80))",
    "a name service by hand": "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('8.8.8.8', 53)); print('OUT')",
    "any socket of any family": "import socket\nfor family in range(1, 46):\n    for kind in (1, 2, 3, 5):\n        try: socket.socket(family, kind); print('OUT', family, kind)\n        except OSError: pass",
    "the host's sockets in the file system": "import glob; found = glob.glob('/run/**/*', recursive=True) + glob.glob('/var/run/*') + glob.glob('/tmp/.*'); found and print('OUT', found)",
    "its parent by a signal": "import os, signal; os.kill(os.getppid(), signal.SIGKILL); print('OUT') if os.getppid() > 1 else None",
    "what its parent types": C + "import fcntl\nfor f in (0, 1, 2):\n    try: fcntl.ioctl(f, 0x5412, b'x'); print('OUT')\n    except OSError: pass",
    "a setuid file of its own": "import os\nopen('/tmp/s', 'w').write('#!/bin/sh\\n'); os.chmod('/tmp/s', 0o6777)\nif not os.statvfs('/tmp').f_flag & os.ST_NOSUID: print('OUT')",
    "a limit lifted by prlimit": "import resource; resource.prlimit(0, resource.RLIMIT_AS, (1 << 40, 1 << 40)); print('OUT')",
    "a higher priority": "import os; os.nice(-5); print('OUT')",
    "a namespace by clone": CALL.format("56, 0x10000000 | 17, 0, 0, 0, 0" if X86 else "220, 0x10000000 | 17, 0, 0, 0, 0"),
    "memory in a file that is nowhere": "import os; os.memfd_create('x'); print('OUT')",
    "shared memory of System V": CALL.format("29, 0, 1 << 20, 0o1666" if X86 else "194, 0, 1 << 20, 0o1666"),
    "keys of the kernel": CALL.format("250, 0, -3, 1" if X86 else "219, 0, -3, 1"),
    "userfaultfd": CALL.format("323, 1" if X86 else "282, 1"),
    "descriptors of others by pidfd": CALL.format("438, 3, 0, 0"),
    "another personality": CALL.format("135, 0x0040000" if X86 else "92, 0x0040000"),
    "another table of system calls": CALL.format("0x40000000 + 39"),
    "a 32-bit system call": C + "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\nf = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nif f() > 0: print('OUT')",
    "mount by the new calls": CALL.format("430, b'tmpfs', 0"),
    "open by handle": CALL.format("304, -100, 0, 0" if X86 else "265, -100, 0, 0"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ESCAPES)
def test_nothing_gets_out(attack: str) -> None:
    assert "OUT" not in run(ESCAPES[attack], limits=SHORT).stdout


def test_a_socket_of_this_machine_hears_nothing() -> None:
    """A service on the host's loopback, and an abstract one, which live in network namespaces of theirs."""
    name = f"\0qwen3-{secrets.token_hex(8)}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        port = server.getsockname()[1]
        outcome = run(
            f"import socket\nfor family, where in ((2, ('127.0.0.1', {port})), (1, {name!r})):\n    try:\n        socket.socket(family).connect(where)\n        print('OUT')\n    except OSError as error:\n        print(error.errno)"
        )
        assert outcome.stdout.split() == ["1", "1"], outcome


def left_running(token: str) -> list[str]:
    """Processes of the whole machine with the token in their name or command line, two seconds' patience granted."""
    found = [token]
    for _ in range(40):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if token in (folder / "comm").read_text() + (folder / "cmdline").read_text(errors="replace"):
                    found.append(folder.name)
            except OSError:
                continue
        if not found:
            break
        time.sleep(0.05)
    return found


STAYING = {
    "a daemon": "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        [os.close(f) for f in range(64) if f > -1 and f < 3]\n        time.sleep(100)\n    os._exit(0)\nprint('done')",
    "a group of its own": "import os, time\nif os.fork() == 0:\n    os.setpgid(0, 0); os.closerange(0, 64); time.sleep(100)\nprint('done')",
    "the end of its group": "import os, signal, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(100)\nos.killpg(0, signal.SIGKILL)",
    "forks that fork on": "import os, time\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass",
    "a thread at the end": "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",
    "an end that does not end": "import atexit\ndef on():\n    while True: pass\natexit.register(on)",
    "an object that does not go": "class A:\n    def __del__(self):\n        while True: pass\na = A()\ndel a",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
}  # fmt: skip


@pytest.mark.parametrize("attack", STAYING)
def test_nothing_stays(attack: str) -> None:
    token, begin = f"t{secrets.token_hex(6)}", time.monotonic()
    run(STAYING[attack], limits=Limits(cpu=1, wall=1.2, processes=8), arguments=[token])
    assert time.monotonic() - begin < 6
    assert not left_running(token)


def test_nothing_of_a_judged_program_stays() -> None:
    token = f"t{secrets.token_hex(6)}"
    program = f"import ctypes, os, time\ndef f(x):\n    if os.fork() == 0:\n        ctypes.CDLL(None).prctl(15, {token.encode()!r}); os.setsid(); time.sleep(100)\n    time.sleep(0.2)\n    return x * 2"
    assert check_calls(program, "f", "assert f(2) == 4", SHORT).passed
    assert not left_running(token)


def test_nothing_stays_when_we_are_killed() -> None:
    """Not even the judge, nor what a thread has started."""
    token = f"t{secrets.token_hex(6)}"
    ours = (
        "import threading\nfrom qwen3.sandbox import check_calls, run\n"
        "check_calls('def f(): return 1', 'f', 'assert f() == 1')\n"
        f"job = threading.Thread(target=run, args=('import time; time.sleep(50)', '', None, [{token!r}]))\n"
        "job.start()\nprint('ready', flush=True)\njob.join()"
    )
    with subprocess.Popen([sys.executable, "-c", ours], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        tasks, children = Path(f"/proc/{process.pid}/task"), []
        for _ in range(500):
            children = [int(pid) for file in tasks.glob("*/children") for pid in file.read_text().split()]
            if len(children) == 2:  # the judge and the program
                break
            time.sleep(0.01)
        assert len(children) == 2
        process.kill()
    assert not left_running(token)
    assert not [pid for pid in children if Path(f"/proc/{pid}/exe").exists()]


GREED = {
    "shared memory in /dev/shm": "f = open('/dev/shm/f', 'wb')\nfor _ in range(1000): f.write(bytes(1 << 20)); f.flush()\nprint('OUT')",
    "many files of the greatest size": "for i in range(100):\n    with open(f'/tmp/{i}', 'wb') as f: f.write(bytes(32 << 20))\nprint('OUT')",
    "an expression without end": "import re; re.match('(a+)+$', 'a' * 60 + 'b'); print('OUT')",
    "a crash of the interpreter": "import ctypes; ctypes.string_at(0); print('OUT')",
    "recursion in C": "x = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x)\nprint('OUT')",
    "a deep expression": "eval('(' * 10 ** 5 + ')' * 10 ** 5); print('OUT')",
    "mapped memory": "import mmap; l = [mmap.mmap(-1, 1 << 30) for _ in range(10)]; print('OUT')",
    "a text of 10 GB": "x = 'x' * (10 << 30); print('OUT')",
}  # fmt: skip


@pytest.mark.parametrize("attack", GREED)
def test_nothing_takes_more_than_its_share(attack: str) -> None:
    begin = time.monotonic()
    outcome = run(GREED[attack], limits=SHORT)
    assert time.monotonic() - begin < SHORT.wall + 3
    assert "OUT" not in outcome.stdout


def test_memory_counts_for_all_processes_together() -> None:
    program = "import os, time\nfor _ in range(6):\n    if os.fork() == 0: break\nx = bytearray(b'x') * (60 << 20)\ntime.sleep(20)"
    begin = time.monotonic()
    outcome = run(program, limits=Limits(wall=15, memory=128 << 20, processes=8))
    assert outcome.ended == "memory"
    assert time.monotonic() - begin < 12
    verdict = check_calls(
        f"def f(x):\n    {program.replace(chr(10), chr(10) + '    ')}", "f", "f(1)", Limits(wall=15, memory=128 << 20)
    )
    assert verdict.reason == "memory"


SECRET = "the_value_that_is_expected"
TESTS = f"def check(candidate):\n    assert candidate(2) == {SECRET!r}\n    assert all(map(candidate, ['all']))\n"
LOOK = "def f(x):\n    found = look()\n    return found if found else 0\n"
CHEATS = {
    "frames": "import sys\ndef look():\n    g = sys._getframe()\n    while g:\n        for v in (*g.f_locals.values(), *g.f_code.co_consts):\n            if isinstance(v, str) and v.startswith('the_value') : return v\n        g = g.f_back\n" + LOOK,
    "the collector": "import gc\ndef look():\n    for o in gc.get_objects():\n        if isinstance(o, dict):\n            for v in list(o.values()):\n                if isinstance(v, str) and 'the_value' in v and 'def look' not in v: return v\n" + LOOK,
    "its own memory": "import re\ndef look():\n    for line in open('/proc/self/maps'):\n        a, b = (int(n, 16) for n in line.split()[0].split('-'))\n        if 'rw' not in line or b - a > 1 << 26: continue\n        with open('/proc/self/mem', 'rb') as m:\n            m.seek(a); s = m.read(b - a)\n        t = re.search(b'candidate\\\\(2\\\\) == .([a-z_]+)', s)\n        if t: return t[1].decode()\n" + LOOK,
    "all files and arguments": "import glob\ndef look():\n    for p in glob.glob('/proc/*/cmdline') + glob.glob('/tmp/**', recursive=True) + glob.glob('/proc/*/fd/*') + ['/program.py']:\n        try: s = open(p).read(1 << 20) if 'fd' not in p else ''\n        except OSError: continue\n        if 'assert candidate' in s.split('def look')[0]: return 'the' + '_value_that_is_expected'\n" + LOOK,
    "the program file": "def look():\n    s = open('/program.py').read()\n    return 'found ' + s[s.index('the_value'):][:26] if s.count('the_value') > 9 else 0\n" + LOOK,
    "descriptors answered ahead": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"ready\": true}\\n' * 3 + b'{\"value\": true, \"arguments\": []}\\n' * 9)\n    except OSError: pass\ndef f(x): return 1",
    "a verdict on every descriptor": "import os\ndef f(x):\n    for fd in range(3, 64):\n        try: os.write(fd, b'[\"0123456789abcdef\", \"passed\", \"\"]')\n        except OSError: pass\n    os._exit(0)",
    "values of no kind": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"ready\": true}\\n{\"value\": {\"t\": {\"i\": 1}}, \"arguments\": 7}\\n')\n    except OSError: pass\ndef f(x): return 1",
    "half a line": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"ready\": ')\n    except OSError: pass\nos._exit(0)",
    "bytes that are no text": "import os\ndef f(x):\n    for fd in range(3, 64):\n        try: os.write(fd, bytes(range(256)) + b'\\n')\n        except OSError: pass",
    "an iteration that stops": "def f(x):\n    if x == 'all': raise StopIteration\n    return 'the' + '_value_that_is_expected'",
    "an assertion that says passed": "class AssertionError(Exception): pass\ndef f(x): raise AssertionError('passed')",
    "an exception without words": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(x): raise E",
    "a class that lies": "class L(str):\n    @property\n    def __class__(self): return int\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x): return L('x')",
    "a metaclass that lies": "class M(type):\n    def __instancecheck__(c, o): return True\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\nclass X(metaclass=M): pass\ndef f(x): return X",
    "a list that lies": "class L(list):\n    def __iter__(self): return iter(['x'])\n    def __eq__(self, o): return True\n    def __len__(self): return 0\ndef f(x): return L([1])",
    "a list in itself": "def f(x):\n    y = []; y.append(y); return y",
    "what is no value": "def f(x): return f",
    "a lone surrogate": "def f(x): return '\\ud800'",
    "an iterator without end": "import itertools\ndef f(x): return itertools.count()",
    "a number without end": "def f(x): return 10 ** 10 ** 6",
    "no number": "def f(x): return float('nan')",
    "a thread that answers later": "import threading, time\nr = [0]\ndef late():\n    time.sleep(0.05); r[0] = 1\ndef f(x):\n    threading.Thread(target=late).start(); return r",
    "comparisons patched": "import builtins, unittest, operator\nbuiltins.all = builtins.any = lambda *a: True\nunittest.TestCase.assertEqual = operator.eq = lambda *a: True\ndef f(x): return 0",
    "a check of its own": "def check(candidate): pass\ncandidate = None\ndef f(x): return 0",
    "a module of its own": "import os, sys\nopen('/tmp/json.py', 'w').write('loads = dumps = lambda *a: None')\nsys.path.insert(0, '/tmp'); sys.modules.pop('json', None)\nimport json\ndef f(x): return 0",
    "an end at once": "import os; os._exit(0)",
    "an end while it is called": "import sys\ndef f(x): sys.exit(0)",
    "an end by signal": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGTERM)",
    "all others ended": "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef f(x):\n    os.kill(-1, signal.SIGKILL)\n    return 0",
    "exits registered": "import atexit, threading\natexit.register(print, 'passed')\nthreading._register_atexit(print, 'passed')\ndef f(x): return 0",
    "tracing": "import sys\nsys.settrace(lambda f, e, a: None); sys.setprofile(lambda f, e, a: f.f_locals.update(result=1))\ndef f(x): return 0",
    "an encoder patched": "import json, json.encoder\njson.encoder.encode_basestring_ascii = lambda s: '\"the' + '_value_that_is_expected\"'\njson.dumps = lambda *a, **k: '{\"value\": true, \"arguments\": [null]}'\ndef f(x): return 'x'",
    "no program": "def g(: pass",
    "nothing": "",
    "null bytes": "def f(x): return 0\n\0",
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_nothing_wrong_passes(cheat: str) -> None:
    begin = time.monotonic()
    verdict = check_calls(CHEATS[cheat], "f", TESTS, SHORT)
    assert not verdict.passed, verdict
    assert verdict.reason in ("failed", "error", "time", "memory"), verdict
    assert time.monotonic() - begin < SHORT.wall + 3


def test_the_tests_that_cheats_fail_can_be_passed() -> None:
    assert check_calls(f"def f(x): return {SECRET!r}", "f", TESTS, SHORT).passed


def test_reasons() -> None:
    assert check_calls("def f(x):\n    while True: pass", "f", "f(1)", Limits(cpu=1, wall=1.2)).reason == "time"
    assert check_calls("import time\ndef f(x): time.sleep(60)", "f", "f(1)", Limits(cpu=1, wall=1.2)).reason == "time"
    assert check_calls("def f(x): return 1", "f", "while True: pass", Limits(cpu=1, wall=1.2)).reason != "passed"
    assert check_calls("def f(x): return 1", "f", "import os\nos._exit(0)", SHORT).reason == "error"
    verdict = check_calls(
        "def f(x):\n    print('x' * 10 ** 6)\n    return x", "f", "assert f(1) == 1\nassert f(2) == 3", SHORT
    )
    assert (verdict.reason, verdict.detail) == ("failed", "")


def test_values_of_every_plain_kind_come_through() -> None:
    values = (
        "[range(3), iter([1, 2]), {1: 2}.keys(), map(str, [1]), (n for n in 'ab'), -0.0, 2 ** 70, 1j, '\\u20ac\\ud800']"
    )
    tests = (
        "r = f()\nassert r[0] == range(3) and list(r[1]) == [1, 2] and set(r[2]) == {1} and list(r[3]) == ['1']\n"
        "assert list(r[4]) == ['a', 'b'] and str(r[5]) == '-0.0' and r[6:] == [2 ** 70, 1j, '\\u20ac\\ud800']\n"
        "assert f() != 10 ** 5000"
    )
    verdict = check_calls(f"def f(): return {values}", "f", tests)
    assert verdict.passed, verdict
    assert check_calls("def f(): return 10 ** 5000", "f", "assert f() == 10 ** 5000").passed


def test_what_the_tests_need_is_theirs() -> None:
    """Helpers of the setup are not the program's, though it has its own of that name."""
    program = "def double(x): return 0\ndef f(x): return x + x"
    assert check_calls(program, "f", "assert f(3) == double(3)", setup="def double(x): return 2 * x").passed


def test_judges_of_many_threads_do_not_mix() -> None:
    verdicts: dict[int, bool] = {}

    def one(i: int) -> None:
        program = f"def f(x): return x + {i}"
        verdicts[i] = check_calls(program, "f", f"assert f(1) == {i + 1 if i % 2 else 0}").passed

    threads = [threading.Thread(target=one, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: bool(i % 2) for i in range(12)}


def test_a_judge_that_has_ended_is_replaced() -> None:
    from qwen3.sandbox.check import _Judge

    assert check_calls("def f(x): return x", "f", "assert f(1) == 1").passed
    first = _Judge._one
    assert first is not None
    first.line.shutdown(socket.SHUT_RDWR)
    assert check_calls("def f(x): return x", "f", "assert f(1) == 1").passed
    assert _Judge._one is not first


def test_tests_cannot_be_called_by_what_the_job_holds() -> None:
    """Texts of a job are data: quotes, new lines and what looks like a verdict in them stay what they are."""
    text = json.dumps(["\"'\\", "\n", "passed", "]"])
    assert check_calls(
        f"import json\ndef f(): return json.loads({text!r})", "f", f"assert f() == {json.loads(text)!r}"
    ).passed
