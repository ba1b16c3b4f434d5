"""Whisper tiny.en fine-tuned on spoken words.

First run `launch.py import whisper-tiny-en`, which makes runs/whisper-tiny-en. A step reads 8
windows of 4 seconds. The encoder uses only its first positions, so no time is spent on silence.

After 4 minutes on 2 cores the word error rate of 200 recordings of held-out voices is 3.1 % instead
of 82.8 % (one seed).
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data import TokenizerConfig
from bigmodel_jax.data.audio.transcript_data import TranscriptData
from bigmodel_jax.models import WhisperConfig
from bigmodel_jax.models.whisper import PRESETS
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

RUN = "runs/whisper-tiny-en"


def get_config() -> Config:
    model: WhisperConfig = PRESETS["whisper-tiny.en"]
    return Config(
        model=model,
        objective=NextToken(),
        data=TranscriptData(tokenizer=TokenizerConfig(path=f"{RUN}/tokenizer.json"), max_seconds=4.0, seq_len=24),
        optim=OptimConfig(lr=1e-5, warmup_steps=20, weight_decay=0.01),
        train=TrainConfig(steps=200, batch_size=8, init_from=RUN),
        eval=EvalConfig(every=100, baselines=False),
    )
