"""The reference: what a model's inputs and probabilities looked like before, so that a server can detect drift.

Each distribution has a few bins. The server counts what falls into the same bins, and Prometheus computes the
population stability index (PSI) from both. deploy/prometheus/rules.yml contains the formula.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.schema import FeatureSchema

REFERENCE = "reference.json"  # in bundles
FORMAT = 1
BINS = 10  # deciles. Fewer if values are equal.
MAX_BYTES = 4 * 1024 * 1024
KNOWN, UNKNOWN, MISSING = "known", "unknown", "missing"  # names of bins
SUM_TOLERANCE = 1e-6

Shares = dict[str, float]  # bin -> share of the values


class Bins(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bins of numbers: bin i holds the numbers above edges[i - 1], up to and including edges[i].

    Attributes:
        edges: Ascending. One fewer than `shares`.
        shares: The share of the numbers in each bin. They sum to 1.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    def bin_shares(self) -> Shares:
        """Return the share of each bin. The bins are called "0", "1" and so on."""
        return {str(index): share for index, share in enumerate(self.shares)}


class NumericReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A numeric field.

    Attributes:
        bins: The normalized numbers that are not missing. Numbers outside the training range are in the first or the
            last bin, because the model reads them as the ends of the range.
        missing: The share of missing values.
    """

    bins: Bins
    missing: float

    def bin_shares(self) -> Shares:
        """Return the share of each bin and of missing values. They sum to 1."""
        present = 1 - self.missing
        return {name: present * share for name, share in self.bins.bin_shares().items()} | {MISSING: self.missing}


class CategoricalReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A categorical field.

    Attributes:
        unknown: The share of values that are not in the vocabulary.
        missing: The share of missing values.
    """

    unknown: float
    missing: float

    def bin_shares(self) -> Shares:
        """Return the shares of known, unknown and missing values. They sum to 1."""
        return {KNOWN: 1 - self.unknown - self.missing, UNKNOWN: self.unknown, MISSING: self.missing}


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of reference.json.

    Attributes:
        format: The version of this format.
        rows: The number of candidates that were measured, in the validation set or in a request log.
        predicted: The model's probabilities, after calibration.
        numeric: Each numeric field.
        categorical: Each categorical field.
    """

    format: int = FORMAT
    rows: int
    predicted: Bins
    numeric: dict[str, NumericReference]
    categorical: dict[str, CategoricalReference]

    def field_shares(self) -> dict[str, Shares]:
        """Return the share of each bin of each field."""
        fields: Mapping[str, NumericReference | CategoricalReference] = {**self.categorical, **self.numeric}
        return {name: field.bin_shares() for name, field in fields.items()}


def bin_numbers(edges: Sequence[float], numbers: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the bin of each number. The shape stays the same."""
    return np.searchsorted(np.array(edges, np.float64), numbers, side="left")


def read_reference(folder: Path, schema: FeatureSchema) -> Reference:
    """Read the reference of a bundle.

    Args:
        folder: The bundle's folder.
        schema: The bundle's fields.

    Raises:
        ValueError: The file is too large, or it is not a reference for this schema. The message names the file.
        OSError: The file cannot be read.
    """
    with (folder / REFERENCE).open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{REFERENCE} is larger than {MAX_BYTES} bytes")
    return parse_reference(raw, schema)


def parse_reference(raw: bytes, schema: FeatureSchema) -> Reference:
    """Return the reference that bytes contain. Raises ValueError as read_reference() does."""
    try:
        reference = msgspec.json.decode(raw, type=Reference)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{REFERENCE}: {error}") from error
    check_reference(reference, schema)
    return reference


def check_reference(reference: Reference, schema: FeatureSchema) -> None:
    """Check that a reference is consistent and has the fields of a schema.

    Raises:
        ValueError: If it does not. The message names the file, and the field if there is one.
    """
    if reference.format != FORMAT:
        raise ValueError(f"{REFERENCE} has format {reference.format}; this version reads format {FORMAT}")
    if reference.rows < 1:
        raise ValueError(f"{REFERENCE} has {reference.rows} rows; expected at least one")
    _check_bins("the probabilities", reference.predicted)
    for kind, fields in (("numeric", reference.numeric), ("categorical", reference.categorical)):
        expected = {field.name for field in schema.fields if field.kind == kind}
        if differing := sorted(expected ^ fields.keys()):
            raise ValueError(f"{REFERENCE}: the {kind} field {differing[0]!r} is not in both the schema and this file")
    for name, numeric in reference.numeric.items():
        _check_bins(f"field {name!r}", numeric.bins)
    for name, shares in reference.field_shares().items():
        _check_shares(f"field {name!r}", list(shares.values()))


def _check_bins(what: str, bins: Bins) -> None:
    if not len(bins.edges) + 1 == len(bins.shares) <= BINS:
        raise ValueError(
            f"{REFERENCE}: {what}: {len(bins.edges)} edges and {len(bins.shares)} shares; expected one edge fewer than "
            f"shares, and at most {BINS} shares"
        )
    if not all(map(math.isfinite, bins.edges)) or not all(low < high for low, high in pairwise(bins.edges)):
        raise ValueError(f"{REFERENCE}: {what}: the edges {list(bins.edges)} are not finite, ascending numbers")
    _check_shares(what, bins.shares)


def _check_shares(what: str, shares: Sequence[float]) -> None:
    if not all(-SUM_TOLERANCE <= share <= 1 + SUM_TOLERANCE for share in shares) or (
        abs(math.fsum(shares) - 1) > SUM_TOLERANCE
    ):
        raise ValueError(f"{REFERENCE}: {what}: the shares {list(shares)} are not between 0 and 1 with the sum 1")
