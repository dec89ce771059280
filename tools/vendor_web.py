#!/usr/bin/env python3
"""Puts the page's libraries into src/qwen3/data/web/vendor: npm packages by version and hash, with their licences.

python tools/vendor_web.py            # fetch with `npm pack`, verify, copy, write manifest.json
python tools/vendor_web.py --check    # are the files what the manifest says? Needs no network
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "src/qwen3/data/web/vendor"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Package:
    """An npm package. files: path in the package, without suffix globs, -> path in vendor/; "*" copies a folder's files
    of that suffix. rename: bare imports -> files, since a browser without an import map resolves none."""

    name: str
    version: str
    licence: str
    integrity: str
    files: dict[str, str]
    rename: dict[str, str]


PACKAGES = (
    Package(
        "preact", "11.2.0", "MIT",
        "sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "hooks.mjs", "LICENSE": "LICENSE.preact"},
        {'from"preact"': 'from"./preact.mjs"'},
    ),
    Package(
        "htm", "3.1.1", "Apache-2.0",
        "sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        {"dist/htm.mjs": "htm.mjs", "LICENSE": "LICENSE.htm"},
        {},
    ),
    Package(
        "marked", "18.2.1", "MIT",
        "sha512-ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/cI6p8z57FxliACboTruMA==",
        {"lib/marked.esm.js": "marked.mjs", "LICENSE": "LICENSE.marked"},
        {},
    ),
    Package(
        "dompurify", "3.4.18", "MPL-2.0 OR Apache-2.0",
        "sha512-ofe3wI/uNm68HInABYFJYqQxRw1EaKAjNdrFVKqjUY+UZurvNd2L/HuQe097s/4RivWiZyP6tT7aoT8atjfhwg==",
        {"dist/purify.min.js": "purify.min.js", "LICENSE": "LICENSE.dompurify"},
        {},
    ),
    Package(
        "katex", "0.19.1", "MIT",
        "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
        {
            "dist/katex.min.js": "katex.min.js", "dist/katex.min.css": "katex.min.css",
            "dist/fonts/*.woff2": "fonts", "LICENSE": "LICENSE.katex",
        },
        {},
    ),
)  # fmt: skip


def fetch(package: Package, folder: Path) -> Path:
    """The unpacked package. Raises SystemExit when the archive is not the pinned one."""
    spec = f"{package.name}@{package.version}"
    made = subprocess.run(["npm", "pack", spec], cwd=folder, capture_output=True, text=True, check=True)
    archive = folder / made.stdout.split()[-1]
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise SystemExit(f"{spec}: {found} is not the pinned {package.integrity}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / package.name, filter="data")
    return folder / package.name / "package"


def copy(package: Package, source: Path) -> dict[str, str]:
    """Copies the package's files; vendor path -> sha256."""
    hashes = {}
    for pattern, target in package.files.items():
        found = sorted(source.glob(pattern))
        if not found:
            raise SystemExit(f"{package.name}@{package.version} has no {pattern}")
        for file in found:
            data = file.read_bytes()
            if file.suffix in (".mjs", ".js"):
                text = data.decode()
                for old, new in package.rename.items():
                    text = text.replace(old, new)
                # The maps stay in the packages: browsers would ask for them in vain.
                lines = [line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")]
                data = ("\n".join(lines) + "\n").encode()
            path = VENDOR / target / file.name if "*" in pattern else VENDOR / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            hashes[path.relative_to(VENDOR).as_posix()] = hashlib.sha256(data).hexdigest()
    return hashes


def check() -> list[str]:
    """What differs from the manifest, a line each."""
    listed = json.loads((VENDOR / MANIFEST).read_text())["packages"]
    want = {path: digest for package in listed for path, digest in package["files"].items()}
    have = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    return [
        f"{path}: {'missing' if path not in have else 'not listed' if path not in want else 'changed'}"
        for path in sorted(want.keys() | have.keys())
        if want.get(path) != have.get(path)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the files with the manifest")
    if not parser.parse_args().check:
        with tempfile.TemporaryDirectory() as folder:
            listed = [
                {
                    "name": package.name,
                    "version": package.version,
                    "licence": package.licence,
                    "integrity": package.integrity,
                    "files": copy(package, fetch(package, Path(folder))),
                }
                for package in PACKAGES
            ]
        (VENDOR / MANIFEST).write_text(json.dumps({"packages": listed}, indent=1) + "\n")
    wrong = check()
    print("\n".join(wrong) or f"{VENDOR}: every file is the one in {MANIFEST}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
