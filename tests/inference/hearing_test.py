"""A recording as text with times: by a model with random weights, whose words are nonsense and
whose times must not be."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.data import SpeechData
from bigmodel_jax.inference.hearing import Word, hear, words
from bigmodel_jax.models import ConformerConfig
from configs import speech_words


def test_words_lie_between_spaces_and_keep_their_own_times():
    data = SpeechData()
    labels = data.labels("go up")[1]
    stretches = [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8), (0.9, 1.0)]
    assert words(data, labels, stretches) == [Word("go", 0.1, 0.4), Word("up", 0.7, 1.0)]
    spaces = [data.space, *labels[:2], data.space, data.space]
    assert words(data, spaces, stretches) == [Word("go", 0.3, 0.6)]
    assert words(data, [], []) == []


@pytest.mark.slow
def test_a_recording_of_any_length_is_heard_inside_its_own_time():
    config = speech_words.get_config()
    tiny = dataclasses.replace(ConformerConfig.tiny(), num_mels=40, vocab_size=29, init_std=0.5)
    config = dataclasses.replace(config, model=tiny)
    weights = params.init(config.make_model().spec, jax.random.key(1))
    for seconds in (0.5, 1.7):
        samples = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)
        text, found = hear(config, weights, samples)
        assert text
        assert [one.text for one in found] == text.split()
        edges = [edge for one in found for edge in (one.start, one.end)]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= seconds + 0.04  # a frame of the model
    with pytest.raises(ValueError, match="the audio has 9 samples; it must have 160 or more"):
        hear(config, weights, samples[:9])
