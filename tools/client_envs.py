#!/usr/bin/env python3
"""Environments of the clients that tests drive the server with: one folder each, beside each other in FOLDER.

    python tools/client_envs.py FOLDER [NAME...]     # then: QWEN3_CLIENTS=FOLDER make test

`tests/clients/requirements-NAME.txt` becomes the virtual environment FOLDER/NAME, `tests/clients/package.json` with its
lock FOLDER/node. One that a stamp shows to be made from these very files and this Python is left as it is. None of them
has torch, and none of them is seen by the package. Exit code 1, with the end of the installer's output, if one fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "tests" / "clients"
STAMP = ".made-from"


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs an installer; RuntimeError with the end of what it said, if it fails."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "is ignored" not in line]
        raise RuntimeError("\n".join([f"{command[0]} exited {done.returncode}", *said[-12:]]))


def python(folder: Path, requirements: Path) -> None:
    """A virtual environment; its packages are installed by the pip of the Python that runs this. Most of their modules
    are never imported, so that compiling all of them would cost more than half of the time."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    interpreter = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-compile", "-r", requirements)


def node(folder: Path, package: Path) -> None:
    """FOLDER/node/node_modules as the lock says; install scripts of packages are not run."""
    folder.mkdir()
    for file in (package, package.with_name("package-lock.json")):
        shutil.copy(file, folder)
    run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)


def wanted() -> dict[str, tuple[Callable[[Path, Path], None], Path, str]]:
    """name → (who makes it, from which file, what its stamp holds)."""
    files = {path.stem.removeprefix("requirements-"): path for path in sorted(SOURCE.glob("requirements-*.txt"))}
    if shutil.which("npm"):
        files["node"] = SOURCE / "package.json"
    else:
        print("node: left out, npm is not installed")
    out = {}
    for name, path in files.items():
        content = path.read_bytes()
        if name == "node":
            content += path.with_name("package-lock.json").read_bytes()
        where = f"{sys.base_prefix if name != 'node' else ''} {platform.python_version()} {platform.platform()}"
        stamp = hashlib.sha256(content + where.encode()).hexdigest()
        out[name] = (node if name == "node" else python, path, stamp)
    return out


def size_mb(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def make(root: Path, name: str, maker: Callable[[Path, Path], None], source: Path, stamp: str) -> str | None:
    """Makes one environment if need be and reports it; returns what went wrong, if something did."""
    folder, start = root / name, time.perf_counter()
    mark = folder / STAMP
    if mark.is_file() and mark.read_text() == stamp:
        print(f"{name:14} as it was      {size_mb(folder):6.0f} MB", flush=True)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    try:
        maker(folder, source)
    except (OSError, RuntimeError) as error:
        return f"{name}: {error}"
    mark.write_text(stamp)  # last: an interrupted one has no stamp and is made again
    print(f"{name:14} made in {time.perf_counter() - start:4.0f} s {size_mb(folder):6.0f} MB", flush=True)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these")
    args = parser.parse_args()
    all_of_them = wanted()
    if unknown := set(args.names) - set(all_of_them):
        parser.error(f"no such environment: {', '.join(sorted(unknown))}; there are {', '.join(all_of_them)}")
    root, start = args.folder.resolve(), time.perf_counter()
    root.mkdir(parents=True, exist_ok=True)
    names = args.names or list(all_of_them)
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        failed = [why for why in pool.map(lambda name: make(root, name, *all_of_them[name]), names) if why]
    print(f"{len(names) - len(failed)} of {len(names)} in {time.perf_counter() - start:.0f} s, {size_mb(root):.0f} MB")
    for why in failed:
        print(f"error: {why}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
