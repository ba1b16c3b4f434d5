"""GRPO on sums: the model of configs/arithmetic_tiny.py learns only from whether its answers are
right.

First run `launch.py train configs/arithmetic_tiny.py`. benchmarks/grpo_arithmetic.py measures both
runs; docs/results.md has the figures.
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data import Arrays, PromptData
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.optim import OptimConfig
from configs import arithmetic_tiny

RUN = "runs/arithmetic_tiny"


def equal_numbers(prompt: str, response: str, record: dict) -> float:
    """1 if the response is the right number and nothing else, else 0."""
    return float(response == record["answer"])


def get_config() -> Config:
    return Config(
        model=arithmetic_tiny.get_config().model,
        objective=PolicyGradient(reward=equal_numbers),
        data=PromptData(
            source=Arrays(arithmetic_tiny.sums),
            tokenizer_path=f"{RUN}/tokenizer.json",
            max_prompt=8,
            max_tokens=8,
            group=8,
            updates_per_rollout=2,
            slots=128,
        ),
        optim=OptimConfig(lr=3e-4, warmup_steps=10, weight_decay=0.0, final_lr_ratio=1.0),
        train=TrainConfig(steps=300, batch_size=256, init_from=RUN),
        eval=EvalConfig(every=50, batch_size=256),
    )
