"""Pretraining: a network that predicts text, from nothing or from a checkpoint.

    qwen3 train pretrain model=tiny data=corpus

As in Qwen3's report (arXiv 2505.09388, section 3) there are three stages, each a `Pretrain`: general text; text rich in
reasoning, over which the learning rate falls fast; long text, with a higher base of the rotary positions. The schedule
is warmup, stable, decay over the three together, and the optimiser's state goes on from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from qwen3.train.bits_per_byte import Text, bits_per_byte
from qwen3.train.corpus.readers import read
from qwen3.train.corpus.shards import Shards, write_shards
from qwen3.train.forward import Checkpointing
from qwen3.train.fp8 import Fp8
from qwen3.train.manifests import MANIFEST
from qwen3.train.memory import check_memory, plan_memory
from qwen3.train.mixture import Lane, Mixture, Rows, Source, Stream, kept_out
from qwen3.train.needle import choices, needle_test, set_rope, stretched
from qwen3.train.optim import OptimConfig, process, processes
from qwen3.train.parallel import gathered_whole, merged, shard, wait_for_all
from qwen3.train.recipe import Recipe, key
from qwen3.train.run import loop
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.sft import fit_threads
from qwen3.train.trainer import CrossEntropy, Trainer

if TYPE_CHECKING:
    from qwen3.train.start import Job


@dataclass(frozen=True)
class Pretrain:
    """The stage. Raises UsageError for the first key that is wrong."""

    name: str = "pretrain"
    data: tuple[str, ...] = key(
        (), "folders of shards (recipe corpus), or texts: files, folders, patterns, package:NAME"
    )
    shares: tuple[float, ...] = key((), "of each of data among the tokens; empty: by their sizes")
    sources: tuple[Source, ...] = key((), "in Python: with their shares, instead of data")
    tokens: int | None = key(None, "tokens in all; none: tokens_per_parameter, but no more than epochs of data")
    tokens_per_parameter: float = key(20.0, "tokens in all, where nothing else is said")
    epochs: float = key(4.0, "how often data is gone through at most, where nothing else is said")
    updates: int | None = key(None, "updates of the optimiser, instead of tokens")
    tokens_per_update: int | None = key(None, "none: derived from the tokens in all")
    tokens_per_micro_batch: int | None = key(None, "tokens computed at once; none: 4,096 on a CPU, 65,536 on a GPU")
    length: int | None = key(
        None, "tokens of a row; longer documents are cut; none: what the model is made for, to 4,096"
    )
    rope_theta: float | None = key(None, "base of the rotary positions from this stage on; none: the model's")
    optim: OptimConfig | Literal["muon", "adamw"] = key("muon", "muon, adamw; in Python: the whole optimiser")
    lr: float | None = key(None, "peak learning rate of the hidden matrices; none: derived")
    peak: float = key(1.0, "share of the learning rates at which this stage begins, after its warmup")
    warmup: float = key(0.02, "share of the updates over which they rise")
    decay: float = key(0.4, "share of the updates over which they fall in a line")
    final: float = key(0.0, "share of them that is left at the end")
    balance: float | None = key(None, "weight of the experts' balance over the whole update; none: the model's")
    carry: bool = key(True, "the optimiser goes on from the stage before, else it begins anew")
    checkpointing: Checkpointing = key("none", "computed again on the way back, to save memory: layers, attention")
    fp8: Fp8 = key(False, "products of the layers in 8 bits: true, or rowwise; for wide models on a GPU that has FP8")
    sharded: bool = key(False, "among several processes: each keeps a part of the parameters (FSDP2), not all")
    workers: int | None = key(None, "processes that prepare data; none: 1 to 8 where a GPU would wait for it, else 0")
    held_out: tuple[str, ...] = key((), "as data, to measure on; none: 1 of 200 documents of data is left out for it")
    evaluate_every: int | None = key(None, "updates between evaluations; none: a tenth of all; 0: never")
    evaluate_tokens: int | None = key(None, "held-out tokens of an evaluation; none: 16,384 on a CPU, 524,288 on a GPU")
    evaluate: Callable[[LLM], Mapping[str, float]] | None = key(None, "in Python: beside bits per byte and samples")
    samples: int = key(2, "held-out texts whose beginnings are continued whenever there is an evaluation")
    needle: tuple[int, ...] = key((), "lengths at which needles are looked for whenever there is an evaluation")
    needles: int = key(4, "texts for each length and depth")
    yarn: float = key(1.0, "factor of YaRN for needles beyond the length of a row")
    save_every: int = key(100, "updates between checkpoints")

    def __post_init__(self) -> None:
        least = {
            "tokens": 1, "updates": 1, "tokens_per_update": 1, "tokens_per_micro_batch": 1, "length": 2, "workers": 0,
            "evaluate_every": 0, "evaluate_tokens": 1, "samples": 0, "needles": 1, "save_every": 1,
        }  # fmt: skip
        for name, lowest in least.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= lowest):
                raise UsageError(f"{self.name}.{name} must be a whole number from {lowest}, not {value!r}")
        for name in ("tokens_per_parameter", "epochs", "lr", "peak", "rope_theta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{self.name}.{name} must be a number above 0, not {value!r}")
        for name in ("warmup", "decay", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{self.name}.{name} is a share, from 0 to 1, not {getattr(self, name)!r}")
        if self.warmup + self.decay > 1:
            raise UsageError(
                f"{self.name}.warmup and decay are {self.warmup + self.decay:g} of the updates: more than all"
            )
        if not isinstance(self.optim, OptimConfig) and self.optim not in ("muon", "adamw"):
            raise UsageError(f"{self.name}.optim={self.optim!r} must be muon or adamw, or an OptimConfig")
        if self.yarn < 1 or (self.balance is not None and not 0 <= self.balance < math.inf):
            raise UsageError(f"{self.name}.yarn must be a number from 1, and balance one from 0")

    def check(self) -> None:
        """Raises UsageError for keys that contradict each other."""
        if bool(self.data) is bool(self.sources):
            what = "given beside sources" if self.data else "missing: data=FOLDER of shards or texts"
            raise UsageError(f"{self.name}.data is {what}")
        if self.shares and (len(self.shares) != len(self.data) or min(self.shares) < 0 or not sum(self.shares)):
            raise UsageError(f"{self.name}.shares must be one number from 0 for each of the {len(self.data)} data")
        if self.tokens is not None and self.updates is not None:
            raise UsageError(f"{self.name}.tokens and updates are both given: one follows from the other")
        if self.lr is not None and isinstance(self.optim, OptimConfig):
            raise UsageError(f"{self.name}.lr and an optimiser are both given: it has learning rates of its own")

    def run(self, job: Job) -> dict[str, Any]:
        return run_pretrain(self, job)


# From nothing: shapes of Qwen3 with the first 8,192 ranks of its tokenizer, of at most 6M parameters but for "small".
_TINY: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 8320, "hidden_size": 256,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128,
    "intermediate_size": 768, "max_position_embeddings": 512, "rope_theta": 10_000.0, "tie_word_embeddings": True,
    "bos_token_id": 8192, "eos_token_id": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "tiny-moe": _TINY | {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 96, "norm_topk_prob": True, "router_aux_loss_coef": 0.01,
    },
    "small": _TINY | {
        "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 1024,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ThreeStages(Recipe):
    """The recipe's own keys are for all stages that have none of that name."""

    data: tuple[str, ...] = key((), "of every stage that has no data of its own")

    def __post_init__(self) -> None:
        if isinstance(self.model, str) and self.model in SHAPES:
            object.__setattr__(self, "model", SHAPES[self.model])
        stages = (s if s.data or s.sources or not self.data else replace(s, data=self.data) for s in self.stages)
        object.__setattr__(self, "stages", tuple(stages))


