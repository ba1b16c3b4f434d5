"""SmolLM2-135M-Instruct with images, as in LLaVA: CLIP's tower and an MLP, trained on emoji
captions.

First run `uv run --extra pretrained launch.py import smollm2-135m-instruct`; its folder provides
decoder, tokenizer and chat template. Tower and connector are randomly initialized. For your own
pictures, use `--data.source` ImageChatFiles (docs/vision_language.md).

Cost: a step of 16 rows of 96 tokens is 1.2 TFLOP. Memory: 2.2 GB for weights, gradients and Adam's
moments in float32, and about 2 GB for the step. To try it on 2 CPU cores, use `--train.steps 4
--train.batch_size 2`.
"""

from bigmodel_jax.config import Config, EvalConfig, EvalSet, TrainConfig
from bigmodel_jax.data import ImageAnswerData, ImagePromptData, TokenizerConfig
from bigmodel_jax.models import LlavaConfig
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

RUN = "runs/smollm2-135m-instruct"
DATA = {
    "tokenizer": TokenizerConfig(path=f"{RUN}/tokenizer.json"),
    "template_path": f"{RUN}/chat_template.jinja",
    "prompt": "What does the picture show?",
    "image_size": 36,
    "image_tokens": 16,
    "seq_len": 96,
}


def get_config() -> Config:
    text = PRESETS["smollm2-135m"]
    tower = VisionTower(image_shape=(36, 36, 3), patch_size=9, num_layers=4, embed_dim=192, num_heads=6, mlp_dim=768)
    return Config(
        model=LlavaConfig(vision=tower, text=text, feature_layer=-1, image_token_id=text.vocab_size),
        objective=NextToken(),
        data=ImageAnswerData(**DATA, max_shift=2),
        optim=OptimConfig(lr=2e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
        train=TrainConfig(steps=400, batch_size=16, init_from=RUN),
        eval=EvalConfig(sets=(EvalSet("captions", ImagePromptData(**DATA), metrics=("exact_match", "cider")),)),
    )
