"""The graph that explains STEC. With a linear head, the logit is an exact sum over levels and pairs of fields.

    logit = bias + sum over l, i, j of contribution(l, i, j)
    contribution(l, i, j) = sum over c of a_c[i, j] * (left[i, c] * right[j, c] - mean_c[i, j])

mean is the batch norm's running mean. A contribution is the difference from the average training row, and the bias is
the logit of that row. Levels and pairs that the head does not use contribute 0. Level 0 depends only on the two fields.
In level 1 and later levels, attention has mixed in other fields.

Shape legend: N candidates, F fields in serving order, L levels, B = L - 1 blocks, H heads, D width.
"""

import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema
from export.graphs.block import blocks_of
from export.graphs.embedding import exact_copy
from export.graphs.level import fold_levels, linear_head
from export.graphs.serving import SideEmbedding, serving_order
from model.stec.attention import attention_weights, interaction
from model.stec.stec import STEC, Block


class ExplainGraph(nn.Module):
    """Inputs of the serving graph -> logit (N), contribution (N, L, F, F), attention (N, B, H, F, F), bias (N).

    The model must have a linear head.
    """

    table: Tensor
    constant: Tensor
    allowed_FF: Tensor | None

    def __init__(self, model: STEC, schema: FeatureSchema) -> None:
        super().__init__()
        exact = exact_copy(model)
        order = serving_order(schema)
        levels = fold_levels(exact, order)
        self.context = SideEmbedding(exact.embedding, schema, "context")
        self.candidate = SideEmbedding(exact.embedding, schema, "candidate")
        self.register_buffer("table", exact.embedding.table.weight.float())
        self.register_buffer("constant", (linear_head(exact).bias + sum(level.beta for level in levels)).float())
        allowed_FF = None if exact.allowed_FF is None else exact.allowed_FF[order][:, order]
        self.register_buffer("allowed_FF", allowed_FF)
        for number, level in enumerate(levels):
            self.register_buffer(f"a_{number}", level.a_DFF.permute(1, 2, 0).contiguous().float())
            self.register_buffer(f"mean_{number}", level.mean_DFF.permute(1, 2, 0).contiguous().float())
        self.blocks = nn.ModuleList(blocks_of(exact.float()))
        self.last = exact.last

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        context_RUD = self.context(self.table, context_ids, context_values)
        candidate_NCD = self.candidate(self.table, candidate_ids, candidate_values)
        x_NFD = torch.cat([context_RUD.index_select(0, request_index), candidate_NCD], 1)
        shares, attention = [], []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            before_NFD = x_NFD
            x_NFD, *factors = block(x_NFD, True, self.allowed_FF)
            shares.append(self.contribution(number, *factors))
            q_NFD, k_NFD = factors if block.bilinear is None else block.project(before_NFD)
            weights_NFFH = attention_weights(q_NFD, k_NFD, block.heads, block.score_divisor, self.allowed_FF)
            attention.append(weights_NFFH.permute(0, 3, 1, 2))
        shares.append(self.contribution(len(self.blocks), *self.last(x_NFD)))
        contribution = torch.stack(shares, 1)
        bias_N = self.constant.expand(contribution.shape[0])
        return contribution.sum((1, 2, 3)) + bias_N, contribution, torch.stack(attention, 1), bias_N

    def contribution(self, level: int, left_NFD: Tensor, right_NFD: Tensor) -> Tensor:
        """Return a level's contributions, (N, F, F)."""
        a_FFD, mean_FFD = getattr(self, f"a_{level}"), getattr(self, f"mean_{level}")
        share: Tensor = ((interaction(left_NFD, right_NFD) - mean_FFD) * a_FFD).sum(3)
        return share
