"""The end of a speech recognition run: held-out recordings with their transcripts and the
model's.
"""

from pathlib import Path

import jax
import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core import files, params, processes
from bigmodel_jax.core.precision import cast
from bigmodel_jax.objectives import ctc_paths
from bigmodel_jax.report.speech_plots import Hearing, table, write_hearings

SHOWN, LISTED = 8, 24  # number of recordings drawn, and of recordings in the table


class Speech:
    """A picture of held-out recordings' aligned spectrograms, and a table of their transcripts."""

    def check(self, config: Config) -> None:
        if not hasattr(config.data, "text"):
            raise ValueError(
                f"data: {type(config.data).__name__} has no method text(labels), which {type(config.objective).__name__} "
                "needs to write transcripts; SpeechData has it"
            )

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        hearings = heard(config, weights, LISTED)
        if processes.first():
            write_hearings(path.with_suffix(".png"), hearings[:SHOWN])
            files.replace(path.with_suffix(".txt"), table(hearings) + "\n")
        return f"\nSaid, and heard:\n{table(hearings[:SHOWN])}\n"


def heard(config: Config, weights: params.Tree, num: int) -> list[Hearing]:
    """The first `num` validation recordings, as the model transcribes and aligns them."""
    data, blank = config.data, config.objective.blank
    rows = data.open("validation")
    batch = rows.batch(np.arange(min(num, len(rows))), None)
    out = jax.jit(config.make_model().apply)(cast(weights, config.precision.compute), batch).value
    logits, num_frames = out["logits"], out["num_frames"]
    labels = np.asarray(ctc_paths.greedy(logits, num_frames, blank))
    aligned = ctc_paths.align(logits, num_frames, batch["labels"], batch["num_labels"], blank=blank)
    # `seconds` is the length of one frame of the model's output.
    seconds = data.max_seconds / logits.shape[1]
    return [
        Hearing(
            spectrogram=batch["log_mel"][n, : batch["num_frames"][n]],
            seconds=float(batch["num_frames"][n]) / data.max_frames * data.max_seconds,
            said=data.text(batch["labels"][n, : batch["num_labels"][n]]),
            heard=data.text(labels[n]),
            characters=tuple(
                (data.text(batch["labels"][n, label : label + 1]), first * seconds, end * seconds)
                for label, first, end in ctc_paths.stretches(np.asarray(aligned.label[n]))
            ),
        )
        for n in range(len(labels))
    ]
