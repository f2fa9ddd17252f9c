"""Parity: what onnxruntime answers from the files is what torch answers from the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

import kernel
from contract.bundle import KERNEL, OUTPUT, Calibration
from contract.encode import ModelInput, join
from contract.golden import TOLERANCE
from contract.schema import FeatureSchema
from export.graphs.plain import PlainGraph

ROWS = (1, 2, 257)  # a graph that is right at the traced sizes can be wrong at others
SHARE_OF_WHOLE = 10  # a tenth of the golden requests
# Of the probability: where clicks are rare, all of it may be less than TOLERANCE.
RELATIVE_TOLERANCE = 1e-3


class ParityError(ValueError):
    """The exported graph and the model disagree: there is no bundle."""


def torch_ctr(
    model: nn.Module, schema: FeatureSchema, inputs: list[ModelInput], calibration: Calibration
) -> list[list[float]]:
    """Probabilities of each request's candidates, by the model's plain form in float64."""
    reference = PlainGraph(model, schema).double().eval()
    answers = []
    for one in inputs:
        tensors = {name: torch.from_numpy(array) for name, array in join([one]).items()}
        doubles = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
        with torch.inference_mode():
            answers.append(calibration.ctr(reference(**doubles).numpy()).tolist())
    return answers


def check_parity(
    onnx: Path,
    inputs: list[ModelInput],
    expected: list[list[float]],
    calibration: Calibration,
    most_candidates: int | None = None,
) -> float:
    """The largest difference in probability, over single requests, 1, 2 and 257 rows, and many requests in one call.

    most_candidates: of a graph that is only run on so many at once; it is then checked on single requests alone.

    Raises:
        ParityError: when one is above 1e-5, or above a thousandth of torch's answer.
        NoKernel: for KERNEL, where it cannot be used.
    """
    options = onnxruntime.SessionOptions()
    if onnx.name == KERNEL:
        kernel.register(options)
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    cases = _cases(inputs, expected) if most_candidates is None else _alone(inputs, expected, most_candidates)
    for name, feed, answer in cases:
        ctr = calibration.ctr(session.run([OUTPUT], feed)[0])
        if ctr.shape != answer.shape:
            raise ParityError(f"{onnx.name}, {name}: the graph answers {ctr.shape}, torch {answer.shape}")
        difference = np.abs(ctr - answer)
        if not (largest := float(difference.max())) <= TOLERANCE:
            raise ParityError(f"{onnx.name}, {name}: it and torch differ by {largest:.2g}, more than {TOLERANCE:g}")
        if not (relative := float((difference / answer).max())) <= RELATIVE_TOLERANCE:
            told = f"it and torch differ by {relative:.2g} of the probability, more than {RELATIVE_TOLERANCE:g}"
            raise ParityError(f"{onnx.name}, {name}: {told}")
        worst = max(worst, largest)
    return worst


Case = tuple[str, Mapping[str, NDArray[np.generic]], NDArray[np.float64]]


def _alone(inputs: list[ModelInput], expected: list[list[float]], most: int) -> Iterator[Case]:
    """Of most requests the first candidate: an explanation computes each candidate hundreds of times over."""
    for index, (one, answer) in enumerate(zip(inputs, expected, strict=True)):
        rows = min(most, len(answer)) if index % SHARE_OF_WHOLE == 0 else 1
        yield f"golden request {index}", *_first_rows(join([one]), np.array(answer), rows)


def _cases(inputs: list[ModelInput], expected: list[list[float]]) -> Iterator[Case]:
    for index, (one, answer) in enumerate(zip(inputs, expected, strict=True)):
        yield f"golden request {index}", join([one]), np.array(answer)
    everything, answers = join(inputs), np.concatenate([np.array(a) for a in expected])
    yield "all golden requests in one call", everything, answers
    for rows in ROWS:
        yield f"{rows} rows in one call", *_first_rows(everything, answers, rows)


def _first_rows(
    feed: Mapping[str, NDArray[np.generic]], answers: NDArray[np.float64], rows: int
) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float64]]:
    """The first candidates of a joined call, with the requests that they belong to."""
    requests = int(feed["request_index"][rows - 1]) + 1
    cut = {name: array[:requests] if name.startswith("context") else array[:rows] for name, array in feed.items()}
    return cut, answers[:rows]
