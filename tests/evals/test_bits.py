"""Bits per byte on rows, and what xz reaches on the same text."""

import math
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from nanocode.config.shape import ModelShape
from nanocode.data.shards import Rows
from nanocode.evals.bits import BitsPerByte, xz_bits_per_byte
from nanocode.generate.sample import Sampler
from nanocode.storage.objects import LocalStore
from nanocode.train.mesh import make_mesh
from nanocode.train.optimizer import optimizer
from nanocode.train.step import abstract_model, init_state
from tests.text.corpora import CONTEXT, TEXTS, TOKENIZER, build, write_tree

pytestmark = pytest.mark.slow

SHAPE = ModelShape(layers=1, width=16, heads=2, vocab_size=400, context=CONTEXT)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("corpus")
    build(folder / "c", write_tree(folder / "tree"), tokens=20_000)
    return Rows(LocalStore(folder / "c"), "valid-code")


def test_a_model_that_knows_nothing_pays_log_v_per_token(rows: Rows) -> None:
    weights = jax.tree.map(jnp.zeros_like, init_state(SHAPE, optimizer(), 0)["weights"])
    weights["embed"] = weights["embed"] + 1.0
    found = BitsPerByte(make_mesh(), abstract_model(SHAPE, "float32"), TOKENIZER)(weights, rows)
    tokens, size = rows.shards[0].tokens, rows.shards[0].bytes
    assert found == pytest.approx(tokens * math.log2(SHAPE.vocab_size) / size, rel=1e-4)


def test_xz_is_what_the_command_reaches(tmp_path: Path) -> None:
    texts = list(TEXTS.values())[:3]
    sizes = []
    for number, text in enumerate(texts):
        path = tmp_path / str(number)
        path.write_text(text)
        if shutil.which("xz") is None:
            pytest.skip("needs the command xz: apt-get install xz-utils")
        subprocess.run(["xz", "-9e", "--check=crc64", str(path)], check=True)
        sizes.append(path.with_suffix(".xz").stat().st_size)
    wanted = 8 * sum(sizes) / sum(len(text.encode()) for text in texts)
    assert xz_bits_per_byte(texts) == pytest.approx(wanted, rel=1e-3)


def test_a_sample_is_greedy_at_temperature_zero_and_rows_do_not_disturb_each_other() -> None:
    weights = init_state(SHAPE, optimizer(), 3)["weights"]
    weights = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), weights)
    sampler = Sampler(abstract_model(SHAPE, "float32"), 6)
    together = sampler(weights, [[0, 5, 9], [0, 7, 8, 9, 10, 11]], 0.0, 0)
    alone = [sampler(weights, [prompt], 0.0, 1)[0] for prompt in ([0, 5, 9], [0, 7, 8, 9, 10, 11])]
    assert together == alone
    assert sampler(weights, [[0, 5, 9]], 1.0, 1) == sampler(weights, [[0, 5, 9]], 1.0, 1)
    assert sampler(weights, [[0, 5, 9]], 5.0, 1) != sampler(weights, [[0, 5, 9]], 5.0, 2)
    with pytest.raises(ValueError, match="do not fit into context 64"):
        sampler(weights, [[0] * 60], 0.0, 0)
