"""Test train_negative_rate: ctr-prepare keeps all clicks and a share of train's non-clicks."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from contract.vocabulary import UNKNOWN, open_vocabulary
from model.data.prepare import negatives, reading, writing
from model.data.prepare.negatives import draws
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import Prepared
from model.data.prepare.summary import split_lines
from model.data_config import Data, SplitAtRandom

ROWS = 6000
SPLITS = ("train", "valid", "test")


def rows_of(seed: int, rows: int = ROWS) -> pl.DataFrame:
    """Return rows with 5% clicks. The number, the weight and the request tell the rows apart."""
    random = np.random.default_rng(seed)
    number = np.arange(rows)
    return pl.DataFrame(
        {
            "place": random.choice(["top", "side", "end"], rows),
            "ad": random.integers(0, 400, rows),
            "bid": number.astype(float),
            "weight": 1.0 + number,
            "user": random.integers(0, 50, rows),
            "request": number,
            "click": (random.random(rows) < 0.05).astype(np.int8),
        }
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, split in enumerate(SPLITS):
        rows_of(seed).write_parquet(tmp_path / f"{split}.parquet")
    return tmp_path


def data(**keys: Any) -> Data:
    columns: dict[str, Any] = {"label": "click", "context": ("place",), "candidate": ("ad", "bid"), "numeric": ("bid",)}
    columns |= {split: f"{split}.parquet" for split in SPLITS}
    columns |= {"weight": "weight", "unit": "user", "request": "request", "clip_quantile": 0.0}
    return Data(**({"reader": "table", "folder": ".", "prepared": "prepared"} | columns | keys))


def arrays(prepared: Prepared, split: str) -> list[list[Any]]:
    columns = [prepared.weights(split), prepared.units(split), prepared.requests(split)]
    return [np.asarray(array).tolist() for array in (*prepared.split(split), *columns)]


def test_all_clicks_and_a_share_of_the_other_rows_of_train_are_kept(root: Path) -> None:
    prepared = prepare(root, data(train_negative_rate=0.2))
    train = pl.read_parquet(root / "train.parquet")
    clicks = int(train["click"].sum())
    facts = prepared.facts.splits["train"]
    assert facts.clicks == clicks
    assert facts.rows + facts.dropped == ROWS
    others = ROWS - clicks
    assert abs(facts.rows - clicks - 0.2 * others) < 4 * np.sqrt(0.2 * 0.8 * others)
    # Each column belongs to the same rows.
    number = np.asarray(prepared.requests("train")) - 1
    kept = train[number.tolist()]
    _, values, labels = prepared.split("train")
    bid = prepared.schema.select("numeric")[0]
    np.testing.assert_allclose(values[:, 0] * bid.std + bid.mean, kept["bid"].to_numpy(), atol=0.01)
    assert labels.tolist() == kept["click"].to_list()
    assert np.asarray(prepared.weights("train")).tolist() == kept["weight"].to_list()
    assert (np.diff(number) > 0).all()


def test_valid_and_test_are_complete_and_statistics_are_those_of_the_whole_log(root: Path) -> None:
    whole = prepare(root, data(prepared="whole"))
    sampled = prepare(root, data(train_negative_rate=0.2))
    assert sampled.schema == whole.schema  # includes the mean, the standard deviation and the range of the bid
    for split in ("valid", "test"):
        assert sampled.facts.splits[split] == whole.facts.splits[split]
        ids, *others = arrays(sampled, split)
        whole_ids, *whole_others = arrays(whole, split)
        assert others == whole_others
        assert np.array(ids).shape == np.array(whole_ids).shape


def test_the_kept_rows_depend_neither_on_batches_nor_on_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = arrays(prepare(root, data(train_negative_rate=0.2)), "train")
    rows = pl.read_parquet(root / "train.parquet")
    for number, part in enumerate((rows[:11], rows[11:4000], rows[4000:])):
        part.write_parquet(root / f"part-{number}.parquet")
    monkeypatch.setattr(reading, "BATCH_ROWS", 700)
    monkeypatch.setattr(writing, "CHUNK_ROWS", 77)
    parts = data(train_negative_rate=0.2, train="part-*.parquet", prepared="parts")
    assert arrays(prepare(root, parts), "train") == expected


def test_a_larger_share_keeps_the_rows_of_a_smaller_one() -> None:
    drawn = draws(5, 1000)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert draws(105, 10).tolist() == drawn[100:110].tolist()
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.04)


def test_the_choice_is_independent_of_a_random_split(root: Path) -> None:
    split = SplitAtRandom(valid=0.3, test=0.3, seed=1)
    keys = {"files": "train.parquet", "train": "", "valid": "", "test": "", "split": split}
    facts = prepare(root, data(train_negative_rate=0.2, **keys)).facts.splits["train"]
    others = facts.rows + facts.dropped - facts.clicks
    assert abs(facts.rows - facts.clicks - 0.2 * others) < 4 * np.sqrt(0.2 * 0.8 * others)


@pytest.mark.parametrize("kept", [0, 1])
def test_min_count_counts_all_rows_and_a_token_without_a_kept_row_is_unknown(
    root: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """The ad "rare" has the first 20 rows of train, of which `kept` are kept."""
    is_rare = pl.int_range(ROWS) < 20
    train = pl.read_parquet(root / "train.parquet").with_columns(
        ad=pl.when(is_rare).then(pl.lit("rare")).otherwise(pl.col("ad").cast(pl.String)),
        click=pl.when(is_rare).then(pl.lit(0, pl.Int8)).otherwise("click"),
    )
    train.write_parquet(root / "train.parquet")

    def chosen(first: int, count: int) -> NDArray[np.float64]:
        rows = np.arange(first, first + count)
        return np.where(rows < kept, 0.0, np.where(rows < 20, 0.99, draws(first, count)))

    monkeypatch.setattr(negatives, "draws", chosen)
    prepared = prepare(root, data(train_negative_rate=0.1, min_count=20))
    rare = open_vocabulary(prepared.vocabulary, "ad")("rare")
    assert (rare == UNKNOWN) == (kept == 0)


def test_the_dropped_rows_are_printed_and_recorded(root: Path) -> None:
    prepared = prepare(root, data(train_negative_rate=0.2))
    facts = prepared.facts.splits["train"]
    line = split_lines(prepared)[0]
    clicks, others = facts.clicks, ROWS - facts.clicks
    assert f"train: 6,000 rows with {clicks / ROWS:.2%} clicks; kept {facts.rows:,}: all {clicks:,} clicks" in line
    assert f"{facts.rows - clicks:,} of {others:,} non-clicks" in line
    assert msgspec.json.decode((prepared.folder / "log.json").read_bytes())["splits"]["train"]["dropped"] > 4000


def test_a_share_that_keeps_no_row_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train_negative_rate = 1e-09 keeps none of the [\d,]+ non-clicks of train"):
        prepare(root, data(train_negative_rate=1e-9))
    assert not (root / "prepared").exists()
