"""Is a program right? By its output, or by calling what it defines; judged where it cannot reach.

The program under test and the test run in two sandboxes with nothing between them but a pair of pipes. The test calls
the program's function through a stand-in, which sends the arguments as plain values and gets plain values back:
numbers, texts, bytes, None and lists, tuples, sets and dicts of them. So there is no verdict for it to print, no
assertion to patch, no frame to look into and no object whose comparison says yes to everything.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qwen3.sandbox.process import Limits, Outcome, communicate, end, run, start

_VALUES = """
import json, os
def pack(x):
    if x is None or type(x) in (bool, int, float, str):
        return x
    if isinstance(x, complex):
        return {"c": [x.real, x.imag]}
    if isinstance(x, (bytes, bytearray)):
        return {"b": list(x)}
    for kind, name in ((tuple, "t"), (list, "l"), (set, "s"), (frozenset, "f")):
        if isinstance(x, kind):
            return {name: [pack(y) for y in kind.__iter__(x)]}
    if isinstance(x, dict):
        return {"d": [[pack(k), pack(v)] for k, v in dict.items(x)]}
    for kind in (bool, int, float, str):
        if isinstance(x, kind):
            return kind.__new__(kind, x)
    raise TypeError(f"a {type(x).__name__} is no plain value")
def unpack(x):
    if not isinstance(x, dict):
        return x
    (name, v), = x.items()
    if name == "c":
        return complex(*v)
    if name == "b":
        return bytes(v)
    if name == "d":
        return {unpack(k): unpack(w) for k, w in v}
    return {"t": tuple, "l": list, "s": set, "f": frozenset}[name](map(unpack, v))
"""
_SERVER = (
    _VALUES
    + """
import sys
def serve(source, entry, reader, writer):
    space = {"__name__": "solution"}
    incoming, outgoing = os.fdopen(reader, "r", encoding="ascii"), os.fdopen(writer, "w", encoding="ascii")
    def say(what):
        outgoing.write(json.dumps(what) + "\\n")
        outgoing.flush()
    try:
        exec(compile(source, "solution.py", "exec"), space)
        function = eval(entry, space)
        say({"ready": True})
    except BaseException as error:
        say({"error": [type(error).__name__, str(error)[:500]]})
        return
    for line in incoming:
        arguments, named = unpack(json.loads(line))
        try:
            result = function(*arguments, **named)
            changed = [pack(a) if isinstance(a, (list, dict, set)) else None for a in arguments]
            say({"value": pack(result), "arguments": changed})
        except BaseException as error:
            say({"error": [type(error).__name__, str(error)[:500]]})
    """
)
_TESTER = (
    _VALUES
    + """
import builtins, sys
nonce, reader, writer = sys.stdin.readline().strip(), int(sys.argv[1]), int(sys.argv[2])
tests, names = json.loads(sys.stdin.readline())
incoming, outgoing = os.fdopen(reader, "r", encoding="ascii"), os.fdopen(writer, "w", encoding="ascii")
def answer():
    line = incoming.readline(1 << 24)
    if not line.endswith("\\n"):
        raise RuntimeError("the program has ended")
    found = json.loads(line)
    if "error" in found:
        name, text = map(str, found["error"])
        kind = getattr(builtins, name, None)
        kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
        raise kind(text)
    return found
def candidate(*arguments, **named):
    outgoing.write(json.dumps(pack([list(arguments), named])) + "\\n")
    outgoing.flush()
    found = answer()
    for old, new in zip(arguments, found["arguments"]):
        new = None if new is None else unpack(new)
        if isinstance(old, list) and isinstance(new, list):
            old[:] = new
        elif isinstance(old, (dict, set)) and type(new) is type(old):
            old.clear()
            old.update(new)
    return unpack(found["value"])
try:
    answer()
    space = {"__name__": "tests", "candidate": candidate, **{name: candidate for name in names}}
    exec(compile(tests, "tests.py", "exec"), space)
    if callable(space.get("check")):
        space["check"](candidate)
    print(nonce, "passed")
