"""Family -> what writes its reference into a folder."""

from references.decoders import DECODERS

REFERENCES = {**DECODERS}
