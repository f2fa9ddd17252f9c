"""Raw value -> canonical token or number. The only such code: training and serving both come here."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from contract.schema import Field

# Keeps a normalised number, and its products in the model, far inside float32.
LARGEST_NORMALISED = 1e4

KINDS = {dict: "an object", list: "a list", tuple: "a list", bool: "a boolean", str: "a string"}


def token(value: Any) -> str | None:
    """The canonical string of a categorical value; None is missing.

    Numbers become strings, 123.0 and 123 the same one; strings are never read as numbers, because
    hashed ids such as "03349703" look like them.

    Raises:
        ValueError: for NaN, an infinity, and what is no string, number, boolean or None.
    """
    if isinstance(value, str):
        return value.strip() or None
    if value is None:
        return None
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return _digits(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"takes a finite number, got {value}: send null for a missing value")
        return str(int(value)) if value.is_integer() else repr(value)
    raise ValueError(f"takes a string, a number, a boolean or null, got {_kind(value)}")


def number(value: Any) -> float:
    """A numeric field's value as a float; NaN is missing.

    Raises:
        ValueError: for NaN, an infinity, a number beyond float64, and what is no number or None.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"takes a number or null, got {_kind(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError("takes a finite number: send null for a missing value")
    return result


def log_square(value: Any) -> str | None:
    """A number's bucket: floor(log(x)^2) above 2, and below it "SP" and the integer; None is missing.

    As the winners of Criteo's challenge made categories of its counts (Juan, Zhuang, Chin: "3 Idiots").

    Raises:
        ValueError: as number().
    """
    x = number(value)
    if math.isnan(x):
        return None
    return str(int(math.log(x) ** 2)) if x > 2 else f"SP{math.floor(x)}"


def number_in_bucket(bucket: str) -> float:
    """Some number whose log_square() is `bucket`."""
    if bucket.startswith("SP"):
        return float(bucket[2:])
    try:
        return math.exp(math.sqrt(int(bucket) + 0.5))
    except OverflowError:  # the last bucket's middle
        return sys.float_info.max


def tokenizer(field: Field) -> Callable[[Any], str | None]:
    """What makes a token of the field's values, or None of a missing one. Raises ValueError as token() and number()."""
    if field.transform is not UNSET:
        return _bucketer(field)
    if field.missing is UNSET:
        return token
    absent = frozenset(field.missing)
    return lambda value: None if (read := token(value)) in absent else read


def number_reader(field: Field) -> Callable[[Any], float]:
    """What makes a float of a numeric field's values, NaN of a missing one. Raises ValueError as number()."""
    if field.missing is UNSET:
        return number
    absent = absent_numbers(field)
    return lambda value: math.nan if (read := number(value)) in absent else read


def absent_numbers(field: Field) -> frozenset[float]:
    """Those of the field's missing values that are numbers, however they are written: "-1.0" is -1.

    All others are words, NaN and infinities too, which a log may hold and a client may not send.
    """
    found = set()
    for text in field.missing or ():
        try:
            found.add(float(text))
        except ValueError:
            continue
    return frozenset(value for value in found if math.isfinite(value))


class Numbers:
    """Normalises numeric fields. Values: float64 [rows, fields], NaN is missing."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._mean = np.array([field.mean for field in fields])
        self._std = np.array([field.std for field in fields])
        seen = [(-math.inf, math.inf) if field.seen is UNSET else field.seen for field in fields]
        self._low, self._high = np.array(seen).reshape(-1, 2).T

    def outside(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where a number is one that train has none like."""
        return (values < self._low) | (values > self._high)

    def normalise(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """(value - mean) / std; missing is 0, the mean. A number that is outside is taken for the nearest that train
        has, and one of a schema that does not say, clipped to +-10,000."""
        with np.errstate(over="ignore", invalid="ignore"):  # far beyond the clip
            scaled = (np.clip(values, self._low, self._high) - self._mean) / self._std
        scaled = np.clip(scaled, -LARGEST_NORMALISED, LARGEST_NORMALISED)
        return np.where(np.isnan(scaled), 0.0, scaled).astype(np.float32)


def _bucketer(field: Field) -> Callable[[Any], str | None]:
    if field.missing is UNSET:
        return log_square
    read = number_reader(field)
    return lambda value: None if math.isnan(number := read(value)) else log_square(number)


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python's limit of 4,300 digits
        raise ValueError("takes a shorter number: send an id of that length as a string") from error


def _kind(value: Any) -> str:
    return KINDS.get(type(value), f"a {type(value).__name__}")
