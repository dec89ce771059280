"""Sampling without a sort, in two kernels: every chunk of the vocabulary, then every row.

`_chunks` reads the logits once. A row that draws from the whole distribution finds each chunk's best token there (noise
included); the others only learn the largest logit of every 64 columns. `_rows` then needs few of a row's columns: a
lower bound of the k-th logit is found among the groups' maxima, and only groups that reach it are read again. What does
not fit (hundreds of ties, a nucleus of many tokens, a large top_k) is found by bisection over the whole row. At the end
the row's token machine (`engine.machine.Machine`) moves on by one token.

A row's numbers depend on nothing but itself. The plain twin is `engine.sampler.sample`; noise and rules are the same,
in float32 here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels.gpu.launch import PDL, cdiv, launch, next_power_of_2

FAST = tl.constexpr(PDL)  # the interpreter knows no assembly
GROUP = tl.constexpr(64)
FEW = tl.constexpr(128)  # groups, and candidates, that are looked at closely
MAX_K = 96  # the largest top_k that takes this way
ENDS, TEXT, WIDTH = tl.constexpr(48), tl.constexpr(144), tl.constexpr(400)  # where a packed row's lists begin; its size
GREEDY, FREE, TOP_K, NUCLEUS, WIDE = map(tl.constexpr, range(5))  # kinds of rows; WIDE: a top_k above MAX_K
START, THINKING, ANSWER, TOOL_CALL = map(tl.constexpr, range(4))  # as machine.PHASES

# Columns of a slot's packed row, int32 (floats by their bits). The first STATES are its state, which moves on in
# `state` [STATES, slots]; of the others only CLOSE_AT and MASK_ROW change while the sample runs. From ENDS on: ids that
# end it (eos first), from TEXT on: ids to force (the early stop, the closing, what is queued at the start).
LAST, POSITION, COUNT, PHASE, USED, AT, END, DONE, STEPS, LINE = map(tl.constexpr, range(10))
STATES = tl.constexpr(10)
KIND, K, SCALE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE, KEY_LOW, KEY_HIGH = map(tl.constexpr, range(10, 20))
MIN_TOKENS, MAX_TOKENS, BUDGET, THINK, END_THINK, CALL, END_CALL, EOS_COUNT = map(tl.constexpr, range(20, 28))
ENDS_COUNT, EARLY_END, CLOSE_END, MARGIN, MAX_STEPS, CLOSE_AT, GAP, NO_THINK = map(tl.constexpr, range(28, 36))
PACED, BIAS_ROW, COUNTS_ROW, MASK_ROW, LOGPROB_ROW = map(tl.constexpr, range(36, 41))
# `tables` [5] int64, addresses: biases float32, counts int16 (bit 15: in the prompt), allowed bits, log-probabilities;
# what tokens do to paragraphs and sentences, int16 (`chat.pacing`).
BIASES, COUNTS, MASKS, LOGPROBS, PACE = map(tl.constexpr, range(5))
IN_BREAK, SENTENCE_END = tl.constexpr(2), tl.constexpr(1 << 12)  # as in `chat.pacing`
ANY = tl.constexpr(-2)  # a draft that whatever is sampled equals

INF = tl.constexpr(float("inf"))
BIG = tl.constexpr(2**31 - 1)
LOWEST = tl.constexpr(-2139095040)  # _ordered of the lowest finite float32
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _number(p):
    return tl.load(p).to(tl.float32, bitcast=True)


@triton.jit
def _words(low, high, step):
    """The two words of a step's noise, `sampler.noise_key`."""
    x = (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.uint64)
    x = (x ^ step.to(tl.uint64)) + 0x9E3779B97F4A7C15  # `sampler.mix64`
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return x.to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def _hash(x, second):
    """The hash of `sampler.gumbel` but for its first and its last step, x ^ (x >> 16)."""
    x = x * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = (x ^ (x >> 16)) + second
    x = (x ^ (x >> 16)) * 0x7FEB352D
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def _exponential(ids, words):
    """Exponential noise -log(u), u = (hash + 1/2) / 2^32 as in `sampler.gumbel`: accurate for u near 0 and near 1."""
    x = ids.to(tl.uint32, bitcast=True) ^ words[0]
    x = _hash(x ^ (x >> 16), words[1])
    x = x ^ (x >> 16)
    late = x >= 0xF0000000
    u = (tl.where(late, x ^ 0xFFFFFFFF, x).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    if FAST:
        log = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [u], tl.float32, is_pure=True, pack=1)
    else:
        log = tl.log2(u)
    series = u * (1.0 + u * (0.5 + u * (0.33333334 + u * (0.25 + u * 0.2))))  # -log(1 - u), u < 1/16
    return tl.where(late, series, log * -0.6931471805599453)


