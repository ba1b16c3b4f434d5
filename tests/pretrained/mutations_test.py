"""A thousand seeded mutations: each is refused in one line, changes a field of ours, or is known to
change nothing."""

import collections
import copy
import functools
import json
import logging
import random
from pathlib import Path

import pytest
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.data import DataConfig
from bigmodel_jax.objectives import Objective
from bigmodel_jax.pretrained import FAMILIES, config_keys, folder, gguf, gguf_config, model_types
from gguf_test import write
from mutations import OTHER, Mutation, mutate, paths

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
FOLDERS = sorted(
    p.parent.name for p in FIXTURES.glob("*/config.json") if (p.parent / "gradients.safetensors").is_file()
)
# Keys that say in the fixtures what transformers 5.23, diffusers or our own classes take without
# them. (Reviewed.)
ABSENT = config_keys.words("""
    activation_fn activation_function add_cross_attention attention_bias attention_type attn_logit_softcapping
    attn_type beta_fast beta_slow bi_data clamp_len convolution_bias cross_attention_dim d_head decoder_sparse_step
    decoder_vocab_size activation
    dense_act_fn downsample_in_bottleneck downsample_in_first_stage feed_forward_proj ff_activation
    final_logit_softcapping head_dim hidden_act hidden_activation is_decoder is_encoder_decoder is_gated_act
    label_dropout layer_norm_eps layer_norm_epsilon layer_type layer_types learn_sigma legacy logit_scale_init_value
    max_relative_positions mlp_bias mlp_only_layers momentum n_inner no_rope_layer_interval norm_elementwise_affine
    norm_eps norm_topk_prob
    norm_type num_channels num_decoder_layers out_channels patch_size projection_size qk_head_dim qkv_bias
    rms_norm_eps rope_interleave rope_parameters rope_theta rope_type routed_scaling_factor same_length
    scale_attn_by_inverse_layer_idx scale_attn_weights scale_input scale_decoder_outputs share_encoder_decoder_embeddings
    sliding_window sliding_window_pattern subsampling_conv_kernel_size subsampling_conv_stride subsampling_factor
    swiglu_alpha tie_word_embeddings type_vocab_size use_additional_conditions
    use_bidirectional_attention use_sliding_window vision_use_head reshape_last_stage dual_attention_layers dilation
    position_embedding_type multimodal_projector_bias projector_hidden_act vision_feature_select_strategy
    vision_feature_layer scale_embedding use_swiglu_ffn scale_factor act_fn latents_mean latents_std use_quant_conv
    scaling_factor shift_factor
    use_post_quant_conv mid_block_add_attention batch_norm pooled_side
    classifier_activation classifier_bias classifier_pooling decoder_bias norm_bias
""")
# These keys are read, and another value means the same.
# A conformer computes distances of any length, and each of its queries has keys of its own.
# A Phi-3 has the length of pretraining beside the table of rotary settings; transformers ignores
# the one inside it. The fixtures of Phi-3 and Qwen3-Next rotate the share that a file without it
# means, and the latter has the class's number of key heads. A Qwen3 MoE or Qwen3-Next whose layers
# all have experts has no dense MLP; latent attention has as many keys as queries.
NOTES = {
    ("qwen3_moe", "intermediate_size"),
    ("qwen3_next", "intermediate_size"),
    ("qwen3_next", "partial_rotary_factor"),
    ("qwen3_next", "num_key_value_heads"),
    ("segformer", "layer_norm_eps"),
    ("phi3", "original_max_position_embeddings"),
    ("phi3", "partial_rotary_factor"),
    ("phi4", "original_max_position_embeddings"),
    ("moonlight", "num_key_value_heads"),
    ("paligemma", "vocab_size"),
    ("conformer", "max_position_embeddings"),
    ("conformer", "num_key_value_heads"),
}
ROTARY = ("rope_theta", "original_max_position_embeddings")
T5_TIES = ("tie_word_embeddings", "scale_decoder_outputs")
SAME = {
    "sliding_window": "without use_sliding_window",
    "no_rope_layer_interval": "beside no_rope_layers",
}


