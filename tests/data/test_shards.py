"""Shards: the same batches for any number of hosts, every row once an epoch, damage named."""

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from nanocode.data.shards import INDEX, Index, Rows, dtype_for, index_bytes, read_index, write_rows
from nanocode.storage.objects import LocalStore, Store

CONTEXT = 7


def corpus(store: Store, counts: tuple[int, ...] = (13, 5, 9), dtype: str = "uint16") -> Index:
    """A corpus whose rows begin with their own number."""
    shards, number = [], 0
    for place, count in enumerate(counts):
        rows = np.zeros((count, CONTEXT + 1), np.uint32)
        rows[:, 1] = np.arange(number, number + count) + 1
        number += count
        tokens = count * CONTEXT
        shards.append(
            write_rows(store, f"train-{place:05d}.bin", rows, dtype, documents=count, tokens=tokens, size=tokens)
        )
    valid = write_rows(store, "valid-code.bin", rows[:2], dtype, documents=2, tokens=14, size=20)
    index = Index.model_validate(
        {
            "context": CONTEXT,
            "dtype": dtype,
            "bos": 0,
            "vocab_size": 100,
            "seed": 0,
            "train": tuple(shards),
            "valid": {"code": valid},
            "sources": (),
        }
    )
    store.write(INDEX, index_bytes(index))
    return index


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "corpus")


def numbers(batch: npt.NDArray[np.int32]) -> list[int]:
    return [int(row[1]) for row in batch]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_global_batches_do_not_depend_on_the_number_of_hosts(store: LocalStore, hosts: int) -> None:
    corpus(store)
    alone = Rows(store)
    readers = [Rows(store) for _ in range(hosts)]
    for step in range(9):
        parts = [reader.batch(step, 8, seed=3, host=host, hosts=hosts) for host, reader in enumerate(readers)]
        np.testing.assert_array_equal(np.concatenate(parts), alone.batch(step, 8, seed=3))


def test_an_epoch_has_every_row_once_and_the_next_has_another_order(store: LocalStore) -> None:
    corpus(store)
    rows = Rows(store)
    seen = [n for step in range(27) for n in numbers(rows.batch(step, 2, seed=1))]
    assert sorted(seen[:27]) == sorted(seen[27:]) == list(range(1, 28))
    assert seen[:27] != seen[27:]
    assert numbers(rows.batch(0, 54, seed=1)) == seen
    assert numbers(rows.batch(0, 27, seed=2)) != seen[:27]


def test_a_batch_depends_on_nothing_that_was_read_before(store: LocalStore) -> None:
    corpus(store)
    used, fresh = Rows(store), Rows(store)
    for step in range(5):
        used.batch(step, 4, seed=0)
    np.testing.assert_array_equal(used.batch(11, 4, seed=0), fresh.batch(11, 4, seed=0))


def test_a_batch_may_be_longer_than_an_epoch(store: LocalStore) -> None:
    corpus(store, (3, 2))
    assert sorted(numbers(Rows(store).batch(0, 10, seed=0))) == sorted([*range(1, 6)] * 2)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_validation_rows_come_in_stored_order(store: LocalStore, dtype: str) -> None:
    corpus(store, dtype=dtype)
    valid = Rows(store, "valid-code")
    assert (len(valid), valid.bytes) == (2, 20)
    assert numbers(valid.rows(0, 10)) == [19, 20]
    assert numbers(Rows(store).rows(12, 15)) == [13, 14, 15]
    assert Rows(store).rows(99, 120).shape == (0, CONTEXT + 1)


def test_the_smaller_type_is_used_where_it_holds_every_id() -> None:
    assert (dtype_for(65536), dtype_for(65537)) == ("uint16", "uint32")


def test_a_missing_or_damaged_corpus_is_named(store: LocalStore) -> None:
    with pytest.raises(ValueError, match="no corpus at .*run the corpus stage"):
        Rows(store)
    index = corpus(store)
    with pytest.raises(ValueError, match="no split 'valid-poetry': it has train, valid-code"):
        Rows(store, "valid-poetry")
    with pytest.raises(ValueError, match="batch_rows 6 cannot be split for host 0 of 4"):
        Rows(store).batch(0, 6, seed=0, hosts=4)
    store.write("train-00001.bin", b"short")
    with pytest.raises(ValueError, match=r"train-00001.bin has 5 bytes, not 80"):
        Rows(store).batch(0, 27, seed=0)
    (store.root / "train-00001.bin").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*train-00001.bin"):
        Rows(store).batch(0, 27, seed=0)
    store.write(INDEX, index_bytes(index)[:50])
    with pytest.raises(ValueError, match="index.json is damaged"):
        read_index(store)
    store.write(INDEX, b"{}")
    with pytest.raises(ValueError, match="index.json is damaged .context has to be given"):
        read_index(store)


class Remote:
    """Stands for a bucket: the reader must not know that there are files behind it."""

    url = "gs://remote"

    def __init__(self, store: LocalStore) -> None:
        self.read, self.download = store.read, store.download


def test_shards_of_a_bucket_are_kept_in_the_cache_and_checked(store: LocalStore, tmp_path: Path) -> None:
    corpus(store)
    remote = cast(Store, Remote(store))
    first = Rows(remote, cache=tmp_path / "cache").batch(0, 27, seed=0)
    np.testing.assert_array_equal(first, Rows(store).batch(0, 27, seed=0))
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 3
    store.write("train-00000.bin", b"other")
    np.testing.assert_array_equal(Rows(remote, cache=tmp_path / "cache").batch(0, 27, seed=0), first)
    with pytest.raises(ValueError, match="gs://remote/train-00000.bin is not what its index says"):
        Rows(remote, cache=tmp_path / "other").batch(0, 27, seed=0)
