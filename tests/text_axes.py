"""Logical axes of the arrays that tests make themselves."""


def axes(x) -> tuple[str, ...]:
    """The axes of one row of a text batch's array: values per token (B, T) lie along the sequence,
    and other arrays have no axis."""
    return ("seq",) if x.ndim == 2 else ()
