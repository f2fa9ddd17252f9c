"""Turn raw values into canonical tokens and numbers. Training and serving both use this code."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from contract.pseudonyms import HOW_TO_SET_A_KEY, Pseudonymizer, is_pseudonym
from contract.schema import TIME_TRANSFORMS, Field
from contract.timestamps import NUMBER, PARTS, time_zone, timestamp

# Keeps a normalized number, and products with it in the model, well within the range of float32.
MAX_NORMALIZED = 1e4

KINDS = {dict: "an object", list: "a list", tuple: "a list", bool: "a boolean", str: "a string"}


def token(value: Any) -> str | None:
    """Return the canonical string of a categorical value, or None if it is missing.

    Numbers become strings, and 123.0 becomes the same string as 123. A string is never read as a number, because hashed
    ids such as "03349703" look like numbers.

    Raises:
        ValueError: The value is NaN, infinite, or not a string, number, boolean or None.
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
            raise ValueError(f"must be a finite number, got {value}: send null for a missing value")
        return str(int(value)) if value.is_integer() else repr(value)
    raise ValueError(f"must be a string, a number, a boolean or null, got {_kind(value)}")


def number(value: Any) -> float:
    """Return a numeric field's value as a float. It is NaN if the value is missing.

    Raises:
        ValueError: The value is NaN, infinite, too large for float64, or neither a number nor None.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number or null, got {_kind(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError("must be a finite number: send null for a missing value")
    return result


def log_square(value: Any) -> str | None:
    """Return a number's bucket, or None if it is missing.

    The bucket is floor(log(x)^2) for x > 2, otherwise "SP" followed by floor(x). The winners of Criteo's challenge
    turned counts into categories in this way (Juan, Zhuang, Chin: "3 Idiots").

    Raises:
        ValueError: See `number`.
    """
    x = number(value)
    if math.isnan(x):
        return None
    return str(int(math.log(x) ** 2)) if x > 2 else f"SP{math.floor(x)}"


def number_in_bucket(bucket: str) -> float:
    """Return a number whose `log_square` is this bucket."""
    if bucket.startswith("SP"):
        return float(bucket[2:])
    try:
        return math.exp(math.sqrt(int(bucket) + 0.5))
    except OverflowError:  # The middle of the last bucket is not representable.
        return sys.float_info.max


def tokenizer(field: Field, pseudonyms: Pseudonymizer | None = None) -> Callable[[Any], str | None]:
    """Return a function from a field's value to its token, or to None if the value is missing.

    The function raises ValueError in the same cases as `token` and `number`.

    Args:
        field: The field.
        pseudonyms: The key for a field with pseudonyms. Without a key, the function raises ValueError for a value that
            is not a pseudonym already, so that no raw value is ever looked up or written by mistake.
    """
    if field.transform in TIME_TRANSFORMS:
        return _time_reader(field)
    if field.transform is not UNSET:
        return _bucketer(field)
    if field.pseudonym is not UNSET:
        return _pseudonym_reader(field, pseudonyms)
    if field.missing is UNSET:
        return token
    absent = frozenset(field.missing)
    return lambda value: None if (read := token(value)) in absent else read


def time_part(field: Field) -> Callable[[int], str]:
    """Return a function from Unix seconds to the token of a field with the transform hour, weekday or day."""
    part = PARTS[str(field.transform)]
    zone = None if field.timezone is UNSET else time_zone(field.timezone)
    return lambda seconds: part(seconds, zone)


def number_reader(field: Field) -> Callable[[Any], float]:
    """Return a function from a numeric field's value to a float, or to NaN if the value is missing.

    The function raises ValueError in the same cases as `number`. It refuses text, except for the field's "missing"
    values. It does not apply the transform log1p, because `Numbers` does.
    """
    if field.missing is UNSET:
        return number
    absent, markers = absent_numbers(field), frozenset(text.strip() for text in field.missing)

    def read(value: Any) -> float:
        if isinstance(value, str) and value.strip() in markers:
            return math.nan
        return math.nan if (read := number(value)) in absent else read

    return read


def absent_numbers(field: Field) -> frozenset[float]:
    """Return the field's "missing" values that are finite numbers, in any notation. For example, "-1.0" is -1.

    The other values, including NaN and infinities, may occur in a log. A client cannot send them as numbers.
    """
    return frozenset(value for value in marked_numbers(field.missing or ()) if math.isfinite(value))


def marked_numbers(missing: Sequence[str]) -> list[float]:
    """Return the "missing" values that are numbers, including NaN and infinities."""
    numbers = []
    for text in missing:
        try:
            numbers.append(float(text))
        except ValueError:
            continue
    return numbers


class Numbers:
    """Normalizes numeric fields. Values have the shape float64 (rows, fields), and NaN is a missing value."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._mean = np.array([field.mean for field in fields])
        self._std = np.array([field.std for field in fields])
        seen = [(-math.inf, math.inf) if field.seen is UNSET else field.seen for field in fields]
        self._low, self._high = np.array(seen).reshape(-1, 2).T
        self._missing = np.array([math.nan if field.missing_vector else 0.0 for field in fields])
        self._logarithmic = np.array([field.transform == "log1p" for field in fields], bool)
        self._any_logarithmic = bool(self._logarithmic.any())

    def outside(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which numbers are outside the range of the training data."""
        return (values < self._low) | (values > self._high)

    def normalize(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (value - mean) / std. In a field with the transform log1p, the value is transformed first.

        A missing value stays NaN if the field has a missing vector. Otherwise it becomes 0, which is the mean.

        A number outside the range of the training data is clipped to the range. The result is clipped to ±10,000,
        mainly for schemas that do not state the range.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # The second np.clip() removes infinite results.
            clipped = np.clip(values, self._low, self._high)
            if self._any_logarithmic:
                clipped = np.where(self._logarithmic, signed_log1p(clipped), clipped)
            scaled = (clipped - self._mean) / self._std
        scaled = np.clip(scaled, -MAX_NORMALIZED, MAX_NORMALIZED)
        return np.where(np.isnan(scaled), self._missing, scaled).astype(np.float32)


def signed_log1p(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sign(x) log(1 + |x|) of each value x. The shape stays the same."""
    return np.copysign(np.log1p(np.abs(values)), values)


def _pseudonym_reader(field: Field, pseudonyms: Pseudonymizer | None) -> Callable[[Any], str | None]:
    absent = frozenset(field.missing or ())
    pseudonym = _only_pseudonyms if pseudonyms is None else pseudonyms.pseudonym

    def read(value: Any) -> str | None:
        text = token(value)
        return None if text is None or text in absent else pseudonym(text)

    return read


def _only_pseudonyms(text: str) -> str:
    if not is_pseudonym(text):
        raise ValueError(f"must be a pseudonym, because there is no key: {HOW_TO_SET_A_KEY}")
    return text


def _time_reader(field: Field) -> Callable[[Any], str | None]:
    part = time_part(field)
    if field.missing is UNSET:
        return lambda value: None if (seconds := timestamp(value)) is None else part(seconds)
    absent, markers = absent_numbers(field), frozenset(text.strip() for text in field.missing)

    def is_missing(value: Any) -> bool:
        if isinstance(value, str):
            text = value.strip()
            return text in markers or (NUMBER.fullmatch(text) is not None and float(text) in absent)
        return isinstance(value, int | float) and not isinstance(value, bool) and value in absent

    def read(value: Any) -> str | None:
        seconds = None if is_missing(value) else timestamp(value)
        return None if seconds is None else part(seconds)

    return read


def _bucketer(field: Field) -> Callable[[Any], str | None]:
    if field.missing is UNSET:
        return log_square
    read = number_reader(field)
    return lambda value: None if math.isnan(number := read(value)) else log_square(number)


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python converts at most 4,300 digits.
        raise ValueError("must be a shorter number: send such a long id as a string") from error


def _kind(value: Any) -> str:
    return KINDS.get(type(value), f"a {type(value).__name__}")
