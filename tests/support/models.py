"""A small config for every model, and rows to run the models on."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model.layers import Fields
from model.zoo import MODELS, Config, build

NAMES = ("user", "item", "day", "cost", "age", "bid")
FIELDS = Fields((30, 8, 5, 4), 2, (True, False, True, False, True, False), NAMES)
SMALL: dict[str, dict[str, Any]] = {name: {"mlp": (8, 6)} for name in MODELS} | {
    **{name: {} for name in ("stec", "lr", "fm", "afm", "edcn")},
    "afn": {"mlp": (8, 6), "neurons": 20, "afn": (8,)},
    "autoint": {"mlp": (8, 6), "attention": 16, "layers": 2},
    "destine": {"mlp": (8, 6), "attention": 16, "layers": 2},
    "interhat": {"mlp": (8, 6), "attention": 16, "hidden": 10},
    "finalmlp": {"mlp": (8, 6), "mlp2": (4,), "gate": (5,), "heads": 2, "context1": ("user", "age")},
}
# Options that use a different code path in a model.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("xdeepfm", {"cin": (5, 4, 3)}),
    ("fibinet", {"bilinear": "field_interaction", "reduction": 0.5}),
    ("afn", {"mlp_batch_norm": True}),
    ("deepim", {"order": 5, "interaction_batch_norm": True}),
    ("aoanet", {"interaction_layers": 3, "subspaces": 3}),
    ("dcnv2", {"mlp": ()}),
    ("edcn", {"regulation": False}),
    ("masknet", {"structure": "serial", "embedding_norm": True}),
    ("finalmlp", {"context1": (), "context2": ()}),
    ("finalmlp", {"context1": ("item", "age"), "context2": ("user",)}),
    ("interhat", {"heads": 4, "mlp": ()}),
    ("autoint", {"wide": True, "layer_norm": False, "scaled": False, "layers": 1}),
    ("destine", {"wide": True, "heads": 2, "scaled": False}),
]
CASES = [*((name, {}) for name in MODELS), *OTHERS]


def small(name: str, **changes: Any) -> Config:
    """Return a config that trains on a few rows, with embeddings that vary enough for every part to have an effect."""
    config, _ = MODELS[name]
    width = {} if name == "lr" else {"embedding": 4}
    return config(**{"embedding_std": 0.3} | width | SMALL[name] | changes)


def a_model(name: str, **changes: Any) -> nn.Module:
    return model_of(FIELDS, name, **changes)


def a_model_with_missing_vectors(name: str, **changes: Any) -> nn.Module:
    return model_of(replace(FIELDS, has_missing_vectors=True), name, **changes)


def model_of(fields: Fields, name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(3)
    return build(fields, small(name, **changes)).double()


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(0, size, (rows,), generator=generator) for size in FIELDS.sizes], 1)
    values = torch.randn(rows, FIELDS.numeric, generator=generator, dtype=torch.float64)
    return ids, values, (torch.rand(rows, generator=generator) < 0.4).double()
