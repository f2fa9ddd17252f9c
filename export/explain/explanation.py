"""Explaining a candidate's probability with a run (in torch) or with its bundle (in onnxruntime).

The contributions are defined in export/graphs/explain.py. Shape legend: F fields in serving order, L levels, B blocks,
H heads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from msgspec import UNSET
from numpy.typing import NDArray

from contract.bundle import EXPLAIN, EXPLANATION, VOCABULARY, open_bundle
from contract.calibration import Calibrator, sigmoid
from contract.encode import Encoder, ModelInput, join
from contract.pairs import ranked_pairs
from contract.pseudonyms import Pseudonymizer
from contract.reader import BadFeature, shorten
from contract.schema import TIME_TRANSFORMS, FeatureSchema, Side
from contract.tokens import number_reader, token, tokenizer
from contract.vocabulary import MISSING, UNKNOWN, Vocabulary, open_vocabulary
from export.explain.case import Case
from export.graphs.explain import ExplainGraph
from export.graphs.share import ShareGraph
from export.run_calibrator import open_calibrator
from export.run_or_bundle import is_bundle
from model.experiments.run_folder import open_run
from model.stec.stec import STEC

MAX_VALUE_LENGTH = 28  # in characters, in tables and pictures

Feed = Mapping[str, NDArray[np.generic]]
Graph = Callable[[Feed], Sequence[NDArray[np.floating]]]


@dataclass(frozen=True)
class Pair:
    """The contribution of a pair of fields to the logit, summed over both orders.

    Attributes:
        first: The position of one field.
        second: The position of the other field, which may be the same field.
        by_level: The contribution at each level, (L).
    """

    first: int
    second: int
    by_level: NDArray[np.float64]

    @property
    def contribution(self) -> float:
        """The sum over the levels."""
        return float(self.by_level.sum())


@dataclass(frozen=True)
class Explanation:
    """The explanation of one prediction: logit = bias + contribution.sum().

    Attributes:
        id: The candidate's id.
        fields: The names of the fields.
        values: The candidate's value of each field, as read by the model.
        ctr: The calibrated probability.
        logit: The logit, before calibration.
        calibrated_logit: The logit after calibration: ctr = sigmoid(calibrated_logit).
        bias: The logit of the average training row or, for shares, the logit with every field missing.
        contribution: (L, F, F).
        attention: (B, H, F, F); row attends to column.
    """

    id: str | int
    fields: list[str]
    values: list[str]
    ctr: float
    logit: float
    calibrated_logit: float
    bias: float
    contribution: NDArray[np.float64]
    attention: NDArray[np.float64]

    @property
    def is_of_shares(self) -> bool:
        """Whether the contributions are shares of the fields, on the diagonal (see export/graphs/share.py)."""
        return len(self.attention) == 0

    def both_orders(self) -> NDArray[np.float64]:
        """Return the contribution of each pair, summed over both orders, as symmetric matrices (L, F, F)."""
        both_LFF = self.contribution + self.contribution.transpose(0, 2, 1)
        return np.where(np.eye(len(self.fields), dtype=bool), self.contribution, both_LFF)

    def pairs(self) -> list[Pair]:
        """Return all pairs or, for shares, all fields, largest contribution first. Ties are in the order of the fields.

        POST /v1/explain uses the same order.
        """
        ranked = zip(*ranked_pairs(self.contribution), strict=True)
        return [Pair(int(first), int(second), by_level_L) for (first, second), by_level_L in ranked]

    def names(self) -> list[str]:
        """Return the names of the fields, shortened for pictures."""
        return [readable(name) for name in self.fields]

    def labels(self) -> list[str]:
        """Return "field = value" for each field, shortened for pictures."""
        return [f"{name} = {readable(value)}" for name, value in zip(self.names(), self.values, strict=True)]


@dataclass(frozen=True)
class Explainer:
    """An opened run or bundle.

    Attributes:
        folder: The folder of the run or bundle.
        schema: The schema.
        vocabularies: The vocabulary of each categorical field.
        calibrator: Converts logits to probabilities.
        graph: Computes the outputs of ExplainGraph from its inputs.
        pseudonyms: The key for fields with pseudonyms. Without a key, their values must be pseudonyms already.
    """

    folder: Path
    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]
    calibrator: Calibrator
    graph: Graph
    pseudonyms: Pseudonymizer | None = None

    def explain(self, case: Case) -> Explanation:
        """Explain a prediction.

        Raises:
            ValueError: If the value of a field is invalid, or the model's output is not finite.
        """
        read = self._encode(case)
        feed = join([read])
        outputs = [output.astype(np.float64) for output in self.graph(feed)]
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError(f"{self.folder}: the explanation of candidate {case.id!r} is not finite. Train again.")
        (calibrated,) = self.calibrator.calibrated(outputs[0], feed["context_ids"], feed["request_index"])
        logit, contribution, attention, bias = (output[0] for output in outputs)
        return Explanation(
            id=case.id,
            fields=[field.name for field in self.schema.in_serving_order()],
            values=[
                *self._values(case, "context", read.context_ids),
                *self._values(case, "candidate", read.candidate_ids),
            ],
            ctr=float(sigmoid(calibrated)),
            logit=float(logit),
            calibrated_logit=float(calibrated),
            bias=float(bias),
            contribution=contribution,
            attention=attention,
        )

    def ignored(self, case: Case) -> list[str]:
        """Return the side and name of each feature in a case that is not a field of the model."""
        read = {(field.side, field.reads) for field in self.schema.fields}
        sides: tuple[Side, Side] = ("context", "candidate")
        return [f"{side} {name}" for side in sides for name in case.of(side) if (side, name) not in read]

    def _encode(self, case: Case) -> ModelInput:
        encoder = Encoder(self.schema, pseudonyms=self.pseudonyms)
        try:
            return encoder.ids(encoder.tokens(case.context, [case.features]), self.vocabularies)[0]
        except BadFeature as error:
            side: Side = "context" if error.path.startswith("$.context") else "candidate"
            name = error.path.removeprefix("$.context.").removeprefix("$.candidates[0].features.")
            value = "" if name in encoder.pseudonym_names else f", {shorten(repr(case.of(side)[name]))}"
            raise ValueError(f"candidate {case.id!r}: {side} {error.reason}{value}") from error

    def _values(self, case: Case, side: Side, ids: NDArray[np.int64]) -> list[str]:
        """Return one side's values as text, in serving order."""
        given, texts = case.of(side), list[str]()
        for field, token_id in zip(self.schema.select("categorical", side), ids[0], strict=True):
            is_shown_as_token = field.transform in TIME_TRANSFORMS or field.pseudonym is not UNSET
            read = tokenizer(field, self.pseudonyms) if is_shown_as_token else token
            text = read(given.get(field.reads)) or ""
            texts.append("(missing)" if token_id == MISSING else f"(unknown) {text}" if token_id == UNKNOWN else text)
        for field in self.schema.select("numeric", side):
            number = number_reader(field)(given.get(field.reads))
            texts.append("(missing)" if math.isnan(number) else f"{number:g}")
        return texts


