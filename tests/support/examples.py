"""How many examples of a property hypothesis tries."""

from hypothesis import settings

USUAL = 100  # hypothesis's own default


def examples(count: int) -> int:
    """Return `count` in the default profile, and ten times as many in the profile `full`."""
    return count * settings().max_examples // USUAL
