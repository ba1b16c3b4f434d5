"""Logical axes of the arrays that tests make themselves."""


def axes(x) -> tuple[str, ...]:
    """Of one row of a text batch's array: values per token (B, T) lie along the sequence; of
    anything else, no axis."""
    return ("seq",) if x.ndim == 2 else ()