def recipe() -> Recipe:
    return ThreeStages(
        "pretrain",
        "tiny",
        (
            Pretrain("general", tokens_per_parameter=16, epochs=3, decay=0.0, length=512),
            Pretrain("reasoning", tokens_per_parameter=3, epochs=0.7, warmup=0.0, decay=1.0, final=0.1, length=512),
            Pretrain(
                "long", tokens_per_parameter=1, epochs=0.3, peak=0.1, warmup=0.0, decay=1.0, length=2048, rope_theta=1e6
            ),
        ),
    )  # fmt: skip


def run_pretrain(stage: Pretrain, job: Job) -> dict[str, Any]:
    """Train, or go on where an earlier run stopped; returns `loop`'s summary.

    Raises UsageError for wrong keys and where the folder has a run on other data, OutOfMemoryError before anything is
    computed, TrainingError where the loss leaves its course.
    """
    stage.check()
    run, on_cpu = job.run, job.model.device.type == "cpu"
    length = stage.length or min(job.model.config.max_position_embeddings, 4096)
    context = max(length, job.model.config.max_position_embeddings)
    if stage.rope_theta or context > job.model.config.max_position_embeddings:
        set_rope(job.model, theta=stage.rope_theta, context=context, scaling=job.model.config.rope_scaling)
        run.say(f"{stage.name}: rotary base {job.model.config.rope_theta:,.0f}, for {context:,} positions")
    sources = data_of(stage, job)
    mixture = Mixture(sources, length, f"{job.seed}/{stage.name}")
    plan, why = derive(stage, job, mixture, length)
    for line in why:
        run.say(f"{stage.name}: {line}")
    at_once = plan.rows.rows * length
    memory = plan_memory(
        job.model.config, plan.optim, at_once, job.model.device.type, checkpointing=stage.checkpointing,
        processes=processes() if stage.sharded else 1,
    )  # fmt: skip
    run.say(f"{stage.name}: {check_memory(memory, job.model.device, at_once)}")
    if stage.sharded and processes() > 1:
        shard(job.model)
    trainer = Trainer(
        job.model, plan.optim, seed=job.seed, checkpointing=stage.checkpointing, fp8=stage.fp8, balance=stage.balance
    )
    if stage.carry:
        carry(stage, job, trainer)
    place = {"data": mixture.fingerprint, "updates": plan.updates, "rows": [plan.rows.rows, length, plan.rows.parts]}
    measure = Measures(stage, job, trainer, sources, plan)
    if on_cpu:
        place["threads"] = fit_threads(trainer, Lane(mixture, plan.rows, 0).batch())
    with Stream(mixture, plan.rows, plan.workers, process=process(), processes=processes()) as stream:

        def restore(found: Mapping[str, Any]) -> None:
            if on_cpu and "threads" in found:  # sums are made in the same order as before
                torch.set_num_threads(found["threads"])
            for name, value in place.items():
                if name != "threads" and found.get(name) != value:
                    raise UsageError(
                        f"{run.folder} holds a run of {stage.name} that was begun with {name}={found.get(name)}, not "
                        f"{value}: give another folder, or delete it to begin anew"
                    )
            stream.restore(found["stream"])

        def position() -> dict[str, Any]:
            threads = {"threads": torch.get_num_threads()} if on_cpu else {}
            return place | threads | {"stream": merged(stream.position())}

        summary = loop(
            run, trainer, stage.name, plan.updates, stream, CrossEntropy(),
            lambda i: stage.peak * warmup_stable_decay(
                i, plan.updates, warmup=plan.warmup, decay=plan.decay, floor=stage.final / stage.peak
            ),
            save_every=stage.save_every, position=position, restore=restore, after=measure,
        )  # fmt: skip
        end = stream.position()["update"] * plan.rows.parts * plan.rows.rows * length
    if stage.sharded and processes() > 1:
        job.model = gathered_whole(job.model)
    samples = end / math.fsum(s * t for s, t in zip(mixture.shares, mixture.mean_tokens, strict=True))
    return summary | {"epochs": {name: round(times, 3) for name, times in mixture.epochs(int(samples)).items()}}


