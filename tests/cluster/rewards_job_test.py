"""Two processes train a policy, and its reward fails: one line with the sample from the job, and no
step is lost."""

from pathlib import Path

import pytest
from grids import few

import jobs
import runs

PAST = Path(__file__).parents[1] / "faults" / "past_runs" / "0.1.0"
CONFIG = """
import time
from pathlib import Path

from bigmodel_jax.config import Config, EvalConfig, ReportConfig, TrainConfig
from bigmodel_jax.data import Arrays, PromptData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.optim import OptimConfig

CALLS = Path(__file__).with_name("calls")

def prompts():
    texts = [f"{{'ab' * (n % 3 + 1)}}{{n}}" for n in range(8)]
    return {{"train": {{"prompt": texts}}, "validation": {{"prompt": texts[:4]}}}}

def judge(prompt, response, record):
    with CALLS.open("a") as file:
        file.write("x")
    if 20 < CALLS.stat().st_size < 1000:  # in the third rollout of 8 answers
        {fails}
    return len(response) % 3

def get_config():
    return Config(
        model=LlamaConfig(
            vocab_size=257, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32,
            max_seq_len=32, init_std=0.3,
        ),
        objective=PolicyGradient(reward=judge, reward_seconds=30.0),
        data=PromptData(
            source=Arrays(prompts), tokenizer_path={tokenizer!r}, max_prompt=10, max_tokens=4, group=4, slots=8
        ),
        optim=OptimConfig(lr=1e-2, warmup_steps=0, schedule="constant"),
        train=TrainConfig(steps=4, batch_size=8, log_every=1),
        eval=EvalConfig(batch_size=4, baselines=False),
        report=ReportConfig(tensorboard=False),
    )
"""
FAILS = {
    "raises": ("raise RuntimeError('no judge today')", "raised RuntimeError: no judge today"),
    "is no number": ("return float('nan')", "returned nan"),
    "hangs": ("time.sleep(3600)", "raised TimeoutError: took longer than 3 s"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", few(FAILS, "hangs", marks=pytest.mark.slow))
def test_a_reward_that_fails_is_one_line_of_the_job_and_loses_nothing(case, tmp_path):
    fails, says = FAILS[case]
    path, run_dir = tmp_path / "policy.py", tmp_path / "run"
    path.write_text(CONFIG.format(fails=fails, tokenizer=str(PAST / "run" / "tokenizer.json")))
    options = ("--objective.reward_seconds", "3") if case == "hangs" else ()
    with jobs.job(2, "train", path, "--run_dir", run_dir, *options, devices=1) as job:
        assert job.wait() == [2, 2], job.everything()
        said = jobs.ours(job.err(0)) + jobs.ours(job.err(1))
        assert len(said) == 1, job.everything()
    assert said[0].startswith("error: objective.reward: ")
    assert says in said[0]
    assert ":judge" in said[0]
    assert "prompt '" in said[0]
    assert "response '" in said[0]
    assert runs.losses(run_dir).keys() == {1, 2}
    (tmp_path / "calls").write_text("x" * 1000)
    with jobs.job(2, "train", path, "--run_dir", run_dir, *options, devices=1) as job:
        assert job.wait() == [0, 0], job.everything()
        assert "Resuming at step 2." in job.out(0)
    assert runs.losses(run_dir).keys() == {1, 2, 3, 4}
