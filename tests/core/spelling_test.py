import pytest

from bigmodel_jax.core.spelling import nearest


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("eval/acuracy", ["eval/loss", "eval/accuracy"], "eval/accuracy"),
        ("accuracy", ["eval/loss", "eval/accuracy"], "eval/accuracy"),
        ("eval/foo", ["eval/loss", "eval/top5"], ""),
        ("--optim.lrr", ["--optim.lr", "--optim.clip"], "--optim.lr"),
        ("--optim.qux", ["--optim.lr", "--optim.clip"], ""),
        ("runs/lm_tny", ["runs/lm_tiny", "runs/mnist"], "runs/lm_tiny"),
        ("grop.py", ["grpo.py", "judge.py"], "grpo.py"),
        ("mpl.py", ["a.py", "mlp.py"], "mlp.py"),
        ("nothere.py", ["sp_intlr.py"], ""),
    ],
)
def test_only_a_near_spelling_is_suggested(word, known, meant):
    assert nearest(word, known) == (f" (perhaps you meant {meant!r})" if meant else "")
