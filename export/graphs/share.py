"""The graph that explains a model whose logit is not a sum over fields: each field's share, averaged over orders.

Start with every field missing, and set the candidate's values one field at a time. When a field is set, the
change of the logit is that field's share. It depends on the order, so it is averaged over ORDERS fixed orders. One half
of the orders is the reverse of the other half. The shares are sampled Shapley values (Shapley, 1953). They add up to
the logit exactly, whatever the orders are:

    logit = bias + sum over i of share(i)        bias: the logit with every field missing

Shape legend: N candidates, F fields, K orders, T = F + 1 steps of an order, D a table's width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema
from contract.tokens import Numbers
from contract.vocabulary import MISSING
from export.graphs.plain import BaselineGraph

ORDERS = 8
SEED = 1


class ShareGraph(nn.Module):
    """Inputs of the serving graph -> logit (N), contribution (N, 1, F, F), attention (N, 0, 1, F, F), bias (N).

    The graph has the same outputs as ExplainGraph, with one level and without attention. The diagonal of the level
    contains the fields' shares in serving order. The model is one of model/baselines/.
    """

    is_in_KTF: Tensor
    field_KFF: Tensor

    def __init__(self, model: nn.Module, schema: FeatureSchema) -> None:
        super().__init__()
        self.baseline = BaselineGraph(model, schema)
        fields = len(schema.fields)
        order_KF = draw_orders(fields)
        rank_KF = order_KF.argsort(1)
        self.register_buffer("is_in_KTF", rank_KF[:, None, :] < torch.arange(fields + 1)[:, None])
        self.register_buffer("field_KFF", torch.eye(fields)[self.baseline.to_model_order][order_KF])
        for number, table in enumerate(self.baseline.model.embeddings):  # type: ignore[arg-type]
            self.register_buffer(f"missing_{number}", missing_vectors(table, schema))

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.baseline.look_up(context_ids, candidate_ids, request_index, context_values, candidate_values)
        logit_NKT = self.logits_by_step(found)
        gain_NKF = logit_NKT[:, :, 1:] - logit_NKT[:, :, :-1]
        share_NF = torch.einsum("nkt,ktf->nf", gain_NKF, self.field_KFF) / ORDERS
        contribution_NFF = share_NF[:, :, None] * torch.eye(share_NF.shape[1])
        attention = contribution_NFF[:, None, None][:, :0]
        return logit_NKT[:, 0, -1], contribution_NFF[:, None], attention, logit_NKT[:, 0, 0]

    def logits_by_step(self, found: list[Tensor]) -> Tensor:
        """Return the logit of every candidate after every step of every order, (N, K, T)."""
        rows = []
        for number, x_NFD in enumerate(found):
            missing_FD = getattr(self, f"missing_{number}")
            x_NKTFD = torch.where(self.is_in_KTF[None, :, :, :, None], x_NFD[:, None, None], missing_FD)
            rows.append(x_NKTFD.flatten(0, 2))
        logits: Tensor = self.baseline.model.predict(*rows)  # type: ignore[operator]
        logit_NKT: Tensor = logits.unflatten(0, (-1, *self.is_in_KTF.shape[:2]))
        return logit_NKT


def draw_orders(fields: int) -> Tensor:
    """Return the orders, int64 (K, F). They are the same for every candidate and every call."""
    generator = torch.Generator().manual_seed(SEED)
    half = torch.stack([torch.randperm(fields, generator=generator) for _ in range(ORDERS // 2)])
    return torch.cat([half, half.flip(1)])


def missing_vectors(table: nn.Module, schema: FeatureSchema) -> Tensor:
    """Return a table's vectors with every field missing, (F, D)."""
    ids = torch.full((1, len(schema.select("categorical"))), MISSING)
    numeric = schema.select("numeric")
    values = Numbers(numeric).normalize(np.full((1, len(numeric)), np.nan))
    found: Tensor = table(ids, torch.from_numpy(values))[0].detach()
    return found