def outcome(check) -> tuple[str, object]:
    """("refused", the line) or ("read", what `check` returns); any other exception is the test's
    failure."""
    try:
        return "read", check()
    except ValueError as error:
        return ("refused" if len(str(error).splitlines()) == 1 else "refused in many lines"), str(error)


@functools.cache
def original(name: str):
    return folder.read_config(FIXTURES / name), folder.open_weights(FIXTURES / name)


def read(path: Path, name: str):
    """What an import does before it reads a tensor."""
    family, cfg = folder.read_config(path)
    found, source = original(name)
    if (family.architecture, cfg) != (found[0].architecture, found[1]):
        validate(Config(model=cfg, objective=Objective(), data=DataConfig()))
        folder.check_weights(family, cfg, source)
    return family.architecture, cfg


def before(config: dict, path: tuple[str, ...]):
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def changes_nothing(m: Mutation, config: dict, logged: list[str], aliases: dict[str, str]) -> bool:
    name = m.path[-1]
    if name in config_keys.INERT or any(".".join(m.path) in line for line in logged):
        return True
    if m.kind == "absent" or (
        m.kind in ("null", "empty table") and name in ABSENT
    ):  # of nothing the classes make the same
        return name in ABSENT
    if m.kind == "added" and name in ROTARY and "rope_parameters" in config:
        return True  # those say it
    value, allowed = m.value, config_keys.NEUTRAL.get(name, ())
    if name in T5_TIES and any(config.get(other) is False for other in T5_TIES if other != name):
        return True  # either of the two makes a head of its own
    same = config.get(aliases.get(name, name)) if len(m.path) == 1 else before(config, m.path)
    return value == same or value in allowed or name in SAME


@pytest.mark.slow
def test_a_thousand_mutations_of_config_json(tmp_path, caplog):
    seen = collections.Counter()
    for seed in range(1000):
        name = FOLDERS[seed % len(FOLDERS)]
        config = json.loads((FIXTURES / name / "config.json").read_text())
        m = mutate(config, random.Random(seed))
        (tmp_path / "config.json").write_text(json.dumps(m.config))
        caplog.clear()
        what, found = outcome(functools.partial(read, tmp_path, name))
        if what == "read":
            (family, cfg), _ = original(name)
            what = "changed" if found != (family.architecture, cfg) else "nothing"
            aliases = model_types.ALIASES.get(type(cfg).__name__, {})
            logged = [record.getMessage() for record in caplog.records]
            noted = bool({(name, m.path[-1]), (name.partition("_")[0], m.path[-1])} & NOTES)
            nothing = noted or changes_nothing(m, config, logged, aliases)
            assert what == "changed" or nothing, (seed, name, m.path, m.kind)
        seen[what] += 1
    assert seen["refused"] > 300
    assert "refused in many lines" not in seen
    assert seen["changed"] > 20
    assert seen["nothing"] > 100


# ---------------------------------------------------------------- GGUF

