"""Family -> what writes its reference into a folder."""

from references.decoders import DECODERS
from references.deepseek import DEEPSEEKS
from references.encoder_decoders import ENCODER_DECODERS
from references.encoders import ENCODERS
from references.mixtures import MIXTURES
from references.recurrent import RECURRENT
from references.vision import VISION

REFERENCES = {**DECODERS, **MIXTURES, **ENCODERS, **DEEPSEEKS, **VISION, **ENCODER_DECODERS, **RECURRENT}
