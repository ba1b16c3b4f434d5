"""Runs whose training batches differ from those of their data, to meet what no data would give."""

from collections.abc import Callable

from bigmodel_jax.training import run


def change_batches(monkeypatch, change: Callable[[int, dict], dict]) -> None:
    """Each batch of a run is `change(number, batch)`, number counting the batches from 0."""
    real = run.open_data

    def opened(config, mesh):
        batches, validation = real(config, mesh)
        given = type(batches).next

        class Changed(type(batches)):
            def next(self, state):
                number = self.position()["next_batch"]
                return change(number, given(self, state))

        batches.__class__ = Changed
        return batches, validation

    monkeypatch.setattr(run, "open_data", opened)
