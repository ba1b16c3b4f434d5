"""The text models' presets against transformers: parameters of its models of their config.json,
defaults of its classes.

fixtures/sizes/configs.json holds every preset's config.json; `--update-golden` writes it anew, and
the reference reads it.
"""

import dataclasses
import json

import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import (
    bart,
    bert,
    deberta,
    deepseek,
    distilbert,
    electra,
    gemma,
    glm,
    gpt2,
    gpt_oss,
    granite,
    idefics3,
    llama,
    llava,
    mistral,
    mixtral,
    modernbert,
    olmo,
    paligemma,
    phi3,
    qwen,
    qwen_moe,
    qwen_next,
    roberta,
    smollm3,
    t5,
    xlnet,
)
from bigmodel_jax.pretrained import FAMILIES
from bigmodel_jax.pretrained.transfer import family_of
from reference import HERE, fixture_folder

CONFIGS = HERE / "fixtures" / "sizes" / "configs.json"
MODELS = (
    llama,
    gpt2,
    bert,
    roberta,
    distilbert,
    electra,
    modernbert,
    deberta,
    xlnet,
    mistral,
    qwen,
    smollm3,
    olmo,
    granite,
    glm,
    phi3,
    gemma,
    mixtral,
    qwen_moe,
    qwen_next,
    deepseek,
    gpt_oss,
    t5,
    bart,
)
MODELS += (llava, paligemma, idefics3)
# A class's defaults are this preset's sizes, but for these fields of ours: lengths and rotary
# settings of later files, and what the classes count otherwise.
DEFAULTS = {
    "LlamaForCausalLM": ("llama-7b", ()),
    "GPT2LMHeadModel": ("gpt2", ()),
    "BertForMaskedLM": ("bert-base-uncased", ()),
    "RobertaForMaskedLM": ("roberta-base", ("max_seq_len", "norm_eps", "num_token_types")),
    "DistilBertForMaskedLM": ("distilbert-base-uncased", ()),
    "ElectraForMaskedLM": ("electra-small-generator", ()),
    "ModernBertForMaskedLM": ("modernbert-base", ()),
    "XLNetLMHeadModel": ("xlnet-large-cased", ()),
    "MistralForCausalLM": ("mistral-7b-v0.1", ("max_seq_len", "norm_eps")),
    "Phi3ForCausalLM": ("phi-3-mini-4k", ("window",)),
    "GemmaForCausalLM": ("gemma-7b", ()),
    "Gemma2ForCausalLM": ("gemma-2-2b", ()),
    "MixtralForCausalLM": ("mixtral-8x7b", ("max_seq_len",)),
    "Qwen3NextForCausalLM": ("qwen3-next-80b-a3b", ("max_seq_len", "rope_theta")),
    "GptOssForCausalLM": ("gpt-oss-120b", ()),
    "DeepseekV3ForCausalLM": ("deepseek-v3", ("max_seq_len", "rope_scaling", "mscale_all_dim", "mscale")),
    "T5ForConditionalGeneration": ("t5-small", ()),
    "BartForConditionalGeneration": ("bart-large", ("forced_bos",)),
}


def presets() -> dict:
    return {name: cfg for module in MODELS for name, cfg in module.PRESETS.items()}


def exported() -> dict:
    return {
        name: {"architectures": [f.architecture], **f.to_hf(c)} for name, c in presets().items() for f in [family_of(c)]
    }


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    return json.loads(
        (fixture_folder("sizes", python, tmp_path_factory.mktemp("reference")) / "reference.json").read_text()
    )


def test_the_reference_saw_every_preset(request):
    if request.config.getoption("--update-golden"):
        CONFIGS.write_text(json.dumps(exported(), indent=1) + "\n")
    assert json.loads(CONFIGS.read_text()) == exported()


def num_parameters(cfg) -> int:
    """Counts as transformers does. There, a bias that the step itself moves is a buffer, and T5's
    head is tied until a file brings one of its own (T5Config.tie_word_embeddings is always true in
    transformers 5). A tower's unread parameters count there as well."""
    spec = cfg.make().spec
    counted = {name: part for name, part in spec.items() if not (name == "head" and isinstance(cfg, t5.T5Config))}
    return params.count(counted, trainable=True) + params.count(spec.get("unread", {}))


def test_every_preset_has_as_many_parameters(reference):
    ours = {name: num_parameters(cfg) for name, cfg in presets().items()}
    assert set(ours) == set(reference["counts"])
    differing = {n: (ours[n], reference["counts"][n]) for n in ours if ours[n] != reference["counts"][n]}
    assert not differing


@pytest.mark.parametrize("architecture", DEFAULTS)
def test_what_a_class_is_by_default(architecture, reference):
    preset, but = DEFAULTS[architecture]
    expected = presets()[preset]
    found = FAMILIES[architecture].from_hf(reference["defaults"][architecture])
    # Those say how a model is trained or computed.
    but = (
        *but,
        "dropout",
        "init_std",
        "balance_loss",
        "load_balancing_loss",
        "router_z_loss",
        "compute",
    )
    same = {f.name: getattr(expected, f.name) for f in dataclasses.fields(expected) if f.name in but}
    assert dataclasses.replace(found, **same) == expected
