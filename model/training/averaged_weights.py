"""An exponential moving average of a model's weights (EMA; Polyak and Juditsky, 1992).

The average of the weights over many steps often predicts better than the weights after any of these steps, because the
noise of the steps cancels out.
"""

import copy

import torch
from torch import Tensor, nn

from model.experiment_config import Training

WARM_UP_STEPS = 10  # Until then, the average mostly follows the weights, because the first ones are random.


class AveragedWeights:
    """A copy of a model whose weights are a moving average of the model's weights.

    The average covers everything in the state_dict: the parameters and the running statistics of batch norms. Their
    step counters are integers and are copied. Constants are not in the state_dict, and no step reads them.
    torch.optim.swa_utils.AveragedModel would average constant buffers too, and it collects and groups all tensors again
    in every step.

    Attributes:
        model: The copy. Its weights can be evaluated and saved at any time.
        steps: The number of updates so far.
    """

    def __init__(self, model: nn.Module, recipe: Training, steps_per_epoch: int) -> None:
        """Start the average at the model's current weights.

        Args:
            model: The model that is trained. Its tensors must be changed in place.
            recipe: The [training] section, with an ema_half_life above 0.
            steps_per_epoch: The number of training steps in an epoch.
        """
        half_life_steps = max(recipe.ema_half_life * steps_per_epoch, recipe.ema_min_steps)
        self._max_decay = 0.5 ** (1 / half_life_steps)
        self.model, self.steps = copy.deepcopy(model), 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages, self._weights = split_pairs([pair for pair in pairs if pair[0].is_floating_point()])
        self._copies, self._counters = split_pairs([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the model's current weights, as before the first step."""
        self.steps = 0
        self._copy_counters()
        torch._foreach_copy_(self._averages, self._weights)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's current weights, in place. To be called after each step."""
        self.steps += 1
        decay = min(self._max_decay, self.steps / (self.steps + WARM_UP_STEPS))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        self._copy_counters()

    def _copy_counters(self) -> None:
        if self._copies:
            torch._foreach_copy_(self._copies, self._counters)


def split_pairs(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the first and the second tensor of each pair."""
    return [first for first, _ in pairs], [second for _, second in pairs]
