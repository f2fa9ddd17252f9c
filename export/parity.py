"""Parity: checking that the exported files give the same probabilities in onnxruntime as the run in torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

import kernel
from contract.bundle import KERNEL, OUTPUT
from contract.calibration import Calibrator
from contract.encode import ModelInput, join
from contract.golden import RELATIVE_TOLERANCE, TOLERANCE
from contract.schema import FeatureSchema
from export.graphs.plain import PlainGraph

ROWS = (1, 2, 257)  # a graph that is correct for the traced sizes may be wrong for others
# For a graph with max_candidates, one in this many golden requests is checked with up to max_candidates candidates.
FULL_CHECK_INTERVAL = 10

Case = tuple[str, Mapping[str, NDArray[np.generic]], NDArray[np.float64]]  # name, inputs, expected probabilities


class ParityError(ValueError):
    """The exported graph and the model disagree too much, so no bundle is written."""


def torch_ctr(
    model: nn.Module, schema: FeatureSchema, inputs: list[ModelInput], calibrator: Calibrator
) -> list[list[float]]:
    """Return the probabilities of each request's candidates, computed with the model's plain form in float64."""
    reference = PlainGraph(model, schema).double().eval()
    answers = []
    for request in inputs:
        feed = join([request])
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        doubles = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
        with torch.inference_mode():
            logit = reference(**doubles).numpy()
        answers.append(calibrator.ctr(logit, feed["context_ids"], feed["request_index"]).tolist())
    return answers


def check_parity(
    onnx: Path,
    inputs: list[ModelInput],
    expected: list[list[float]],
    calibrator: Calibrator,
    max_candidates: int | None = None,
) -> float:
    """Compare a graph with torch and return the largest difference in probability.

    The graph is run on single requests, on all requests in one call, and on 1, 2 and 257 rows.

    Args:
        onnx: The graph's file.
        inputs: The golden requests.
        expected: The probabilities of each request's candidates, computed by torch.
        calibrator: The bundle's calibration.
        max_candidates: The maximum number of candidates per run of the graph. If set, the graph is run only on single
            requests.

    Raises:
        ParityError: If a probability differs by more than 1e-5, or by more than 0.1% of torch's value.
        NoKernel: If the graph is KERNEL and the kernel cannot be used on this machine.
    """
    options = onnxruntime.SessionOptions()
    if onnx.name == KERNEL:
        kernel.register(options)
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    cases = all_sizes(inputs, expected) if max_candidates is None else single(inputs, expected, max_candidates)
    for name, feed, answer in cases:
        logit = session.run([OUTPUT], feed)[0]
        ctr = calibrator.ctr(logit, feed["context_ids"], feed["request_index"])
        if ctr.shape != answer.shape:
            raise ParityError(
                f"{onnx.name}, {name}: the graph's output has the shape {ctr.shape}, but torch's has {answer.shape}"
            )
        difference = np.abs(ctr - answer)
        if not (largest := float(difference.max())) <= TOLERANCE:
            raise ParityError(f"{onnx.name}, {name}: ctr differs from torch by {largest:.2g}, more than {TOLERANCE:g}")
        if not (relative := float((difference / answer).max())) <= RELATIVE_TOLERANCE:
            message = f"ctr differs from torch by {relative:.2g} of its value, more than {RELATIVE_TOLERANCE:g}"
            raise ParityError(f"{onnx.name}, {name}: {message}")
        worst = max(worst, largest)
    return worst


def single(inputs: list[ModelInput], expected: list[list[float]], max_candidates: int) -> Iterator[Case]:
    """Yield each request. Most requests are reduced to their first candidate.

    An explanation scores each candidate hundreds of times, so checking all candidates would take too long.
    """
    for index, (request, answer) in enumerate(zip(inputs, expected, strict=True)):
        rows = min(max_candidates, len(answer)) if index % FULL_CHECK_INTERVAL == 0 else 1
        yield f"golden request {index}", *first_rows(join([request]), np.array(answer), rows)


def all_sizes(inputs: list[ModelInput], expected: list[list[float]]) -> Iterator[Case]:
    """Yield each request alone, then all requests together, then only the first rows of all requests."""
    for index, (request, answer) in enumerate(zip(inputs, expected, strict=True)):
        yield f"golden request {index}", join([request]), np.array(answer)
    everything, answers = join(inputs), np.concatenate([np.array(a) for a in expected])
    yield "all golden requests in one call", everything, answers
    for rows in ROWS:
        yield f"{rows} rows in one call", *first_rows(everything, answers, rows)


def first_rows(
    feed: Mapping[str, NDArray[np.generic]], answers: NDArray[np.float64], rows: int
) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float64]]:
    """Return the first candidates of a joined call and the requests that they belong to."""
    requests = int(feed["request_index"][rows - 1]) + 1
    cut = {name: array[:requests] if name.startswith("context") else array[:rows] for name, array in feed.items()}
    return cut, answers[:rows]
