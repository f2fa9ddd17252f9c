"""Compare the answers in a request log with a bundle's answers: `ctr-verify BUNDLE --log`.

The log is read as a stream, so the memory does not depend on its size.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.encode import Encoder
from contract.golden import RELATIVE_TOLERANCE, TOLERANCE
from contract.pseudonyms import Pseudonymizer
from contract.reader import BadFeature
from contract.request_log import FORMAT, SCORED, LogLine
from contract.request_log_reader import Skipped, read_lines
from contract.segments import unfinished_files
from service.runtime.engine import Engine
from service.segments import MAX_SEGMENT_S
from service.vocabulary.tiered import WITHOUT_VOCABULARY

# Bounds of the bins in which differences are counted. Each is 1% above the previous one.
MIN_DIFFERENCE = 1e-18
BIN_RATIO = 1.01
BINS = 4200  # up to more than 1, the largest difference of two probabilities


class NothingToReplay(ValueError):
    """The files contain no lines of a request log that can be read."""


class Differences:
    """Statistics of absolute differences. The quantiles are accurate to 1%, and the rest is exact."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._sum = 0.0
        self._in_bin = np.zeros(BINS, np.int64)

    def add(self, differences: NDArray[np.float64]) -> None:
        """Count differences, which are from 0 to 1. Shape: any."""
        self.count += differences.size
        self.largest = max(self.largest, float(differences.max(initial=0.0)))
        self._sum += float(differences.sum())
        above = np.log(np.maximum(differences, MIN_DIFFERENCE) / MIN_DIFFERENCE) / np.log(BIN_RATIO)
        self._in_bin += np.bincount(np.ceil(above).astype(np.int64), minlength=BINS)

    @property
    def mean(self) -> float:
        return self._sum / self.count

    def quantile(self, share: float) -> float:
        """Return the smallest bound that at least this share of the differences does not exceed."""
        index = int(np.searchsorted(self._in_bin.cumsum(), share * self.count))
        return 0.0 if index == 0 else min(self.largest, MIN_DIFFERENCE * BIN_RATIO**index)


@dataclass
class Comparison:
    """Compares the logged answers of one version with a bundle's.

    Attributes:
        version: The version that answered the requests.
        requests: How many requests it scored.
        failed: How many requests it did not score, by outcome.
        not_compared: How many of the scored requests have no candidate that was scored both times.
        sampled: How many of the scored requests were logged without some of their candidates.
        other_best: How many of the scored requests now have a different best candidate among those that were logged.
        hashed: Fields whose values are hashed in the log. The bundle scores them as unknown, so not all differences
            are due to the model.
        differences: The differences of the probabilities.
        unexplained: How many candidates have a difference that the same version must not have.
        before_sum: The sum of the probabilities in the log.
        after_sum: The sum of the probabilities from the bundle.
    """

    version: str
    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    not_compared: int = 0
    sampled: int = 0
    other_best: int = 0
    hashed: dict[str, None] = field(default_factory=dict)
    differences: Differences = field(default_factory=Differences)
    unexplained: int = 0
    before_sum: float = 0.0
    after_sum: float = 0.0

    def add(self, line: LogLine, now: NDArray[np.float64], same_version: bool) -> None:
        """Add a scored request.

        Args:
            line: The request and its answer.
            now: The bundle's ctr of each logged candidate, or NaN.
            same_version: Whether the bundle has the version that answered.
        """
        candidates = line.candidates or []
        then = np.array([np.nan if candidate.ctr is None else candidate.ctr for candidate in candidates])
        self.requests += 1
        self.sampled += len(candidates) < line.candidate_count
        self.hashed.update(dict.fromkeys(line.hashed or ()))
        both = np.isfinite(now) & np.isfinite(then)
        if not both.any():
            self.not_compared += 1
            return
        before, after = then[both], now[both]
        difference = np.abs(after - before)
        self.other_best += int(np.argmax(after) != np.argmax(before))
        self.differences.add(difference)
        self.before_sum += float(before.sum())
        self.after_sum += float(after.sum())
        if same_version and not line.hashed and WITHOUT_VOCABULARY not in (line.degraded or ()):
            allowed = np.minimum(TOLERANCE, RELATIVE_TOLERANCE * before)
            self.unexplained += int(np.count_nonzero(difference > allowed))


