"""Facts about config.json's keys: types, keys that change nothing, and values that change nothing.

The tables were reviewed against the modelling code of transformers 5.23.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """The values that a key may have: `allowed` says it in words, and `holds` tests a value."""

    allowed: str
    holds: Callable[[Any], bool]


def words(text: str) -> list[str]:
    """The words of a text, split at white space."""
    return text.split()


def is_number(x: Any) -> bool:
    """Whether `x` is a finite number of moderate size (below 1e30), and no boolean."""
    # The comparison is false for NaN as well, which Python's JSON reader accepts.
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e30


def is_whole(x: Any) -> bool:
    """Whether `x` is an int of moderate size, and no boolean."""
    return isinstance(x, int) and is_number(x)


def is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test for a non-empty list whose entries all pass the test `holds`."""
    return lambda x: isinstance(x, list) and bool(x) and all(map(holds, x))


# Sizes, positions and ids are int32 on the devices, which bounds them.
COUNT = Kind("whole numbers above 0 and below 2**31", lambda x: is_whole(x) and 0 < x < 2**31)
COUNT_OR_NULL = Kind("whole numbers above 0 and below 2**31, or null", lambda x: x is None or COUNT.holds(x))
# Lists with one entry per layer are built before any tensor is read, hence a tighter bound.
DEPTH = Kind("whole numbers from 1 to 10000", lambda x: is_whole(x) and 0 < x <= 10_000)
DEPTH_OR_NULL = Kind("whole numbers from 1 to 10000, or null", lambda x: x is None or DEPTH.holds(x))
DEPTH_OR_ZERO = Kind("whole numbers from 0 to 10000", lambda x: is_whole(x) and 0 <= x <= 10_000)
# A convolutional network has its blocks written out one by one, so their number is bounded too.
BLOCKS = Kind("a list of whole numbers from 1 to 50", is_list_of(lambda x: is_whole(x) and 0 < x <= 50))
INDEX = Kind("whole numbers from 0 and below 2**31", lambda x: is_whole(x) and 0 <= x < 2**31)
INDEX_OR_NULL = Kind("whole numbers from 0 and below 2**31, or null", lambda x: x is None or INDEX.holds(x))
INDICES_OR_NULL = Kind("ids, or null", lambda x: INDEX_OR_NULL.holds(x) or is_list_of(INDEX.holds)(x))
POSITIVE = Kind("numbers above 0", lambda x: is_number(x) and x > 0)
POSITIVE_OR_NULL = Kind("numbers above 0, or null", lambda x: x is None or POSITIVE.holds(x))
NUMBER = Kind("numbers from 0", lambda x: is_number(x) and x >= 0)
NUMBER_OR_NULL = Kind("numbers from 0, or null", lambda x: x is None or NUMBER.holds(x))
SIGNED = Kind("numbers", is_number)
FLAG = Kind("true, false", lambda x: isinstance(x, bool))
FLAG_OR_NULL = Kind("true, false, null", lambda x: x is None or isinstance(x, bool))
TEXT = Kind("text", lambda x: isinstance(x, str))
TEXT_OR_NULL = Kind("text, or null", lambda x: x is None or isinstance(x, str))
TABLE = Kind("a table of keys", lambda x: isinstance(x, dict))
TABLE_OR_NULL = Kind("a table of keys, or null", lambda x: x is None or isinstance(x, dict))
BITS_OR_NULL = Kind(
    "a list of 0 and 1, or null", lambda x: x is None or is_list_of(lambda y: is_whole(y) and y in (0, 1))(x)
)
DIVISORS = Kind("a list of numbers above 0", is_list_of(POSITIVE.holds))
COUNTS = Kind("a list of whole numbers above 0", is_list_of(COUNT.holds))
NAMES = Kind("a list of names", is_list_of(lambda x: isinstance(x, str)))
NAMES_OR_NULL = Kind("a list of names, or null", lambda x: x is None or NAMES.holds(x))
SIZE = Kind("a whole number above 0, or [height, width]", lambda x: COUNT.holds(x) or (COUNTS.holds(x) and len(x) == 2))
SHAPE = Kind("[height, width, channels]", lambda x: COUNTS.holds(x) and len(x) == 3)

