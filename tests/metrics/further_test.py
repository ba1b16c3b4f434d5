"""Further metrics: by name, of one's own, and what is refused."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.metrics import further

OUT = types.SimpleNamespace(value=jnp.asarray(np.float32(np.random.default_rng(0).normal(size=(4, 3)))))
BATCH = {"label": jnp.array([0, 1, 2, 1]), "weights": jnp.array([1.0, 1.0, 1.0, 0.0])}


def margin(out, batch):
    return out.value.max(-1) - out.value.min(-1)


def largest(out, batch):
    return Mean(out.value.sum(), jnp.ones(()))


def declared(out, batch):
    return batch["weights"]


declared.metrics = (Metric("declared", "Declared", "more", "{:.1%}"),)


def misshapen(out, batch):
    return out.value


def broken(out, batch):
    return batch["labels"]


def name(function):
    return f"{__name__}:{function}"


def found(*names, batch=BATCH):
    return further.summarize(names, further.sums(names, OUT, batch))


def test_functions_give_a_value_a_row_or_a_mean_of_their_own():
    values = np.asarray(OUT.value)
    scalars = found(name("margin"), name("largest"), "top2", "mean_iou")
    assert scalars["margin"] == pytest.approx((values.max(1) - values.min(1))[:3].mean(), rel=1e-6)
    assert scalars["largest"] == pytest.approx(values.sum(), rel=1e-5)
    assert set(scalars) == {"margin", "largest", "top2", "mean_iou"}


def test_tokens_and_rows_may_be_weighed():
    weights = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert further.summed("m", jnp.array([[1.0, 2.0], [3.0, 9.0], [9.0, 9.0]]), weights).compute() == 2
    assert further.summed("m", jnp.array([1.0, 3.0, 9.0]), weights).compute() == 2, "a row counts once"


def test_what_a_function_declares_is_what_a_page_shows():
    assert further.declared([name("declared"), name("margin"), "top3"]) == (
        *declared.metrics,
        Metric("margin", "Margin"),
        further.METRICS["top3"].metric,
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["top4"],
            r"eval\.metrics = 'top4' is no metric \(perhaps you meant 'top\d+'\); known: top2, .*mean_iou, or a",
        ),
        ([name("margn")], r"eval\.metrics: .* has no function 'margn' \(perhaps you meant 'margin'\)"),
        ([name("margin"), name("margin")], r"eval\.metrics: there are two metrics 'margin'"),
        (["top5"], r"eval\.metrics: there are two metrics 'top5'; leave one out, or rename the function"),
        (["loss"], r"eval\.metrics: there are two metrics 'loss'"),
    ],
)
def test_names_that_are_refused(names, message):
    with pytest.raises(ValueError, match=message) as error:
        further.check(names, ["loss", "top5"])
    assert "\n" not in str(error.value)


def test_values_that_fit_no_rows_and_errors_of_a_function_are_one_line():
    with pytest.raises(ValueError, match=r"misshapen gave an array of shape \(4, 3\); it must give \(4,\), or a Mean"):
        found(name("misshapen"))
    with pytest.raises(
        ValueError, match=r"eval\.metrics: .*broken raised KeyError: 'labels' \(line \d+ of .*further_test"
    ):
        found(name("broken"))
    with pytest.raises(ValueError, match="the batch has neither 'label' nor 'targets'"):
        found("top2", batch={"weights": BATCH["weights"]})
