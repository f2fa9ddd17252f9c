"""The number of examples that hypothesis tries per property."""

from hypothesis import settings

USUAL = 100  # hypothesis's own default


def examples(count: int) -> int:
    """Return `count`, scaled by the profile: 40% of it in `default`, and ten times as much in `full`."""
    return count * settings().max_examples // USUAL
