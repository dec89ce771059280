#!/usr/bin/env python3
"""What a network can do to `qwen3 serve`, done to it: clients that leave, crawl, flood and lie, processes that die.

    python tools/serve_faults.py                          # all sections; writes benchmarks/DATE-serve-faults.json
    python tools/serve_faults.py drops drain --short      # some of them, as small as in the tests
    python tools/serve_faults.py --list

The server is a process of its own with the embedded model on the CPU; everything stays on loopback. About fifteen
minutes on two cores; exit code 1 if a section fails.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]


def main() -> int:
    from tests.serve import hostile, storage  # noqa: F401 (they add their sections)
    from tests.serve.faults import FLAGS, SECTIONS, Found, Served, serve

    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("sections", nargs="*", metavar="SECTION", help="none: all")
    options.add_argument("--short", action="store_true", help="the size of the tests")
    options.add_argument(
        "--tries", type=int, default=1, help="for a section that fails, on a machine with other work; 1"
    )
    options.add_argument("--list", action="store_true", help="the sections, and what each does")
    options.add_argument(
        "--out", type=Path, help="file; none: benchmarks/DATE-serve-faults.json after a whole campaign"
    )
    chosen = options.parse_args()
    if chosen.list:
        for name, part in SECTIONS.items():
            print(f"{name:18} {part.run.__doc__}")
        return 0
    if unknown := set(chosen.sections) - set(SECTIONS):
        options.error(f"no such section: {', '.join(sorted(unknown))}; --list shows them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with what stands in `finally`
    results: dict[str, Any] = {}
    shared: list[Served] = []
    with tempfile.TemporaryDirectory(prefix="qwen3-faults-") as room:
        try:
            for name in chosen.sections or SECTIONS:
                part = SECTIONS[name]
                size = part.short if chosen.short else part.full
                tries: list[dict[str, Any]] = []
                while len(tries) < chosen.tries and (not tries or tries[-1]["failures"]):
                    load = os.getloadavg()[0]
                    try:
                        found = asyncio.run(serve(name, size, Path(room, name, str(len(tries))), shared))
                    except Exception as error:
                        found = Found(failures=[f"{type(error).__name__}: {error}"])
                        while shared:
                            shared.pop().kill()
                    tries.append({**vars(found), "load_1min_before": load})
                    shown = json.dumps(tries[-1], default=str)
                    print(f"{'FAILED' if found.failures else 'ok    '} {name}: {shown}", file=sys.stderr, flush=True)
                *earlier, last = tries
                more = {"earlier": earlier} if earlier else {}
                results[name] = {"what": part.run.__doc__, "size": size, "passed": not last["failures"], **last, **more}
        finally:
            while shared:
                shared.pop().kill()

    from qwen3.evaluate.machine import commit

    today = datetime.datetime.now(datetime.UTC)
    passed = all(result["passed"] for result in results.values())
    result = {
        "what": "faults of clients, network, disk and processes against `qwen3 serve`, embedded model on the CPU",
        "command": " ".join(["python", "tools/serve_faults.py", *sys.argv[1:]]),
        "date": today.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {"cores": os.cpu_count(), "python": sys.version.split()[0]},
        "flags": list(FLAGS),
        "passed": passed,
        "sections": results,
    }
    whole = not chosen.sections and not chosen.short
    path = chosen.out or (ROOT / "benchmarks" / f"{today:%Y-%m-%d}-serve-faults.json" if whole else None)
    if path:
        path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    print(json.dumps({name: found["passed"] for name, found in results.items()}, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
