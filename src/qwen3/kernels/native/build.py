"""C kernels, compiled once per machine by its own compiler and kept in the user's cache.

Nothing needs them: without a compiler, or where the compiled code does not do what its plain twin does, `library()` is
None and PyTorch's operators run. So installing never compiles, and the code is made for the very processor it runs on.
`QWEN3_NATIVE=0` turns them off; `CC` names another compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCES = ("packed.c", "attend.c", "layers.c", "gguf.c")
_HEADERS = ("maths.h", "kernels.h")
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_SECONDS = 120  # for the compiler; it takes about 6
_why = "not asked for yet"


def state() -> str:
    """Which path the compiled kernels take, or why there are none (for `qwen3 doctor`)."""
    found = library()
    if found is None:
        return f"none: {_why}"
    found.qwen3_path.restype = ctypes.c_char_p
    return str(found.qwen3_path().decode())


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there are none, and `state()` says why."""
    global _why
    if os.environ.get("QWEN3_NATIVE", "1") == "0":
        _why = "QWEN3_NATIVE=0"
        return None
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        _why = "no C compiler (cc, gcc or clang) on this machine"
        return None
    try:
        path = _compiled(compiler)
        if not _works(path):
            _why = "what the compiler made does not run on this processor"
            return None
        return _opened(path)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _why = f"{compiler} failed: {said.strip().splitlines()[0] if said.strip() else type(error).__name__}"
        return None


def _compiled(compiler: str) -> Path:
    """The shared object, made if the cache does not hold it for these sources, compiler, flags and processor."""
    here = Path(__file__).parent
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    version = _run(compiler, "--version")
    # The parallel loops run in the OpenMP library that PyTorch has loaded: two of them would fight for the cores. So
    # the code is compiled for OpenMP, but not linked with the compiler's own.
    flags = [native, *_FLAGS, *(("-fopenmp",) if "Free Software Foundation" in version and _openmp() else ())]
    # What "native" stands for changes with the processor, of which a home folder on several machines knows nothing.
    key = hashlib.sha256("".join([version, _run(compiler, native, "-E", "-dM", "-xc", os.devnull), *flags]).encode())
    sources = [here / name for name in SOURCES]
    for source in (*sources, *(here / name for name in _HEADERS)):
        key.update(source.read_bytes())
    folder = _cache()
    target = folder / f"kernels-{key.hexdigest()[:20]}.so"
    if not target.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as room:
            objects = [f"{room}/{source.stem}.o" for source in sources]
            with ThreadPoolExecutor(len(sources)) as pool:
                made = zip(sources, objects, strict=True)
                list(pool.map(lambda pair: _run(compiler, *flags, "-c", str(pair[0]), "-o", pair[1]), made))
            _run(compiler, "-shared", *objects, "-o", f"{room}/all.so", "-lm")
            os.replace(f"{room}/all.so", target)
    return target


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout


def _cache() -> Path:
    """A folder that nobody else can write to, since what lies in it is run."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "qwen3" / "native"


@functools.cache
def _openmp() -> Path | None:
    """The OpenMP library that PyTorch runs on, if it has GNU's interface (Intel's has, too)."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    try:
        loaded = Path("/proc/self/maps").read_text().split()
    except OSError:
        return None
    return next((Path(part) for part in loaded if "/libgomp" in part or "/libiomp5" in part), None)


def _opened(path: Path) -> ctypes.CDLL:
    if (threads := _openmp()) is not None:
        ctypes.CDLL(str(threads), ctypes.RTLD_GLOBAL)  # its names are then found by what is opened next
    return ctypes.CDLL(str(path))


def _works(path: Path) -> bool:
    """Tried in a child, where an instruction that this processor lacks costs nothing but the child. Once per file."""
    proof = path.with_suffix(".ok")
    if proof.exists():
        return True
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from qwen3.kernels.native import build; build.try_out(sys.argv[1])", path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "QWEN3_NATIVE": "0"},
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        proof.touch()
    return done.returncode == 0


def try_out(path: str) -> None:
    """Raises, or dies, if the kernels in `path` do not what `packed.linear` says."""
    from qwen3.kernels import packed

    torch.manual_seed(0)
    library = _opened(Path(path))
    for form in packed.FORMS:
        weight, x = packed.sample(form, (64, 256)), torch.randn(3, 256)
        found, plain = packed.run(library, x, weight), packed.linear(x, weight)
        if not (found - plain).norm() <= 1e-5 * plain.norm():
            raise AssertionError(f"{form}: not what the plain twin computes")
