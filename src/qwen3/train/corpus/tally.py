"""What became of the documents: how many each step dropped and why, with three of each to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3


@dataclass
class Step:
    """documents, bytes: that came in. changed: that went on with another text. dropped: by reason, {"documents",
    "bytes", "samples": the first ids}."""

    documents: int = 0
    bytes: int = 0
    changed: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, size: int) -> None:
        self.documents += 1
        self.bytes += size

    def drop(self, reason: str, size: int, sample: str) -> None:
        found = self.dropped.setdefault(reason, {"documents": 0, "bytes": 0, "samples": []})
        found["documents"] += 1
        found["bytes"] += size
        if len(found["samples"]) < SAMPLES:
            found["samples"].append(sample)


class Tally:
    """Of steps in order, and counts of other things by name. Tallies of parts are added in the parts' order."""

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps = {name: Step() for name in steps}
        self.counts: dict[str, int] = {}

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def add(self, found: Mapping[str, Any]) -> None:
        """found: another's `to_dict`."""
        for name, other in found["steps"].items():
            step = self.steps.setdefault(name, Step())
            step.documents += other["documents"]
            step.bytes += other["bytes"]
            step.changed += other["changed"]
            for reason, dropped in other["dropped"].items():
                own = step.dropped.setdefault(reason, {"documents": 0, "bytes": 0, "samples": []})
                own["documents"] += dropped["documents"]
                own["bytes"] += dropped["bytes"]
                own["samples"] = [*own["samples"], *dropped["samples"]][:SAMPLES]
        for name, number in found["counts"].items():
            self.count(name, number)

    def to_dict(self) -> dict[str, Any]:
        return {"steps": {name: vars(step) for name, step in self.steps.items()}, "counts": self.counts}

    def table(self) -> str:
        """A line for each step and each of its reasons."""
        lines = [f"{'step':14}{'documents':>11}{'MB':>9}{'changed':>9}{'dropped':>9}{'share':>8}  the first of them"]
        for name, step in self.steps.items():
            gone = sum(found["documents"] for found in step.dropped.values())
            lines.append(_line(name, step.documents, step.bytes, step.changed, gone))
            for reason, found in sorted(step.dropped.items(), key=lambda item: -item[1]["documents"]):
                share = found["documents"] / step.documents if step.documents else 0.0
                lines.append(
                    f"  {reason:32}{found['bytes'] / 1e6:>11.2f}{found['documents']:>9,}{share:>8.1%}  "
                    + ", ".join(found["samples"])
                )
        if self.counts:
            lines.append("counted: " + ", ".join(f"{number:,} {name}" for name, number in self.counts.items()))
        return "\n".join(lines)


def _line(name: str, documents: int, size: int, changed: int, gone: int) -> str:
    share = gone / documents if documents else 0.0
    return f"{name:14}{documents:>11,}{size / 1e6:>9.2f}{changed:>9,}{gone:>9,}{share:>8.1%}"
