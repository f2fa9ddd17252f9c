"""Sentinels: a number that probably means "missing" is named in a warning, and ordinary numbers are not."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.schema import Field
from contract.tokens import absent_numbers
from model.cli.inspect import main as inspect
from model.cli.prepare import main
from model.data.prepare.prepared import read_prepared
from model.data.readers.log import SPLITS
from model.data.sentinels import find_sentinels, without_codes

TOML = """
name = "shop"
[data]
reader = "table"
folder = "."
prepared = "prepared"
train = "train.csv"
valid = "valid.csv"
test = "test.csv"
label = "click"
context = ["user"]
candidate = ["ad"]
[[data.fields]]
name = "bid"
side = "candidate"
kind = "numeric"
"""
PRICES = np.random.default_rng(0).gamma(2, 10, 10_000)


def with_values(*values: float, share: float = 0.05) -> np.ndarray:
    numbers = PRICES.copy()
    for place, value in enumerate(values):
        numbers[place :: round(1 / share)] = value
    return numbers


@pytest.mark.parametrize("value", ["-1", "-999", "-999999", "99999", "2147483647", "9223372036854775807"])
def test_a_frequent_number_far_outside_the_others_is_a_sentinel(value: str) -> None:
    found = find_sentinels(with_values(float(value)))
    assert found == {value: pytest.approx(0.05)}
    marked = Field("price", "candidate", "numeric", missing=tuple(found))
    assert absent_numbers(marked) == {float(value)}


def test_several_sentinels_are_found() -> None:
    assert set(find_sentinels(with_values(-1.0, -999.0, 99999.0))) == {"-1", "-999", "99999"}


def test_a_common_code_is_a_sentinel_even_once() -> None:
    for value in (2**31 - 1, -(2**63), 2**63 - 1, -999999, 999999999):
        assert find_sentinels(np.append(PRICES, float(value))) == {str(value): pytest.approx(1e-4, rel=0.01)}


PAIRS = [
    (2**31 - 1, -999999),
    (2**31 - 1, -(2**31)),
    (2**63 - 1, -(2**63)),
    (999999, -999999),
    (2**63 - 1, 2**31 - 1),
    (-999, -99999),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("rows", [9, 300, 10_000])
def test_two_codes_are_sentinels_even_once_each_and_do_not_distort_the_others(pair: tuple[int, int], rows: int) -> None:
    numbers = np.append(PRICES[:rows], np.array(pair, np.float64))
    found = find_sentinels(numbers)
    assert set(found) == {str(value) for value in pair}
    np.testing.assert_array_equal(without_codes(numbers, found), [*PRICES[:rows], math.nan, math.nan])


def test_a_frequent_code_distorts_the_others_only_if_it_is_very_far() -> None:
    near, far = with_values(999.0), with_values(999999.0)
    np.testing.assert_array_equal(without_codes(near, find_sentinels(near)), near)
    assert np.nanmax(without_codes(far, find_sentinels(far))) == np.max(far[far != 999999])
    assert not np.isnan(without_codes(np.full(10, -999.0), ["-999"])).any()


@pytest.mark.parametrize(
    "numbers",
    [
        PRICES,
        np.append(PRICES, 1e6),  # an outlier, not a code
        np.append(PRICES, -1.0),  # once
        np.append(PRICES, 99.0),
        np.array([]),
        np.full(100, math.nan),
        np.full(100, -1.0),
        np.array([0.0, 1.0] * 50),
        np.array([-1.0, 0.0, 1.0] * 50),
        np.array([-2.0, -1.0, 0.0, 1.0, 2.0] * 50),
        np.minimum(PRICES, 30),  # capped values
    ],
)
def test_ordinary_numbers_are_no_sentinels(numbers: np.ndarray) -> None:
    assert find_sentinels(numbers) == {}


@given(st.lists(st.floats(-1e300, 1e300) | st.sampled_from([-1.0, 2.0**63, math.nan]), max_size=30))
def test_every_sentinel_occurs_and_its_share_is_right(values: list[float]) -> None:
    numbers = np.array(values, np.float64)
    for text, share in find_sentinels(numbers).items():
        assert share == np.mean(numbers == float(text)) > 0


def test_ctr_prepare_warns_of_a_sentinel_and_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{row % 2},u{row % 3},a{row % 5},{-999 if row % 10 == 0 else row % 7}" for row in range(200)]
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text("\n".join(["click,user,ad,bid", *rows, ""]))
    toml = tmp_path / "shop.toml"
    toml.write_text(TOML)
    assert main([str(toml), "--data", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        'warning: column "bid": -999 is in 10.00% of the rows of train and is outside the range of all other numbers.'
        in printed
    )
    assert 'add missing = ["-999"] to the field "bid"' in printed
    with toml.open("a", encoding="utf-8") as file:
        file.write('missing = ["-999"]\n')
    assert main([str(toml), "--data", str(tmp_path)]) == 0
    assert "-999" not in capsys.readouterr().out


def test_two_codes_in_a_small_log_are_both_named_and_leave_the_statistics_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in SPLITS:
        codes = ["2147483647", "999999"] if split == "train" else []
        bids = [*codes, *(f"{row % 61 / 10}" for row in range(200))]
        rows = [f"{row % 2},u{row % 3},a{row % 5},{bid}" for row, bid in enumerate(bids)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["click,user,ad,bid", *rows, ""]))
    toml = tmp_path / "shop.toml"
    toml.write_text(TOML)
    assert main([str(toml), "--data", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert 'add missing = ["2147483647"]' in printed
    assert 'add missing = ["999999"]' in printed
    bid = read_prepared(tmp_path / "prepared").schema.fields[-1]
    assert (bid.name, bid.seen) == ("bid", (0.0, 6.0))
    assert bid.mean == pytest.approx(2.8, abs=0.1)
    assert bid.std == pytest.approx(1.76, abs=0.1)
    assert inspect([str(tmp_path / "train.csv")]) == 0
    printed = capsys.readouterr().out
    for code in ("2147483647", "999999"):
        assert f'column "bid": {code} is in 0.50% of the sampled rows' in printed