@triton.jit
def _ordered(x):
    """float32 -> int32 with the same order; no NaN."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _mean(a, b):
    return (a & b) + ((a ^ b) >> 1)


@triton.jit
def _edits(p, tables, vocab, padded):
    """What changes a row's logits, loaded before it is needed."""
    bias, counts, mask = tl.load(p + BIAS_ROW), tl.load(p + COUNTS_ROW), tl.load(p + MASK_ROW)
    min_tokens, call, end_call = tl.load(p + MIN_TOKENS), tl.load(p + CALL), tl.load(p + END_CALL)
    return p, tables, vocab, padded, bias, counts, mask, min_tokens, call, end_call, tl.load(p + NO_THINK)


@triton.jit
def _in_phase(edits, phase):
    """`edits` with, in the end, the two ids that the phase forbids, or -1."""
    p, tables, vocab, padded, bias, counts, mask, min_tokens, call, end_call, think = edits
    first = tl.where(phase == THINKING, call, tl.where((phase == START) | (phase == ANSWER), think, -1))
    return p, tables, vocab, padded, bias, counts, mask, min_tokens, first, tl.where(phase == THINKING, end_call, -1)


@triton.jit
def _without(x, cols, edits):
    return tl.where((cols == edits[8]) | (cols == edits[9]), -INF, x)


