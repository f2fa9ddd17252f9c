"""The variants of STEC in the paper's Table 6.

A variant is only a configuration: an experiment can set the same keys in its [model] section.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from model.stec.stec import STECConfig
from model.toml_text import did_you_mean, toml_text

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    # Explicit interactions: attention in parallel with a bilinear layer, without shared parameters.
    "STEC_BL": {"interaction": "separate"},
    # The same, but without the FFN, "to make the overall structure resemble the AutoInt model".
    "STEC_NF": {"interaction": "separate", "ffn": 0},
    # Only the final interaction. STECConfig.last selects which interaction that is.
    "STEC_LO": {"fusion": "last"},
    # The sum of the levels instead of their concatenation.
    "STEC_F": {"fusion": "add"},
}


def ablation(name: str, model: msgspec.Struct) -> STECConfig:
    """Return a variant of STEC with the size of `model`.

    Raises:
        ValueError: If `name` is not in ABLATIONS, or if `model` is not a STEC with an FFN, shared interactions and
            concatenated levels.
    """
    if name not in ABLATIONS:
        close = did_you_mean(str(name), ABLATIONS)
        raise ValueError(f"{toml_text(name)} is not an ablation.{close} Choose one of {', '.join(ABLATIONS)}.")
    if not isinstance(model, STECConfig):
        raise ValueError(f"{name} is a variant of STEC, not of {type(model).__name__.removesuffix('Config')}")
    for key, value, is_stec in (
        ("interaction", model.interaction, model.interaction != "separate"),
        ("ffn", model.ffn, model.ffn > 0),
        ("fusion", model.fusion, model.fusion == "concat"),
    ):
        if not is_stec:
            raise ValueError(
                f"{name} is a variant of STEC, but {key} = {value!r} makes it another model. Remove {key}."
            )
    return msgspec.structs.replace(model, **ABLATIONS[name])
