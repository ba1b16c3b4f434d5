"""The table of unsupported models beside the families that there are."""

import collections

import pytest

from bigmodel_jax.pretrained import FAMILIES
from bigmodel_jax.pretrained.kin import KIN, KINDRED, hint, split

MODELS = {split(name)[0] for name in FAMILIES}


def test_the_table_names_families_and_none_of_them_as_kin_of_another():
    assert KIN.keys() <= MODELS
    assert not KINDRED.keys() & MODELS


def test_no_model_is_kin_of_two_and_every_name_can_be_met():
    """A name with a suffix that `split` removes, such as "FluxTransformer2D", would never be
    found."""
    names = collections.Counter(name for names in KIN.values() for name in names.split())
    assert not [name for name, times in names.items() if times > 1]
    assert not [name for name in names if split(name + "Model")[0] != name]


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("WhisperForAudioClassification", "WhisperForConditionalGeneration"),
        ("Speech2TextForConditionalGeneration", "WhisperForConditionalGeneration"),
        ("MBartForConditionalGeneration", "BartForConditionalGeneration"),
        ("RoFormerForMaskedLM", "BertForMaskedLM"),
        ("BioGptForCausalLM", "GPT2LMHeadModel"),
        ("CLIPVisionModelWithProjection", "CLIPModel"),
        ("FluxTransformer2DModel", "SD3Transformer2DModel"),
        ("UNet2DConditionModel", "PixArtTransformer2DModel"),
        ("EfficientNetForImageClassification", "EfficientNetLite"),
        ("Wav2Vec2BertForCTC", "ParakeetForCTC"),
        ("LlavaNextForConditionalGeneration", "LlavaForConditionalGeneration"),
        ("RobertaForTokenClassification", "RobertaModel"),
        ("XLNetForSequenceClassification", "XLNetModel"),
    ],
)
def test_the_nearest_is_of_the_models_own_kind(architecture, said):
    assert hint(architecture, FAMILIES) == f" (nearest in kind: {said!r})"


@pytest.mark.parametrize("architecture", ["HubertForSequenceClassification", "LxmertForQuestionAnswering"])
def test_a_long_head_does_not_make_two_models_one(architecture):
    assert hint(architecture, FAMILIES) == ""