def open_explainer(folder: Path, pseudonyms: Pseudonymizer | None = None) -> Explainer:
    """Open a run or a bundle.

    Args:
        folder: The folder.
        pseudonyms: The key for fields with pseudonyms, if there is one.

    Raises:
        ValueError: If the folder is neither a run nor a bundle or is damaged, or if its model has an MLP head, which
            cannot be explained.
    """
    explainer = open_bundle_explainer(folder) if is_bundle(folder) else open_run_explainer(folder)
    return replace(explainer, pseudonyms=pseudonyms)


def readable(text: str) -> str:
    """Prepare a client's text for tables and pictures: one line, shortened, without control characters."""
    return shorten(
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text), MAX_VALUE_LENGTH
    )


def open_bundle_explainer(folder: Path) -> Explainer:
    """Open a bundle. Explanations are computed by onnxruntime."""
    bundle = open_bundle(folder)
    if EXPLAIN not in bundle.manifest.files:
        raise ValueError(f"{folder} has no {EXPLAIN}, because the logit of a STEC model with an MLP head is not a sum")
    session: Any = onnxruntime.InferenceSession(str(folder / EXPLAIN), providers=["CPUExecutionProvider"])

    def run(feed: Feed) -> Sequence[NDArray[np.floating]]:
        outputs: list[NDArray[np.floating]] = session.run(EXPLANATION, feed)
        return outputs

    return Explainer(folder, bundle.schema, bundle.vocabularies, bundle.calibrator, run)


def open_run_explainer(folder: Path) -> Explainer:
    """Open a run. Explanations are computed by torch."""
    model, experiment, schema, _ = open_run(folder)
    vocabularies = {f.name: open_vocabulary(folder / VOCABULARY, f.name) for f in schema.select("categorical")}
    graph = (ExplainGraph(model, schema) if isinstance(model, STEC) else ShareGraph(model, schema)).eval()

    def run(feed: Feed) -> Sequence[NDArray[np.floating]]:
        with torch.inference_mode():
            outputs = graph(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return [output.numpy() for output in outputs]

    return Explainer(folder, schema, vocabularies, open_calibrator(folder, experiment, schema), run)
