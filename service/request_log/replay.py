"""Compare the answers in a request log with a bundle's answers: `ctr-verify BUNDLE --log`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.encode import Encoder
from contract.golden import RELATIVE_TOLERANCE, TOLERANCE
from contract.pseudonyms import Pseudonymizer
from contract.reader import BadFeature
from contract.segments import unfinished_files
from service.request_log.writer import Line, read_lines
from service.runtime.engine import Engine
from service.segments import MAX_SEGMENT_S
from service.vocabulary.tiered import WITHOUT_VOCABULARY


class NothingToReplay(ValueError):
    """The files contain no lines of a request log."""


@dataclass(frozen=True)
class Comparison:
    """Compares the logged answers of one version with a bundle's. Legend: N candidates that were scored both times.

    Attributes:
        version: The version that answered the requests.
        requests: How many requests it answered.
        not_compared: How many of them have no candidate that was scored both times.
        other_best: How many of them now have a different best candidate.
        hashed: Fields whose values are hashed in the log. The bundle scores them as unknown, so not all differences
            are due to the model.
        before: The ctr in the log (N).
        after: The ctr from the bundle (N).
        with_vocabulary: Whether the logged ctr was computed with the model's vocabulary (N).
    """

    version: str
    requests: int
    not_compared: int
    other_best: int
    hashed: tuple[str, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    with_vocabulary: NDArray[np.bool_]

    @property
    def difference(self) -> NDArray[np.float64]:
        return np.abs(self.after - self.before)

    def is_unexplained(self, bundle: Bundle) -> bool:
        """Return whether the same version gives different answers for the same values."""
        same = self.version == bundle.manifest.version and not self.hashed
        allowed = np.minimum(TOLERANCE, RELATIVE_TOLERANCE * self.before)
        return same and bool((self.difference > allowed)[self.with_vocabulary].any())


def replay(
    paths: Sequence[Path], bundle: Bundle, engine: Engine, pseudonyms: Pseudonymizer | None = None
) -> tuple[list[Comparison], int]:
    """Score the requests of a log again, and compare the answers.

    Args:
        paths: Log files, and folders of log files.
        bundle: The bundle to score with.
        engine: The bundle's engine.
        pseudonyms: The key for raw values of fields with pseudonyms. Requests with such values are not compared if it
            is None.

    Returns:
        A comparison for each version that answered, in the order of the log, and how many lines could not be read.

    Raises:
        NothingToReplay: No line could be read.
    """
    lines, unreadable = read_lines(paths)
    if not lines:
        unfinished = sum(len(unfinished_files(path)) for path in paths)
        reason = f"{', '.join(map(str, paths))}: found no lines of a request log (unreadable lines: {unreadable})."
        if unfinished:
            reason += f" Files still being written: {unfinished}. Wait {MAX_SEGMENT_S:g} s, or stop the server."
        raise NothingToReplay(reason)
    versions = dict.fromkeys(line.version for line in lines)
    encoder = Encoder(bundle.schema, pseudonyms=pseudonyms)
    return [
        compare([line for line in lines if line.version == version], encoder, bundle, engine) for version in versions
    ], unreadable


def compare(lines: Sequence[Line], encoder: Encoder, bundle: Bundle, engine: Engine) -> Comparison:
    """Score the requests of one version again, and compare the answers."""
    before, after, with_vocabulary = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, bool)]
    not_compared = other_best = 0
    for line in lines:
        now = score_line(line, encoder, bundle, engine)
        then = np.array([np.nan if ctr is None else ctr for ctr in line.ctr])
        both = np.isfinite(now) & np.isfinite(then) if len(now) == len(then) else np.zeros(0, bool)
        if not both.any():
            not_compared += 1
            continue
        other_best += int(np.argmax(now[both]) != np.argmax(then[both]))
        before.append(then[both])
        after.append(now[both])
        with_vocabulary.append(np.full(both.sum(), WITHOUT_VOCABULARY not in line.degraded))
    return Comparison(
        version=lines[0].version,
        requests=len(lines),
        not_compared=not_compared,
        other_best=other_best,
        hashed=tuple(dict.fromkeys(name for line in lines for name in line.hashed)),
        before=np.concatenate(before),
        after=np.concatenate(after),
        with_vocabulary=np.concatenate(with_vocabulary),
    )


def score_line(line: Line, encoder: Encoder, bundle: Bundle, engine: Engine) -> NDArray[np.float64]:
    """Return the ctr of each candidate: NaN for an invalid one, and NaN for all if the context is invalid."""
    # The hash of a category is an unknown token. The hash of a number or a timestamp is neither, and without a key, no
    # pseudonym can be made of it, so the field counts as missing.
    unreadable = {
        field.reads for field in bundle.schema.fields if field.kind == "numeric" or field.transform or field.pseudonym
    }
    lost = unreadable.intersection(line.hashed)
    rows = [line.context, *(candidate.features for candidate in line.candidates)]
    context, *candidates = ({name: value for name, value in row.items() if name not in lost} for row in rows)
    ctr = np.full(len(line.candidates), np.nan)
    try:
        tokens = encoder.tokens(context, candidates, skip_bad=True)
    except BadFeature:
        return ctr
    if tokens.rows:
        ctr[tokens.rows] = engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0]
    return ctr


def report(comparison: Comparison) -> list[str]:
    """Return lines that describe a comparison."""
    lines = [
        f"answered by {comparison.version}: {comparison.requests} requests, "
        f"{len(comparison.before)} candidates compared"
    ]
    if comparison.not_compared:
        lines.append(
            f"  not compared: {comparison.not_compared} requests that were not scored, or do not fit this bundle"
        )
    if comparison.hashed:
        lines.append(
            f"  hashed in the log, so unknown now: {', '.join(comparison.hashed)}. "
            "Not all differences are due to the model."
        )
    if len(comparison.before):
        difference = comparison.difference
        p50, p99 = np.quantile(difference, (0.5, 0.99))
        lines += [
            f"  difference: largest {difference.max():.3g}, mean {difference.mean():.3g}, p50 {p50:.3g}, p99 {p99:.3g}",
            f"  mean ctr: {comparison.before.mean():.6f} in the log, {comparison.after.mean():.6f} now",
            f"  different best candidate: {comparison.other_best} requests",
        ]
    return lines
