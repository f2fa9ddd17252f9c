"""The number of examples that hypothesis tries per property."""

from hypothesis import settings

USUAL = 100  # hypothesis's own default


def examples(count: int) -> int:
    """Return `count` in the `default` profile, and ten times as much in the `full` profile."""
    return count * settings().max_examples // USUAL
