"""ctr-calibrate: a run gets a calibration and a report, whole or not at all."""

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from torch import Tensor

from contract.calibration import CALIBRATION, read_fitted
from contract.encode import Encoder
from contract.tokens import token
from contract.vocabulary import UNKNOWN
from export.bundle import export
from export.calibrate.joined import Columns, columns_of
from export.calibrate.report import JSON, MARKDOWN, PICTURE, CalibrationReport
from export.calibrate.source import read_prepared_log
from export.cli.calibrate import TOO_FEW_CLICKS, main
from export.predict.scorer import open_scorer
from model.data.readers.generated import CANDIDATE, CONTEXT
from model.data.readers.named import find_named_files
from model.data.readers.scan import JOINED_LOG, open_parts
from model.experiments.run_folder import WEIGHTS, open_run, save_run
from model.experiments.train import train
from tests.support.joined_logs import write_joined_log
from tests.support.runs import NUMBERS, with_weights

FILES = (CALIBRATION, JSON, MARKDOWN, PICTURE)
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)

Outputs = pytest.CaptureFixture[str]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def report_of(run: Path) -> CalibrationReport:
    return msgspec.json.decode((run / JSON).read_bytes(), type=CalibrationReport)


def contents(run: Path) -> dict[str, bytes | None]:
    """Return the content of each output, None for a missing one."""
    return {name: (run / name).read_bytes() if (run / name).exists() else None for name in FILES}


def test_it_writes_a_calibration_and_a_report(run: Path, trained: Path, capsys: Outputs) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([str(run), "--data", str(trained)]) == 0
    fitted, report = read_fitted(run / CALIBRATION), report_of(run)
    assert fitted.method == "platt"
    assert (fitted.rows, fitted.segment_field, fitted.segments) == (12_000, None, ())
    assert fitted.weights == hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()
    assert report.calibration == hashlib.sha256((run / CALIBRATION).read_bytes()).hexdigest()
    assert (report.valid.rows, report.test.rows) == (12_000, 10_000)
    assert report.valid.clicks == fitted.clicks
    ratio = report.after.overall
    assert ratio.ratio is not None
    assert ratio.high is not None
    assert ratio.low < ratio.ratio < ratio.high
    assert len(report.after.deciles) == 10
    assert report.after.cold is not None
    assert 0 < report.after.cold.rows < 2_000  # 5% of test are new ads
    assert report.after.auc == pytest.approx(report.before.auc, abs=1e-12)  # the order is the same
    assert (run / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "| decile 10 |" in (run / MARKDOWN).read_text()
    out = capsys.readouterr().out
    assert f"fitted to valid of {trained / 'prepared'}: 12,000 rows" in out
    assert f"wrote {run / CALIBRATION}" in out
    assert all(path.read_bytes() == content for path, content in before.items())
    open_run(run)  # the run is still intact


def test_the_same_rows_give_the_same_bytes(run: Path, trained: Path) -> None:
    arguments = [str(run), "--data", str(trained), "--by", "slot", "--method", "isotonic"]
    assert main(arguments) == 0
    first = contents(run)
    assert main(arguments) == 0
    assert contents(run) == first


def test_segments_of_a_context_field(run: Path, trained: Path) -> None:
    assert main([str(run), "--data", str(trained), "--by", "age_band"]) == 0
    fitted = read_fitted(run / CALIBRATION)
    assert fitted.segment_field == "age_band"
    assert [segment.id for segment in fitted.segments] == list(range(1, 8))  # a missing age band is a segment too
    values = [segment.value for segment in fitted.segments]
    assert values[0] is None
    assert {*values[1:]} == {"18-24", "25-34", "35-44", "45-54", "55-64", "65+"}
    assert sum(segment.rows for segment in fitted.segments) == 12_000
    text = (run / MARKDOWN).read_text()
    assert "| (missing) |" in text
    assert "| 25-34 |" in text


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("ad", "--by ad: this is a field of the candidates. Different shifts for the candidates of a request would"),
        ("session_depth", "--by session_depth: this is a numeric field"),
        ("colour", "--by colour: the model has no such field. Use one of: user, age_band"),
    ],
)
def test_other_fields_cannot_have_segments(run: Path, trained: Path, capsys: Outputs, field: str, message: str) -> None:
    assert main([str(run), "--data", str(trained), "--by", field]) == 2
    assert message in capsys.readouterr().err
    assert not any(contents(run).values())