_KINDS: dict[Kind, str] = {
    COUNT: """vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings
        n_embd n_head n_positions dim hidden_dim n_heads d_model d_kv d_ff d_inner num_heads
        encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim moe_intermediate_size
        n_routed_experts n_shared_experts kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_group topk_group
        relative_attention_num_buckets relative_attention_max_distance projection_dim num_channels
        head_channels num_register_tokens mlp_ratio decoder_hidden_size num_encoder_blocks num_queries
        embedding_size attention_head_dim sample_size in_channels out_channels caption_channels cross_attention_dim
        sliding_window_pattern position_buckets embed_dim num_classes stem_channels feature_channels num_mel_bins
        subsampling_factor subsampling_conv_channels subsampling_conv_kernel_size subsampling_conv_stride
        conv_kernel_size max_source_positions max_target_positions no_rope_layer_interval scale_factor
        latent_channels pooled_side norm_num_groups layers_per_block local_attention global_attn_every_n_layers
        linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim
        shared_expert_intermediate_size""",
    COUNT_OR_NULL: """num_key_value_heads num_experts num_local_experts num_experts_per_tok
        experts_per_token q_lora_rank head_dim projection_size n_inner d_head sliding_window original_max_position_embeddings
        decoder_vocab_size num_labels full_attention_interval""",
    DEPTH: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers",
    DEPTH_OR_NULL: "num_decoder_layers",
    DEPTH_OR_ZERO: "first_k_dense_replace",
    BLOCKS: "depths repeats",
    INDEX: "type_vocab_size image_token_id image_token_index",
    INDICES_OR_NULL: "eos_token_id",
    INDEX_OR_NULL: "decoder_start_token_id bos_token_id forced_bos_token_id",
    POSITIVE: """rms_norm_eps layer_norm_eps layer_norm_epsilon rope_local_base_freq rope_theta
        routed_scaling_factor query_pre_attn_scalar swiglu_alpha swiglu_limit low_freq_factor high_freq_factor
        norm_eps initializer_factor embedding_multiplier attention_multiplier residual_multiplier logits_scaling
        layerscale_value global_rope_theta local_rope_theta""",
    POSITIVE_OR_NULL: """factor attention_factor beta_fast beta_slow partial_rotary_factor interpolation_scale
        attn_logit_softcapping final_logit_softcapping""",
    NUMBER: """momentum classifier_dropout_prob initializer_range hidden_dropout_prob dropout init_std
        router_aux_loss_coef aux_loss_alpha label_dropout text_dropout""",
    NUMBER_OR_NULL: "mscale mscale_all_dim",
    SIGNED: "logit_scale_init_value",
    FLAG: """use_swiglu_ffn tie_word_embeddings use_quant_conv use_post_quant_conv mid_block_add_attention
        batch_norm scale_embedding output_router_logits learn_sigma zero_init scale_decoder_outputs""",
    FLAG_OR_NULL: "norm_topk_prob truncate use_additional_conditions",
    TEXT: "_class_name norm_type hidden_act activation activation_function feed_forward_proj layer_type rope_type type",
    TEXT_OR_NULL: "hidden_activation",
    TABLE: "text_config vision_config encoder_config",
    TABLE_OR_NULL: """backbone_config rope_parameters rope_scaling quantization_config id2label full_attention sliding_attention
        text_config_dict vision_config_dict""",
    BITS_OR_NULL: "no_rope_layers",
    DIVISORS: "short_factor long_factor",
    COUNTS: "hidden_sizes widths strides expansions channels mlp_ratios sr_ratios patch_sizes block_out_channels",
    NAMES_OR_NULL: "architectures layer_types",
    SIZE: "image_size patch_size",
    SHAPE: "image_shape",
}
KINDS: dict[str, Kind] = {name: kind for kind, names in _KINDS.items() for name in names.split()}

