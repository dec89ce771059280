"""Texts in, numbers out: embeddings and relevance, as the Qwen3-Embedding and Qwen3-Reranker models were made for.

An embedding is the last hidden state of the text's last token, which is `<|endoftext|>`, at length 1. A relevance is
the probability of "yes" against "no" where the answer to a fixed question about query and document begins. Source:
model cards of Qwen3-Embedding and Qwen3-Reranker; arXiv 2506.05176, section 2.

Functions that compute are iterators over batches, short texts first, so that who calls can do something in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.checkpoint import Resolved
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer

DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"

_BATCH_TOKENS = {"cuda": 8192}  # of a forward with several texts, padding included; else 1,024
_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def model_kind(resolved: Resolved) -> str:
    """ "embedding", "reranker" or "chat": by the repository's or folder's name, or by the files of a pipeline for
    embeddings beside the weights."""
    name = f"{resolved.repo or ''} {resolved.path.name}".lower()
    if "reranker" in name:
        return "reranker"
    pools = any((resolved.path / file).is_file() for file in ("modules.json", "1_Pooling/config.json"))
    return "embedding" if "embedding" in name or pools else "chat"


def embedding_ids(tokenizer: Tokenizer, inputs: Sequence[str | Sequence[int]], context: int) -> list[list[int]]:
    """Token ids to embed, each with the end that the vector is read off. Control strings in a text are text.

    Raises UsageError naming the input that is empty or longer than `context` tokens, or that holds an unknown id.
    """
    end = tokenizer.control.endoftext
    found = []
    for i, item in enumerate(inputs):
        ids = tokenizer.encode_plain(item) if isinstance(item, str) else list(item)
        if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
            raise UsageError(f"input[{i}] holds an id that is no token of this model")
        found.append(ids if ids and ids[-1] == end else [*ids, end])
        _check(f"input[{i}]", found[-1], context)
    return found


def rerank_ids(
    tokenizer: Tokenizer, query: str, documents: Sequence[str], instruction: str | None, context: int
) -> list[list[int]]:
    """Token ids of the question about each document. Control strings in what was given are text.

    Raises UsageError naming the document that is too long with its query.
    """
    head, tail = tokenizer.encode(_HEAD), tokenizer.encode(_TAIL)
    found = []
    for i, document in enumerate(documents):
        text = f"<Instruct>: {instruction or DEFAULT_TASK}\n<Query>: {query}\n<Document>: {document}"
        found.append([*head, *tokenizer.encode_plain(text), *tail])
        _check(f"documents[{i}] with its query", found[-1], context)
    return found


def embed(
    model: Qwen3, ids: Sequence[Sequence[int]], dimensions: int | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """(places in `ids`, their vectors: float32 [texts, dimensions] on the CPU, of length 1) of each batch.

    dimensions: the first so many numbers, for models trained for that; None: all. Raises UsageError.
    """
    size = model.config.hidden_size
    if dimensions is not None and not (type(dimensions) is int and 1 <= dimensions <= size):
        raise UsageError(f"dimensions={dimensions!r} must be 1 to {size}, which is what this model has")
    for places, states in _last_states(model, ids):
        yield places, F.normalize(states[:, :dimensions].float(), dim=-1).cpu()


def rerank(model: Qwen3, tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[float]]]:
    """(places in `ids`, how relevant their documents are, 0 to 1) of each batch.

    Raises UsageError for a tokenizer that cannot say yes or no in one token.
    """
    answers = [tokenizer.encode(word) for word in ("no", "yes")]
    if any(len(answer) != 1 for answer in answers):
        raise UsageError("this model cannot rerank: its tokenizer has no token for 'yes' and 'no'")
    for places, states in _last_states(model, ids):
        with torch.inference_mode():
            logits = model.head(states)[:, [answer[0] for answer in answers]].float()
            yield places, logits.softmax(-1)[:, 1].tolist()


def _last_states(model: Qwen3, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
    """(places, hidden states [texts, h] of their last tokens). Padding comes after a text and is seen by none of it."""
    most = _BATCH_TOKENS.get(model.device.type, 1024)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    while order:
        count = 1
        while count < len(order) and (count + 1) * len(ids[order[count]]) <= most:
            count += 1
        places, order = order[:count], order[count:]
        longest = len(ids[places[-1]])
        rows = [[*ids[i], *[0] * (longest - len(ids[i]))] for i in places]
        last = [len(ids[i]) - 1 for i in places]
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor(rows, device=model.device))
            yield places, hidden[torch.arange(count, device=model.device), torch.tensor(last, device=model.device)]


def _check(what: str, ids: list[int], context: int) -> None:
    if len(ids) > context:
        raise UsageError(f"{what} has {len(ids):,} tokens, but the context is {context:,}: shorten it")
