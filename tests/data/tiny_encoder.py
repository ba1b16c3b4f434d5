"""A small encoder, trained on data that asks something of its tokens."""

import dataclasses

import pytest

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.models import BertConfig
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.checks import check_data
from bigmodel_jax.training.run import train


def learns(data, objective, head: str, run_dir, steps: int, **more) -> dict[str, float]:
    """The last evaluation of a run on this data, which an encoder with another head is refused."""
    tiny = {
        "num_layers": 1,
        "embed_dim": 32,
        "num_heads": 2,
        "mlp_dim": 64,
        "max_seq_len": data.seq_len,
        "dropout": 0.0,
    }
    model = BertConfig(vocab_size=data.requirements()["vocab_size"], head=head, **tiny, **more)
    config = Config(
        model=model,
        objective=objective,
        data=data,
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        train=TrainConfig(steps=steps, batch_size=8),
        eval=EvalConfig(batch_size=8),
    )
    with pytest.raises(ValueError, match=f"model.head = masked_lm, but the data needs {head}"):
        check_data(dataclasses.replace(config, model=dataclasses.replace(model, head="masked_lm")))
    return train(config, run_dir)
