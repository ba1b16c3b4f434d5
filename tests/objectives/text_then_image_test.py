"""TextThenImage: the sequence and its loss by hand, and what is refused in one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, EvalConfig, SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import ImageAnswerData, ImageTextData
from bigmodel_jax.models import AutoencoderConfig, BertConfig, DiscreteAutoencoderConfig, GPT2Config
from bigmodel_jax.objectives import LatentFlow, TextThenImage

DVAE = dataclasses.replace(DiscreteAutoencoderConfig.tiny(), image_shape=(4, 4, 3))  # 2 x 2 codes of 16
OBJECTIVE = TextThenImage(autoencoder="run", autoencoder_model=DVAE)
MODEL = dataclasses.replace(GPT2Config.tiny(), vocab_size=16 + 10, max_seq_len=7)
DATA = ImageTextData(image_size=4, seq_len=3)
BATCH = {
    "tokens": np.array([[5, 6, 3], [7, 3, 0]], np.int32),
    "segment_ids": np.array([[1, 1, 1], [1, 1, 0]], np.int32),
    "codes": np.array([[1, 2, 15, 0], [4, 4, 4, 9]], np.int32),
    "weights": np.ones(2, np.float32),
    "image": np.zeros((2, 4, 4, 3), np.float32),
}


def config_of(**changes) -> Config:
    parts = {"model": MODEL, "objective": OBJECTIVE, "data": DATA} | changes
    return Config(**parts)


def test_a_sequence_is_the_text_behind_the_codes_vocabulary_and_then_the_codes():
    batch, _ = OBJECTIVE.inputs(BATCH, None)
    assert batch["tokens"].tolist() == [[21, 22, 19, 1, 2, 15, 0], [23, 19, 16, 4, 4, 4, 9]]
    assert batch["targets"][:, :-1].tolist() == batch["tokens"][:, 1:].tolist()
    # The second text has one token after its first; its padding is no target.
    assert batch["of_text"].tolist() == [[1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    assert batch["of_image"].tolist() == [[0, 0, 1, 1, 1, 1, 0]] * 2
    assert set(batch) == {"tokens", "targets", "of_text", "of_image", "weights"}, "the model never sees the image"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.875, 1.0])
def test_the_loss_weights_the_mean_of_codes_and_the_mean_of_text(share):
    objective = dataclasses.replace(OBJECTIVE, image_weight=share)
    weights = params.init(MODEL.make().spec, jax.random.key(0))
    batch = BATCH | {"weights": np.array([1, 0.5], np.float32)}
    loss = objective.loss(MODEL.make(), weights, batch, rng=None, train=False)
    tokens = np.array([[21, 22, 19, 1, 2, 15, 0], [23, 19, 16, 4, 4, 4, 9]])
    logits = MODEL.make().apply(weights, {"tokens": jnp.asarray(tokens)}).value
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    image, text = nats[:, 2:].mean(1), np.array([nats[0, :2].mean(), nats[1, 0]])
    rows = share * image + (1 - share) * text
    np.testing.assert_allclose(loss.mean.compute(), (rows[0] + 0.5 * rows[1]) / 1.5, rtol=1e-5)
    report = objective.summarize(loss.metrics)
    np.testing.assert_allclose(report["image_loss"], (image[0] + 0.5 * image[1]) / 1.5, rtol=1e-5)
    np.testing.assert_allclose(report["image_perplexity"], np.exp(report["image_loss"]), rtol=1e-6)
    assert {m.name for m in objective.metrics} == set(report)


@pytest.mark.slow
def test_the_autoencoder_is_a_constant_and_its_codes_give_the_image_back():
    spec = params.paths(OBJECTIVE.parameters(MODEL))
    assert {p.kind for p in spec.values()} == {"constant"}
    weights = {"autoencoder": params.init(DVAE.make().spec, jax.random.key(0))}
    image = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    codes = OBJECTIVE.compute(None, weights, {"image": image})
    assert codes.shape == (2, *OBJECTIVE.computed()["codes"].shape)
    seen = DVAE.make().apply(weights["autoencoder"], {"image": (image - 0.5) * 2}).value
    np.testing.assert_array_equal(codes, seen.ids.reshape(2, -1))
    expected = np.clip(np.asarray(seen.image) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(OBJECTIVE.images(weights, codes), expected, atol=1e-5)


def test_a_batch_without_codes_is_refused_in_one_line():
    with pytest.raises(ValueError, match="^the batch has no 'codes'; a run of TextThenImage computes them [^\n]*$"):
        OBJECTIVE.inputs({name: x for name, x in BATCH.items() if name != "codes"}, None)


CONTINUOUS = dataclasses.replace(OBJECTIVE, autoencoder_model=AutoencoderConfig.tiny())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": TextThenImage()}, r"objective\.autoencoder = '': give the folder of a run"),
        (
            {"objective": TextThenImage(autoencoder="nowhere")},
            r"objective\.autoencoder = 'nowhere' is not a run's folder",
        ),
        (
            {"objective": CONTINUOUS},
            r"objective\.autoencoder = 'run' is a run of AutoencoderConfig, which has no codes; ",
        ),
        (
            {"data": ImageTextData(image_size=8)},
            r"objective\.autoencoder = 'run' reads images of shape \(4, 4, 3\), and ",
        ),
        ({"data": dataclasses.replace(DATA, max_shift=2)}, r"data\.max_shift = 2: .* it must be 0"),
        ({"data": ImageAnswerData()}, r"data: ImageAnswerData weights each token; "),
        ({"model": BertConfig.tiny()}, r"model: TextThenImage trains a decoder .*; BertConfig is none"),
        ({"objective": dataclasses.replace(OBJECTIVE, candidates=8)}, r"objective\.candidates = 8 with .*judge = '': "),
        ({"eval": EvalConfig(sample=SampleConfig(prompt="a"))}, r"eval\.sample\.prompt = 'a': .* it must be ''"),
        ({"eval": EvalConfig(sample=SampleConfig(max_tokens=9))}, r"eval\.sample\.max_tokens = 9: .* it must be 128"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(changes, message):
    config = config_of(**changes)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        config.objective.validate(config)


def test_a_flow_among_latents_refuses_codes():
    with pytest.raises(ValueError, match=r"^objective\.autoencoder = 'run' is a run of DiscreteAutoencoderConfig, "):
        LatentFlow(autoencoder="run", autoencoder_model=DVAE).autoencoder_config()
