"""One Python program in a sandbox of its own, by bubblewrap.

Of its own: mount, process, network, IPC, host name and user namespaces; user and group nobody, no capabilities; the
standard library of this Python read-only and nothing else of the host; a small temporary folder; limits on processor
time, wall time, memory, processes, open files, file sizes and output; a filter of system calls (`seccomp.py`). When it
ends, or its time is over, everything that it started ends with it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3.errors import SandboxError, UsageError
from qwen3.sandbox import seccomp

OUT_OF_TIME = (-signal.SIGXCPU, 128 + signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of a program whose processor time is over: nobody else kills it."""
_NOBODY = 65534
_TEMPORARY, _SHARED = 64 << 20, 16 << 20  # bytes of /tmp, and of a file; of /dev/shm
_PAGE = os.sysconf("SC_PAGE_SIZE")
LOOK = 0.25  # seconds between two looks at how much memory a sandbox holds
_UIDS = range(1 << 20, 1 << 30)  # unassigned by any convention; where root starts a sandbox it takes one of these

# Runs first, in the interpreter that then runs the program: the process limit counts within the namespaces only when it
# is set inside them, and root's processes are not counted at all, so what root starts becomes somebody else here. What
# is set here need not be set between a fork and an exec of the caller, which may be large and have threads. bubblewrap
# asks to be killed when its caller dies; a caller that died before it asked is one whose end of a pipe is closed here.
_PRELUDE = """
import os, resource, sys
uid, alive, *bounds = map(int, sys.argv[1].split(","))
try:
    os.read(alive, 1)
    os._exit(1)
except BlockingIOError:
    os.close(alive)
names = ("NPROC", "CPU", "AS", "NOFILE", "FSIZE", "CORE", "MSGQUEUE", "MEMLOCK")
for name, value in zip(names, bounds + [0, 0, 0], strict=True):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
sys.argv = sys.argv[2:]
main = type(sys)("__main__")
main.__file__ = sys.argv[0]
sys.modules["__main__"] = main
with open(sys.argv[0], "rb") as file:
    code = compile(file.read(), sys.argv[0], "exec")
exec(code, main.__dict__)
"""


@dataclass(frozen=True)
class Limits:
    """cpu: seconds of a process; wall: seconds. memory: bytes of address space of a process, and of what all hold
    together. processes: at once, threads included. output: bytes of stdout and stderr, each; a program that writes more
    is stopped. files: open at once."""

    cpu: float = 5.0
    wall: float = 10.0
    memory: int = 512 << 20
    processes: int = 16
    output: int = 1 << 16
    files: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"limits.{name}={value} must be above 0")


@dataclass(frozen=True)
class Outcome:
    """How a program ended. code: exit code, negative for a signal's number. ended: "exit", "time" (its own or that of
    the clock), "memory" (of all its processes together) or "output" (it wrote too much). seconds: of the clock."""

    code: int
    stdout: str
    stderr: str
    ended: str
    seconds: float


def run(program: str, stdin: str = "", limits: Limits | None = None, arguments: Sequence[str] = ()) -> Outcome:
    """Run a Python program and wait for it.

    Raises SandboxError where there is no sandbox (no bubblewrap, or the system forbids user namespaces): nothing is run
    then, and never without one.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="qwen3-sandbox-") as folder:
        source = Path(folder, "program.py")
        source.write_text(program, encoding="utf-8", errors="surrogatepass")
        with start(source, limits, arguments) as process:
            return communicate(process, stdin.encode("utf-8", "surrogatepass"), limits)


@functools.cache
def require() -> str:
    """The path of a bubblewrap that works here. Raises SandboxError saying what is missing."""
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxError("running programs needs bubblewrap, which is not installed: `apt-get install bubblewrap`")
    try:
        command = [path, *_walls(path), str(_plain_python()), "-I", "-S", "-c", ""]
        trial = subprocess.run(command, capture_output=True, text=True, timeout=20, env={}, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"bubblewrap does not run here: {error}") from None
    if trial.returncode:
        why = trial.stderr.strip().splitlines()[-1:] or [f"exit code {trial.returncode}"]
        raise SandboxError(f"bubblewrap cannot make a sandbox here ({why[0]}): user namespaces may be switched off")
    return path


def start(
    source: Path, limits: Limits, arguments: Sequence[str] = (), pass_fds: Sequence[int] = (), quiet: bool = False
) -> subprocess.Popen[bytes]:
    """The program in `source` running in its sandbox, with pipes; `end` it. pass_fds: descriptors it gets, too.
    quiet: no input and no output instead of pipes."""
    command = [require(), *_walls(require()), "--ro-bind", str(source), "/program.py", "--remount-ro", "/"]
    filter_fd = _filter()
    if filter_fd is not None:
        command += ["--seccomp", str(filter_fd)]
    uid = random.SystemRandom().choice(_UIDS) if _is_root() else 0
    alive = _lifeline()[0]
    bounds = (limits.processes, max(1, round(limits.cpu)), limits.memory, limits.files, _TEMPORARY)
    command += [str(_plain_python()), "-I", "-S", "-B", "-X", "utf8", "-c", _PRELUDE]
    command += [",".join(map(str, (uid, alive, *bounds))), "/program.py", *arguments]
    end = subprocess.DEVNULL if quiet else subprocess.PIPE
    try:
        return subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, env={}, cwd="/", start_new_session=True,
            pass_fds=[*pass_fds, alive, *([] if filter_fd is None else [filter_fd])],
        )  # fmt: skip
    finally:
        if filter_fd is not None:
            os.close(filter_fd)


@functools.cache
def _lifeline() -> tuple[int, int]:
    """A pipe that nobody writes to and whose writing end is ours alone: reading it says whether we live."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


