"""Family -> what writes its reference into a folder."""

from references.adapters import ADAPTERS
from references.autoencoder import AUTOENCODERS
from references.conformer import CONFORMERS
from references.decoders import DECODERS
from references.deepseek import DEEPSEEKS
from references.detection import DETECTION
from references.distillation import DISTILLATION
from references.dit import DIT
from references.efficientnet import EFFICIENTNET
from references.encoder_decoders import ENCODER_DECODERS
from references.encoders import ENCODERS
from references.gemma import GEMMA
from references.image_text import IMAGE_TEXT
from references.mixtures import MIXTURES
from references.mmdit import MMDIT
from references.normal_floats import NORMAL_FLOATS
from references.pixart import PIXART
from references.policy_gradient import POLICY_GRADIENT
from references.preference import PREFERENCE
from references.recurrent import RECURRENT
from references.rope import ROPE
from references.segmentation import SEGMENTATION
from references.sft import SFT
from references.sizes import SIZES
from references.torchvision_classifiers import TORCHVISION
from references.vision import VISION
from references.vision_language import VISION_LANGUAGE
from references.whisper import WHISPERS

REFERENCES = {
    **ADAPTERS,
    **AUTOENCODERS,
    **CONFORMERS,
    **DECODERS,
    **GEMMA,
    **MIXTURES,
    **ENCODERS,
    **DEEPSEEKS,
    **VISION,
    **WHISPERS,
    **IMAGE_TEXT,
    **VISION_LANGUAGE,
    **EFFICIENTNET,
    **TORCHVISION,
    **DISTILLATION,
    **DIT,
    **PIXART,
    **MMDIT,
    **PREFERENCE,
    **ENCODER_DECODERS,
    **RECURRENT,
    **ROPE,
    **SEGMENTATION,
    **DETECTION,
    **SFT,
    **SIZES,
    **NORMAL_FLOATS,
    **POLICY_GRADIENT,
}
