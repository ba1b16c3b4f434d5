"""Names the supported architecture that is most like an unsupported one, for error messages."""

import re
from collections.abc import Iterable

from bigmodel_jax.core.spelling import nearest

# A supported model -> the models of transformers whose blocks are most like its own. Names stand
# without their head ("ForCausalLM").
KIN = {
    "Llama": """Apertus Arcee Baichuan BitNet Cohere Cohere2 Ernie4_5 Exaone Exaone4 Falcon Helium
        HunYuanDenseV1 InternLM InternLM2 InternLM3 MiniCPM Mllama Nemotron NemotronH Persimmon Phi Phi3
        Phi4Multimodal SeedOss StableLm Starcoder2 VaultGemma Yi Zamba2""",
    "GPT2": "Biogpt Bloom CodeGen CTRL GPTBigCode GPTJ GPTNeo GPTNeoX GPTNeoXJapanese Mpt OpenAIGPT OPT XGLM",
    "Mistral": "Ministral Ministral3 Mistral3 Pixtral Voxtral",
    "Qwen2": "Qwen2VL Qwen2_5_VL Qwen2Audio Qwen",
    "Qwen3": "Qwen3VL Qwen3_5",
    "Glm4": "Glm",
    "Olmo2": "Olmo",
    "Gemma2": "RecurrentGemma ShieldGemma2 T5Gemma",
    "Gemma3": "Gemma3n Gemma4",
    "Mixtral": "Dbrx GraniteMoe GraniteMoeShared Jamba JetMoe MiniMax Olmoe Phimoe",
    "Qwen3Moe": "Dots1 Ernie4_5_Moe Flex_Olmo FlexOlmo Glm4Moe HunYuanMoEV1 Llama4 Qwen2Moe Qwen3Next Qwen3VLMoe",
    "DeepseekV3": "Deepseek DeepseekV2 DeepseekV32 Glm4MoeLite KimiK2 LongcatFlash Youtu",
    "Bert": """Albert BigBird ConvBert Electra Ernie Esm FNet Funnel LayoutLM MobileBert ModernBert MPNet
        MegatronBert NomicBert RemBert RoFormer Splinter SqueezeBert""",
    "Roberta": "Camembert Ibert Longformer Luke Mpnet RobertaPreLayerNorm XLM XLMRoberta XLMRobertaXL Xmod",
    "DebertaV2": "Deberta",
    "T5": "LongT5 T5Encoder MT5 Pop2Piano SwitchTransformers UMT5",
    "Marian": "Bart BigBirdPegasus Blenderbot BlenderbotSmall LED M2M100 MBart Mvp NllbMoe Pegasus PegasusX PLBart Whisper",
    "ViT": """Beit Data2VecVision DeiT DINOv3ViT Hiera IJepa Levit PvtV2 Swin Swinv2 ViTMAE
        ViTMSN VivIT""",
    "ResNet": "Bit ConvNext ConvNextV2 EfficientNet MobileNetV1 MobileNetV2 MobileViT RegNet",
    "CLIP": "AltCLIP Align Blip ChineseCLIP CLIPText CLIPVision CLIPSeg GroupViT XCLIP",
    "Siglip": "Siglip2 Siglip2Text Siglip2Vision SiglipText SiglipVision",
    "PixArt": "FluxTransformer2D SanaTransformer2D LTXVideoTransformer3D UNet2DCondition",
}
KINDRED = {name: ours for ours, names in KIN.items() for name in names.split()}


def hint(architecture: str, known: Iterable[str]) -> str:
    """The end of an error message: " (nearest in kind: ...)" with one of `known`, or "".

    architecture: the unsupported name. A misspelt name of a known architecture is corrected
    instead.
    """
    known = list(known)
    model, purpose = split(architecture)
    if model not in KINDRED:
        # A name with other digits is another generation of a model, not a misspelling.
        slip = nearest(architecture, [name for name in known if digits(name) == digits(architecture)], cutoff=0.9)
        if slip:
            return slip
    model = KINDRED.get(model, model)
    same = [name for name in known if split(name)[0] == model]
    best = next((name for name in same if split(name)[1] == purpose), same[0] if same else "")
    return f" (nearest in kind: {best!r})" if best else ""


def digits(name: str) -> list[str]:
    """The digits in a name, in order."""
    return re.findall(r"\d", name)


def split(architecture: str) -> tuple[str, str]:
    """Splits a class name into the model and its head: ("Llama", "ForCausalLM")."""
    found = re.fullmatch(r"(\w+?)(For\w+|LMHead\w*|MTModel|Transformer2DModel|2DConditionModel|Model|)", architecture)
    return (found[1], found[2]) if found else (architecture, "")
