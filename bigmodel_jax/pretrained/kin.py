"""Names the supported architecture that is most like an unsupported one, for error messages."""

import difflib
import re
from collections.abc import Iterable

from bigmodel_jax.core.spelling import nearest

# A supported model -> the models of transformers whose blocks are most like its own. Names stand
# without their head ("ForCausalLM").
KIN = {
    "Llama": """Apertus Arcee Baichuan BitNet Cohere Cohere2 Ernie4_5 Exaone Exaone4 Falcon Helium
        HunYuanDenseV1 InternLM InternLM2 InternLM3 MiniCPM Mllama Nemotron NemotronH Persimmon Phi
        SeedOss StableLm Starcoder2 VaultGemma Yi Zamba2""",
    "GPT2": "BioGpt Bloom CodeGen CTRL GPTBigCode GPTJ GPTNeo GPTNeoX GPTNeoXJapanese Mpt OpenAIGPT OPT XGLM",
    "Mistral": "Ministral Ministral3 Mistral3 Pixtral Voxtral",
    "Qwen2": "Qwen2VL Qwen2_5_VL Qwen2Audio Qwen",
    "Qwen3": "Qwen3VL",
    "Glm4": "Glm",
    "Phi3": "Phi4Multimodal",
    "Olmo2": "Olmo",
    "Gemma2": "RecurrentGemma ShieldGemma2 T5Gemma",
    "Gemma3": "Gemma3n Gemma4",
    "Mixtral": "Dbrx GraniteMoe GraniteMoeShared Jamba JetMoe MiniMax Olmoe Phimoe",
    "Qwen3Moe": "Dots1 Ernie4_5_Moe Flex_Olmo FlexOlmo Glm4Moe HunYuanMoEV1 Llama4 Qwen2Moe Qwen3VLMoe",
    "Qwen3Next": "Qwen3_5 Qwen3_5Moe",
    "DeepseekV3": "Deepseek DeepseekV2 DeepseekV32 Glm4MoeLite KimiK2 LongcatFlash Youtu",
    "Bert": """Albert BigBird ConvBert Ernie Esm FNet Funnel LayoutLM MobileBert MPNet
        MegatronBert NomicBert RemBert RoCBert RoFormer Splinter SqueezeBert""",
    "ModernBert": "EuroBert ModernBertDecoder NeoBert",
    "Roberta": "Camembert IBert Longformer Luke RobertaPreLayerNorm XLM XLMRoberta XLMRobertaXL Xmod",
    "DebertaV2": "Deberta",
    "T5": "LongT5 T5Encoder MT5 Pop2Piano SwitchTransformers UMT5",
    "Marian": "M2M100 NllbMoe Pegasus PegasusX",
    "Bart": "BigBirdPegasus Blenderbot BlenderbotSmall LED MBart Mvp PLBart",
    "Whisper": "Moonshine Speech2Text",
    "Parakeet": "Lasr Wav2Vec2Bert Wav2Vec2Conformer",
    "ViT": "Beit Data2VecVision DeiT Hiera IJepa Levit PvtV2 Swin Swinv2 ViTMAE ViTMSN Vivit",
    "Dinov2": "DINOv3ViT",
    "ResNet": "Bit ConvNext ConvNextV2 MobileViT RegNet",
    "EfficientNetLite": "EfficientNet MobileNetV1 MobileNetV2",
    "Segformer": "GLPN",
    "Detr": "ConditionalDetr DabDetr DeformableDetr Deta RTDetr TableTransformer",
    "CLIP": "AltCLIP Align Blip ChineseCLIP CLIPText CLIPVision CLIPSeg GroupViT XCLIP",
    "Siglip": "Siglip2 Siglip2Text Siglip2Vision SiglipText SiglipVision",
    "Llava": "AyaVision InternVL LlavaNext LlavaOnevision VipLlava",
    "Idefics3": "Idefics2",
    "PixArt": "LTXVideoTransformer3D Sana UNet",
    "SD3": "Flux",
}
KINDRED = {name: ours for ours, names in KIN.items() for name in names.split()}
# "For" begins a head only before a capital letter: RoFormer is the name of a model.
HEAD = r"(\w+?)(For[A-Z]\w*|LMHead\w*|MTModel|Transformer2DModel|2DConditionModel|Model(?:WithProjection)?|)"


def hint(architecture: str, known: Iterable[str]) -> str:
    """The end of an error message: " (nearest in kind: ...)" with one of `known`, or "".

    architecture: the unsupported name. A misspelt name of a known architecture is corrected
    instead.
    """
    known = list(known)
    model, purpose = split(architecture)
    if model not in KINDRED:
        slip = nearest(architecture, [name for name in known if is_alike(name, architecture)], cutoff=0.9)
        if slip:
            return slip
    model = KINDRED.get(model, model)
    same = [name for name in known if split(name)[0] == model]
    best = next((name for name in same if split(name)[1] == purpose), same[0] if same else "")
    return f" (nearest in kind: {best!r})" if best else ""


def is_alike(name: str, other: str) -> bool:
    """Whether one architecture's name may be a misspelling of the other's.

    Names with different digits are different generations of a model. The comparison leaves out the
    head, because a long one, such as "ForSequenceClassification", would make any two names alike.
    """
    models = [split(one)[0].lower() for one in (name, other)]
    return digits(name) == digits(other) and difflib.SequenceMatcher(None, *models).ratio() > 0.8


def digits(name: str) -> list[str]:
    """The digits in a name, in order."""
    return re.findall(r"\d", name)


def split(architecture: str) -> tuple[str, str]:
    """Splits a class name into the model and its head: ("Llama", "ForCausalLM")."""
    found = re.fullmatch(HEAD, architecture)
    return (found[1], found[2]) if found else (architecture, "")
