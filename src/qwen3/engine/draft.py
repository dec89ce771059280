"""A draft model: a smaller network with the same vocabulary that guesses the next tokens of a larger one.

It has a runner of its own, with its own keys and values, in the same blocks: one table, written by the scheduler, says
for both where a sample's tokens are. So whatever happens to a block (shared, preempted, rolled back, found again)
happens to both. What the draft's cache really holds may lag behind: it is fed prompts together with the target, outputs
only while it guesses, and a chunk makes up for the rest. A wrong guess costs time, never a token: see `speculate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qwen3.checkpoint.memory import dtype_bytes
from qwen3.config import ModelConfig
from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.machine import Machine
from qwen3.engine.pickers import Sample
from qwen3.engine.runner import Fed, Runner, State
from qwen3.engine.sampler import sample
from qwen3.engine.scheduler import Chunk
from qwen3.engine.scheduler import Sequence as Row
from qwen3.errors import Qwen3Error, UsageError
from qwen3.kernels import BLOCK
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer

_PIECE = 2048  # tokens of a step that makes up for what was missed
_LOOK_BACK = 64  # tokens that are compared with what was fed: a rollback shows in them
_LOOKS = 512  # ids at which two tokenizers are compared


def kv_bytes_per_block(config: ModelConfig, kv_dtype: torch.dtype) -> int:
    """Bytes that each block of the engine's KV pool takes more, with a draft model of this shape."""
    return BLOCK * config.kv_bytes_per_token(dtype_bytes(kv_dtype))


@dataclass
class _Book:
    """What the draft's cache holds of a running sample: its first `computed` tokens, the last of which were `tail`, and
    behind these the guesses `ahead`. keys: of its full blocks, each made from all tokens up to its end."""

    row: Row
    preemptions: int
    computed: int = 0
    tail: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    follows: bool = False  # the device feeds it every token, and only the device knows how many

    @property
    def lag(self) -> int:
        return len(self.row.tokens) - self.computed

    def lacks(self, guesses: int) -> bool:
        """Whether the last token, and guesses behind it but the last one, have no block yet."""
        return guesses > 0 and len(self.row.tokens) + guesses - 1 > len(self.row.blocks) * BLOCK

    def fed(self, guesses: Sequence[int]) -> Fed:
        """What comes next: the newest guess, or before the first all that was missed."""
        tokens = self.row.tokens
        if guesses:
            return Fed(self.row.slot, len(tokens) + len(guesses) - 1, guesses[-1:])
        start = min(self.computed, len(tokens) - 1)
        return Fed(self.row.slot, start, tokens[start:])


