"""Values that are worked out beside something else."""

from __future__ import annotations

import threading

import pytest

from qwen3.errors import UsageError
from qwen3.options import Aside


@pytest.mark.parametrize("started", [False, True])
def test_a_value_from_a_thread_or_without_one(started: bool) -> None:
    names: list[str] = []

    def work() -> int:
        names.append(threading.current_thread().name)
        return 3

    value = Aside(work)
    if started:
        value.start()
        value.start()
    assert value.result() == value.result() == 3
    assert len(names) == 1
    assert (names[0] != threading.current_thread().name) == started


def test_what_the_work_raises() -> None:
    def work() -> int:
        raise UsageError("no")

    for start in (False, True):
        value = Aside(work)
        if start:
            value.start()
        with pytest.raises(UsageError, match="no"):
            value.result()
