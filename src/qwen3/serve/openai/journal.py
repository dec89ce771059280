"""What a batch has answered so far, in a file that any kill leaves readable.

One line a result, in the order in which they came: `checksum place kind text`, with the CRC-32 of what follows it in
hexadecimal, the place of the request in the batch's input, kind `o` (output) or `e` (errors), and the line of the
batch's output or error file. A line that is not whole can only be the last; it is cut off when the file is opened.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE = (1.0, 30.0)  # seconds before the first and later tries to write again


class Journal:
    """Blocking calls: the constructor, `lines`, `close`.

    places: place -> kind, of what is there. counts: of each kind. trouble: why nothing can be written now, or None.
    """

    def __init__(self, path: Path, total: int) -> None:
        self.path = path
        self.places: dict[int, str] = {}
        self.counts = {"o": 0, "e": 0}
        self.trouble: OSError | None = None
        self._at: dict[int, tuple[int, int]] = {}
        self._end = 0
        self._waiting: list[tuple[int, str, bytes, asyncio.Future[None]]] = []
        self._some = asyncio.Event()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(path, "rb") as file:
            for line in file:
                if not (found := _read(line)) or not 0 <= found[0] < total:
                    break
                self._note(*found, len(line))
        os.ftruncate(self._fd, self._end)

    def _note(self, place: int, kind: str, head: int, size: int) -> None:
        if place not in self.places:
            self.places[place] = kind
            self.counts[kind] += 1
            self._at[place] = (self._end + head, size - head)
        self._end += size

    async def append(self, place: int, kind: str, text: bytes) -> None:
        """Returns when the result is on the disk, however long that is full; `run` must be running."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((place, kind, text, done))
        self._some.set()
        await done

    async def run(self) -> None:
        """Write what comes, until cancelled; what comes together is written together."""
        while True:
            await self._some.wait()
            self._some.clear()
            group, self._waiting = self._waiting, []
            lines = [_line(place, kind, text) for place, kind, text, _ in group]
            await self._written(b"".join(lines))
            for (place, kind, text, done), line in zip(group, lines, strict=True):
                self._note(place, kind, len(line) - len(text) - 1, len(line))
                if not done.done():
                    done.set_result(None)

    async def _written(self, data: bytes) -> None:
        pause = PAUSE[0]
        while True:
            work = asyncio.ensure_future(asyncio.to_thread(self._write, data))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])  # the file is not to be closed under the thread
                raise
            except OSError as error:
                self.trouble = error
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE[1])
            else:
                self.trouble = None
                return

    def _write(self, data: bytes) -> None:
        """All of it or, as far as anybody can see, nothing."""
        try:
            at = self._end
            while at < self._end + len(data):
                at += os.pwrite(self._fd, data[at - self._end :], at)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise

    def lines(self, kind: str, missing: Callable[[int], bytes] | None = None, total: int = 0) -> Iterator[bytes]:
        """Lines of a kind in the order of the input. missing: the line of a place that has no result."""
        for place in range(total) if missing else sorted(self.places):
            if self.places.get(place) == kind:
                start, size = self._at[place]
                yield os.pread(self._fd, size, start)
            elif missing and place not in self.places:
                yield missing(place) + b"\n"

    def close(self) -> None:
        os.close(self._fd)


def _line(place: int, kind: str, text: bytes) -> bytes:
    rest = b"%d %s %s" % (place, kind.encode(), text)
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def _read(line: bytes) -> tuple[int, str, int] | None:
    """(place, kind, bytes before the text), None for what is not a whole line."""
    if line[-1:] != b"\n" or line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(line[9:-1]):
        return None
    place, kind, text = line[9:].split(b" ", 2)  # the checksum is right: we wrote it
    return int(place), kind.decode(), len(line) - len(text)
