"""A server in a process that can be killed at any moment: the real application and runner, models that only play.

    python -m tests.serve.batch_server FOLDER LIVES LINES SEED

Runs the server on FOLDER as often as LIVES says, each time in a forked child, which is killed a random moment after it
has answered some requests more, up to LINES; every fifth is killed at a random moment of its beginning. However slow
the machine is, a child answers no more than that, but for the last ten, which may be killed while they finish. Then it
runs once more until all its batches have ended. Prints how far each life came, as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen3.chat import Finish, TextDelta, ThinkingReport, ToolCallDelta, Usage
from qwen3.chat.tool_calls import new_id
from qwen3.serve.app import create_app
from qwen3.serve.calls import Call
from qwen3.serve.settings import Settings
from tests.serve.fakes import FakeBackend, FakeModels, FakeStream


class SeededBackend(FakeBackend):
    """Answers that follow from the call alone, beside what never does: ids, cached tokens, how long it takes."""

    limit = sys.maxsize  # calls that are answered; all others wait for ever

    async def open(self, call: Call) -> FakeStream:
        self.limit -= 1
        if self.limit < 0:
            await asyncio.Future()
        text = hashlib.sha256(f"{call.messages}{call.sampling['seed']}".encode()).hexdigest()
        usage = Usage(10, random.randrange(10), 0, 4)
        finish = Finish("stop", usage, ThinkingReport("off", None, 0, 0, None))
        tool = ToolCallDelta(0, new_id(), "f", '{"a": 1}')
        return FakeStream(call, [TextDelta(text[:20]), TextDelta(text[20:]), tool, finish], random.random() * 0.002)


def settings(folder: Path) -> Settings:
    return Settings(models=(("fake", "fake"),), files_dir=folder, max_queue=8)


async def serve(folder: Path, limit: int) -> None:
    """Until all batches have ended."""
    backend = SeededBackend()
    backend.limit = limit
    app = create_app(settings(folder), FakeModels(backend))
    async with app.router.lifespan_context(app):
        batches: Any = app.state.server.batches
        while batches._running:
            await asyncio.sleep(0.002)


def written(folder: Path) -> int:
    """Lines of the journal, which is gone once the batch has ended."""
    with suppress(FileNotFoundError):
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("batches/*.journal"))
    return 0


def lives_on(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def main(folder: Path, lives: int, lines: int, seed: int) -> None:
    dice = random.Random(seed)
    story: list[dict[str, Any]] = []
    for life in range(lives + 1):
        more = dice.randint(1, lines)
        child = os.fork()
        if not child:
            asyncio.run(serve(folder, more if life < lives - 10 else sys.maxsize))
            os._exit(0)
        if life < lives:
            if life % 5:
                begin, target = time.monotonic(), written(folder) + dice.randint(0, more)
                while written(folder) < target and time.monotonic() - begin < 2 and lives_on(child):
                    time.sleep(0.002)
                time.sleep(dice.random() * 0.004)
            else:
                time.sleep(dice.random() * 0.1)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        states = [json.loads(path.read_bytes())["status"] for path in folder.glob("batches/*.json")]
        story.append({"lines": written(folder), "states": states, "status": status})
    print(json.dumps(story))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