class DraftModel:
    """model: with the vocabulary of the target, on its device. tokenizer: the model's, None: not to be compared.

    `attach` joins it to an engine's runner; then, with the host choosing tokens, `draft` guesses; with a GPU choosing,
    `bind`, `sync`, `draft_on_device`, `follow`, `leave`. In both cases `feed` takes the prompt chunks of a step.
    """

    def __init__(self, model: Qwen3, tokenizer: Tokenizer | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.runner: Runner | None = None

    def check(self, device: torch.device, vocab_size: int, tokenizer: Tokenizer | None = None) -> None:
        """Raises UsageError if it cannot guess for a model on `device` that samples ids below `vocab_size`."""
        rows = self.model.config.vocab_size
        if rows < vocab_size:
            raise UsageError(
                f"the draft model knows {rows:,} tokens, the model samples from {vocab_size:,}: take a draft model of "
                "the same family"
            )
        if self.model.device != device:
            raise UsageError(f"the draft model is on {self.model.device}, the model on {device}: load both on one")
        if self.tokenizer is None or tokenizer is None or self.tokenizer is tokenizer:
            return
        step = max(1, vocab_size // _LOOKS)
        for token in (*range(0, min(vocab_size, tokenizer.vocab_size), step), *tokenizer.added_tokens):
            if token >= self.tokenizer.vocab_size or self.tokenizer.token_bytes(token) != tokenizer.token_bytes(token):
                raise UsageError(
                    f"the draft model has another tokenizer ({self.tokenizer.source}): its token {token} is not that "
                    f"of {tokenizer.source}"
                )

    def attach(
        self, runner: Runner, vocab_size: int, tokenizer: Tokenizer | None = None, *, on_device: bool = False
    ) -> None:
        """Share the tables of a target's runner. on_device: a GPU chooses tokens (the target's picker is a
        DevicePicker). Raises UsageError if the two do not belong together."""
        self.check(runner.device, vocab_size, tokenizer)
        slots, blocks = len(runner.tables) - 1, runner.k_cache.shape[1]
        self.runner = Runner(
            self.model.stepper(),
            runner.device,
            max_rows=slots,
            max_len=runner.max_len,
            # On the host guesses come before the scheduler has blocks for them: each slot has one for these.
            blocks=blocks + (0 if on_device else slots + 1),
            kv_dtype=runner.k_cache.dtype,
        )
        self.runner.tables = runner.tables
        self._spare = blocks
        self._books: dict[int, _Book] = {}  # by slot
        self._held: dict[int, int] = {}  # key of what a block of the draft's cache holds, if it is full
        self.last_token = torch.zeros(slots + 1, dtype=torch.int32, device=runner.device)
        self.position = torch.zeros(slots + 1, dtype=torch.int32, device=runner.device)
        if on_device:
            self.sampler = DeviceSampler(slots, vocab_size, runner.device, max_len=runner.max_len)

    def detach(self) -> None:
        """Give the cache back."""
        self.runner = None
        for name in ("sampler", "last_token", "position"):
            self.__dict__.pop(name, None)

    # What it has computed

    def _book(self, row: Row) -> _Book:
        """Of a running sample, as things are now."""
        book = self._books.get(row.slot)
        if book is None or book.row is not row or book.preemptions != row.preemptions:
            book = self._books[row.slot] = _Book(row, row.preemptions)
        tokens = row.tokens
        if book.tail != tokens[max(0, book.computed - _LOOK_BACK) : book.computed]:
            self._go_back(book, book.computed - _LOOK_BACK)
        elif book.ahead:
            for token in book.ahead:
                if book.computed == len(tokens) or tokens[book.computed] != token:
                    break
                book.computed += 1
            self._settle(book)
        while book.computed % BLOCK == 0 and book.computed + BLOCK < len(tokens):  # what the cache had, both may have
            i = book.computed // BLOCK
            if i >= len(row.blocks) or self._held.get(row.blocks[i]) != self._key(book, i):
                break
            book.computed += BLOCK
            self._settle(book)
        return book

    @staticmethod
    def _key(book: _Book, block: int) -> int:
        while len(book.keys) <= block:
            i = len(book.keys)
            book.keys.append(hash((book.keys[-1] if i else 0, *book.row.tokens[i * BLOCK : (i + 1) * BLOCK])))
        return book.keys[block]

    def _go_back(self, book: _Book, computed: int) -> None:
        """Tokens from there on are other ones, or in other blocks."""
        book.computed = max(0, computed)
        del book.keys[book.computed // BLOCK :]
        self._settle(book)

    def _settle(self, book: _Book) -> None:
        """`computed` has changed."""
        book.ahead = []
        book.tail = book.row.tokens[max(0, book.computed - _LOOK_BACK) : book.computed]

    def _wrote(self, book: _Book, end: int, guesses: Sequence[int] = ()) -> None:
        """Places from `computed` to `end` were written, and `guesses` behind them; what has no block is lost."""
        blocks, known = book.row.blocks, min(end, len(book.row.blocks) * BLOCK)
        last = min(end + len(guesses), len(blocks) * BLOCK)
        for i in range(book.computed // BLOCK, -(-last // BLOCK)):
            if (i + 1) * BLOCK <= known:
                self._held[blocks[i]] = self._key(book, i)
            else:
                self._held.pop(blocks[i], None)
        book.computed = known
        self._settle(book)
        book.ahead = [*guesses[: last - end]] if known == end else []

    def _compute(
        self, wanted: Sequence[tuple[_Book, int]], decode: Sequence[int] = (), state: State | None = None
    ) -> None:
        """Feed each sample's tokens up to a place, and a token of each slot in `decode`."""
        assert self.runner is not None
        todo = [(book, end) for book, end in wanted if book.computed < end]
        while todo or decode:
            room, fed = _PIECE, []
            for book, end in todo:
                size = min(end - book.computed, room)
                if size:
                    room -= size
                    stop = book.computed + size
                    fed.append(Fed(book.row.slot, book.computed, book.row.tokens[book.computed : stop]))
                    self._wrote(book, stop)
            self.runner.forward(decode, fed, state or self)
            decode = ()
            todo = [(book, end) for book, end in todo if book.computed < end]

    # What an engine calls

    @torch.inference_mode()
    def feed(self, chunks: Sequence[Chunk], decode: Sequence[int] = (), state: State | None = None) -> None:
        """A step's chunks (those of drafts and forced texts are skipped), and, where a GPU chooses, the newest token of
        each slot in `decode`, which follows: before the target's step changes `state`, the target's sampler."""
        wanted = []
        for chunk in chunks:
            if not chunk.extra:
                book = self._book(chunk.seq)
                if book.follows or chunk.start < book.computed:
                    book.follows = False
                    self._go_back(book, min(chunk.start, book.computed))
                wanted.append((book, chunk.start + chunk.size))
        self._compute(wanted, decode, state)

    @torch.inference_mode()
    def draft(self, samples: Sequence[Sample], count: int) -> list[list[int]]:
        """Up to `count` guesses for each sample, whose tokens are all known: fewer at its end. They are drawn with the
        sample's own noise, as the target draws, so that the two agree as often as they can."""
        assert self.runner is not None
        books = [self._book(item.row) for item in samples]
        count = min(count, BLOCK)  # a slot has one block for guesses
        most = [min(count, item.row.max_total - len(item.row.tokens) - 1) for item in samples]
        self._compute([(book, len(book.row.tokens) - 1) for book in books if book.lag > BLOCK])
        # The scheduler gives blocks to what it plans, after this.
        wanted = [(b.row.slot, len(b.row.blocks)) for b, n in zip(books, most, strict=True) if b.lacks(n)]
        self.runner.place([(slot, i, self._spare + slot) for slot, i in wanted])
        found: list[list[int]] = [[] for _ in samples]
        for place in range(count):
            going = [i for i, n in enumerate(most) if len(found[i]) == place < n]
            if not going:
                break
            fed = [books[i].fed(found[i]) for i in going]
            steps = [len(samples[i].request.output) + place for i in going]
            drawn = sample(self._logits(fed), [samples[i].sampler for i in going], steps, [()] * len(going))
            for i, token in zip(going, drawn, strict=True):
                if not isinstance(token, Qwen3Error):
                    found[i].append(token)
        self.runner.place([(slot, i, 0) for slot, i in wanted])
        for book, guesses, n in zip(books, found, most, strict=True):
            if n > 0:
                self._wrote(book, len(book.row.tokens), guesses[:-1])
        return found

    def _logits(self, fed: Sequence[Fed]) -> Tensor:
        """Behind the last token of each."""
        assert self.runner is not None
        single = [one for one in fed if len(one.ids) == 1]
        longer = [one for one in fed if len(one.ids) > 1]
        slots = [one.slot for one in single]
        if slots:
            device = self.last_token.device
            self.last_token[slots] = torch.tensor([one.ids[0] for one in single], dtype=torch.int32, device=device)
            self.position[slots] = torch.tensor([one.start for one in single], dtype=torch.int32, device=device)
        hidden, ends, place = self.runner.forward(slots, longer, self), {}, -1
        for one in (*single, *longer):
            place += len(one.ids)
            ends[one.slot] = place
        return self.runner.logits(hidden[[ends[one.slot] for one in fed]])

    def forget(self, row: Row) -> None:
        """Tokens of a running sample were taken back, more than the last few."""
        self._books.pop(row.slot, None)

    # Where a GPU chooses

    def bind(self, item: Sample) -> None:
        """Give a sample's slot its sampling parameters and noise; to be called where the target's sampler is bound. The
        rules of its tokens (budget, ends, grammar) are the target's alone."""
        request = item.request
        machine = Machine(phase="answer", count=len(request.output), max_tokens=request.max_tokens)
        self.sampler.bind(
            item.row.slot,
            replace(request.params, logprobs=None, min_tokens=0),
            machine,
            prompt_ids=request.ids,
            stream_key=item.sampler.stream_key,
            output=request.output,
            position=len(item.row.tokens) - 1,
        )

    @torch.inference_mode()
    def sync(self, rows: Sequence[Row]) -> None:
        """Make up for what running samples said while they were not followed; from now on they are. Their tokens are
        all known."""
        wanted = [(book, len(book.row.tokens) - 1) for row in rows if not (book := self._book(row)).follows]
        self._compute(wanted)
        for book, _ in wanted:
            book.follows = True

    def leave(self, rows: Sequence[Row]) -> None:
        """Samples are followed no more: steps without guesses come, or they end, or lose their slots. To be called
        before that, while they have their blocks."""
        for row in rows:
            book = self._books.get(row.slot)
            if book is not None and book.row is row and book.follows:
                book.follows = False
                self._wrote(book, len(row.tokens) - 1)

    @torch.inference_mode()
    def draft_on_device(self, slots: Sequence[int] | Tensor, count: int, longest: int | None = None) -> Tensor:
        """Guesses [len(slots), count] int32 for samples that follow; -1: none. There are blocks for `count` tokens
        behind the newest, or what is there does not matter. No synchronisation; with slots [R] int32 on the device it
        can be captured in a graph. longest: no sample has more keys before."""
        assert self.runner is not None
        if not isinstance(slots, Tensor):
            slots = self.runner.uploads.send(torch.tensor(slots, dtype=torch.int32))
        starts = torch.arange(len(slots) + 1, dtype=torch.int32, device=slots.device)
        found = torch.zeros(count, len(slots), 2, dtype=torch.int32, device=slots.device)
        reach = None if longest is None else longest + count
        for place in range(count + 1):
            hidden = self.runner.step(slots, starts, self.sampler, longest=reach)
            if place < count:  # the last one is for its keys and values, if all guesses are right
                self.sampler.sample(self.runner.logits(hidden), slots, found[place])
        return found[:, :, 0].T.clamp(min=-1)

    def follow(self, target: DeviceSampler, slots: Tensor) -> None:
        """The target's sampler has verified, or sampled: go on from where it is. slots [n] int32."""
        self.sampler.copy_state(target, slots)
