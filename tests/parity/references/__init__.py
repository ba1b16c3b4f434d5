"""Family -> what writes its reference into a folder."""

from references.decoders import DECODERS
from references.deepseek import DEEPSEEKS
from references.encoder_decoders import ENCODER_DECODERS
from references.encoders import ENCODERS
from references.vision import VISION

REFERENCES = {**DECODERS, **ENCODERS, **DEEPSEEKS, **VISION, **ENCODER_DECODERS}