except AssertionError as error:
    print(nonce, "failed", str(error)[:500])
except BaseException as error:
    print(nonce, "error", type(error).__name__, str(error)[:500])
"""
)


@dataclass(frozen=True)
class Verdict:
    """reason: "passed", "failed" (a wrong result), "error" (it raised, or gave what is no plain value), "time" or
    "output" (its limits). detail: one line. seconds: of the clock."""

    passed: bool
    reason: str
    detail: str
    seconds: float


def check_output(program: str, stdin: str, expected: str, limits: Limits | None = None) -> Verdict:
    """Does the program print `expected` on `stdin`? Line by line, white space at the ends of lines and of the whole
    apart. Raises what `run` raises."""
    outcome = run(program, stdin, limits)
    if outcome.ended != "exit":
        return Verdict(False, outcome.ended, f"ended by its limit of {outcome.ended}", outcome.seconds)
    if outcome.code:
        last = outcome.stderr.strip().splitlines()[-1:] or [f"exit code {outcome.code}"]
        return Verdict(False, "error", last[0][:500], outcome.seconds)
    found, wanted = ([line.rstrip() for line in text.strip().splitlines()] for text in (outcome.stdout, expected))
    if found == wanted:
        return Verdict(True, "passed", "", outcome.seconds)
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    return Verdict(False, "failed", f"line {at + 1} differs", outcome.seconds)


def check_calls(program: str, entry: str, tests: str, limits: Limits | None = None) -> Verdict:
    """Does what the program defines pass the tests?

    entry: an expression for what is called, a function's name as a rule. tests: Python that calls it by that name or as
    `candidate` and raises AssertionError; if it defines `check`, that is called with it (HumanEval's form). Arguments
    that are lists, dicts or sets are seen changed, as if it had been called directly. Raises what `run` raises.
    """
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen3-sandbox-"))
        ends = [os.pipe(), os.pipe()]  # to the program, from the program
        fds = [fd for pair in ends for fd in pair]
        try:
            (to_read, to_write), (from_read, from_write) = ends
            server, tester = Path(folder, "server.py"), Path(folder, "tester.py")
            call = f"serve({program!r}, {entry!r}, {to_read}, {from_write})\n"
            server.write_text(_SERVER + "\n" + call, encoding="utf-8", errors="backslashreplace")
            tester.write_text(_TESTER, encoding="utf-8")
            solution = stack.enter_context(start(server, limits, pass_fds=[to_read, from_write]))
            stack.callback(end, solution)
            judge = stack.enter_context(start(tester, limits, [str(from_read), str(to_write)], [from_read, to_write]))
        finally:
            for fd in fds:
                os.close(fd)
        noise: list[Outcome] = []
        reader = threading.Thread(target=lambda: noise.append(communicate(solution, b"", limits)))
        reader.start()
        lines = f"{nonce}\n{json.dumps([tests, [entry] if entry.isidentifier() else []])}\n"
        outcome = communicate(judge, lines.encode(), limits)
        end(solution)
        reader.join()
    word, _, detail = outcome.stdout.strip().removeprefix(nonce).strip().partition(" ")
    if outcome.stdout.startswith(nonce) and word == "passed" and outcome.code == 0:
        return Verdict(True, "passed", "", outcome.seconds)
    if noise and noise[0].ended == "output":
        return Verdict(False, "output", "ended by its limit of output", outcome.seconds)
    if outcome.ended == "time" or (noise and noise[0].ended == "time" and word != "failed"):
        return Verdict(False, "time", "ended by its limit of time", outcome.seconds)
    if outcome.stdout.startswith(nonce):
        return Verdict(False, word, detail.splitlines()[0] if detail else "", outcome.seconds)
    return Verdict(False, "error", (outcome.stderr.strip().splitlines() or ["no verdict"])[-1][:500], outcome.seconds)
