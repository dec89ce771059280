"""Is a program right? By its output, or by calling what it defines; judged where it cannot reach.

The program under test and the test run in two sandboxes with nothing between them but a pair of pipes. The test calls
the program's function through a stand-in, which sends the arguments as plain values and gets plain values back:
numbers, texts, bytes, None and lists, tuples, sets, dicts and iterators of them. So there is no verdict for it to
print, no assertion to patch, no frame to look into and no object whose comparison says yes to everything. The verdict
comes back over a socket that the program never has, with a nonce that it never sees.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen3.errors import SandboxError
from qwen3.sandbox.inside import JUDGE, SERVER
from qwen3.sandbox.process import LOOK, OUT_OF_TIME, Limits, end, held_by, run, start

_ALL = 8 << 30  # bytes of address space that a judge may be granted


@dataclass(frozen=True)
class Verdict:
    """reason: "passed", "failed" (a wrong result), "error" (it raised, or gave what is no plain value), "time",
    "memory" or "output" (its limits). detail: one line. seconds: of the clock."""

    passed: bool
    reason: str
    detail: str
    seconds: float


def same_lines(found: str, wanted: str) -> str:
    """Where two texts differ, line by line, white space at the ends of lines and of the whole apart; "" if nowhere."""
    lines = [[line.rstrip() for line in text.strip().splitlines()] for text in (found, wanted)]
    if lines[0] == lines[1]:
        return ""
    short = min(map(len, lines))
    return f"line {1 + next((i for i, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), short)} differs"


def check_output(
    program: str,
    stdin: str,
    expected: str,
    limits: Limits | None = None,
    differ: Callable[[str, str], str] = same_lines,
) -> Verdict:
    """Does the program print `expected` on `stdin`? differ: says in a line how found and expected differ, "" if they do
    not. Raises what `run` raises."""
    outcome = run(program, stdin, limits)
    if outcome.ended != "exit":
        return Verdict(False, outcome.ended, f"ended by its limit of {outcome.ended}", outcome.seconds)
    if outcome.code:
        last = outcome.stderr.strip().splitlines()[-1:] or [f"exit code {outcome.code}"]
        return Verdict(False, "error", last[0][:500], outcome.seconds)
    how = differ(outcome.stdout, expected)
    return Verdict(not how, "failed" if how else "passed", how, outcome.seconds)


def check_calls(program: str, entry: str, tests: str, limits: Limits | None = None, setup: str = "") -> Verdict:
    """Does what the program defines pass the tests?

    entry: an expression for what is called, a function's name as a rule. tests: Python that calls it by that name or as
    `candidate` and raises AssertionError; if it defines `check`, that is called with it (HumanEval's form). setup:
    Python that runs before the tests, which may use what it defines. Arguments that are lists, dicts or sets are seen
    changed, as if it had been called directly. Raises what `run` raises.
    """
    limits = limits or Limits()
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen3-sandbox-"))
        ours, theirs, left, right = (
            stack.enter_context(end) for pair in (socket.socketpair(), socket.socketpair()) for end in pair
        )
        server = Path(folder, "server.py")
        call = f"serve({program!r}, {entry!r}, {right.fileno()})\n"
        server.write_text(SERVER + "\n" + call, encoding="utf-8", errors="backslashreplace")
        solution = stack.enter_context(start(server, limits, (), [right.fileno()], quiet=True))
        stack.callback(end, solution)
        right.close()
        _Judge.take(theirs, left)
        theirs.close()
        left.close()
        bounds = (max(1, round(limits.cpu)), limits.wall, min(limits.memory, _ALL))
        nonce, name = secrets.token_hex(16), entry if entry.isidentifier() else ""
        job = json.dumps([nonce, setup, tests, name, bounds]).encode()
        word, detail = _verdict(ours, job, nonce, begin + limits.wall, solution.pid, limits)
        if word == "ended":
            word = "error"
            with contextlib.suppress(subprocess.TimeoutExpired):
                word = "time" if solution.wait(1) in OUT_OF_TIME else "error"
    detail = f"ended by its limit of {word}" if word in ("time", "memory") else detail
    return Verdict(word == "passed", word, (detail.splitlines() or [""])[0], time.monotonic() - begin)


def _verdict(line: socket.socket, job: bytes, nonce: str, until: float, pid: int, limits: Limits) -> tuple[str, str]:
    """Send the job to a judge and hear its word and a detail."""
    data = b""
    try:
        line.settimeout(limits.wall)
        line.sendall(job)
        line.shutdown(socket.SHUT_WR)
        while (rest := until - time.monotonic()) > 0:
            line.settimeout(min(rest, LOOK))
            try:
                part = line.recv(1 << 16)
            except TimeoutError:
                if held_by(pid) > limits.memory:
                    return "memory", ""
                continue
            data += part
            if not part:
                break
        else:
            return "time", ""
        said, word, detail = json.loads(data)
    except (OSError, ValueError):
        return ("time" if time.monotonic() > until - 0.1 else "error"), "the tests came to no verdict"
    return (word, detail) if said == nonce else ("error", "the tests came to no verdict")


class _Judge:
    """The sandbox of all judges of this process. A thread of its own starts it: it would end with that thread."""

    _one: _Judge | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.error: Exception | None = None
        with tempfile.TemporaryDirectory(prefix="qwen3-sandbox-") as folder, far:
            source = Path(folder, "judge.py")
            source.write_text(JUDGE, encoding="utf-8")
            limits = Limits(cpu=1 << 30, memory=_ALL, processes=512, files=256)
            threading.Thread(target=self._hold, args=(source, limits, far), daemon=True).start()
            self.line.settimeout(30)
            try:
                ready = self.line.recv(16)
            except OSError:
                ready = b""
        if ready != b"ready":
            raise self.error or SandboxError("the sandbox of the judge did not start")

    def _hold(self, source: Path, limits: Limits, far: socket.socket) -> None:
        try:
            process = start(source, limits, [str(far.fileno())], [far.fileno()], quiet=True)
        except Exception as error:
            self.error = error
            self.line.shutdown(socket.SHUT_RDWR)
            return
        process.wait()

    @classmethod
    def take(cls, job: socket.socket, program: socket.socket) -> None:
        """Fork a judge that holds these two. Starts the sandbox where there is none yet, or none any more."""
        for attempt in (1, 2):
            with cls._lock:
                if cls._one is None or cls._one.pid != os.getpid():
                    cls._one = cls()
                one = cls._one
            try:
                socket.send_fds(one.line, [b"job"], [job.fileno(), program.fileno()])
                return
            except OSError as error:
                if attempt == 2:
                    raise SandboxError(f"the sandbox of the judge has ended: {error}") from None
                with cls._lock:
                    cls._one = None if cls._one is one else cls._one
