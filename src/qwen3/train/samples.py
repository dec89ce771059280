"""What is trained on: exact token ids, and for every token whether its prediction counts and what is known about it.

Nothing that a model sampled, or that a renderer encoded, is ever decoded and encoded again on its way to the loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError


@dataclass(frozen=True, eq=False)
class TokenSample:
    """One document of n tokens.

    ids: int32 [n]. trained: bool [n], whether the prediction OF a token counts; token 0 has none. streams: float32 [n]
    or [n, k] by name, what a loss needs to know about the prediction of each token: "weight", "advantage", "logprob"
    (of the policy that sampled it), "reference", "teacher_ids", "teacher_logprobs", "teacher_tail". routes: int16
    [layers, n, k], the experts each token took as an input (mixture-of-experts), to be taken again. source: for
    statistics.

    Raises UsageError for shapes that do not fit each other, and for a trained first token.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    streams: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    routes: NDArray[np.int16] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.ids.ndim != 1 or not count:
            raise UsageError(f"ids must be a row of at least one token, not of shape {list(self.ids.shape)}")
        if self.trained.shape != (count,):
            raise UsageError(f"trained has shape {list(self.trained.shape)} for {count} ids")
        if self.trained[0]:
            raise UsageError("trained[0] is set, but nothing predicts the first token")
        for name, stream in self.streams.items():
            if stream.shape[:1] != (count,) or stream.ndim > 2:
                raise UsageError(f"streams[{name!r}] has shape {list(stream.shape)} for {count} ids")
        if self.routes is not None and (self.routes.ndim != 3 or self.routes.shape[1] != count):
            raise UsageError(f"routes has shape {list(self.routes.shape)} for {count} ids; [layers, ids, experts] fits")

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> TokenSample:
        """Tokens start … stop-1 as a document of their own; the first one's prediction no longer counts."""
        trained = self.trained[start:stop].copy()
        trained[0] = False
        streams = {name: stream[start:stop] for name, stream in self.streams.items()}
        routes = None if self.routes is None else self.routes[:, start:stop]
        return TokenSample(self.ids[start:stop], trained, streams, routes, self.source)


def completion_sample(
    prompt: Sequence[int],
    completion: Sequence[int],
    streams: Mapping[str, Sequence[float] | NDArray[np.float32]] | None = None,
    source: str = "",
) -> TokenSample:
    """A prompt that is read and a completion that is trained. streams: values for the completion's tokens alone, [m] or
    [m, k]; the prompt's are 0."""
    ids = np.asarray([*prompt, *completion], dtype=np.int32)
    trained = np.arange(len(ids)) >= max(1, len(prompt))
    whole = {}
    for name, values in (streams or {}).items():
        part = np.asarray(values, dtype=np.float32)
        if len(part) != len(completion):
            raise UsageError(f"streams[{name!r}] has {len(part)} values for a completion of {len(completion)} tokens")
        whole[name] = np.concatenate([np.zeros((len(prompt), *part.shape[1:]), np.float32), part])
    return TokenSample(ids, trained, whole, source=source)


def samples_fingerprint(samples: Sequence[TokenSample]) -> str:
    """Of their ids, what is trained, and streams."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.ids.tobytes() + sample.trained.tobytes())
        digest.update(b"".join(sample.streams[name].tobytes() for name in sorted(sample.streams)))
    return digest.hexdigest()[:16]
