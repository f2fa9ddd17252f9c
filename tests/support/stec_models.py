"""Small STEC models with any options, a single training step, and clicks that a small model can learn."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from model.layers import Fields
from model.stec.stec import STEC, STECConfig
from model.training.batches import Split

SIZES = (30, 8, 5, 4, 3)
NUMERIC = 2
TOKENS = 8  # per field in clicks_of_pairs
# Fields 0, 2 and 5 are context fields.
IS_CONTEXT = (True, False, True, False, False, True, False)


def build(size: STECConfig, plain: bool, seed: int = 0, dtype: torch.dtype = torch.float64) -> STEC:
    torch.manual_seed(seed)
    model = STEC(Fields(SIZES, NUMERIC, IS_CONTEXT), size, plain=plain).to(dtype)
    for norm in model.norms:  # values as after training, not the initial ones
        assert isinstance(norm, nn.BatchNorm1d)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        if norm.bias is not None:
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


def batch(rows: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, values and labels. As in real logs, one field is constant and one has one value in 99.9% of rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(2, n, (rows,), generator=generator) for n in SIZES], 1)
    ids[:, 3] = 2
    ids[:, 4] = 1
    ids[torch.rand(rows, generator=generator) < 0.001, 4] = 2
    values = torch.randn(rows, NUMERIC, generator=generator, dtype=torch.float64)
    labels = (torch.rand(rows, generator=generator) < 0.3).double()
    return ids, values, labels


def train_step(model: STEC, rows: int) -> dict[str, Tensor]:
    """Return the logits, all gradients and the running statistics after one forward and backward pass."""
    ids, values, labels = batch(rows)
    dtype = model.embedding.alpha.dtype
    model.train()
    logits = model(ids, values.to(dtype))
    functional.binary_cross_entropy_with_logits(logits, labels.to(dtype)).backward()
    found = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[f"gradient of {name}"] = parameter.grad
    return found | {name: b.double() for name, b in model.named_buffers() if "running" in name}


def error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    return {k: (found[k].double() - reference[k].double()).abs().max().item() for k in reference}


def is_valid(options: dict[str, Any]) -> bool:
    try:
        return bool(STECConfig(**options))
    except ValueError:
        return False


def models(**others: st.SearchStrategy[Any]) -> st.SearchStrategy[STECConfig]:
    """Return a strategy for all valid combinations of options."""
    options: dict[str, st.SearchStrategy[Any]] = {
        "embedding": st.just(8),
        "blocks": st.integers(1, 3),
        "heads": st.sampled_from([1, 2, 4]),
        "ffn": st.sampled_from([0, 16]),
        "attention": st.sampled_from(["full", "request"]),
        "pairs": st.sampled_from(["full", "upper", "upper_diag"]),
        "scale": st.sampled_from(["sqrt", "mean"]),
        "interaction": st.sampled_from(["qk", "xwx", "separate"]),
        "fusion": st.sampled_from(["concat", "add", "last"]),
        "last": st.sampled_from(["layer", "block"]),
        "embedding_std": st.just(0.3),
        "embedding_norm": st.sampled_from(["none", "none", "batch", "rms"]),
        "layer_norm_eps": st.sampled_from([1e-5, 5.0]),
        "level_eps": st.sampled_from([1e-5, 1e-3]),
        "level_eps_relative": st.sampled_from([0.0, 0.0, 0.01]),
    }
    return st.fixed_dictionaries(options | others).filter(is_valid).map(lambda o: STECConfig(**o))


def clicks_of_pairs(rows: int, seed: int) -> Split:
    """Return a split in which clicks depend on two fields together, but on neither of them alone."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, TOKENS, (rows, 3), generator=generator)
    chance = torch.where((ids[:, 0] + ids[:, 1]) % 2 == 0, 0.9, 0.1)
    labels = (torch.rand(rows, generator=generator) < chance).float()
    return Split(ids.numpy(), np.zeros((rows, 0), np.float32), labels.numpy())


def stec(seed: int = 0) -> STEC:
    torch.manual_seed(seed)
    return STEC(Fields([TOKENS] * 3), STECConfig(embedding=8, blocks=1, embedding_std=0.1))
