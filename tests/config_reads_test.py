"""What objective and model read and the data does not give is one line, before any data is
opened."""

import dataclasses

import numpy as np
import pytest

from bigmodel_jax import config_file, config_reads
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import (
    DATA,
    DataConfig,
    Field,
    ImageData,
    ImageTextData,
    MaskedTextData,
    MixtureData,
    PermutedTextData,
    PreferenceData,
    SentencePairData,
    TabularData,
    TextData,
    Tfds,
)
from bigmodel_jax.models import (
    BertConfig,
    CLIPConfig,
    DiTConfig,
    LinearConfig,
    LlamaConfig,
    MLPConfig,
    T5Config,
    ViTConfig,
    XLNetConfig,
)
from bigmodel_jax.objectives import (
    DPO,
    KTO,
    BertPretraining,
    Classification,
    Contrastive,
    Diffusion,
    MaskedLanguageModel,
    NextToken,
    Objective,
    Regression,
)
from bigmodel_jax.training.run import train

NOWHERE = Tfds("no_such_set")
CASES = {
    "text of images": (
        LlamaConfig,
        NextToken(),
        ImageData(source=NOWHERE),
        (
            "NextToken reads 'targets' and LlamaConfig reads 'tokens', which ImageData does not give (image, label, weights)"
            "; data for this model and objective: TextData, ChatData, TextPairData"
        ),
    ),
    "tokens of a model that reads images": (
        ViTConfig,
        NextToken(),
        TextData(source=NOWHERE),
        (
            "ViTConfig reads 'image', which TextData does not give (tokens, targets, segment_ids, positions, weights)"
            "; data for this model and objective: ImageAnswerData, ImagePromptData"
            "; model for this objective and data: LlamaConfig, GPT2Config, MistralConfig"
        ),
    ),
    "pairs of sentences": (
        BertConfig,
        BertPretraining(),
        MaskedTextData(source=NOWHERE),
        (
            "BertPretraining reads 'next_sentence', which MaskedTextData does not give (tokens, targets, segment_ids, "
            "positions, weights); objective for this model and data: NextToken, Distillation, MaskedLanguageModel"
            "; data for this model and objective: SentencePairData"
        ),
    ),
    "numbers of labels": (
        LinearConfig,
        Regression(),
        TabularData(num_classes=3),
        (
            "Regression reads 'target', which TabularData does not give (features, weights, label)"
            "; objective for this model and data: Classification; data for this model and objective: TabularData"
        ),
    ),
    "one text of two": (
        LlamaConfig,
        DPO(),
        TextData(source=NOWHERE),
        (
            "DPO reads rows of 2 texts, and TextData's have 1; objective for this model and data: NextToken, "
            "Distillation, MaskedLanguageModel; data for this model and objective: PreferenceData, UnpairedPreferenceData"
        ),
    ),
    "two texts of one": (
        LlamaConfig,
        NextToken(),
        PreferenceData(source=NOWHERE),
        (
            "NextToken reads rows of 1 text, and PreferenceData's have 2; objective for this model and data: DPO, ORPO, SimPO; "
            "data for this model and objective: TextData, ChatData"
        ),
    ),
    "no labels": (
        LlamaConfig,
        KTO(),
        PreferenceData(source=NOWHERE),
        "KTO reads 'label', which PreferenceData does not give",
    ),
    "one side of pairs": (
        T5Config,
        NextToken(),
        TextData(source=NOWHERE),
        "T5Config reads 'encoder_tokens', which TextData does not give",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_and_not_given_is_one_line_before_data_is_opened(case):
    model, objective, data, says = CASES[case]
    with pytest.raises(ValueError) as error:
        validate(Config(model.tiny(), objective, data))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


FITTING = [
    (LlamaConfig, NextToken(), TextData()),
    (BertConfig, MaskedLanguageModel(), MaskedTextData()),
    (BertConfig, BertPretraining(), SentencePairData()),
    (ViTConfig, Classification(), ImageData()),
    (DiTConfig, Diffusion(), ImageData()),  # makes the timestep itself
    (CLIPConfig, Contrastive(), ImageTextData()),
    (LinearConfig, Regression(), TabularData()),
]


@pytest.mark.parametrize(("model", "objective", "data"), FITTING)
def test_what_fits_passes(model, objective, data):
    config_reads.check(model.tiny(), objective, data)


# ------------------------------------------------------------------------------------- of one's own


@dataclasses.dataclass(frozen=True)
class Labelled(DataConfig):
    """Images with "labels", where Classification reads "label"."""

    declares: bool = True

    def row(self):
        names = {"image": Field((8, 8, 1)), "labels": Field((), "int32"), "weights": Field(())}
        return names if self.declares else {}

    def open(self, split):
        assert not self.declares, "opened before its declaration was compared"
        return Images()


class Images:
    def __len__(self):
        return 8

    def batch(self, indices, noise):
        n = len(indices)
        return {"image": np.ones((n, 8, 8, 1), np.float32), "labels": np.zeros(n, np.int32), "weights": np.ones(n)}


@pytest.mark.parametrize("declares", [True, False])
def test_data_of_ones_own_is_compared_by_its_declaration_or_once_it_is_open(declares, tmp_path):
    config = Config(
        MLPConfig.tiny(), Classification(), Labelled(declares=declares), train=TrainConfig(steps=1, batch_size=8)
    )
    says = (
        r"Classification reads 'label', which Labelled does not give \(image, labels, weights\) \(perhaps .* 'labels'\)"
    )
    with pytest.raises(ValueError, match=says):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_objective_that_declares_nothing_is_not_checked():
    class Own(Objective):
        pass

    config_reads.check(ViTConfig.tiny(), Own(), TextData())


def test_rows_that_declare_no_weights_are_told():
    class Unweighted(Labelled):
        def row(self):
            return {"image": Field((8, 8, 1)), "label": Field((), "int32")}

    with pytest.raises(ValueError, match="Unweighted's rows declare no 'weights' .image, label.; add \"weights\""):
        config_reads.check(MLPConfig.tiny(), Classification(), Unweighted())


def test_shipped_configs_give_what_they_read(pytestconfig):
    paths = sorted((pytestconfig.rootpath / "configs").glob("*.py"))
    assert paths
    for path in paths:
        config = config_file.load(path)
        config_reads.check(config.model, config.objective, config.data)


# --------------------------------------------------------------------------------------- what ships


def shipped(cls: type = DataConfig) -> list[type]:
    """Every data config of the package, found by what it derives from."""
    found = [sub for direct in cls.__subclasses__() for sub in (direct, *shipped(direct))]
    return [sub for sub in found if sub.__module__.startswith("bigmodel_jax.")]


def test_every_shipped_data_config_declares_rows_and_is_named_where_it_would_fit():
    assert set(shipped()) - {MixtureData} == set(DATA)  # a mixture has its parts' rows
    for cls in DATA:
        row = cls().row()
        assert "weights" in row, cls
        assert all(field.dtype in ("int32", "float32") for field in row.values()), cls


def test_a_requirement_comes_from_a_field_that_there_is():
    for cls in DATA:
        names = {field.name for field in dataclasses.fields(cls)}
        said = {name.removeprefix("data.") for text in cls.required_by.values() for name in text.split(", ")}
        assert said <= names, cls


def test_a_mesh_that_does_not_divide_a_row_is_told_with_the_option_or_the_array():
    config = Config(
        LlamaConfig.tiny(), NextToken(), TextData(source=NOWHERE, seq_len=18), parallel=ParallelConfig(seq=4)
    )
    with pytest.raises(ValueError, match=r"^data\.seq_len = 18 is not divisible by parallel\.seq = 4$"):
        validate(config, 4)
    model, data = XLNetConfig.tiny(), PermutedTextData(source=NOWHERE, seq_len=32)
    config = Config(model, MaskedLanguageModel(), data, parallel=ParallelConfig(seq=4))
    with pytest.raises(ValueError, match=r"^data: 'places' has 5 places, which is not divisible by parallel\.seq = 4$"):
        validate(config, 4)
