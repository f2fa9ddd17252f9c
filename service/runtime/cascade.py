"""`cascade` in a request: the first level rules out what cannot be among the best k. The rule is the bundle's."""

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
    """A request of which only the best are asked. The ctr of what the rule lets the first level rule out is NaN."""

    rule: CascadeRule


def screened(request: ModelInput, k: int, rules: Sequence[CascadeRule]) -> ModelInput:
    """The request with the rule for k, or for the next larger one; as it is, where all are for fewer."""
    rule = next((rule for rule in rules if rule.k >= k), None)
    if rule is None or len(request.candidate_ids) <= rule.k:
        return request
    return Screened(request.context_ids, request.candidate_ids, request.context_values, request.candidate_values, rule)


def survivors_of(request: Screened, screen: Any) -> NDArray[np.bool_]:
    """Which of its rows the whole model has to see. screen: a session of the first level."""
    (logit,) = screen.run([OUTPUT], join([request]))
    if not np.isfinite(logit).all():
        raise FloatingPointError("the first level's logit is not finite")
    return survivors(logit, request.rule.k, request.rule.margin, request.rule.candidates)


def only(request: ModelInput, rows: NDArray[np.bool_]) -> ModelInput:
    return replace(request, candidate_ids=request.candidate_ids[rows], candidate_values=request.candidate_values[rows])