def replay(
    paths: Sequence[Path], bundle: Bundle, engine: Engine, pseudonyms: Pseudonymizer | None = None
) -> tuple[list[Comparison], Skipped]:
    """Score the requests of a log again, and compare the answers.

    Args:
        paths: Log files, and folders of log files.
        bundle: The bundle to score with.
        engine: The bundle's engine.
        pseudonyms: The key for raw values of fields with pseudonyms. Requests with such values are not compared if it
            is None.

    Returns:
        A comparison for each version that answered, in the order of the log, and what could not be read.

    Raises:
        NothingToReplay: No line could be read.
    """
    skipped = Skipped()
    comparisons: dict[str, Comparison] = {}
    encoder = Encoder(bundle.schema, pseudonyms=pseudonyms)
    for line in read_lines(paths, skipped):
        comparison = comparisons.setdefault(line.version, Comparison(line.version))
        if line.outcome == SCORED:
            now = score_line(line, encoder, bundle, engine)
            comparison.add(line, now, line.version == bundle.manifest.version)
        else:
            comparison.failed[line.outcome] += 1
    if not comparisons:
        unfinished = sum(len(unfinished_files(path)) for path in paths)
        reason = f"{', '.join(map(str, paths))}: found no lines of a request log that this version can read."
        reason = " ".join([reason, *report_skipped(skipped)])
        if unfinished:
            reason += f" Files still being written: {unfinished}. Wait {MAX_SEGMENT_S:g} s, or stop the server."
        raise NothingToReplay(reason)
    return list(comparisons.values()), skipped


def score_line(line: LogLine, encoder: Encoder, bundle: Bundle, engine: Engine) -> NDArray[np.float64]:
    """Return the ctr of each candidate: NaN for an invalid one, and NaN for all if the context is invalid."""
    # The hash of a category is an unknown token. The hash of a number or a timestamp is neither, and without a key, no
    # pseudonym can be made of it, so the field counts as missing.
    unreadable = {
        field.reads for field in bundle.schema.fields if field.kind == "numeric" or field.transform or field.pseudonym
    }
    lost = unreadable.intersection(line.hashed or ())
    context = {} if line.context is UNSET else line.context
    rows = [context, *(candidate.features for candidate in line.candidates or ())]
    context, *candidates = ({name: value for name, value in row.items() if name not in lost} for row in rows)
    ctr = np.full(len(candidates), np.nan)
    try:
        tokens = encoder.tokens(context, candidates, skip_bad=True)
    except BadFeature:
        return ctr
    if tokens.rows:
        ctr[tokens.rows] = engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0]
    return ctr


def report(comparison: Comparison) -> list[str]:
    """Return lines that describe a comparison."""
    differences = comparison.differences
    lines = [
        f"answered by {comparison.version}: {comparison.requests} requests, {differences.count} candidates compared"
    ]
    if comparison.failed:
        outcomes = ", ".join(f"{outcome} {count}" for outcome, count in sorted(comparison.failed.items()))
        lines.append(f"  not scored by the server: {comparison.failed.total()} requests ({outcomes})")
    if comparison.not_compared:
        lines.append(
            f"  not compared: {comparison.not_compared} requests without scores, or that do not fit this bundle"
        )
    if comparison.hashed:
        lines.append(
            f"  hashed in the log, so unknown now: {', '.join(comparison.hashed)}. "
            "Not all differences are due to the model."
        )
    if differences.count:
        p50, p99 = differences.quantile(0.5), differences.quantile(0.99)
        before, after = (total / differences.count for total in (comparison.before_sum, comparison.after_sum))
        lines += [
            f"  difference: largest {differences.largest:.3g}, mean {differences.mean:.3g}, "
            f"p50 {p50:.3g}, p99 {p99:.3g}",
            f"  mean ctr: {before:.6f} in the log, {after:.6f} now",
            f"  different best candidate: {comparison.other_best} requests",
        ]
    if comparison.sampled:
        lines.append(
            f"  logged without some of their candidates: {comparison.sampled} requests. "
            "Only logged candidates were compared."
        )
    return lines


def report_skipped(skipped: Skipped) -> list[str]:
    """Return a line for each kind of skipped lines and files."""
    lines = []
    if skipped.unreadable:
        lines.append(f"skipped {skipped.unreadable} lines that are truncated or not from a request log")
    if skipped.newer:
        lines.append(
            f"skipped {skipped.newer} lines in a newer format than {FORMAT}. Read them with the version that wrote them"
        )
    if skipped.files:
        lines.append(f"skipped {skipped.files} files that the server deleted before they could be read")
    return lines
