"""The cascade of a request: the model's first level rules out candidates that cannot be among the best k.

The bundle contains the rules. See contract/cascade.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import OUTPUT, CascadeRule
from contract.cascade import survivors
from contract.encode import ModelInput, join


@dataclass(frozen=True)
class Screened(ModelInput):
    """A request for the best candidates only. The ctr of a candidate that the first level rules out is NaN."""

    rule: CascadeRule


def screened(request: ModelInput, k: int, rules: Sequence[CascadeRule]) -> ModelInput:
    """Return the request with the cascade rule for its best k candidates.

    If there is no rule for k, the rule for the next larger k is used. If there is no such rule, or there are too few
    candidates for it, the request is returned unchanged.

    Args:
        request: The encoded request.
        k: Number of candidates that the client asked for.
        rules: The bundle's rules, in ascending order of their k.
    """
    rule = next((rule for rule in rules if rule.k >= k), None)
    if rule is None or len(request.candidate_ids) <= rule.k:
        return request
    return Screened(request.context_ids, request.candidate_ids, request.context_values, request.candidate_values, rule)


def surviving_rows(request: Screened, screen: Any) -> NDArray[np.bool_]:
    """Return which candidates the whole model must score. Shape: bool (N).

    Args:
        request: A request of N candidates.
        screen: The onnxruntime session of the first level.

    Raises:
        FloatingPointError: A logit is not finite.
    """
    (logit,) = screen.run([OUTPUT], join([request]))
    if not np.isfinite(logit).all():
        raise FloatingPointError("the logit of the first level is not finite")
    return survivors(logit, request.rule.k, request.rule.margin, request.rule.candidates)


def select_rows(request: ModelInput, rows: NDArray[np.bool_]) -> ModelInput:
    """Return the request with these candidates only."""
    return replace(request, candidate_ids=request.candidate_ids[rows], candidate_values=request.candidate_values[rows])
