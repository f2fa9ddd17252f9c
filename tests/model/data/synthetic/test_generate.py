"""Properties of the generated log."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from model.data.readers.generated import CANDIDATE, CONTEXT, LABEL, NUMERIC, REQUEST, TRUE_CTR
from model.data.readers.log import SPLITS
from model.data.synthetic import generate as generator
from model.data.synthetic.generate import CANDIDATES, Plan, generate, main, split_at

REQUESTS = 120_000


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return generate(seed=1, plan=Plan(split_at(REQUESTS)))


@pytest.fixture(scope="module")
def splits(log: pl.DataFrame) -> dict[str, pl.DataFrame]:
    starts = np.cumsum((0, *split_at(REQUESTS))) * CANDIDATES
    return {split: log[a:b] for split, a, b in zip(SPLITS, starts[:-1], starts[1:], strict=True)}


def shares(column: pl.Series) -> list[float]:
    """Return the share of each value, in descending order."""
    return (column.value_counts(sort=True)["count"] / len(column)).to_list()


def test_the_same_seed_gives_the_same_log_and_another_seed_a_different_one() -> None:
    plan = Plan(split_at(500))
    first = generate(seed=7, plan=plan)
    assert first.equals(generate(seed=7, plan=plan))
    assert not first.equals(generate(seed=8, plan=plan))


def test_the_default_log_is_still_that_of_earlier_versions() -> None:
    text = generate(seed=7, plan=Plan(split_at(500))).write_csv().encode()
    assert hashlib.sha256(text).hexdigest() == "d2fa673a430faabe76650a1cec394b8f75c3d473b102ed771305ebe2d32f149a"


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


def test_the_click_rate_and_the_rows_of_each_split_can_be_chosen(tmp_path: Path) -> None:
    rows = ["--rows", "20000", "4003", "50000"]
    assert main(["--data", str(tmp_path), *rows, "--click-rate", "0.005"]) == 0
    frames = {split: pl.read_parquet(tmp_path / "generated" / f"{split}.parquet") for split in SPLITS}
    assert [len(frame) for frame in frames.values()] == [20_000, 4_005, 50_000]
    truth = pl.concat(frames.values())[TRUE_CTR]
    assert truth.mean() == pytest.approx(0.005, rel=1e-6)
    assert [frame["weekday"].n_unique() for frame in frames.values()] == [7, 3, 3]
    assert frames["train"]["hour"].n_unique() == 24


def test_the_next_day_continues_the_log_with_new_ads(tmp_path: Path) -> None:
    rows = ["--rows", "20000", "2000", "2000", "--next-day", "9000", "3000", "3000"]
    assert main(["--data", str(tmp_path), *rows]) == 0
    first, second = (
        {split: pl.read_parquet(tmp_path / name / f"{split}.parquet") for split in SPLITS}
        for name in ("generated", "generated-next-day")
    )
    assert [len(frame) for frame in second.values()] == [9_000, 3_000, 3_000]
    assert second["train"][REQUEST][0] == first["test"][REQUEST][-1] + 1
    assert second["train"]["weekday"].unique().to_list() == ["monday"]  # the day after 28 days that start on a monday
    known = first["train"]["ad"].unique()
    for frame in second.values():
        numbers = frame["ad"].str.strip_prefix("ad-").cast(pl.Int64)
        assert (numbers > 1900).mean() == pytest.approx(0.2, abs=0.05)
        assert frame["campaign"].is_in(first["train"]["campaign"].unique().implode()).all()
    started = set(second["train"]["ad"]) - set(known)
    assert len(started) > 100
    unseen = ~second["test"]["ad"].is_in(list(set(second["train"]["ad"]) | set(known)))
    assert 0.03 < unseen.sum() / len(unseen) < 0.12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "1000", "5", "1000"], "use at least 100 requests, and at least 10 in each split"),
        (["--next-day", "10", "10", "10"], "at least 100"),
        (["--click-rate", "5"], "click rate 5.0 must be between 0 and 1"),
    ],
)
def test_an_impossible_log_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--data", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
