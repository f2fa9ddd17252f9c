"""Why a candidate gets its probability, from a run (by torch) or from its bundle (by onnxruntime).

See export/graphs/explain.py for what is summed. Shape legend: F fields in serving order, L levels, B blocks, H heads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from contract.bundle import EXPLAIN, EXPLANATION, MANIFEST, VOCABULARY, Calibration, open_bundle
from contract.encode import Encoder, ModelInput, join
from contract.pairs import ranked_pairs
from contract.reader import BadFeature, shorten
from contract.schema import FeatureSchema, Side
from contract.tokens import number_reader, token
from contract.vocabulary import MISSING, UNKNOWN, Vocabulary, open_vocabulary
from export.explain.case import Case
from export.graphs.explain import ExplainGraph
from export.graphs.share import ShareGraph
from model.experiments.run_folder import METRICS, open_run
from model.stec.stec import STEC

LONGEST_VALUE = 28  # characters, in a table or beside a picture

Feed = Mapping[str, NDArray[np.generic]]
Graph = Callable[[Feed], Sequence[NDArray[np.floating]]]


@dataclass(frozen=True)
class Pair:
    """Two fields' contribution to the logit, both orders added; first == second is a field with itself."""

    first: int
    second: int
    by_level: NDArray[np.float64]

    @property
    def contribution(self) -> float:
        return float(self.by_level.sum())


@dataclass(frozen=True)
class Explanation:
    """logit = bias + contribution.sum(), and ctr is that logit's, calibrated.

    fields, values: names, and what the candidate has there, as the model reads it. contribution (L, F, F),
    attention (B, H, F, F): row attends to column.
    """

    id: str | int
    fields: list[str]
    values: list[str]
    ctr: float
    logit: float
    bias: float
    contribution: NDArray[np.float64]
    attention: NDArray[np.float64]

    @property
    def is_of_shares(self) -> bool:
        """Each field's share of the logit, on the diagonal: see export/graphs/share.py."""
        return len(self.attention) == 0

    def both_orders(self) -> NDArray[np.float64]:
        """(L, F, F), symmetric: the contribution of two fields, whichever comes first."""
        both_LFF = self.contribution + self.contribution.transpose(0, 2, 1)
        return np.where(np.eye(len(self.fields), dtype=bool), self.contribution, both_LFF)

    def pairs(self) -> list[Pair]:
        """All of them, the largest first; of equal ones, the earlier fields'. As POST /v1/explain has them. Of shares,
        the fields' alone."""
        ranked = zip(*ranked_pairs(self.contribution), strict=True)
        return [Pair(int(first), int(second), by_level_L) for (first, second), by_level_L in ranked]

    def names(self) -> list[str]:
        """The fields', short enough to stand beside a picture."""
        return [readable(name) for name in self.fields]

    def labels(self) -> list[str]:
        """Field = value, short enough to stand beside a picture."""
        return [f"{name} = {readable(value)}" for name, value in zip(self.names(), self.values, strict=True)]


@dataclass(frozen=True)
class Explainer:
    """An opened run or bundle."""

    folder: Path
    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]
    calibration: Calibration
    graph: Graph

    def explain(self, case: Case) -> Explanation:
        """Raises ValueError for a value that a field does not take, and where the model's answer is no number."""
        read = self._encode(case)
        outputs = [output[0].astype(np.float64) for output in self.graph(join([read]))]
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError(f"{self.folder}: candidate {case.id!r} has an explanation that is not finite: train again")
        logit, contribution, attention, bias = outputs
        return Explanation(
            id=case.id,
            fields=[field.name for field in self.schema.in_serving_order()],
            values=[
                *self._values(case, "context", read.context_ids),
                *self._values(case, "candidate", read.candidate_ids),
            ],
            ctr=float(self.calibration.ctr(logit)),
            logit=float(logit),
            bias=float(bias),
            contribution=contribution,
            attention=attention,
        )

    def ignored(self, case: Case) -> list[str]:
        """The names that a request has and the model does not read, on that side."""
        read = {(field.side, field.name) for field in self.schema.fields}
        sides: tuple[Side, Side] = ("context", "candidate")
        return [f"{side} {name}" for side in sides for name in case.of(side) if (side, name) not in read]

    def _encode(self, case: Case) -> ModelInput:
        encoder = Encoder(self.schema)
        try:
            return encoder.ids(encoder.tokens(case.context, [case.features]), self.vocabularies)[0]
        except BadFeature as error:
            side: Side = "context" if error.path.startswith("$.context") else "candidate"
            name = error.path.removeprefix("$.context.").removeprefix("$.candidates[0].features.")
            value = shorten(repr(case.of(side)[name]))
            raise ValueError(f"candidate {case.id!r}: {side} {error.reason}, {value}") from error

    def _values(self, case: Case, side: Side, ids: NDArray[np.int64]) -> list[str]:
        """One side's, in serving order."""
        given = case.of(side)
        tokens = [
            _value_of(given.get(field.name), int(known_as))
            for field, known_as in zip(self.schema.select("categorical", side), ids[0], strict=True)
        ]
        numbers = [
            _number_of(number_reader(field)(given.get(field.name))) for field in self.schema.select("numeric", side)
        ]
        return [*tokens, *numbers]


def open_explainer(folder: Path) -> Explainer:
    """Raises ValueError for what is neither run nor bundle, for a broken one, and for an MLP head, which has no
    explanation."""
    if (folder / MANIFEST).is_file():
        return _open_bundle(folder)
    if (folder / METRICS).is_file():
        return _open_run(folder)
    raise ValueError(
        f"{folder} is neither a bundle (it has no {MANIFEST}) nor a run (it has no {METRICS}): "
        "make one with ctr-train EXPERIMENT.toml --out RUN and ctr-export RUN BUNDLE"
    )


def readable(text: str) -> str:
    """Of a client's text what a table and a picture can show, on one line."""
    return shorten(
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text), LONGEST_VALUE
    )


def _open_bundle(folder: Path) -> Explainer:
    bundle = open_bundle(folder)
    if EXPLAIN not in bundle.manifest.files:
        raise ValueError(
            f"{folder} has no {EXPLAIN}: the logit of a STEC with hidden layers in its head (mlp) is no sum"
        )
    session: Any = onnxruntime.InferenceSession(str(folder / EXPLAIN), providers=["CPUExecutionProvider"])

    def run(feed: Feed) -> Sequence[NDArray[np.floating]]:
        outputs: list[NDArray[np.floating]] = session.run(EXPLANATION, feed)
        return outputs

    return Explainer(folder, bundle.schema, bundle.vocabularies, bundle.manifest.calibration, run)


def _open_run(folder: Path) -> Explainer:
    model, experiment, schema, _ = open_run(folder)
    vocabularies = {f.name: open_vocabulary(folder / VOCABULARY, f.name) for f in schema.select("categorical")}
    graph = (ExplainGraph(model, schema) if isinstance(model, STEC) else ShareGraph(model, schema)).eval()

    def run(feed: Feed) -> Sequence[NDArray[np.floating]]:
        with torch.inference_mode():
            outputs = graph(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return [output.numpy() for output in outputs]

    return Explainer(folder, schema, vocabularies, Calibration.of_log(experiment.data.negative_rate), run)


def _value_of(value: Any, known_as: int) -> str:
    if known_as == MISSING:
        return "(missing)"
    text = token(value) or ""
    return f"(unknown) {text}" if known_as == UNKNOWN else text


def _number_of(value: float) -> str:
    return "(missing)" if math.isnan(value) else f"{value:g}"
