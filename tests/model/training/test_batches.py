"""Batches: an epoch contains every row once, in an order that depends on the seed."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.experiment_config import Training
from model.training.batches import Batches, Rows, Split


def numbered(rows: int) -> Split:
    """Return rows whose id is their row number, starting at 2."""
    ids = np.arange(2, rows + 2, dtype=np.int32)[:, None]
    return Split(ids, ids.astype(np.float32), (ids[:, 0] % 2).astype(np.float32))


def batches(split: Split, size: int, block_rows: int, run_rows: int, seed: int = 1) -> Batches:
    return Batches(split, Training(batch_size=size, unknown_rate=0.0, seed=seed), block_rows, run_rows)


def order(epoch: Iterator[Rows]) -> list[int]:
    return [row for batch in epoch for row in (batch.ids[:, 0] - 2).tolist()]


@given(st.integers(2, 200), st.integers(2, 40), st.integers(1, 80), st.integers(1, 30))
def test_an_epoch_contains_every_row_once_except_a_single_leftover_row(
    rows: int, size: int, block: int, run: int
) -> None:
    several = batches(numbered(rows), size, block, run)
    for _ in range(2):
        epoch = list(several.epoch())
        assert all(len(batch) == size for batch in epoch[:-1])
        seen = order(iter(epoch))
        assert len(set(seen)) == len(seen) == (rows - 1 if rows % size == 1 else rows)


@given(st.integers(2, 100), st.integers(1, 50))
def test_ids_values_labels_and_weights_stay_together(rows: int, block: int) -> None:
    split = numbered(rows)
    weighted = dataclasses.replace(split, weights=split.values[:, 0] * np.float32(0.5))
    for batch in batches(weighted, 8, block, 4).epoch():
        assert torch.equal(batch.ids.float(), batch.values)
        assert torch.equal((batch.ids[:, 0] % 2).float(), batch.labels)
        assert batch.weights is not None
        assert torch.equal(batch.ids[:, 0].float() / 2, batch.weights)


def test_a_split_of_one_block_is_shuffled_as_a_whole() -> None:
    expected = torch.randperm(100, generator=torch.Generator().manual_seed(7)).tolist()
    assert order(batches(numbered(100), 16, 100, 4, seed=7).epoch()) == expected


def test_blocks_mix_distant_rows_and_the_order_depends_on_epoch_and_seed() -> None:
    first = batches(numbered(1000), 10, 200, 10)
    one, two = order(first.epoch()), order(first.epoch())
    assert one != two
    assert one == order(batches(numbered(1000), 10, 200, 10).epoch())
    assert one != order(batches(numbered(1000), 10, 200, 10, seed=2).epoch())
    block = sorted(one[:200])
    assert max(np.diff(block)) > 10  # A block mixes runs of rows from the whole file.
    assert one[:200] != block


@given(st.integers(2, 100), st.integers(2, 40), st.integers(1, 50), st.integers(0, 1), st.data())
def test_an_epoch_can_be_continued_from_any_batch(
    rows: int, size: int, block: int, finished: int, data: st.DataObject
) -> None:
    """Only the random state at the start of the epoch is needed. The next epoch is the same too."""
    recipe = Training(batch_size=size, unknown_rate=0.3)
    whole, parts = (Batches(numbered(rows), recipe, block, run_rows=4) for _ in range(2))
    for _ in range(finished):
        list(whole.epoch())
        list(parts.part(0, parts.steps_per_epoch))
    steps = parts.steps_per_epoch
    stop = data.draw(st.integers(0, steps - 1))
    first = [batch.ids for batch in parts.part(0, stop)]
    killed = parts.generator.get_state()
    if data.draw(st.booleans()):
        parts = Batches(numbered(rows), recipe, block, run_rows=4)
        parts.generator.set_state(killed)
    found = [*first, *(batch.ids for batch in parts.part(stop, steps)), *(b.ids for b in parts.part(0, steps))]
    expected = [batch.ids for _ in range(2) for batch in whole.epoch()]
    assert len(expected) == 2 * steps
    assert all(map(torch.equal, found, expected))


def numbers(values: list[list[float]], missing_vectors: list[bool]) -> Split:
    array = np.tile(np.array(values, np.float32), (100, 1))
    return Split(np.full((len(array), 1), 2), array, np.zeros(len(array), np.float32), missing_vectors=missing_vectors)


def hidden_shares(split: Split, rate: float, block_rows: int = 7) -> list[float]:
    several = Batches(split, Training(batch_size=64, unknown_rate=rate), block_rows=block_rows, run_rows=7)
    return torch.cat([batch.values for batch in several.epoch()]).isnan().double().mean(0).tolist()


def test_numbers_are_hidden_in_fields_with_a_missing_vector_that_are_never_missing() -> None:
    """The second field is missing in half of its rows, and the third has no missing vector."""
    split = numbers([[1, 2, 3], [4, np.nan, 6]], [True, True, False])
    first, second, third = hidden_shares(split, 0.3)
    assert (second, third) == (0.5, 0)
    assert 0.2 < first < 0.4
    assert hidden_shares(split, 0.3, block_rows=1000)[1:] == [0.5, 0]
    assert hidden_shares(split, 0.0) == [0, 0.5, 0]
    assert not np.isnan(split.values[:, 0]).any()


@given(st.integers(0, 9), st.sampled_from([[], [False, False], [False, True]]))
def test_without_hidden_numbers_the_batches_are_the_same_as_without_missing_vectors(
    seed: int, missing_vectors: list[bool]
) -> None:
    """The random numbers that shuffle rows and hide tokens do not change. The second field may be missing."""
    split = numbers([[1, 2], [4, np.nan]], missing_vectors)
    recipe = Training(batch_size=64, unknown_rate=0.3, seed=seed)
    found = Batches(split, recipe)
    random = torch.Generator().manual_seed(seed)
    for _ in range(2):
        order = torch.randperm(len(split), generator=random)
        for batch, rows in zip(found.epoch(), order.split(64), strict=True):
            chance = torch.rand(batch.ids.shape, generator=random)
            expected = torch.full_like(batch.ids, 2).masked_fill(chance < 0.3, 0).masked_fill(chance > 0.7, 1)
            assert torch.equal(batch.ids, expected)
            np.testing.assert_array_equal(batch.values, split.values[rows])


CHILD = """
import resource, sys
import numpy as np, torch
from torch import nn
from model.training.batches import Batches, Split
from model.experiment_config import Training
from model.training.fit import fit, predict

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
    def forward(self, ids, values):
        return self.weight * ids[:, 0]

