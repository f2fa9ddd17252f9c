"""Graphs with standard operators for any model. Nothing is folded.

Shape legend: R requests, N candidates of all requests, F fields. The inputs are those in export/graphs/serving.py.
"""

import copy

import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema, Kind
from export.graphs.serving import SideEmbedding, serving_order
from model.layers import FeatureEmbedding
from model.stec.stec import STEC


class BaselineGraph(nn.Module):
    """A model from model/baselines/. Context embeddings are looked up once per request.

    The inputs and outputs have the same shapes as in ServingGraph.
    """

    to_model_order: Tensor

    def __init__(self, model: nn.Module, schema: FeatureSchema) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        tables: list[FeatureEmbedding] = list(self.model.embeddings)  # type: ignore[arg-type]
        self.tables = nn.ModuleList(table.table for table in tables)
        self.contexts = nn.ModuleList(SideEmbedding(table, schema, "context") for table in tables)
        self.candidates = nn.ModuleList(SideEmbedding(table, schema, "candidate") for table in tables)
        self.register_buffer("to_model_order", torch.argsort(torch.tensor(serving_order(schema))))

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> Tensor:
        logit: Tensor = self.model.predict(  # type: ignore[operator]
            *self.look_up(context_ids, candidate_ids, request_index, context_values, candidate_values)
        )
        return logit

    def look_up(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None,
        candidate_values: Tensor | None,
    ) -> list[Tensor]:
        """Return the arguments of predict(): (N, F, table width) for each table, with fields in the model's order."""
        found = []
        for table, context, candidate in zip(self.tables, self.contexts, self.candidates, strict=True):
            context_RUD = context(table.weight, context_ids, context_values)
            candidate_NCD = candidate(table.weight, candidate_ids, candidate_values)
            x_NFD = torch.cat([context_RUD.index_select(0, request_index), candidate_NCD], 1)
            found.append(x_NFD.index_select(1, self.to_model_order))
        return found


class PlainGraph(nn.Module):
    """The model as in training, computed in full for each candidate.

    The inputs and outputs have the same shapes as in ServingGraph. This graph serves models with an MLP head and
    is the reference for the other graphs.
    """

    def __init__(self, model: nn.Module, schema: FeatureSchema) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        if isinstance(self.model, STEC):
            self.model.plain = True
        self.categorical = serving_columns(schema, "categorical")
        self.numeric = serving_columns(schema, "numeric")

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> Tensor:
        ids = torch.cat([context_ids.index_select(0, request_index), candidate_ids], 1)[:, self.categorical]
        parts = [candidate_values] if candidate_values is not None else []
        if context_values is not None:
            parts.insert(0, context_values.index_select(0, request_index))
        values = torch.cat(parts, 1)[:, self.numeric] if parts else ids.new_zeros((ids.shape[0], 0)).float()
        logit: Tensor = self.model(ids, values)
        return logit


def serving_columns(schema: FeatureSchema, kind: Kind) -> list[int]:
    """Return the columns of a kind's fields, in schema order, in a matrix with the context columns first."""
    serving = [*schema.select(kind, "context"), *schema.select(kind, "candidate")]
    return [serving.index(f) for f in schema.select(kind)]
