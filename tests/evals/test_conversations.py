"""The held-out loss of conversations: only what the agent wrote counts."""

from math import log

import jax
import numpy as np
import pytest

from nanocode.agent.conversation import render
from nanocode.config.shape import ModelShape
from nanocode.data.packing import pack
from nanocode.data.shards import INDEX, Index, Rows, index_bytes, write_rows
from nanocode.evals.conversations import AssistantLoss
from nanocode.storage.objects import LocalStore
from nanocode.train.mesh import make_mesh
from nanocode.train.optimizer import optimizer
from nanocode.train.step import abstract_model, init_state
from tests.conversations import TOKENIZER, conversations
from tests.model.reference import logits

pytestmark = pytest.mark.slow

CONTEXT, BOS = 256, TOKENIZER.bos
SHAPE = ModelShape(layers=1, width=16, heads=2, vocab_size=TOKENIZER.vocab_size, context=CONTEXT)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    store = LocalStore(tmp_path_factory.mktemp("rows"))
    tokens = [render(one, TOKENIZER).tokens[1:] for one in conversations(12)]
    packed = np.stack(list(pack(tokens, CONTEXT, BOS, whole=True)))
    shard = write_rows(store, "r.bin", packed, "uint16", documents=12, tokens=sum(map(len, tokens)), size=1)
    index = Index(
        context=CONTEXT, dtype="uint16", bos=BOS, vocab_size=TOKENIZER.vocab_size, seed=0,
        train=(shard,), valid={"conversations": shard}, sources=(),
    )  # fmt: skip
    store.write(INDEX, index_bytes(index))
    return Rows(store, "valid-conversations")


def test_it_is_the_mean_over_what_the_agent_wrote(rows: Rows) -> None:
    dice = np.random.default_rng(0)
    fresh = init_state(SHAPE, optimizer(), 0)["weights"]
    weights = jax.tree.map(lambda x: jax.numpy.asarray(dice.normal(0, 0.3, x.shape), "float32"), fresh)
    measure = AssistantLoss(make_mesh(), abstract_model(SHAPE, "float32"), TOKENIZER)
    spoken = {tuple(r.tokens): r.assistant for r in (render(one, TOKENIZER) for one in conversations(12))}
    limit, nats = 2, []
    for row in rows.rows(0, limit):
        starts = np.flatnonzero(row == BOS)
        found = logits(SHAPE, weights, row[:-1].tolist(), [start for start in starts.tolist() if start < CONTEXT])
        losses = np.log(np.exp(found).sum(-1)) - found[np.arange(CONTEXT), row[1:]]
        for start, stop in zip(starts, [*starts[1:], len(row)], strict=True):
            mine = spoken.get(tuple(row[start:stop].tolist()), [False])
            nats += [losses[start + n] for n, mask in enumerate(mine[1:]) if mask]
    assert len(nats) > 50
    assert measure(weights, rows, limit) == pytest.approx(np.mean(nats), rel=1e-4)


def test_a_model_that_knows_nothing_pays_log_v(rows: Rows) -> None:
    weights = jax.tree.map(jax.numpy.zeros_like, init_state(SHAPE, optimizer(), 0)["weights"])
    weights["embed"] = weights["embed"] + 1.0
    measure = AssistantLoss(make_mesh(), abstract_model(SHAPE, "float32"), TOKENIZER)
    assert measure(weights, rows, 99) == pytest.approx(log(SHAPE.vocab_size), rel=1e-5)
