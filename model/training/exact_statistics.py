"""Computing batch-norm statistics over the whole training set.

During training, a batch norm keeps a moving average over roughly the last ten batches. Its value after the last batch
is noisy, and this noise changes the mean prediction of the whole model by percents from one epoch to the next.
"""

import torch
from torch import nn

from model.experiment_config import Training
from model.training.batches import Batches, Split
from model.training.device import device_of


@torch.no_grad()
def measure_batch_norms(model: nn.Module, train: Split, recipe: Training) -> None:
    """Set every batch norm's statistics to the averages of the batch means and batch variances over one epoch.

    This is "precise BN" in Wu and Johnson, Rethinking "Batch" in BatchNorm (2021), section 3. The weights do not
    change. Tokens are hidden as in training, but dropout is off. Afterwards, the model is in evaluation mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms:
        return
    momenta, device = [norm.momentum for norm in norms], device_of(model)
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for number, batch in enumerate(Batches(train, recipe).epoch(), 1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean over all batches so far
        model(batch.ids.to(device), batch.values.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
