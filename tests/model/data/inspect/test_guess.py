"""ctr-inspect guesses the label, the kind and the side of each column from its name and values."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.data.inspect.columns import describe
from model.data.inspect.guess import guess

JANUARY = 1_767_225_600  # 2026-01-01T00:00:00Z


def guessed(**columns: Sequence[Any]) -> Any:
    frame = pl.DataFrame({name: pl.Series(list(values), strict=False) for name, values in columns.items()})
    return guess([describe(column) for column in frame.iter_columns()])


IDS = [f"x{n % 7}" for n in range(60)]


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["0", "1"], ()),
        ([0, 1], ()),
        (["0.0", "1.0"], ()),
        ([True, False], ("true",)),
        (["yes", "no"], ("yes",)),
        (["Click", "No click"], ("Click",)),
        (["click", "impression"], ("click",)),
        (["pv", "cart", "click"], ("click",)),
        ([1, -1], ("1",)),
    ],
)
def test_labels_are_found_by_name_and_values(labels: list[Any], positive: tuple[str, ...]) -> None:
    found = guessed(flag=[0, 1] * 30, is_click=(labels * 60)[:60], ad=IDS)
    assert (found.label, found.positive) == ("is_click", positive)
    assert bool(found.label_unsure) == (len(labels) > 2)


def test_a_label_without_a_telling_name_is_unsure() -> None:
    found = guessed(user=IDS, z=[0, 1] * 30)
    assert found.label == "z"
    assert found.label_unsure


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("bid", [0.5, 1.25] * 30, "numeric"),
        ("views", [*range(60)], "numeric"),
        ("x", [0.5, 1.25] * 30, "numeric"),
        ("ad_id", [*range(30)] * 2, "categorical"),
        ("zip", ["01234", "12345"] * 30, "categorical"),
        ("x", ["007", "8"] * 30, "categorical"),
        ("x", [1.0, 2.0] * 30, "categorical"),
        ("cost", [5058, 5059] * 30, "categorical"),
        ("bid", ["0.5", "-", "1.25"] * 20, "numeric"),
        ("bid", ["0.5", "n/a", "cheap"] * 20, "categorical"),
        ("bid", [0.5, None] * 30, "categorical"),
    ],
)
def test_the_kind_of_a_field_follows_from_its_values_and_name(name: str, values: list[Any], kind: str) -> None:
    assert guessed(click=[0, 0, 1, 1] * 15, **{name: values}).columns[name].kind == kind


def test_what_varies_within_a_request_is_the_candidate() -> None:
    found = guessed(
        click=[0, 0, 1, 0] * 50,
        request_id=[n // 2 for n in range(200)],
        language=[("de", "tr", "fr")[n % 3] for n in range(200)],
        mood=[("a", "b")[n // 2 % 2] for n in range(200)],
    )
    assert found.request == "request_id"
    assert [each.column.name for each in found.fields("candidate")] == ["language"]
    assert [each.column.name for each in found.fields("context")] == ["mood"]


def test_what_an_ad_determines_is_the_candidate_but_unsure() -> None:
    ads = [n % 40 for n in range(400)]
    found = guessed(
        click=[0, 0, 0, 1, 0, 1, 0] * 57 + [1], ad=ads, theme=[f"t{ad % 5}" for ad in ads], user=IDS[:40] * 10
    )
    theme = found.columns["theme"]
    assert (theme.side, theme.unsure) == ("candidate", "depends only on ad")


def test_useless_and_leaking_columns_are_not_used() -> None:
    random = np.random.default_rng(1)
    labels = (random.random(400) < 0.3).astype(int)
    found = guessed(
        click=labels.tolist(),
        id=[f"r{n}" for n in range(400)],
        constant=["x"] * 400,
        paid=np.where(labels, "yes", "no").tolist(),
        tags=[["a"]] * 400,
        converted_at=[datetime(2026, 1, 1, tzinfo=UTC) if label else None for label in labels],
        user=random.integers(0, 20, 400).tolist(),
        ad=random.integers(0, 20, 400).tolist(),
    )
    assert {name: each.note for name, each in found.columns.items() if each.role == "unused"} == {
        "id": "a different value in almost every row",
        "constant": 'the value "x" in every row',
        "paid": "gives the label away",
        "tags": "values of this type are not supported",
        "converted_at": "a time that is often missing, perhaps because it is written after the click",
    }
    starts = [
        'column "id" has 400 distinct',
        'column "constant" has the',
        'column "paid" alone predicts "click" almost',
    ]
    assert [warning[: len(start)] for warning, start in zip(found.warnings, starts, strict=True)] == starts


def test_the_only_ad_field_is_kept_although_it_gives_the_label_away() -> None:
    labels = [0, 0, 1] * 40
    found = guessed(click=labels, user=IDS * 2, city=IDS * 2, ad=[f"ad{label}" for label in labels])
    (ad,) = found.fields("candidate")
    assert ad.column.name == "ad"
    assert ad.unsure == "gives the label away, but no other candidate field is left"


@pytest.mark.parametrize("sentinel", [-999999.0, -1.0, 9223372036854775807.0, 99999.0])
def test_a_sentinel_is_found_if_it_is_far_from_the_other_numbers(sentinel: float) -> None:
    usual = [0.011, 0.012, 0.02] if sentinel == -1.0 else [1.0, 2.5, 8.0]
    column = describe(pl.Series("bid", [*usual * 20, sentinel, sentinel]))
    assert [float(value) for value in column.sentinels] == [sentinel]
    assert describe(pl.Series("bid", [*range(-1, 60)])).sentinels == {}


def test_the_finest_time_is_the_time_of_the_row() -> None:
    seconds = [JANUARY + 3600 * n for n in range(60)]
    days = [f"2026-01-{1 + n // 24:02}" for n in range(60)]
    found = guessed(click=[0, 1] * 30, dt=days, shown_at=seconds, ad=IDS)
    assert found.time == "shown_at"
    assert found.columns["dt"].note == "a time"


@pytest.mark.parametrize("column", [pl.Series("t", [0, 1]).cast(pl.Time), pl.Series("t", [0, 1]).cast(pl.Duration)])
def test_a_time_of_day_or_a_length_of_time_is_not_the_time_of_a_row(column: pl.Series) -> None:
    assert describe(column).type == "other"