ids = np.load(sys.argv[1], mmap_mode="r")
split = Split(ids, np.zeros((len(ids), 0), np.float32), (np.arange(len(ids)) % 2).astype(np.float32))
model, valid = Mean(), Split(split.ids[:1000], split.values[:1000], split.labels[:1000])
fit(model, [], valid, valid, Training(epochs=1, batch_size=512))  # Now torch has started its threads and pools.
now = sum(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData")) * 1024
budget = now + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (budget, budget))
epoch = Batches(split, Training(batch_size=4096), block_rows=int(sys.argv[3]), run_rows=1024).epoch()
print(sum(map(len, epoch)), len(predict(model, split)))
"""
ROWS, FIELDS = 300_000, 400
BUDGET = 200 * 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 MB of ids in a sparse file, which uses no disk space."""
    path = tmp_path_factory.mktemp("large") / "train.ids.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=(ROWS, FIELDS))
    return path


def train_in(budget: int, block_rows: int, path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CHILD, str(path), str(budget), str(block_rows)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_log_larger_than_memory_can_be_trained_on(large: Path) -> None:
    assert large.stat().st_size > 2 * BUDGET
    done = train_in(BUDGET, 16_384, large)
    assert done.stdout == f"{ROWS} {ROWS}\n", done.stderr


def test_the_same_log_does_not_fit_into_memory_as_one_block(large: Path) -> None:
    done = train_in(BUDGET, ROWS, large)
    assert done.returncode != 0
    assert "memory" in done.stderr.lower()
