"""Rewards for tests of rollouts. The file imports nothing, so that a process that calls them starts
at once."""


def letters(prompt, response, record):
    """A reward that differs between the answers of a fresh model."""
    assert prompt == record["prompt"]
    return sum(map(ord, response)) % 7


def few(prompt, response, record):
    return float(len(response) % 2)


def same(prompt, response, record):
    return 1.0