def end(process: subprocess.Popen[bytes]) -> None:
    """End it and all it has started: the first process of a process namespace takes the others with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def communicate(process: subprocess.Popen[bytes], stdin: bytes, limits: Limits) -> Outcome:
    """Feed it and read it to its end, or to that of its limits."""
    begin = time.monotonic()
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    held = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    feed, ended, left = process.stdin.fileno(), "exit", memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for fd, what in ((feed, selectors.EVENT_WRITE), *((fd, selectors.EVENT_READ) for fd in held)):
            os.set_blocking(fd, False)
            selector.register(fd, what)
        look = begin + LOOK
        while selector.get_map() and ended == "exit":
            if (now := time.monotonic()) >= begin + limits.wall:
                ended = "time"
                break
            if now >= look:
                look = now + LOOK
                if held_by(process.pid) > limits.memory:
                    ended = "memory"
                    break
            for key, _ in selector.select(min(look, begin + limits.wall) - now):
                if key.fd == feed:
                    try:
                        left = left[os.write(feed, left[:65536]) :] if left else left
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        selector.unregister(feed)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fd)
                held[key.fd] += data
                if len(held[key.fd]) > limits.output:
                    ended = "output"
    if ended == "exit":
        try:  # it has closed its output, which need not be its end
            process.wait(max(0.01, begin + limits.wall - time.monotonic()))
        except subprocess.TimeoutExpired:
            ended = "time"
    end(process)
    code = process.returncode
    if ended == "exit" and code in OUT_OF_TIME:
        ended = "time"
    out, err = (bytes(data[: limits.output]).decode("utf-8", "replace") for data in held.values())
    return Outcome(code, out, err, ended, time.monotonic() - begin)


def held_by(pid: int) -> int:
    """Bytes of memory that a process and all it has started hold; 0 where the system does not say."""
    held, left = 0, [pid]
    while left:
        folder = Path(f"/proc/{left.pop()}")
        with contextlib.suppress(OSError, IndexError, ValueError):
            held += int((folder / "statm").read_text().split()[1]) * _PAGE
            for task in (folder / "task").iterdir():
                left += map(int, (task / "children").read_text().split())
    return held


def _is_root() -> bool:
    return os.geteuid() == 0


@functools.cache
def _walls(bubblewrap: str) -> tuple[str, ...]:
    """bubblewrap's arguments: namespaces, and the little there is of a file system."""
    walls = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    walls += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv", "--cap-drop", "ALL"]
    if _is_root():  # the prelude gives these away
        walls += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        walls += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    walls += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
    for place in _readable():
        for folder in reversed(Path(place).parents[:-1]):  # else they get the modes of the host's, /root's for one
            walls += ["--dir", str(folder)]
        walls += ["--ro-bind", place, place]
    for name in ("lib", "lib64", "lib32"):
        if os.path.islink(f"/{name}"):
            walls += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            walls += ["--ro-bind", f"/{name}", f"/{name}"]
    walls += ["--proc", "/proc", "--dev", "/dev"]
    options = subprocess.run([bubblewrap, "--help"], capture_output=True, text=True, check=False).stdout
    mode = ["--perms", "1777"] if "--perms" in options else []
    if "--size" in options:
        walls += [*mode, "--size", str(_SHARED), "--tmpfs", "/dev/shm"]
        mode += ["--size", str(_TEMPORARY)]
    return (*walls, "--remount-ro", "/dev", *mode, "--tmpfs", "/tmp", "--chdir", "/tmp")


@functools.cache
def _readable() -> tuple[str, ...]:
    """Folders of the host that a Python cannot do without: its own, and the system's libraries."""
    places = [place for place in ("/usr/lib", "/usr/lib64", "/usr/lib32") if os.path.isdir(place)]
    for place in (sysconfig.get_path("stdlib"), str(_plain_python()), sysconfig.get_config_var("LIBDIR") or ""):
        real = os.path.realpath(place)
        if place and os.path.exists(real) and not any(real.startswith(known) for known in (*places, "/lib")):
            places.append(real)
    return tuple(places)


@functools.cache
def _plain_python() -> Path:
    """This Python without its virtual environment. Raises SandboxError if it is not where it says."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in (version, "python3", "python"):
        if (path := Path(sys.base_prefix, "bin", name)).exists():
            return path.resolve()
    raise SandboxError(f"there is no Python in {sys.base_prefix}/bin to run programs with")


def _filter() -> int | None:
    data = seccomp.program()
    if data is None:
        return None
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader
