"""ctr-verify --log: what another bundle would have answered to the requests of a log."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Bundle
from contract.encode import Encoder
from contract.golden import TOLERANCE
from contract.reader import BadFeature
from service.request_log.segments import SEGMENT_S, unfinished_files
from service.request_log.writer import Line, read_lines
from service.runtime.engine import Engine
from service.vocabulary.tiered import WITHOUT_VOCABULARY


class NothingToReplay(ValueError):
    """The files hold no line of a request log."""


@dataclass(frozen=True)
class Replayed:
    """Of the lines that one version answered. before, after: the ctr of each candidate scored both times; whole:
    whether it was scored with its vocabulary.

    other_best: requests whose best candidate is another one now. refused: lines that this bundle cannot read.
    hashed: fields whose values the log does not have; they count as unknown now, so the model is not all that differs.
    """

    version: str
    requests: int
    refused: int
    other_best: int
    hashed: tuple[str, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    whole: NDArray[np.bool_]

    @property
    def difference(self) -> NDArray[np.float64]:
        return np.abs(self.after - self.before)

    def is_unexplained(self, bundle: Bundle) -> bool:
        """The same version and the same values, and yet another answer."""
        same = self.version == bundle.manifest.version and not self.hashed
        return same and bool((self.difference[self.whole] > TOLERANCE).any())


def replay(paths: Sequence[Path], bundle: Bundle, engine: Engine) -> tuple[list[Replayed], int]:
    """A version a row, in the log's order; and how many lines could not be read.

    Raises:
        NothingToReplay: when there is no line at all.
    """
    lines, garbled = read_lines(paths)
    if not lines:
        names = ", ".join(map(str, paths))
        written = sum(len(unfinished_files(path)) for path in paths)
        later = f"; files that are written yet: {written}; wait {SEGMENT_S:g} s, or end the server" if written else ""
        raise NothingToReplay(f"{names}: no line of a request log there ({garbled} that are none){later}")
    versions = dict.fromkeys(line.version for line in lines)
    encoder = Encoder(bundle.schema)
    return [_replay([one for one in lines if one.version == v], encoder, bundle, engine) for v in versions], garbled


def _replay(lines: Sequence[Line], encoder: Encoder, bundle: Bundle, engine: Engine) -> Replayed:
    before, after, whole = [], [], []
    refused = other_best = 0
    for line in lines:
        now = _answer(line, encoder, bundle, engine)
        then = np.array([np.nan if ctr is None else ctr for ctr in line.ctr])
        both = np.zeros(0, bool) if now is None or len(now) != len(then) else np.isfinite(now) & np.isfinite(then)
        if now is None or not both.any():
            refused += 1
            continue
        other_best += int(np.argmax(now[both]) != np.argmax(then[both]))
        before.append(then[both])
        after.append(now[both])
        whole.append(np.full(both.sum(), WITHOUT_VOCABULARY not in line.degraded))
    hashed = tuple(dict.fromkeys(name for line in lines for name in line.hashed))
    empty = [np.zeros(0)]
    return Replayed(
        lines[0].version,
        len(lines),
        refused,
        other_best,
        hashed,
        np.concatenate(before or empty),
        np.concatenate(after or empty),
        np.concatenate(whole or [np.zeros(0, bool)]),
    )


def _answer(line: Line, encoder: Encoder, bundle: Bundle, engine: Engine) -> NDArray[np.float64] | None:
    """The ctr of each candidate, NaN for one that cannot be read; None where the context cannot."""
    # A hash is an unknown token, and no number at all: where one is wanted, it is missing.
    of_numbers = {field.name for field in bundle.schema.fields if field.kind == "numeric" or field.transform}
    lost = of_numbers.intersection(line.hashed)
    rows = [{name: value for name, value in row.items() if name not in lost} for row in _rows(line)]
    try:
        tokens = encoder.tokens(rows[0], rows[1:], skip_bad=True)
    except BadFeature:
        return None
    ctr = np.full(len(line.candidates), np.nan)
    if tokens.rows:
        ctr[tokens.rows] = engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0]
    return ctr


def _rows(line: Line) -> list[dict[str, Any]]:
    return [line.context, *(one.features for one in line.candidates)]


def report(one: Replayed) -> list[str]:
    """For a person."""
    lines = [f"answered by {one.version}: {one.requests} requests, {len(one.before)} candidates compared"]
    if one.refused:
        lines.append(f"  not compared, for this bundle cannot read or they were not scored: {one.refused} requests")
    if one.hashed:
        lines.append(
            f"  hashed in the log, so unknown now: {', '.join(one.hashed)}. The differences are not the model's alone"
        )
    if len(one.before):
        p50, p99 = np.quantile(one.difference, (0.5, 0.99))
        lines += [
            f"  difference: largest {one.difference.max():.3g}, mean {one.difference.mean():.3g}, "
            f"p50 {p50:.3g}, p99 {p99:.3g}",
            f"  mean ctr: {one.before.mean():.6f} then, {one.after.mean():.6f} now",
            f"  another best candidate: {one.other_best} requests",
        ]
    return lines