@triton.jit
def _edit(x, cols, step, edits):
    """What the sampler sees of logits x at cols: bias, penalties, ends; what cannot be sampled is -inf."""
    p, tables, _, padded, bias, counts, mask, min_tokens, _, _ = edits
    if bias + counts + mask > 0:
        if bias > 0:
            table = tl.multiple_of(tl.load(tables + BIASES).to(tl.pointer_type(tl.float32)), 16)
            x += tl.load(table + bias.to(tl.int64) * padded + cols, mask=cols < padded, other=0.0)
        if counts > 0:
            table = tl.multiple_of(tl.load(tables + COUNTS).to(tl.pointer_type(tl.int16)), 16)
            seen = tl.load(table + counts.to(tl.int64) * padded + cols, mask=cols < padded, other=0).to(tl.int32)
            times = (seen & 0x7FFF).to(tl.float32)
            y = tl.zeros_like(x) + _number(p + REPETITION)
            y = tl.where(x > 0, tl.div_rn(x, y), x * y) - _number(p + FREQUENCY) * times
            x = tl.where(seen != 0, y - tl.where(times > 0, _number(p + PRESENCE), 0.0), x)
        if mask > 0:
            table = tl.load(tables + MASKS).to(tl.pointer_type(tl.int32)) + mask.to(tl.int64) * (padded // 32)
            x = tl.where((tl.load(table + cols // 32, mask=cols < padded, other=0) >> (cols % 32)) & 1 != 0, x, -INF)
    if step < min_tokens:
        i = tl.load(p + ENDS_COUNT) - 1
        while i >= 0:
            x = tl.where(cols == tl.load(p + ENDS + i), -INF, x)
            i -= 1
    return x


@triton.jit
def _read(row, cols, live, step, edits):
    x = tl.load(row + cols, mask=live & (cols < edits[2]), other=-INF).to(tl.float32)
    return _without(_edit(x, cols, step, edits), cols, edits)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _first(x, base, scale, row, begin, words, step, edits, CHUNK: tl.constexpr):
    """Of logits x [CHUNK] from column `begin` on, the largest being `base`: the smallest noisy weight and its column.

    Gumbel-max in another guise: the largest logit / T - log(e) is the smallest e · exp(-logit / T). As e = -log(u) is
    at least 1 - u, the upper half of the hash already gives a lower bound: columns are looked at in its order.
    """
    span = tl.arange(0, CHUNK)
    salt = words[0] ^ (words[0] >> 16) ^ (begin >> 16).to(tl.uint32)  # the hash's first step: CHUNK is 65536 at most
    half = _hash((begin + span).to(tl.uint32, bitcast=True) ^ salt, words[1]) >> 16
    bound = (65535 - half.to(tl.float32)) * 1.5258e-5 * tl.exp2((base - x) * scale)  # a bit less than 2^-16: it rounds
    keys = (bound.to(tl.uint32, bitcast=True) & (0x100000000 - CHUNK)) | span.to(tl.uint32)
    best = base * 0 + 3e38
    winner = begin
    key = tl.min(keys, 0)
    while (key & (0x100000000 - CHUNK)) <= best.to(tl.uint32, bitcast=True):
        col = begin + (key & (CHUNK - 1)).to(tl.int32)
        value = _edit(tl.load(row + col).to(tl.float32), col, step, edits)  # what is banned never gets here
        race = _exponential(col, words) * tl.exp2((base - value) * scale)
        winner = tl.where((race < best) | ((race == best) & (col < winner)), col, winner)
        best = tl.minimum(best, race)
        above = key + 1 + tl.min(keys - (key + 1), 0)  # the next larger key, or the smallest once more
        key = tl.where(above > key, above, 0xFFFFFFFF)
    return best, winner


@triton.jit
def _follows(out, drafts, place):
    """Whether what was recorded before `place` of a row is what its drafts say there: as they agree one by one, the
    last one says it."""
    alive = place <= 0
    if place > 0:
        token, code, draft = tl.load(out + 2 * place - 2), tl.load(out + 2 * place - 1), tl.load(drafts + place - 1)
        alive = (token >= 0) & (code & 3 == 0) & ((draft == token) | (draft == ANY))
    return alive


@triton.jit(do_not_specialize=["out_stride", "drafts_stride", "place"])
def _chunks(
    logits, stride, rows, packed, state, tables, part, groups, out, out_stride, drafts, drafts_stride, place,
    columns, vocab, padded, slots, chunks, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (i, r): chunks i, i + programs … of row r, the next one's logits on their way while one is worked on.

    part [R, 6, C] float32: largest logit (NaN counts as +inf); best noisy weight and its id; the sum of exp; largest
    raw logit, sum of exp of raw logits. groups [R, C · CHUNK / GROUP]: largest logit of each group.
    """
    c = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    slot = tl.load(rows + r).to(tl.int64)
    p = packed + slot * WIDTH
    s = state + slot
    kind, scale, asked = tl.load(p + KIND), _number(p + SCALE), tl.load(p + LOGPROB_ROW)
    low, high = tl.load(p + KEY_LOW), tl.load(p + KEY_HIGH)
    edits = _edits(p, tables, vocab, padded)
    span = tl.arange(0, CHUNK)
    if PDL:  # what is read before was written before the previous kernel began
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = logits + r * stride
    coming = tl.load(row + c * CHUNK + span, mask=c * CHUNK + span < columns, other=-INF)
    step, done = tl.load(s + COUNT * slots), tl.load(s + DONE * slots)
    edits = _in_phase(edits, tl.load(s + PHASE * slots))
    done = tl.where(_follows(out + r * out_stride, drafts + r * drafts_stride, place), done, 1)
    free = tl.load(s + AT * slots) >= tl.load(s + END * slots)
    words = _words(low, high, step)
    while (c < chunks) & (done == 0) & (free | (asked > 0)):
        begin = c * CHUNK
        cols = begin + span
        raw = coming.to(tl.float32)
        here = part + r * 6 * chunks + c
        first = groups + (r * chunks + c) * (CHUNK // GROUP)
        c += tl.num_programs(0)
        coming = tl.load(row + c * CHUNK + span, mask=c * CHUNK + span < columns, other=-INF)
        if asked > 0:
            top = tl.max(raw, 0)
            tl.store(here + 4 * chunks, top)
            tl.store(here + 5 * chunks, tl.sum(tl.exp2((raw - tl.where(top == -INF, 0.0, top)) * LOG2E), 0))
        if free:
            x = raw
            banned = ((edits[8] ^ begin) & -CHUNK == 0) | ((edits[9] ^ begin) & -CHUNK == 0)  # something in this chunk
            if (begin + CHUNK > vocab) | banned:
                x = _without(tl.where(cols < vocab, raw, -INF), cols, edits)
            x = _edit(x, cols, step, edits)
            top = tl.reduce(x, 0, _larger) if FAST else tl.max(tl.where(x == x, x, INF), 0)
            tl.store(here, tl.where(top == top, top, INF))
            base = tl.where(tl.abs(top) < INF, top, 0.0)
            if kind == FREE:
                best, winner = _first(x, base, scale, row, begin, words, step, edits, CHUNK)
                tl.store(here + chunks, best)
                tl.store(here + 2 * chunks, winner.to(tl.float32, bitcast=True))
            else:
                tl.store(first + tl.arange(0, CHUNK // GROUP), tl.max(tl.reshape(x, (CHUNK // GROUP, GROUP)), 1))
                if kind == NUCLEUS:
                    tl.store(here + 3 * chunks, tl.sum(tl.exp2((x - base) * scale), 0))


@triton.jit
def _above(few, n, v, least, top, scale):
    """For each v [FEW], over candidates above it that are at least `least`: the sum of exp; a count if scale is 0."""
    sums = tl.zeros((FEW,), tl.float32)
    begin = 0
    while begin < tl.minimum(n, FEW):
        j = begin + tl.arange(0, 32)
        other = tl.load(few + 2 * FEW + j, mask=j < n, other=0).to(tl.float32, bitcast=True)
        weight = tl.where((j < n) & (other >= least), tl.exp2((other - top) * scale), 0.0)
        sums += tl.sum(tl.where(other[None, :] > v[:, None], weight[None, :], 0.0), 1)
        begin += 32
    return sums


@triton.jit
def _among_few(row, near, few, top, total, how, step, edits, GROUPS: tl.constexpr):
    """The token by the row's few best columns, -1 where these do not suffice. near [GROUPS]: the groups' maxima."""
    kind, k, scale, top_p, min_p, words = how
    token = -1
    keys = _ordered(near)
    want = tl.where(kind == TOP_K, k, 64)
    low_key = _ordered(tl.min(tl.where(near == -INF, INF, near), 0))
    high_key = _ordered(top) + 1
    n = tl.sum((keys >= low_key).to(tl.int32), 0)
    low_key = tl.where(n < want, LOWEST, low_key)  # so few groups have something that all of it is looked at
    middle = _mean(low_key, high_key)
    while (n > want + 16) & (middle != low_key):  # at least `want` columns reach low_key, fewer reach high_key
        m = tl.sum((keys >= middle).to(tl.int32), 0)
        low_key = tl.where(m >= want, middle, low_key)
        high_key = tl.where(m >= want, high_key, middle)
        n = tl.where(m >= want, m, n)
        middle = _mean(low_key, high_key)
    if n <= FEW:
        reached = keys >= low_key
        tl.store(few + tl.cumsum(reached.to(tl.int32), 0) - 1, tl.arange(0, GROUPS), mask=reached)
        tl.debug_barrier()
        begin = 0
        found = 0
        while begin < n:
            j = begin + tl.arange(0, 32)
            cols = tl.load(few + j, mask=j < n, other=0)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            x = _read(row, cols, (j < n)[:, None], step, edits)
            inside = (_ordered(x) >= low_key) & (j < n)[:, None]
            each = tl.sum(inside.to(tl.int32), 1)
            place = (found + tl.cumsum(each, 0) - each)[:, None] + tl.cumsum(inside.to(tl.int32), 1) - 1
            inside = inside & (place < FEW)
            tl.store(few + FEW + place, cols, mask=inside)
            tl.store(few + 2 * FEW + place, x.to(tl.int32, bitcast=True), mask=inside)
            found += tl.sum(each, 0)
            begin += 32
        tl.debug_barrier()
        n = found
        i = tl.arange(0, FEW)
        ids = tl.load(few + FEW + i, mask=i < n, other=0)
        v = tl.where(i < n, tl.load(few + 2 * FEW + i, mask=i < n, other=0).to(tl.float32, bitcast=True), -INF)
        # Every rule is a threshold on values: a token stays by what is above it, so that equal logits share one fate.
        kth = tl.min(tl.where((i < n) & (_above(few, n, v, -INF, top, 0.0) < k), v, INF), 0)
        weight = tl.where(v >= kth, tl.exp2((v - top) * scale), 0.0)
        total = tl.where(kind == TOP_K, tl.sum(weight, 0), total)
        keep = (v >= kth) & (_above(few, n, v, kth, top, scale) < top_p * total) & (weight >= min_p)
        complete = (kind == TOP_K) | (tl.sum(((i < n) & (keep == 0)).to(tl.int32), 0) > 0)
        if (n <= FEW) & complete:
            race = tl.where(keep, _exponential(ids, words) * tl.exp2((top - v) * scale), INF)
            token = tl.min(tl.where(race == tl.min(race, 0), ids, BIG), 0)
    return token


@triton.jit
def _among_all(row, top, how, step, edits, CHUNK: tl.constexpr):
    """The token by bisection: for the k-th logit, then (after the sum of exp) for the nucleus' last; then the draw."""
    kind, k, scale, top_p, min_p, words = how
    vocab = edits[2]
    low_key = _ordered(top) * 0 + LOWEST
    high_key = _ordered(top) + 1
    counting = (kind != NUCLEUS).to(tl.int32)
    summing = 1 - counting
    target = k.to(tl.float32)
    busy = 1
    while busy > 0:
        middle = tl.where(summing > 0, low_key, _mean(low_key, high_key))
        sums = tl.zeros((CHUNK,), tl.float32)
        start = vocab * 0
        while start < vocab:
            cols = start + tl.arange(0, CHUNK)
            x = _read(row, cols, cols >= 0, step, edits)
            sums += tl.where(_ordered(x) >= middle, tl.where(counting > 0, 1.0, tl.exp2((x - top) * scale)), 0.0)
            start += CHUNK
        found = tl.sum(sums, 0)
        if summing > 0:
            target = found * top_p
            busy = (top_p < 1).to(tl.int32)
            high_key = _ordered(top) + 1
            summing = 0
        else:
            low_key = tl.where(found >= target, middle, low_key)
            high_key = tl.where(found >= target, high_key, middle)
            if (_mean(low_key, high_key) == low_key) | ((counting > 0) & (found == target)):
                busy = counting
                summing = counting
                counting = 0
    best = tl.full((CHUNK,), INF, tl.float32)
    ids = tl.full((CHUNK,), BIG, tl.int32)
    start = vocab * 0
    while start < vocab:
        cols = start + tl.arange(0, CHUNK)
        x = _read(row, cols, cols >= 0, step, edits)
        keep = (_ordered(x) >= low_key) & (tl.exp2((x - top) * scale) >= min_p)
        race = tl.where(keep, _exponential(cols, words) * tl.exp2((top - x) * scale), INF)
        ids = tl.where(race < best, cols, ids)
        best = tl.minimum(race, best)
        start += CHUNK
    return tl.min(tl.where(best == tl.min(best, 0), ids, BIG), 0)


@triton.jit(do_not_specialize=["out_stride", "drafts_stride", "place"])
def _rows(
    logits, stride, rows, packed, state, tables, part, groups, out, out_stride, drafts, drafts_stride, place,
    few, history, vocab, padded, slots, length,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, WIDE_CHUNKS: tl.constexpr, WIDE_GROUPS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program r: the token of row r, and its machine's next state."""
    r = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows + r).to(tl.int64)
    p, s = packed + slot * WIDTH, state + slot
    kind, k, scale = tl.load(p + KIND), tl.load(p + K), _number(p + SCALE)
    top_p, min_p, low, high = _number(p + TOP_P), _number(p + MIN_P), tl.load(p + KEY_LOW), tl.load(p + KEY_HIGH)
    edits = _edits(p, tables, vocab, padded)
    max_tokens, budget, asked = tl.load(p + MAX_TOKENS), tl.load(p + BUDGET), tl.load(p + LOGPROB_ROW).to(tl.int64)
    early_end, close_end, eos_count = tl.load(p + EARLY_END), tl.load(p + CLOSE_END), tl.load(p + EOS_COUNT)
    margin, max_steps, close_at = tl.load(p + MARGIN), tl.load(p + MAX_STEPS), tl.load(p + CLOSE_AT)
    gap, paced, pace = tl.load(p + GAP), tl.load(p + PACED), tl.load(tables + PACE).to(tl.pointer_type(tl.int16))
    think, end_think, e = tl.load(p + THINK), tl.load(p + END_THINK), tl.arange(0, 128)
    call, end_call = edits[8], edits[9]
    ends = tl.load(p + ENDS + e, mask=e < tl.load(p + ENDS_COUNT), other=-1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token, position, step = tl.load(s), tl.load(s + POSITION * slots), tl.load(s + COUNT * slots)
    phase, used, done = tl.load(s + PHASE * slots), tl.load(s + USED * slots), tl.load(s + DONE * slots)
    at, end = tl.load(s + AT * slots), tl.load(s + END * slots)
    steps, line = tl.load(s + STEPS * slots), tl.load(s + LINE * slots)
    edits = _in_phase(edits, phase)
    out += r * out_stride
    live = (done == 0) & _follows(out, drafts + r * drafts_stride, place)
    replaced = 0
    if live:
        row = logits + r * stride
        part += r * 6 * CHUNKS
        i = tl.arange(0, WIDE_CHUNKS)
        forced = at < end
        if forced:
            token = tl.load(p + TEXT + at)
        else:
            tops = tl.load(part + i, mask=i < CHUNKS, other=-INF)
            top = tl.max(tops, 0)
            if top == INF:
                token = -1
            elif top == -INF:
                token = -2
            elif kind == FREE:
                race = tl.load(part + CHUNKS + i, mask=i < CHUNKS, other=INF) * tl.exp2((top - tops) * scale)
                token = tl.load(part + 2 * CHUNKS + tl.argmin(race, 0)).to(tl.int32, bitcast=True)
            else:
                GROUPS: tl.constexpr = CHUNKS * (CHUNK // GROUP)
                g = tl.arange(0, WIDE_GROUPS)
                near = tl.load(groups + r * GROUPS + g, mask=g < GROUPS, other=-INF)
                if kind == GREEDY:
                    j = tl.argmax(near, 0) * GROUP + tl.arange(0, GROUP)
                    token = tl.min(tl.where(_read(row, j, j >= 0, step, edits) == top, j, BIG), 0)
                else:
                    token = -1
                    how = kind, k, scale, top_p, min_p, _words(low, high, step)
                    if kind != WIDE:
                        sums = tl.load(part + 3 * CHUNKS + i, mask=(i < CHUNKS) & (kind == NUCLEUS), other=0.0)
                        total = tl.sum(sums * tl.exp2((tops - top) * scale), 0)
                        token = _among_few(row, near, few + r * 3 * FEW, top, total, how, step, edits, WIDE_GROUPS)
                    if token < 0:
                        token = _among_all(row, top, how, step, edits, CHUNK)
        if token < 0:
            done = 3
            tl.store(s + DONE * slots, done)
        else:
            # From here on: `engine.machine.Machine.push`.
            free_end = (at >= end) & (step >= edits[7])
            is_eos = tl.sum(((ends == token) & (e < eos_count)).to(tl.int32), 0) > 0
            stopped = free_end & (tl.sum((ends == token).to(tl.int32), 0) > 0)
            if free_end & is_eos & (phase == THINKING):
                replaced = 1
                stopped = False
                at = early_end
                end = close_end
                token = tl.load(p + TEXT + at)
            sampled = at >= end
            at += 1 - sampled.to(tl.int32)
            if stopped == 0:
                sentence = token < 0
                if phase == THINKING:
                    if token == end_think:
                        phase = ANSWER
                        if sampled:
                            at = close_end - gap
                            end = close_end
                    elif sampled:
                        used += 1
                        if paced > 0:
                            entry = tl.load(pace + token).to(tl.int32)
                            sentence = (entry & SENTENCE_END != 0) & (line != IN_BREAK)
                            bits = entry >> 4 * line
                            line = bits & 3
                            steps += (bits >> 2) & 3
                elif phase == TOOL_CALL:
                    phase = tl.where(token == end_call, ANSWER, TOOL_CALL)
                elif token != end_think:
                    opens = (token == think) & (phase == START)
                    phase = tl.where(opens, THINKING, tl.where(token == call, TOOL_CALL, ANSWER))
                left = tl.where(budget < 0, BIG, budget - used)
                full = (left <= 0) | (sentence & (left <= margin)) | ((max_steps > 0) & (steps >= max_steps))
                full = full | ((close_at >= 0) & (step + 1 >= close_at))
                if (phase == THINKING) & (at >= end) & full:
                    at = tl.where(budget == 0, early_end, 0)
                    end = tl.where(budget == 0, close_end, early_end)
            done = tl.where(stopped, 1, tl.where(step + 1 >= max_tokens, 2, 0))
            found = token, position + 1, step + 1, phase, used, at, end, done, steps, line
            for f in tl.static_range(STATES):
                tl.store(s + f * slots, found[f])
            tl.store(history + slot * length + step, token ^ -replaced, mask=step < length)
            if edits[5] > 0:
                cell = tl.load(tables + COUNTS).to(tl.pointer_type(tl.int16)) + edits[5].to(tl.int64) * padded + token
                seen = tl.load(cell).to(tl.int32)
                tl.store(cell, (seen + ((seen & 0x7FFF) < 0x7FFF).to(tl.int32)).to(tl.int16))
            if asked > 0:
                tops = tl.load(part + 4 * CHUNKS + i, mask=i < CHUNKS, other=-INF)
                top = tl.max(tops, 0)
                sums = tl.load(part + 5 * CHUNKS + i, mask=i < CHUNKS, other=0.0)
                total = tl.log2(tl.sum(sums * tl.exp2((tops - top) * LOG2E), 0)) * LN2
                surprise = tl.maximum(top + total - tl.load(row + token).to(tl.float32), 0.0)
                table = tl.load(tables + LOGPROBS).to(tl.pointer_type(tl.float32))
                # The sign says whether it was sampled, of 0 too: a difference would lose that.
                logprob = tl.where(sampled, surprise * -1.0, surprise)
                tl.store(table + asked * length + step, logprob, mask=step < length)
    given = live | (place < 0)
    out += 2 * tl.maximum(place, 0)
    tl.store(out, tl.where(given, token, -1))
    tl.store(out + 1, tl.where(given, done + 4 * replaced, 0))


def sample(
    logits: Tensor, rows: Tensor, out: Tensor, params: Tensor, state: Tensor, tables: Tensor, history: Tensor,
    vocab: int, chunk: int, drafts: Tensor | None = None, place: int = -1,
) -> None:  # fmt: skip
    """One token for each row of logits [R, columns >= vocab]; rows [R] int32: their slots. See `DeviceSampler.sample`.

    params [slots, WIDTH] int32, state [STATES, slots] int32, tables [5] int64, history [slots, length] int32; chunk:
    columns of one program, a power of two from 64 on; rows of the tables are padded to it. No slot twice, unless it is
    done. place: of a verification with drafts [R, K] int32 and out [R, K + 1, 2]; -1: no verification.
    """
    count, columns = logits.shape
    chunks = cdiv(columns, chunk)
    near = chunks * (chunk // GROUP.value)
    sizes = [cdiv(count * 6 * chunks, 4) * 4, count * near, count * 3 * FEW.value]  # each part at 16 bytes
    part, groups, few = torch.empty(sum(sizes), dtype=torch.int32, device=logits.device).split(sizes)
    part, groups = part.view(torch.float32), groups.view(torch.float32)
    slots, length = history.shape
    drafts = rows if drafts is None else drafts
    given = (logits, logits.stride(0), rows, params, state, tables, part, groups,
             out, out.stride(0), drafts, drafts.stride(0), place)  # fmt: skip
    padded = cdiv(vocab, chunk) * chunk
    options = {"CHUNK": chunk, "PDL": PDL} | ({"launch_pdl": True} if PDL else {})
    # Registers: as few as do without spilling, so that enough loads are in flight.
    programs = cdiv(chunks, max(1, min(chunks, count * chunks // 4096)))  # of a row
    launch(
        _chunks, (programs, count), *given, columns, vocab, padded, slots, chunks,
        **options, num_warps=max(1, chunk // 256), maxnreg=72,
    )  # fmt: skip
    launch(
        _rows, (count,), *given, few, history, vocab, padded, slots, length,
        CHUNKS=chunks, WIDE_CHUNKS=next_power_of_2(chunks), WIDE_GROUPS=next_power_of_2(near),
        **options, num_warps=8, maxnreg=128,
    )  # fmt: skip