# What is read


def data_of(stage: Pretrain, job: Job) -> list[Source]:
    """The stage's sources, all of them shards of the model's tokenizer, or draws. Texts become shards in the run's
    folder first."""
    if stage.sources:
        found = [s if callable(s.draw) else replace(s, draw=as_shards(str(s.draw), job).folder) for s in stage.sources]
        return [replace(s, kept=0) if stage.held_out else s for s in found]
    opened = [as_shards(spec, job) for spec in stage.data]
    shares = stage.shares or [shards.tokens for shards in opened]
    return [
        Source(str(spec), share, shards.folder, 0 if stage.held_out else _kept(len(shards)))
        for spec, share, shards in zip(stage.data, shares, opened, strict=True)
    ]


def _kept(documents: int) -> int:
    """Of so many documents, for measuring: 1 of 200, but 8 where there are enough."""
    return max(documents // 200, min(8, documents // 10))


def as_shards(spec: str, job: Job) -> Shards:
    """The shards of a folder or, where they are all that lies there, of a folder in it (the recipe corpus makes such
    ones); else those that are made of the texts of a spec, once, in the run's folder. Raises UsageError for shards of
    another tokenizer and texts without a word, and what reading raises."""
    folder = Path(spec)
    if found := [path.parent for pattern in ("[0-9]*.tokens", "*/[0-9]*.tokens") for path in folder.glob(pattern)]:
        if len({*found}) > 1:
            raise UsageError(
                f"{spec} holds several folders of shards: say which, {', '.join(sorted({*map(str, found)}))}"
            )
        return Shards(found[0], job.tokenizer)
    folder = job.run.folder / "data" / "".join(c if c.isalnum() else "-" for c in spec).strip("-")[-60:]
    if not (folder / MANIFEST).exists() and not process():
        job.run.say(f"{spec} is text: its tokens go into {folder} (to clean and deduplicate it first: recipe corpus)")
        end = job.tokenizer.control.endoftext
        texts = ([*job.tokenizer.encode_plain(d.text), end] for d in read(spec) if d.text.strip())
        write_shards(folder, texts, job.tokenizer, sources={"texts": spec}, shard_tokens=1 << 24,
                     tell=lambda n, tokens: job.run.show(f"{n:,} documents, {tokens:,} tokens"))  # fmt: skip
    wait_for_all()
    return Shards(folder, job.tokenizer)


# Numbers that follow from others


@dataclass(frozen=True)
class Plan:
    """What a stage does, in numbers."""

    updates: int
    rows: Rows
    optim: OptimConfig
    warmup: int
    decay: int
    workers: int
    evaluate_every: int


def derive(stage: Pretrain, job: Job, mixture: Mixture, length: int) -> tuple[Plan, list[str]]:
    """The plan, and lines that say why."""
    config, on_cpu, world = job.model.config, job.model.device.type == "cpu", processes()
    parameters = config.num_parameters(active=True)
    wished, per = stage.tokens_per_parameter * parameters, f"{stage.tokens_per_parameter:g} for each of {parameters:,}"
    most = stage.epochs * mixture.tokens if mixture.tokens else math.inf
    # Bergsma et al. 2025, "Power lines": the best batch grows with the tokens to the power 0.383, whatever the model;
    # that it is 2^16 tokens for 10^8 in all is what this code takes.
    power, unit = 0.383, 65_536 / 1e8**0.383
    if stage.tokens or stage.updates:
        reason = "as given"
        several = (stage.updates or 0) * (stage.tokens_per_update or 0)
        tokens = stage.tokens or several or int(((stage.updates or 1) * unit) ** (1 / (1 - power)))
    else:
        tokens, reason = int(min(wished, most)), f"{per} (active) parameters"
        if most < wished:
            reason = f"{stage.epochs:g} times the data, where {wished:,.0f} would be {reason}"
    rows = max(1, (stage.tokens_per_micro_batch or (4096 if on_cpu else 65_536)) // length)
    best = unit * tokens**power
    update = stage.tokens_per_update or best
    if stage.tokens_per_micro_batch is None:
        rows = max(1, min(rows, round(update / length / world)))
    parts = max(1, round(update / (rows * length * world))) * world
    each = rows * length * parts
    if stage.tokens_per_update and each != stage.tokens_per_update:
        raise UsageError(
            f"{stage.name}.tokens_per_update={stage.tokens_per_update:,} is not made of micro-batches of {rows} × "
            f"{length:,} tokens in {world} processes: {each:,} would be"
        )
    updates = stage.updates or max(1, round(tokens / each))
    optim, rates = derive_optim(stage, config.hidden_size)
    warmup, decay = math.ceil(stage.warmup * updates), round(stage.decay * updates)
    if warmup + decay > updates:
        decay = updates - warmup
    drawn = any(callable(source.draw) for source in mixture.sources)
    cores = torch.multiprocessing.cpu_count()
    workers = stage.workers if stage.workers is not None else 0 if on_cpu else min(8 if drawn else 1, max(1, cores - 2))
    every = stage.evaluate_every if stage.evaluate_every is not None else max(1, updates // 10)
    batch = (
        "as given"
        if stage.tokens_per_update
        else f"near {best:,.0f}, the best batch for {tokens:,} tokens (∝ tokens^0.383)"
    )
    why = [
        f"{updates:,} updates of {each:,} tokens, {updates * each:,} in all: {reason}",
        f"an update is {parts} × {rows} rows of {length:,} tokens (× what is computed at once): {batch}",
        f"{rates}; rising over {warmup} updates, falling over the last {decay} from {stage.peak:g} to {stage.final:g}",
    ]
    return Plan(
        updates, Rows(rows, length, parts, job.tokenizer.control.endoftext), optim, warmup, decay, workers, every
    ), why


def derive_optim(stage: Pretrain, width: int) -> tuple[OptimConfig, str]:
    """The optimiser and the reason for its learning rates. Muon's directions have the same size at every width, so its
    rate does not depend on it; AdamW's steps add up over a matrix's inputs, so its rate falls as 1 / width."""
    if isinstance(stage.optim, OptimConfig):
        return stage.optim, f"{stage.optim.kind} as given"
    vector, by_width = min(3e-3, 0.75 / width), f" = 0.75 / width {width:,}, at most 0.003"
    if stage.optim == "adamw":
        lr = stage.lr or vector
        made = OptimConfig("adamw", matrix_lr=lr, vector_lr=lr, weight_decay=0.1, eps=1e-8)
        return made, f"AdamW, learning rate {lr:.2g}{' as given' if stage.lr else by_width}"
    lr = stage.lr or 0.02
    why = f"{lr:.2g} {'as given' if stage.lr else 'at every width'}; AdamW for embedding and norms, {vector:.2g}"
    return OptimConfig("muon", matrix_lr=lr, vector_lr=vector), f"Muon, learning rate {why}{by_width}"


def carry(stage: Pretrain, job: Job, trainer: Trainer) -> None:
    """Masters and moments of the pretraining stage that ended last, where this one has not begun."""
    before = [name for name, summary in job.run.done().items() if summary.get("finished") and name != stage.name]
    if not before or any((job.run.folder / stage.name).glob("step-*")):
        return
    found = trainer.carry(job.run.folder / before[-1], lambda place: "stream" in place.get("stage", {}))
    job.run.say(
        f"{stage.name}: the optimiser goes on from {before[-1]}" if found
        else f"{stage.name}: the optimiser begins anew, as {before[-1]} was no pretraining or another optimiser's"
    )  # fmt: skip


# What is measured

_START, _MORE = 8, 40  # tokens of a held-out text, and what the model makes of them


class Measures:
    """`loop`'s after: evaluations where they are due."""

    def __init__(self, stage: Pretrain, job: Job, trainer: Trainer, sources: Sequence[Source], plan: Plan) -> None:
        self.stage, self.job, self.trainer, self.plan = stage, job, trainer, plan
        limit = stage.evaluate_tokens or (16_384 if job.model.device.type == "cpu" else 524_288)
        self.texts: dict[str, list[Text]] = {}
        if plan.evaluate_every:
            for spec in stage.held_out:
                shards = as_shards(spec, job)
                self.texts[spec] = some_texts(shards, range(len(shards)), job.tokenizer, limit // len(stage.held_out))
            kept = [s for s in sources if s.kept and not callable(s.draw)]
            for source in kept:
                shards = Shards(str(source.draw))
                numbers = kept_out(shards, source.kept)
                self.texts[source.name] = some_texts(shards, numbers, job.tokenizer, limit // len(kept))
            if not self.texts:
                job.run.say(f"{stage.name}: no document is held out, so bits per byte are not measured: give held_out")

    def __call__(self, update: int) -> dict[str, float]:
        every = self.plan.evaluate_every
        if not every or (update % every and update != self.plan.updates):
            return {}
        stage, model, found = self.stage, self.job.model, dict[str, float]()
        run, rows = self.trainer.forward, self.plan.rows
        sizes: list[tuple[float, float]] = []
        for name, texts in self.texts.items():
            one = bits_per_byte(model, texts, length=rows.length, rows=rows.rows, forward=run, head=self.trainer.head)
            sizes.append((one["bits_per_byte"], one["bytes"]))
            if len(self.texts) > 1:
                found[f"bits_per_byte/{name}"] = one["bits_per_byte"]
        if sizes and (total := sum(size for _, size in sizes)):
            found["bits_per_byte"] = sum(bits * size for bits, size in sizes) / total
        if stage.sharded and processes() > 1:  # the engine and needles want all parameters in one place
            return found
        tokenizer = self.job.tokenizer
        for length in stage.needle:
            factor = stage.yarn if length > rows.length else 1.0
            with stretched(model, factor, rows.length):
                test = needle_test(choices(model), tokenizer, [length], count=stage.needles, seed=self.job.seed)
            found[f"needle/{length}"] = test["accuracy"]
        self._continue(update)
        if stage.evaluate is not None:
            most, context = 32, model.config.context_length
            # No more blocks than so many rows need: the rest of the memory is the trainer's.
            with LLM.of(
                model, tokenizer, mode=self.job.mode, max_batch=most, blocks=most * -(-context // 16) + 2
            ) as llm:  # fmt: skip
                found |= stage.evaluate(llm)
        return found

    def _continue(self, update: int) -> None:
        """Held-out beginnings and what the model makes of them, by its own forward: an engine takes longer to build."""
        texts = [
            text.ids[:_START].tolist() for texts in self.texts.values() for text in texts if len(text.ids) > _START
        ]
        if not (starts := texts[: self.stage.samples]):
            return
        decode, end = self.job.tokenizer.decode, self.job.tokenizer.control.endoftext
        made = continued(self.job.model, starts, _MORE, self.job.seed, self.job.tokenizer.vocab_size)
        shown = [
            f"{decode(start)} ▸ {decode(more[: more.index(end)] if end in more else more)}"
            for start, more in zip(starts, made, strict=True)
        ]
        for text in shown:
            self.job.run.show(f"  {text!r}")
        self.job.run.log(event="samples", stage=self.stage.name, update=update, texts=shown)


@torch.no_grad()
def continued(model: Qwen3, starts: Sequence[Sequence[int]], count: int, seed: int, vocabulary: int) -> list[list[int]]:
    """`count` tokens below `vocabulary` after each of the starts, all of one length, sampled at temperature 0.8."""
    ids, generator = torch.tensor(starts, device=model.device), torch.Generator().manual_seed(seed)
    for _ in range(count):
        p = (model(ids, last_only=True)[:, -1, :vocabulary].float() / 0.8).softmax(-1).cpu()
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator).to(ids.device)], dim=1)
    return [row[len(starts[0]) :] for row in ids.tolist()]


def some_texts(shards: Shards, numbers: Sequence[int], tokenizer: Tokenizer, limit: int) -> list[Text]:
    """Documents by their numbers until there are `limit` tokens; the last is cut, with its bytes."""
    texts: list[Text] = []
    control = tokenizer.added_tokens
    for number in numbers:
        if limit < 2:
            break
        ids = shards[number][:limit]
        limit -= len(ids)
        texts.append(Text(ids, sum(len(tokenizer.token_bytes(int(id))) for id in ids[1:] if int(id) not in control)))
    return texts
