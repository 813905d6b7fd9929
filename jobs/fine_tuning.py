"""Stage sft: the base model learns from rollouts; whole conversations in packed rows, loss on what the agent wrote."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import structlog
from jaxtyping import PyTree
from pydantic import JsonValue

from jobs.stage import Outcome, Task
from jobs.training import (
    Evaluate,
    HostBatches,
    Plan,
    join_other_hosts,
    read_corpus,
    read_tokenizer,
    run_training,
    weights_of,
)
from nanocode.agent.conversation import render
from nanocode.data.packing import pack, waste
from nanocode.data.shards import INDEX, VALIDATION, Index, Rows, dtype_for, index_bytes, write_rows
from nanocode.evals.bits import BitsPerByte
from nanocode.evals.conversations import AssistantLoss
from nanocode.run.exits import ConfigurationError
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import Store
from nanocode.synth.rollouts import read_rollouts
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.setup import Trainer, state_around
from nanocode.train.step import make_train_step
from nanocode.train.supervision import assistant_targets

log = structlog.get_logger()

VALIDATION_SHARE = 0.02
# Conversations that wait for a place: with 2,000 of them under 3% of the demo's slots are padding, with 256 over 5%.
PACKING_BUFFER = 2000


def train(task: Task) -> Outcome | None:
    join_other_hosts(task)
    settings, tokenizer = task.settings, read_tokenizer(task)
    # Attempts share nothing that is written; what is packed here is read here.
    store = task.nearby.store.child(f"{task.folder}/rows-{task.attempt}")
    with task.phase("packing"):
        counts = pack_rollouts(task, tokenizer, store)
    rows, held_out = Rows(store), Rows(store, "valid-conversations")
    corpus = read_corpus(task, INDEX, VALIDATION)
    weigh = assistant_targets(tokenizer.special, settings.sft.elsewhere)
    last: dict[str, JsonValue] = {}

    def evaluation(trainer: Trainer) -> Evaluate:
        loss = AssistantLoss(trainer.mesh, trainer.model, tokenizer)
        drift = Drift(trainer, tokenizer, corpus, settings.sft.eval_rows)

        def evaluate(weights: PyTree, done: int, metrics: SegmentWriter) -> dict[str, float]:
            nats, bits = loss(weights, held_out, settings.sft.eval_rows), drift(weights)
            last.update(validation_loss=nats, bits_per_byte=dict(bits))
            tokens = done * settings.sft.batch_tokens
            metrics.write({"kind": "eval", "step": done, "tokens": tokens, "bits_per_byte": bits, "validation": nats})
            return {"held-out loss": nats}

        return evaluate

    plan = Plan(
        settings.sft,
        settings.sft.steps,
        HostBatches(rows, settings, settings.sft, settings.sft.steps),
        lambda trainer: make_train_step(trainer.model, trainer.optimizer, tokenizer.bos, weigh),
        lambda trainer: state_around(trainer, weights_of(task, "pretrain", trainer)),
        evaluation,
    )
    outcome = run_training(task, plan)
    if outcome is not None:
        outcome.metrics.update(last, conversations=dict(counts), waste=rows.index.waste)
    return outcome


class Drift:
    """Bits per byte on the corpus' validation text: what a stage unlearns of what pretraining taught."""

    def __init__(self, trainer: Trainer, tokenizer: Tokenizer, corpus: Store, rows: int) -> None:
        self._bits = BitsPerByte(trainer.mesh, trainer.model, tokenizer)
        whole = Rows(corpus)
        self._parts = {kind: Rows(corpus, f"valid-{kind}") for kind in whole.index.valid}
        self._rows = rows

    def __call__(self, weights: PyTree) -> dict[str, float]:
        return {kind: self._bits(weights, part, self._rows) for kind, part in self._parts.items()}


def pack_rollouts(task: Task, tokenizer: Tokenizer, store: Store) -> Counter[str]:
    """Write the rollouts as shards of rows: one for training, one held out; what was kept, and what was too long.

    The rows follow from the rollouts alone, so every attempt, and every host, packs the same.
    """
    counts: Counter[str] = Counter()
    context = task.settings.model.context
    parts: dict[bool, list[list[int]]] = {False: [], True: []}
    name = task.upstream("synth").outputs["rollouts"]
    for family, conversation in read_rollouts(task.near(name).child(name)):
        tokens = render(conversation, tokenizer).tokens[1:]  # packing puts the BOS
        if len(tokens) >= context:
            counts["too long"] += 1
            continue
        counts[family] += 1
        digest = hashlib.blake2b(np.asarray(tokens, np.uint32).tobytes(), digest_size=4).digest()
        parts[int.from_bytes(digest) < VALIDATION_SHARE * 2**32].append(tokens)
    if not parts[False] or not parts[True]:
        raise ConfigurationError(
            f"{sum(map(len, parts.values()))} rollouts of at most {context} tokens are too few to train on: "
            "raise synth.scenarios"
        )
    shards = {}
    dtype = dtype_for(tokenizer.vocab_size)
    for held_out, conversations in parts.items():
        name = "valid-conversations.bin" if held_out else "train-00000.bin"
        packed = np.stack(list(pack(_shuffled(conversations), context, tokenizer.bos, PACKING_BUFFER, whole=True)))
        used = sum(map(len, conversations))
        shards[held_out] = write_rows(
            store,
            name,
            packed,
            dtype,
            documents=len(conversations),
            tokens=used,
            size=sum(len(tokenizer.bytes_of[token]) for tokens in conversations for token in tokens),
            waste=waste(packed, tokenizer.bos),
        )
    index = Index(
        context=context,
        dtype=dtype,
        bos=tokenizer.bos,
        vocab_size=tokenizer.vocab_size,
        seed=task.settings.seed,
        train=(shards[False],),
        valid={"conversations": shards[True]},
        sources=(),
    )
    store.write(INDEX, index_bytes(index))
    return counts


def _shuffled(conversations: Sequence[list[int]]) -> Iterator[list[int]]:
    order = np.random.default_rng(len(conversations)).permutation(len(conversations))
    return (conversations[place] for place in order)
