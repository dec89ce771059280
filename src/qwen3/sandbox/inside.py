"""What runs inside the two sandboxes of `check.check_calls`: the program's server, and the judge that calls it."""

VALUES = r"""
import json, os, sys
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(100_000)
def pack(x):
    if x is None or type(x) in (bool, int, float, str):
        return x
    if isinstance(x, complex):
        return {"c": [x.real, x.imag]}
    if isinstance(x, (bytes, bytearray)):
        return {"b": list(x)}
    if isinstance(x, range):
        return {"r": [x.start, x.stop, x.step]}
    for kind, name in ((tuple, "t"), (list, "l"), (set, "s"), (frozenset, "f")):
        if isinstance(x, kind):
            return {name: [pack(y) for y in kind.__iter__(x)]}
    if isinstance(x, dict):
        return {"d": [[pack(k), pack(v)] for k, v in dict.items(x)]}
    for kind in (bool, int, float, str):
        if isinstance(x, kind):
            return kind.__new__(kind, x)
    if type(x) in (type({}.keys()), type({}.values()), type({}.items())) or hasattr(type(x), "__next__"):
        found = []
        for y in x:
            found.append(pack(y))
            if len(found) > 1_000_000:
                raise TypeError("it gives more than a million values")
        return {"i": found}
    raise TypeError(f"a {type(x).__name__} is no plain value")
def unpack(x):
    if not isinstance(x, dict):
        return x
    (name, v), = x.items()
    if name == "c":
        return complex(*v)
    if name == "b":
        return bytes(v)
    if name == "r":
        return range(*v)
    if name == "d":
        return {unpack(k): unpack(w) for k, w in v}
    return {"t": tuple, "l": list, "s": set, "f": frozenset, "i": iter}[name]([unpack(y) for y in v])
"""

SERVER = (
    VALUES
    + r"""
def serve(source, entry, line):
    space = {"__name__": "solution"}
    incoming, outgoing = os.fdopen(line, "r", encoding="ascii"), os.fdopen(os.dup(line), "w", encoding="ascii")
    def say(what, write=outgoing.write, flush=outgoing.flush, dumps=json.dumps):
        write(dumps(what) + "\n")
        flush()
    def failed(error):
        try:
            text = str(error)[:500]
        except BaseException:
            text = ""
        say({"error": [type(error).__name__, text]})
    try:
        exec(compile(source, "solution.py", "exec"), space)
        function = eval(entry, space)
        say({"ready": True})
    except BaseException as error:
        failed(error)
        return
    for line in incoming:
        arguments, named = unpack(json.loads(line))
        try:
            result = function(*arguments, **named)
            changed = [pack(a) if isinstance(a, (list, dict, set)) else None for a in arguments]
            say({"value": pack(result), "arguments": changed})
        except BaseException as error:
            failed(error)
"""
)

# It forks for each job, so that a judge costs no new sandbox and no new interpreter. It runs tests alone, never a
# program that is judged; of that it reads lines of JSON. A job's first descriptor brings tests and takes the verdict,
# the second leads to the program.
JUDGE = (
    VALUES
    + r"""
import builtins, resource, signal, socket
class Ended(Exception):
    pass
def judge(job, program):
    data = b""
    while part := os.read(job, 1 << 20):
        data += part
    nonce, setup, tests, name, (cpu, wall, memory) = json.loads(data)
    def verdict(*words):
        os.write(job, json.dumps([nonce, *(w[:500] for w in words)]).encode())
    for what, value in (("CPU", cpu), ("AS", memory)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (value, value))
    signal.setitimer(signal.ITIMER_REAL, wall)
    incoming, outgoing = os.fdopen(program, "r", encoding="ascii"), os.fdopen(os.dup(program), "w", encoding="ascii")
    def answer():
        try:
            line = incoming.readline(1 << 24)
        except OSError:
            line = ""
        if not line.endswith("\n"):
            raise Ended("the program has ended" if len(line) < 1 << 24 else "an answer of more than 16 MB")
        found = json.loads(line)
        if "error" in found:
            name, text = map(str, found["error"])
            kind = getattr(builtins, name, None)
            kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
            if issubclass(kind, StopIteration):  # it would end `all(map(candidate, …))` with a yes
                kind = RuntimeError
            raise kind(text)
        return found
    def candidate(*arguments, **named):
        try:
            outgoing.write(json.dumps(pack([list(arguments), named])) + "\n")
            outgoing.flush()
        except OSError:
            raise Ended("the program has ended") from None
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
        space = {"__name__": "tests"}
        exec(compile(setup, "setup.py", "exec"), space)
        space |= {"candidate": candidate} | ({name: candidate} if name else {})
        exec(compile(tests, "tests.py", "exec"), space)
        if callable(check := space.get("check")) and check is not candidate:
            check(candidate)
        verdict("passed", "")
    except AssertionError as error:
        verdict("failed", str(error))
    except Ended as error:
        verdict("ended", str(error))
    except BaseException as error:
        verdict("error", f"{type(error).__name__} {error}")
control = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
control.send(b"ready")
while True:
    message, (*fds,), _, _ = socket.recv_fds(control, 16, 2)
    if not message:
        break
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            judge(*fds)
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)
"""
)
