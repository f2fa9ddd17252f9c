"""Settings of [training] that depend on the size of a log, for ctr-inspect and for the first trial of ctr-train --auto.

They are here because importing model/experiment_config.py takes seconds: it imports torch.
"""

SMALL_LOG = 100_000  # rows; the default recipe suits larger logs
SMALL_BATCH = 256
SMALL_EMBEDDING_L2 = 0.3
SMALL_NET_L2 = 0.3
NET_L2_CLICKS = 10.0  # docs/tuning.md


def first_net_l2(clicks: float, rows: float) -> float:
    """Return a net_l2 to start with: NET_L2_CLICKS divided by the clicks, or by the non-clicks if they are rarer.

    Args:
        clicks: The number of clicks in the training set.
        rows: The number of rows in the training set.
    """
    return NET_L2_CLICKS / max(1.0, min(clicks, rows - clicks))
