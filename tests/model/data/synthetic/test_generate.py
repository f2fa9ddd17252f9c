"""Properties of the generated log."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from model.data.readers.generated import CANDIDATE, CONTEXT, LABEL, NUMERIC, REQUEST, TRUE_CTR
from model.data.readers.log import SPLITS
from model.data.synthetic import generate as generator
from model.data.synthetic.generate import CANDIDATES, generate, main, split_edges

REQUESTS = 120_000


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return generate(seed=1, requests=REQUESTS)


@pytest.fixture(scope="module")
def splits(log: pl.DataFrame) -> dict[str, pl.DataFrame]:
    edges = [edge * CANDIDATES for edge in split_edges(REQUESTS)]
    return {split: log[a:b] for split, a, b in zip(SPLITS, edges[:-1], edges[1:], strict=True)}


def shares(column: pl.Series) -> list[float]:
    """Return the share of each value, in descending order."""
    return (column.value_counts(sort=True)["count"] / len(column)).to_list()


def test_the_same_seed_gives_the_same_log_and_another_seed_a_different_one() -> None:
    first = generate(seed=7, requests=500)
    assert first.equals(generate(seed=7, requests=500))
    assert not first.equals(generate(seed=8, requests=500))


def test_every_request_shows_five_candidates_in_one_context(log: pl.DataFrame) -> None:
    assert len(log) == REQUESTS * CANDIDATES
    assert log[REQUEST].to_numpy().tolist() == np.repeat(np.arange(REQUESTS), CANDIDATES).tolist()
    situations = log[:5000].group_by(REQUEST).agg(pl.col(*CONTEXT).n_unique())
    assert situations.select(pl.max_horizontal(pl.col(*CONTEXT)).max()).item() == 1


def test_no_request_is_in_two_splits(splits: dict[str, pl.DataFrame]) -> None:
    ends = [(frame[REQUEST].min(), frame[REQUEST].max()) for frame in splits.values()]
    assert ends == [(0, 95_999), (96_000, 107_999), (108_000, 119_999)]


def test_both_sides_have_categorical_and_numeric_fields(log: pl.DataFrame) -> None:
    assert len(CONTEXT) + len(CANDIDATE) >= 15
    assert set(log.columns) == {*CONTEXT, *CANDIDATE, REQUEST, TRUE_CTR, LABEL}
    assert [len(set(NUMERIC) & set(side)) for side in (CONTEXT, CANDIDATE)] == [1, 1]
    assert log["private_mode"].dtype == pl.Boolean
    assert log["hour"].dtype.is_integer()
    assert log["user"].dtype == log["ad"].dtype == pl.String
    assert (log["bid"] > 0).all()


def test_there_are_many_users_and_ads_but_few_frequent_ones(log: pl.DataFrame) -> None:
    assert log["ad"].n_unique() == 2000
    assert 4000 < log["user"].n_unique() <= 5000
    for field, ranks in (("user", 5000), ("ad", 1900)):
        expected = generator.zipf_shares(ranks)[:100]
        old = log.filter(pl.col("ad").str.strip_prefix("ad-").cast(pl.Int64) <= 1900)
        assert np.allclose(shares(old[field])[:100], expected, rtol=0.15)


def test_some_fields_are_nearly_constant(log: pl.DataFrame) -> None:
    for field in ("private_mode", "sensitive"):
        assert shares(log[field])[0] == pytest.approx(0.99, abs=0.002)
    assert log["exchange"].n_unique() == 1


def test_two_fields_are_missing_in_five_percent_of_rows(log: pl.DataFrame) -> None:
    missing = {name: count / len(log) for name, count in log.null_count().row(0, named=True).items() if count}
    assert missing == {
        "session_depth": pytest.approx(0.05, abs=0.003),
        "age_band": pytest.approx(0.05, abs=0.003),
    }
    assert not log["session_depth"].cast(pl.Float64).is_nan().any()


def test_clicks_are_sampled_from_the_true_probabilities(splits: dict[str, pl.DataFrame]) -> None:
    for frame in splits.values():
        click, truth = frame[LABEL].to_numpy(), frame[TRUE_CTR].to_numpy()
        assert 0.03 < click.mean() < 0.05
        noise = np.sqrt((truth * (1 - truth)).sum()) / len(truth)
        assert abs(click.mean() - truth.mean()) < 4 * noise


def test_the_true_probabilities_have_the_auc_of_a_good_model(splits: dict[str, pl.DataFrame]) -> None:
    for frame in splits.values():
        assert 0.75 < roc_auc_score(frame[LABEL].to_numpy(), frame[TRUE_CTR].to_numpy()) < 0.82


def test_five_percent_of_test_rows_show_ads_that_are_not_in_train(splits: dict[str, pl.DataFrame]) -> None:
    train, test = splits["train"], splits["test"]
    new = test.filter(~pl.col("ad").is_in(train["ad"].unique().implode()))
    assert len(new) / len(test) == pytest.approx(0.05, abs=0.005)
    assert not splits["valid"]["ad"].is_in(new["ad"].unique().implode()).any()
    for known in ("campaign", "advertiser", "category", "format", "language"):
        assert new[known].is_in(train[known].unique().implode()).all()


def test_the_command_writes_the_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--requests", "200", "--seed", "3"]) == 0
    written = {path.name for path in (tmp_path / "generated").iterdir()}
    assert written == {"train.parquet", "valid.parquet", "test.parquet"}
    assert "1,000 impressions" in capsys.readouterr().out


def test_the_command_does_not_replace_a_folder_of_another_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "thesis.txt").write_text("mine")
    assert main(["--data", str(tmp_path), "--requests", "200"]) == 2
    assert "thesis.txt" in [path.name for path in (tmp_path / "generated").iterdir()]
    assert "Choose another folder" in capsys.readouterr().err


def test_too_few_requests_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--requests", "3"]) == 2
    assert "at least 100" in capsys.readouterr().err