KINDS = {bool: GGUFValueType.BOOL, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
EXTRA = (
    "rope.scaling.factor rope.scaling.type rope.scaling.attn_factor rope.scaling.original_context_length logit_scale "
    "attention.key_length attention.value_length attention.sliding_window attention.causal expert_count vocab_size "
    "attention.clamp_kqv rope.scaling.yarn_beta_fast rope.scale_linear residual_scale attention.scale a.new.key"
)


def mutate_gguf(rng: random.Random, done: list, writer) -> None:
    """Gives one key another value or another type, removes it, or adds one."""
    table = writer.kv_data[0]
    name = rng.choice([key for key in table if key != "GGUF.version"] + [f"llama.{key}" for key in EXTRA.split()])
    kinds = [kind for kind, value in OTHER.items() if value is not None and not isinstance(value, dict) and value != []]
    kind = rng.choice(["absent", *kinds])
    done.append((name, kind))
    table.pop(name, None)
    if kind == "absent":
        return
    value = OTHER[kind]
    if isinstance(value, list):
        table[name] = GGUFValue(value=value, type=GGUFValueType.ARRAY, sub_type=GGUFValueType.INT32)
    else:
        table[name] = GGUFValue(value=value, type=KINDS[type(value)])


def gguf_outcome(path: Path, plain, rng: random.Random, logged: list[str]) -> tuple[str, str, bool]:
    """(the key and its change, what came of it, whether that is accounted for) of one mutation,
    written to `path`.

    logged: filled with what is said meanwhile.
    """
    done = []
    write(path, more=functools.partial(mutate_gguf, rng, done))
    logged.clear()

    def read():
        found = gguf.open_gguf(path)
        folder.check_weights(found.family, found.config, found.source)
        return found

    what, found = outcome(read)
    ((name, kind),) = done
    if what != "read":
        return f"{name} {kind}", what, what == "refused"
    what = "changed" if found.config != plain.config else "nothing"
    short = name.removeprefix("llama.")
    known = name.startswith(gguf_config.INERT_PREFIXES) or short in gguf_config.INERT
    named = any(name in line for line in logged)
    equal = (
        OTHER.get(kind, "") in gguf_config.NEUTRAL.get(short, ()) or (short, kind) in GGUF_SAME or short in OF_SCALING
    )
    absent = kind == "absent" and (short in EXTRA or short in GGUF_ABSENT)
    return f"{name} {kind}", what, what == "changed" or known or named or equal or absent


class Lines(logging.Handler):
    """What is logged, as texts."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.slow
def test_three_hundred_mutations_of_a_gguf(tmp_path):
    path, handler, seen = tmp_path / "m.gguf", Lines(), collections.Counter()
    write(path)
    plain = gguf.open_gguf(path)
    logging.getLogger("bigmodel_jax").addHandler(handler)
    try:
        for seed in range(300):
            key, what, accounted = gguf_outcome(path, plain, random.Random(seed), handler.lines)
            assert accounted, (seed, key, what)
            seen[what] += 1
    finally:
        logging.getLogger("bigmodel_jax").removeHandler(handler)
    assert seen["refused"] > 100
    assert seen["changed"] > 5


OF_SCALING = ("rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast")  # which this file has none of
GGUF_ABSENT = ("attention.head_count_kv", "rope.dimension_count", "rope.freq_base")
GGUF_SAME = {("rope.scaling.factor", "one"), ("rope.scale_linear", "one"), ("rope.scale_linear", "true")}


@pytest.mark.parametrize("text", ["[1, 2]", "7", "null", '"text"', "[" * 100_000])
def test_a_config_that_is_no_table(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"allowed: a table of keys|not JSON"):
        folder.read_config(tmp_path)


def change(name: str, tmp_path: Path, **keys):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    return folder.read_config(tmp_path)[1]


def test_legal_values_that_are_rare(tmp_path):
    cfg = change("vit", tmp_path)
    assert change("vit", tmp_path, patch_size=[cfg.patch_size] * 2) == cfg
    yarn = {"rope_type": "yarn", "rope_theta": 100.0, "factor": None, "original_max_position_embeddings": 16}
    assert change("llama", tmp_path, rope_parameters=yarn).rope_scaling.factor == 4.0
    clip = json.loads((FIXTURES / "clip" / "config.json").read_text())
    old = clip["text_config"] | {"layer_norm_eps": 0.1}
    assert change("clip", tmp_path, text_config_dict=old).text.norm_eps == 0.1


REFUSED = [
    ("vit", {"patch_size": [4, 6]}, r"patch_size = \[4, 6\] is not supported; supported: square patches"),
    ("llama", {"num_attention_heads": None}, "num_attention_heads = null; allowed: whole numbers above 0"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads = 0; allowed: whole numbers above 0"),
    ("llama", {"vocab_size": "96"}, 'vocab_size = "96"; allowed: whole numbers above 0'),
    ("llama", {"rope_scaling": [1, 2]}, r"rope_scaling = \[1, 2\]; allowed: a table of keys, or null"),
    ("llama", {"architectures": "LlamaForCausalLM"}, 'architectures = "LlamaForCausalLM"; allowed: a list of names'),
    ("llama", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not supported; supported: null"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = .* is not supported"),
    ("llama", {"model_type": "mistral"}, "model_type = 'mistral' names another model than"),
    ("llama", {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1]}}, "rope_scaling.mrope_section"),
    ("qwen2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = .* is not supported"),
    ("gpt2", {"hidden_size": 64}, "hidden_size = 64 is not supported; supported: 32 or null"),
    ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu' is not supported"),
    ("deepseek", {"head_dim": 8}, "head_dim = 8 is not supported; supported: 4"),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "type = 'linear' is not supported"),
]


@pytest.mark.parametrize(
    ("name", "keys", "said"), REFUSED, ids=lambda x: str(next(iter(x))) if isinstance(x, dict) else ""
)
def test_what_asks_for_other_mathematics_is_refused(name, keys, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        change(name, tmp_path, **keys)


def test_unknown_keys_are_named_once(tmp_path, caplog):
    assert change("llama", tmp_path, my_key=1, another={"a": 1}) == change("llama", tmp_path)
    assert [r.getMessage() for r in caplog.records] == ["config.json: not used: another, my_key"]


# What published files hold beside the sizes, by fixture.
PUBLISHED = {
    "llama": {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "pretraining_tp": 1}
    | {"eos_token_id": [128_001, 128_009], "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "gemma": {"hidden_activation": None, "hidden_act": "gelu", "rope_scaling": None},
    "gemma2": {"cache_implementation": "hybrid", "sliding_window_size": 4096},
    "qwen2": {"use_mrope": False, "sliding_window": 131_072, "max_window_layers": 28},
    "gpt2": {"n_ctx": 1024, "_num_labels": 1, "task_specific_params": {"text-generation": {"max_length": 50}}},
    "gpt_oss": {"initial_context_length": 4096, "experts_per_token": 2}
    | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
    "deepseek": {"auto_map": {"AutoConfig": "x"}, "ep_size": 1, "seq_aux": True, "num_nextn_predict_layers": 1}
    | {"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}},
    "bert": {"directionality": "bidi", "pooler_fc_size": 768, "gradient_checkpointing": False, "pruned_heads": {}},
    "modernbert": {"position_embedding_type": "sans_pos", "repad_logits_with_grad": False, "reference_compile": None},
    "clip": {"text_config_dict": None, "vision_config_dict": None},
    "opus_mt": {"num_hidden_layers": 2, "bad_words_ids": [[1]], "add_bias_logits": False, "extra_pos_embeddings": 1},
    "t5": {"output_past": True, "n_positions": 512, "num_beams": 4},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_files_hold_is_passed_over(name, tmp_path, caplog):
    change(name, tmp_path, **PUBLISHED[name])
    assert not caplog.records


@pytest.mark.slow
def test_no_key_alone_may_be_left_out_but_the_reviewed_ones(tmp_path):
    """The test takes away every key of every fixture, one at a time."""
    for name in FOLDERS:
        config = json.loads((FIXTURES / name / "config.json").read_text())
        for path in paths(config):
            noted = {(name, path[-1]), (name.partition("_")[0], path[-1])} & NOTES
            if path[-1] in config_keys.INERT or path[-1] in ABSENT or noted:
                continue
            shorter = copy.deepcopy(config)
            del functools.reduce(dict.__getitem__, path[:-1], shorter)[path[-1]]
            (tmp_path / "config.json").write_text(json.dumps(shorter))
            what, found = outcome(functools.partial(folder.read_config, tmp_path))
            assert what == "refused" or found[1] != original(name)[0][1], (name, path)


def test_the_lists_of_keys_do_not_contradict_each_other():
    assert not config_keys.INERT & set(config_keys.NEUTRAL)
    known = {family.config.__name__ for family in FAMILIES.values()}
    assert known >= set(model_types.MODEL_TYPES) >= set(model_types.ALIASES)