# Keys that change no logits: notes of tools, dropout and initialisation of training, settings of
# generation, and heads that are not read.
INERT = frozenset(
    words("""
    architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path _commit_hash auto_map
    custom_pipelines _class_name _diffusers_version task_specific_params finetuning_task tokenizer_class prefix
    language license problem_type id2label label2id num_labels torchscript return_dict use_return_dict
    output_attentions output_hidden_states output_past use_cache use_bfloat16 gradient_checkpointing
    chunk_size_feed_forward directionality _attn_implementation attn_implementation _attn_implementation_autoset
    _flash_attn_2_enabled _attn_implementation_internal _experts_implementation_internal unsloth_fixed unsloth_version
    is_llama_config mlx_version tf_legacy_loss ep_size seq_aux pretraining_tp num_nextn_predict_layers num_mtp_layers
    reorder_and_upcast_attn upcast_attention activation_dropout attention_dropout attention_probs_dropout_prob
    attn_pdrop embd_pdrop resid_pdrop dropout dropout_rate hidden_dropout_prob classifier_dropout
    classifier_dropout_prob classif_dropout encoder_layerdrop decoder_layerdrop layerdrop pooler_dropout
    summary_first_dropout summary_last_dropout router_jitter_noise initializer_range initializer_factor init_std
    drop_path_rate semantic_loss_ignore_index auxiliary_loss class_cost bbox_cost giou_cost mask_loss_coefficient
    dice_loss_coefficient bbox_loss_coefficient giou_loss_coefficient eos_coefficient init_xavier_std
    use_pretrained_backbone backbone_kwargs use_timm_backbone
    apply_layernorm reshape_hidden_states use_mask_token force_upcast
    gate_init router_aux_loss_coef output_router_logits aux_loss_alpha pad_token_id bos_token_id eos_token_id
    sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id bad_words_ids begin_suppress_tokens suppress_tokens num_beams num_beam_groups do_sample
    early_stopping max_length min_length length_penalty repetition_penalty no_repeat_ngram_size top_k top_p
    temperature typical_p diversity_penalty encoder_no_repeat_ngram_size num_return_sequences output_scores
    exponential_decay_length_penalty remove_invalid_values return_dict_in_generate extra_pos_embeddings n_ctx
    summary_activation summary_proj_to_labels summary_type summary_use_proj start_n_top end_n_top mem_len reuse_len
    use_mems_eval use_mems_train pooler_hidden_act pooler_hidden_size pooler_act pooler_output_size pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type encoder_stride out_features
    out_indices stage_names _out_features _out_indices add_bias_logits max_window_layers num_embeds_ada_norm
    norm_num_groups mm_tokens_per_image boi_token_index eoi_token_index image_token_index _sliding_window_pattern
    projection_dim _num_labels cache_implementation force_bos_token_to_be_generated transformers.js_config
    sliding_window_size initial_context_length modules_to_not_convert activation_scheme dropout_positions
    ctc_loss_reduction ctc_zero_infinity forced_decoder_ids median_filter_width use_weighted_layer_sum
    classifier_proj_size apply_spec_augment mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob
    mask_feature_length mask_feature_min_masks qa_dropout seq_classif_dropout sinusoidal_pos_embds image_seq_length
    num_image_tokens _pad_token_id ignore_index initializer_cutoff_factor embedding_dropout mlp_dropout
    deterministic_flash_attn sparse_prediction sparse_pred_ignore_index reference_compile repad_logits_with_grad
    """)
)

# Keys that change what some models of transformers compute, with the values that change nothing.
NEUTRAL: dict[str, tuple] = {
    "add_cross_attention": (False,),
    "alibi": (False, None),
    "attention_bias": (False, None),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "attention_out_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "attn_output_gate": (False, None),
    "attn_temperature_tuning": (False, None),
    "clip_qkv": (None,),
    "compression_config": (None,),
    "cross_attention_hidden_size": (None,),
    "decoder_sparse_step": (None, 1),
    "double_self_attention": (False, None),
    "embedding_multiplier": (1.0, None),
    "final_logit_softcapping": (None,),
    "is_causal": (True, None),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "legacy": (True, None),
    "logit_scale": (1.0, None),
    "logits_scaling": (1.0, None),
    "lm_head_bias": (False, None),
    "mlp_layer_types": (None,),
    "mlp_bias": (False, None),
    "mlp_only_layers": ([], None),
    "moe_layer_freq": (1, None),
    "n_routed_experts": (None,),
    "no_rope_layer_interval": (None,),
    "no_rope_layers": ([], None),
    "num_experts": (None, 0),
    "num_kv_shared_layers": (0, None),
    "num_local_experts": (None, 0),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False, None),
    "partial_rotary_factor": (1.0, None),
    "per_layer_config": (None,),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "qk_layernorm": (False, None),
    "qk_norm": (False, None),
    "quantization": (None,),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (1.0, None),
    "rope_interleave": (False, None),
    "rope_interleaved": (False, None),
    "rotary_pct": (1.0, None),
    "scale_depth": (None,),
    "scale_emb": (1, None),
    "sliding_window": (None,),
    "sliding_window_pattern": (None,),
    "tie_encoder_decoder": (False, None),
    "tie_weights_": (True, None),
    "use_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "use_linear_projection": (False, None),
    "use_mrope": (False, None),
    "use_parallel_residual": (False, None),
    "use_qk_norm": (False, None),
    "use_qkv_bias": (False, None),
    "use_sliding_window": (False, None),
}
# Keys of rotary positions that may stay unread: transformers ignores some for each rope_type.
ROPE_KEYS = words(
    "factor original_max_position_embeddings low_freq_factor high_freq_factor beta_fast beta_slow mscale mscale_all_dim "
    "attention_factor truncate rope_theta type rope_type finetuned"
)
