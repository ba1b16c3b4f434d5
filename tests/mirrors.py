"""Which quick tests answer for which file of the package."""

from pathlib import Path

ROOT = Path(__file__).parents[1]

# The quick tests of models and of their published forms, whose mirrors are slow.
FAMILIES = {
    "decoders": ("mistral", "qwen", "qwen_moe"),
    "encoders": ("roberta", "deberta"),
    "encoder_decoders": ("encoder_decoder", "t5", "transformer"),
    "vision": ("vit", "resnet", "efficientnet"),
    "clip_siglip": ("clip", "siglip", "prenorm"),
    "vision_language": ("vision_language", "llava", "paligemma", "idefics3"),
    "denoisers": ("dit", "pixart"),
    "recurrent": ("rnn",),
}
PUBLISHED = {
    "decoders": ("llama", "mistral", "gemma", "gpt2", "qwen", "mixtral", "qwen_moe", "gpt_oss", "deepseek"),
    "encoders": ("bert", "roberta", "deberta", "xlnet"),
    "encoder_decoders": ("t5", "marian"),
    "vision": ("vit", "resnet", "efficientnet"),
    "clip_siglip": ("clip", "siglip"),
    "vision_language": ("vision_language", "llava", "paligemma", "idefics3"),
    "denoisers": ("dit", "pixart"),
}
# Quick tests beside (or, where there is none, instead of) a file's mirror; the fastest first.
TESTS = {
    "core/precision.py": ("core/layout_test.py", "training/bfloat16_test.py"),
    "core/sharding.py": ("core/layout_test.py", "multidevice/indivisible_test.py"),
    "nn/attention/attention.py": ("nn/visibility_test.py", "nn/cpu_test.py"),
    "nn/attention/blockwise.py": ("nn/visibility_test.py", "nn/attention_test.py"),
    "nn/cpu.py": ("nn/cpu_test.py",),
    "core/dataclass_json.py": ("config_file_test.py",),
    "inference/recorded.py": ("training/distilled_run_test.py",),
    "nn/head_columns.py": ("nn/head_losses_test.py",),
    "nn/cross_entropy.py": ("objectives/cross_entropy_test.py", "nn/head_test.py"),
    "nn/rings.py": ("nn/head_test.py",),
    "models/adapted.py": ("models/adapters_test.py", "nn/lora_test.py"),
    "nn/norm.py": ("nn/visibility_test.py",),
    "nn/position.py": ("nn/by_hand_test.py",),
    "nn/feedforward.py": ("nn/by_hand_test.py",),
    "nn/linear.py": ("core/layout_test.py", "nn/by_hand_test.py"),
    "nn/experts/moe.py": ("nn/by_hand_test.py", "training/statistics_test.py"),
    "nn/attention/latent_attention.py": ("nn/by_hand_test.py",),
    "nn/experts/bias_routing.py": ("nn/by_hand_test.py", "training/statistics_test.py"),
    "nn/experts/expert_exchange.py": ("nn/by_hand_test.py", "nn/expert_exchange_test.py", "nn/moe_test.py"),
    "nn/multi_token.py": ("nn/by_hand_test.py",),
    "nn/pipeline.py": ("nn/pipeline_by_hand_test.py", "training/randomness_test.py", "multidevice/pipeline_test.py"),
    "nn/attention/context.py": (
        "core/layout_test.py",
        "multidevice/context_test.py",
    ),
    **{f"models/{name}.py": (f"parity/{test}_test.py",) for test, names in FAMILIES.items() for name in names},
    "models/decoder.py": ("inference/generate_test.py", "parity/decoders_test.py"),
    "models/gemma.py": ("contract/few_models_test.py", "parity/decoders_test.py"),
    "models/gpt2.py": ("contract/few_models_test.py", "parity/decoders_test.py"),
    "models/llama.py": ("contract/few_models_test.py", "parity/decoders_test.py"),
    "models/mixtral.py": ("contract/few_models_test.py", "parity/decoders_test.py"),
    "models/deepseek.py": ("contract/few_models_test.py", "parity/decoders_test.py"),
    "models/gpt_oss.py": ("contract/few_models_test.py", "parity/decoders_test.py"),
    "models/bert.py": ("contract/few_models_test.py", "parity/encoders_test.py"),
    "models/xlnet.py": ("contract/few_models_test.py", "parity/encoders_test.py"),
    "models/mlp.py": ("models/mlp_test.py", "contract/few_models_test.py"),
    **{f"pretrained/{name}.py": (f"parity/{test}_test.py",) for test, names in PUBLISHED.items() for name in names},
    "report/run_clock.py": ("report/goodput_test.py",),
    "training/step.py": (
        "training/randomness_test.py",
        "training/denominator_test.py",
        "training/statistics_test.py",
    ),
    "training/beginning.py": ("training/loop_test.py", "training/early_stopping_test.py"),
    "training/diverged.py": ("training/skipped_test.py",),
    "training/deterministic.py": (
        "training/randomness_test.py",
        "training/denominator_test.py",
        "multidevice/deterministic_test.py",
    ),
    "training/slices.py": ("training/randomness_test.py", "training/denominator_test.py"),
    "training/pipeline/pipeline_1f1b.py": (
        "training/schedule_1f1b_test.py",
        "multidevice/pipeline_1f1b_test.py",
    ),
    "training/pipeline/schedule_1f1b.py": ("training/schedule_1f1b_test.py", "multidevice/pipeline_1f1b_test.py"),
    "training/pipeline/stage_passes.py": ("training/schedule_1f1b_test.py",),
    "training/pipeline/stage_arrays.py": ("training/schedule_1f1b_test.py",),
    "training/pipeline/split_loss.py": ("training/schedule_1f1b_test.py",),
    "training/run.py": ("training/loop_test.py", "training/skipped_test.py"),
    "training/loop.py": ("training/signals_test.py", "training/loop_test.py", "training/skipped_test.py"),
    "training/saved.py": ("training/saved_test.py", "training/loop_test.py", "training/forks_test.py"),
    "training/run_folder.py": ("training/free_fields_test.py",),
    "checkpoint/digest.py": ("checkpoint/positions_test.py",),
    "data/shuffle.py": ("data/shuffle_test.py", "data/epochs_test.py"),
    "data/loader.py": ("data/epochs_test.py",),
    "data/text/masking.py": ("data/epochs_test.py",),
    "data/text/permutation.py": ("data/epochs_test.py",),
    "data/text/span_corruption.py": ("data/epochs_test.py",),
    "data/images/image.py": ("data/epochs_test.py",),
    "data/holdout.py": ("data/tabular_test.py",),
    "inference/generate.py": ("inference/tokens_test.py",),
    "inference/slots.py": ("inference/engine_test.py", "inference/tokens_test.py", "inference/generate_test.py"),
    "inference/sampling.py": ("inference/generate_test.py",),
    "cluster/peers.py": ("cluster/second_events_test.py",),
    "pretrained/names.py": ("pretrained/folder_test.py",),
    "plan/chips.py": ("plan/roofline_test.py", "plan/cost_test.py"),
    "config_checks.py": ("config_test.py", "multidevice/pipeline_test.py"),
    "cli.py": ("cli_test.py", "faults/resume_test.py"),
    "verbs/base.py": ("verbs_test.py", "cli_test.py"),
    "plan/program/cost.py": ("plan/rows_test.py",),
    "plan/topology.py": ("plan/rows_test.py",),
    "nn/shards.py": ("nn/moe_test.py",),
    **{
        f"data/corpus/{name}.py": ("data/prepare_test.py",)
        for name in ("corpus", "outcome", "workers", "folder", "card")
    },
    **{f"data/text/{name}.py": ("data/tokenized_test.py",) for name in ("documents", "token_shards", "token_stream")},
    "data/cleaning/step.py": ("data/quality_test.py", "data/prepare_test.py"),
    "verbs/preparing.py": ("data/prepare_test.py", "data/remembered_test.py"),
    "data/base.py": ("data/sources_test.py", "data/image_test.py"),
    "data/images/pictures.py": ("data/image_text_test.py",),
    "data/text/chat_data.py": ("data/chat_test.py", "data/chat_records_test.py"),
    "data/text/chat.py": ("data/chat_reference_test.py", "data/chat_records_test.py"),
    "checkpoint/arrays.py": ("checkpoint/store_test.py",),
    "checkpoint/checkpointer.py": ("checkpoint/store_test.py",),
    "checkpoint/exchange.py": ("checkpoint/local_test.py",),
    "checkpoint/local_reading.py": ("checkpoint/local_test.py",),
    "checkpoint/pieces.py": ("checkpoint/local_test.py",),
    "checkpoint/manifest.py": ("checkpoint/store_test.py",),
    "cluster/connection.py": ("cluster/second_events_test.py", "cluster/peers_test.py"),
    "pretrained/family.py": ("nn/position_test.py", "pretrained/folder_test.py"),
    "pretrained/mxfp4.py": ("parity/mxfp4_test.py",),
    "report/elements.py": ("report/page_test.py",),
    "report/comparison.py": ("report/page_test.py",),
    "report/plot_style.py": ("report/plots_test.py",),
    "plan/program/origin.py": ("plan/memory_test.py",),
    "plan/program/program.py": ("plan/hlo_test.py", "plan/cost_test.py"),
    "plan/program/instructions.py": ("plan/cost_test.py",),
    "plan/sums.py": ("plan/search_test.py",),
}


def tests_of(file: str) -> list[str]:
    """The quick tests of a file: what TESTS names, and its mirror; where there are none, all of its room."""
    mirror = f"{file.partition('/')[0]}/{Path(file).stem}_test.py" if "/" in file else f"{Path(file).stem}_test.py"
    named = [*TESTS.get(file, ()), mirror]
    found = [f"tests/{name}" for name in dict.fromkeys(named) if (ROOT / "tests" / name).is_file()]
    room = f"tests/{file.partition('/')[0]}"
    return found or [room if (ROOT / room).is_dir() else "tests/cli_test.py"]
