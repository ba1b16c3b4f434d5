"""The console that every part of the package prints to."""

from typing import Any

from rich.console import Console


def make_console(**options: Any) -> Console:
    """A rich console with these options that prints words between colons, such as `:cat:`, as they
    are, and not as emoji.
    """
    return Console(emoji=False, **options)