def test_a_log_that_has_changed_since_training_is_an_error(
    run: Path, trained: Path, capsys: Outputs, tmp_path: Path
) -> None:
    shutil.copytree(trained / "prepared", tmp_path / "prepared")
    labels = np.load(tmp_path / "prepared" / "valid.labels.npy")
    np.save(tmp_path / "prepared" / "valid.labels.npy", labels[::-1])
    assert main([str(run), "--data", str(tmp_path)]) == 2
    assert f"has changed since {run} was trained" in capsys.readouterr().err
    assert not any(contents(run).values())


def test_too_few_clicks_leave_the_old_calibration(run_folder: Path, tmp_path: Path, capsys: Outputs) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / CALIBRATION).write_bytes(b"old")
    assert main([str(run), "--data", str(run_folder.parent)]) == TOO_FEW_CLICKS
    err = capsys.readouterr().err
    assert "34 clicks are too few to fit a calibration, which needs at least 100" in err
    assert "Nothing was written" in err
    assert contents(run) == {CALIBRATION: b"old", JSON: None, MARKDOWN: None, PICTURE: None}


def test_a_full_disk_leaves_the_old_files(
    run: Path, trained: Path, capsys: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(run), "--data", str(trained)]) == 0
    old, write_bytes = contents(run), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if CALIBRATION in path.name:
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([str(run), "--data", str(trained), "--method", "isotonic"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents(run) == old
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_training_again_removes_the_calibration(run: Path, trained: Path) -> None:
    """Also with --warm, which starts from the run that it replaces."""
    assert main([str(run), "--data", str(trained)]) == 0
    _, experiment, _, _ = open_run(run)
    train(experiment, trained, run, warm=run)
    assert not any(contents(run).values())


def test_a_run_that_changes_in_the_meantime_is_not_calibrated(run: Path, trained: Path) -> None:
    from export.calibrate.calibrate import calibrate

    source = read_prepared_log(run, trained, None)
    model, experiment, schema, metrics = open_run(run)
    with_other_weights = {
        name: tensor + 1e-3 for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    model.load_state_dict(with_other_weights, strict=False)
    save_run(run, experiment, model, schema, trained / "prepared" / "vocabulary", metrics)
    with pytest.raises(ValueError, match="was trained again while it was being calibrated"):
        calibrate(run, source)
    assert not any(contents(run).values())


def test_a_calibration_that_makes_test_worse_is_reported(
    run: Path, trained: Path, tmp_path: Path, capsys: Outputs
) -> None:
    """Valid has twice as many clicks as test, relative to the prediction."""
    joined = write_splits(trained, tmp_path, change=lambda split, log: more_clicks(log) if split == "valid" else log)
    assert main([str(run), str(joined)]) == 0
    err = capsys.readouterr().err
    assert "warning: the calibration makes test worse: its logloss rises by" in err
    assert "**Warning**: the calibration makes test worse" in (run / MARKDOWN).read_text()


def more_clicks(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(click=pl.when(pl.int_range(pl.len()) % 8 == 0).then(1).otherwise("click").cast(pl.Int8))


def as_it_is(split: str, log: pl.DataFrame) -> pl.DataFrame:
    return log


def write_splits(
    root: Path,
    folder: Path,
    change: Callable[[str, pl.DataFrame], pl.DataFrame] = as_it_is,
    row_weight: float = 1.0,
    **rename: str,
) -> Path:
    """Write valid and test of a generated log as ctr-join writes them: valid is a day before test."""
    joined = folder / "joined"
    for split, day in (("train", -1), ("valid", 0), ("test", 1)):
        log = change(split, pl.read_parquet(root / "generated" / f"{split}.parquet"))
        features: dict[str, Any] = {
            name: pl.Series([token(value) for value in log[name].to_list()], dtype=pl.String)
            for name in (*CONTEXT, *CANDIDATE)
            if not (split == "train" and name == "exchange")  # an hour has no column for an absent feature
        }
        times = pl.Series([NOON + timedelta(days=day)] * len(log), dtype=pl.Datetime("ms", "UTC"))
        frame = pl.DataFrame({"time": times, "click": log["click"], "weight": row_weight} | features)
        write_joined_log(joined, frame.rename(rename), **rename)
    (joined / "late").mkdir()
    pl.DataFrame({"event_id": ["late"]}).write_parquet(joined / "late" / "2026-12-01T13.parquet")
    return joined


def knots(run: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(read_fitted(run / CALIBRATION).knots)


def test_a_joined_log_gives_the_same_calibration_as_the_prepared_log(
    run: Path, trained: Path, tmp_path: Path, capsys: Outputs
) -> None:
    """The features are text, and the folder of late events is not read."""
    assert main([str(run), "--data", str(trained), "--by", "slot"]) == 0
    prepared, expected = read_fitted(run / CALIBRATION), report_of(run)
    capsys.readouterr()
    assert main([str(run), str(write_splits(trained, tmp_path, row_weight=3.0)), "--by", "slot"]) == 0
    joined, found = read_fitted(run / CALIBRATION), report_of(run)
    np.testing.assert_allclose(np.array(joined.knots), np.array(prepared.knots), atol=1e-4)
    assert [(each.id, each.value, each.rows, each.clicks) for each in joined.segments] == [
        (each.id, each.value, each.rows, each.clicks) for each in prepared.segments
    ]
    assert found.test.clicks == expected.test.clicks
    assert found.before.logloss == pytest.approx(expected.before.logloss, abs=1e-6)
    assert found.after.logloss == pytest.approx(expected.after.logloss, abs=1e-6)
    out = capsys.readouterr().out
    assert "fitted to 2026-11-29T12:00:00Z to 2026-11-30T12:00:00Z: 12,000 rows" in out
    assert "measured on 2026-11-30T12:00:00Z to 2026-12-01T12:00:00Z: 10,000 rows" in out


def test_columns_that_ctr_join_renamed_are_read_by_their_new_names(run: Path, trained: Path, tmp_path: Path) -> None:
    assert main([str(run), str(write_splits(trained, tmp_path))]) == 0
    expected = contents(run)
    renamed = write_splits(trained, tmp_path / "renamed", click="clicked", time="moment", weight="mass")
    assert main([str(run), str(renamed)]) == 0
    assert contents(run) == expected


def test_the_data_section_names_the_columns_that_differ_from_those_of_the_join(tmp_path: Path) -> None:
    """A run that was trained on another log still reads the clicks of a joined log."""
    row = pl.DataFrame({"time": [NOON], "click": [1], "weight": [1.0], "bought": ["yes"]})
    write_joined_log(tmp_path / "joined", row.with_columns(pl.col("time").cast(pl.Datetime("ms", "UTC"))))
    row.write_csv(tmp_path / "log.csv")
    joined, csv = (open_parts(find_named_files([str(tmp_path / name)]).sources) for name in ("joined/hours", "log.csv"))
    clicks = msgspec.structs.replace(NUMBERS, label="is_click", positive=("1",))
    purchases = msgspec.structs.replace(NUMBERS, label="bought", positive=("yes",), weight="mass", time="moment")
    assert columns_of(None, joined) == columns_of(clicks, joined) == Columns("click", "time", "weight")
    assert columns_of(purchases, joined) == Columns("bought", "moment", "mass", ("yes",))
    assert columns_of(None, csv) == Columns("click", "time", "")
    assert columns_of(clicks, csv) == Columns("is_click", "time", "", ("1",))


def test_a_calibration_of_another_model_is_replaced(run: Path, trained: Path, tmp_path: Path) -> None:
    """Also if the rows are scored as ctr-predict scores them."""
    joined = write_splits(trained, tmp_path)
    for arguments in (["--data", str(trained)], [str(joined)]):
        (run / CALIBRATION).write_text('{"weights": "other"}')
        assert main([str(run), *arguments]) == 0
        assert read_fitted(run / CALIBRATION).rows == 12_000


def test_the_lengths_of_valid_and_test_can_be_chosen(run: Path, trained: Path, tmp_path: Path) -> None:
    """The oldest hour lacks a feature, which is missing in its rows."""
    joined = write_splits(trained, tmp_path)
    assert main([str(run), str(joined), "--valid", "2d", "--test", "12h"]) == 0
    assert (report_of(run).valid.rows, report_of(run).test.rows) == (32_000, 10_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--valid", "1h", "--test", "2h"], "no rows for valid, from 2026-12-01T09:00:00Z to 2026-12-01T10:00:00Z"),
        (["--by", "ad"], "this is a field of the candidates"),
    ],
)
def test_wrong_options_for_a_joined_log_are_errors(
    run: Path, trained: Path, tmp_path: Path, capsys: Outputs, options: list[str], message: str
) -> None:
    assert main([str(run), str(write_splits(trained, tmp_path)), *options]) == 2
    assert message in capsys.readouterr().err
    assert not any(contents(run).values())


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("click", 2, 'row 3: column "click" holds 2; expected 0 or 1'),
        ("weight", -1.0, 'row 3: column "weight" holds -1.0; expected a weight of at least 0'),
        ("time", None, 'row 3: column "time" is empty; expected an ISO 8601 time'),
        ("session_depth", "deep", "row 3: "),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_row(
    run: Path, trained: Path, tmp_path: Path, capsys: Outputs, column: str, value: object, message: str
) -> None:
    joined = write_splits(trained, tmp_path)
    file = joined / "hours" / "2026-12-01T12.parquet"
    log = pl.read_parquet(file)
    values = [*log[column].to_list()]
    values[2] = value
    changed = log.with_columns(pl.Series(column, values, log[column].dtype))
    changed.write_parquet(file, metadata={JOINED_LOG: pl.read_parquet_metadata(file)[JOINED_LOG]})
    assert main([str(run), str(joined)]) == 2
    err = capsys.readouterr().err
    assert f"{file}, {message}" in err
    assert not any(contents(run).values())


def test_a_file_without_the_columns_of_a_joined_log_is_an_error(run: Path, trained: Path, capsys: Outputs) -> None:
    assert main([str(run), str(trained / "generated" / "valid.parquet")]) == 2
    assert 'no column "time"' in capsys.readouterr().err


def test_sampled_non_clicks_count_for_those_that_were_dropped(run: Path, trained: Path, tmp_path: Path) -> None:
    def sample(split: str, log: pl.DataFrame) -> pl.DataFrame:
        return log.filter((pl.col("click") == 1) | (pl.int_range(pl.len()) % 2 == 0))

    assert main([str(run), str(write_splits(trained, tmp_path))]) == 0
    everything = report_of(run)
    assert main([str(run), str(write_splits(trained, tmp_path / "half", sample)), "--negative-rate", "0.5"]) == 0
    half = report_of(run)
    assert half.valid.rows < 0.6 * everything.valid.rows
    assert half.before.overall.observed == pytest.approx(everything.before.overall.observed, rel=0.02)
    assert half.after.overall.ratio == pytest.approx(everything.after.overall.ratio, rel=0.05)


@pytest.mark.parametrize("factor", [1.3, 1 / 1.3])
def test_a_model_whose_logits_are_scaled_gets_the_same_probabilities(
    run: Path, trained: Path, tmp_path: Path, factor: float
) -> None:
    def scale(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: factor * weight if name.startswith("head.") else weight for name, weight in weights.items()}

    assert main([str(run), "--data", str(trained)]) == 0
    scaled = with_weights(run, tmp_path / "scaled", scale)
    assert main([str(scaled), "--data", str(trained)]) == 0
    (one, other), (points, scaled_points) = zip(
        *((report_of(each), knots(each)) for each in (run, scaled)), strict=True
    )
    assert abs(other.before.logloss - one.before.logloss) > 1e-3
    assert other.after.logloss == pytest.approx(one.after.logloss, abs=1e-6)
    np.testing.assert_allclose(scaled_points / [factor, 1], points, atol=1e-3)


def test_the_bundle_and_the_run_have_the_probabilities_of_the_report(run: Path, trained: Path, tmp_path: Path) -> None:
    assert main([str(run), "--data", str(trained), "--by", "slot"]) == 0
    export(run, tmp_path / "bundle")
    expected = report_of(run).after.overall.predicted
    for folder in (run, tmp_path / "bundle"):
        scorer = open_scorer(folder)
        rows = pl.read_parquet(trained / "generated" / "test.parquet").to_dicts()
        assert scorer.score(Encoder(scorer.schema), rows).mean() == pytest.approx(expected, rel=1e-4)


def test_cold_candidates_have_an_unknown_value(run: Path, trained: Path) -> None:
    source = read_prepared_log(run, trained, "slot")
    ids = np.load(trained / "prepared" / "test.ids.npy")
    _, _, schema, _ = open_run(run)
    sides = np.array([field.side for field in schema.select("categorical")])
    np.testing.assert_array_equal(source.test.cold, (ids[:, sides == "candidate"] == UNKNOWN).any(1))
    assert 0.03 < source.test.cold.mean() < 0.2


def test_a_folder_with_the_name_of_an_output_leaves_all_of_them_unwritten(
    run: Path, trained: Path, capsys: Outputs
) -> None:
    (run / CALIBRATION).mkdir()
    before = sorted(run.iterdir())
    assert main([str(run), "--data", str(trained)]) == 2
    assert f"Is a directory: '{run / CALIBRATION}'" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before
