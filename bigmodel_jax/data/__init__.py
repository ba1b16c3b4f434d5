"""Data: sources give records, the cache holds rows, and the loader gives sharded global batches.

Read `text/text.py` first (documents to tokens), then `text/packing.py` (tokens to rows), then
`loader.py` (rows to shuffled, resumable batches on a mesh).
"""

from bigmodel_jax.data.audio.speech import SpeechData
from bigmodel_jax.data.audio.speech_files import SpeechFiles
from bigmodel_jax.data.audio.spoken_words import SpokenWords
from bigmodel_jax.data.audio.transcript_data import TranscriptData
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.corpus.corpus import Corpus
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.games.self_play import SelfPlayData
from bigmodel_jax.data.images.boxes import BoxData
from bigmodel_jax.data.images.image import ImageData, image_shape
from bigmodel_jax.data.images.image_answers import ImageAnswerData, ImagePromptData
from bigmodel_jax.data.images.image_text import CaptionFiles, ImageTextData
from bigmodel_jax.data.images.masks import MaskData
from bigmodel_jax.data.loader import BatchIterator, EvalBatches, eval_batches, make_iterator
from bigmodel_jax.data.mixture import MixtureData, Stage
from bigmodel_jax.data.sources.array_record_files import ArrayRecordFiles
from bigmodel_jax.data.sources.coco_file import CocoFile
from bigmodel_jax.data.sources.digit_scenes import DigitScenes
from bigmodel_jax.data.sources.grain_source import GrainDataset
from bigmodel_jax.data.sources.hugging_face import HuggingFaceDataset
from bigmodel_jax.data.sources.image_chats import ImageChatFiles
from bigmodel_jax.data.sources.image_folders import ImageFolders
from bigmodel_jax.data.sources.mask_folders import MaskFolders
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Arrays, CsvFiles, JsonlFiles, TextFiles, Tfds
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.sources.tar_files import TarFiles
from bigmodel_jax.data.steps import Steps
from bigmodel_jax.data.tabular import Tables, TabularData
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.data.text.masking import MaskedTextData
from bigmodel_jax.data.text.permutation import PermutedTextData
from bigmodel_jax.data.text.preference_data import PreferenceData, UnpairedPreferenceData
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.data.text.question_answering import QuestionAnsweringData, SquadFiles
from bigmodel_jax.data.text.sentence_pairs import SentencePairData
from bigmodel_jax.data.text.span_corruption import SpanCorruptionData
from bigmodel_jax.data.text.subword_classification import SubwordClassificationData
from bigmodel_jax.data.text.text import TextData, save_tokenizer, tokenizer, vocab_size
from bigmodel_jax.data.text.text_classification import LabelledLines, TextClassificationData
from bigmodel_jax.data.text.text_pairs import TextPairData
from bigmodel_jax.data.text.token_labels import ConllFiles, TokenLabelData
from bigmodel_jax.data.tokenizers.tokenizers import TokenizerConfig, load_tokenizer

# The data configs that error messages suggest. A user's own data config needs no entry.
DATA: tuple[type[DataConfig], ...] = (
    TextData,
    ChatData,
    PreferenceData,
    UnpairedPreferenceData,
    TextPairData,
    PromptData,
    SpanCorruptionData,
    MaskedTextData,
    PermutedTextData,
    SentencePairData,
    TextClassificationData,
    SubwordClassificationData,
    QuestionAnsweringData,
    TokenLabelData,
    TabularData,
    ImageData,
    ImageTextData,
    MaskData,
    BoxData,
    SpeechData,
    TranscriptData,
    ImageAnswerData,
    ImagePromptData,
    SelfPlayData,
)

__all__ = [
    "DATA",
    "ArrayRecordFiles",
    "Arrays",
    "BatchIterator",
    "BoxData",
    "CaptionFiles",
    "ChatData",
    "CocoFile",
    "ConllFiles",
    "Corpus",
    "CsvFiles",
    "DataConfig",
    "DigitScenes",
    "EvalBatches",
    "Field",
    "GrainDataset",
    "HuggingFaceDataset",
    "ImageAnswerData",
    "ImageChatFiles",
    "ImageData",
    "ImageFolders",
    "ImagePromptData",
    "ImageTextData",
    "JsonlFiles",
    "LabelledLines",
    "MaskData",
    "MaskFolders",
    "MaskedTextData",
    "MixtureData",
    "PermutedTextData",
    "PreferenceData",
    "PromptData",
    "QuestionAnsweringData",
    "SelfPlayData",
    "SentencePairData",
    "Source",
    "SpanCorruptionData",
    "SpeechData",
    "SpeechFiles",
    "SpokenWords",
    "SquadFiles",
    "Stage",
    "Steps",
    "SubwordClassificationData",
    "TableFiles",
    "Tables",
    "TabularData",
    "TarFiles",
    "TextClassificationData",
    "TextData",
    "TextFiles",
    "TextPairData",
    "Tfds",
    "TokenLabelData",
    "TokenizerConfig",
    "TranscriptData",
    "UnpairedPreferenceData",
    "eval_batches",
    "image_shape",
    "load_tokenizer",
    "make_iterator",
    "save_tokenizer",
    "tokenizer",
    "vocab_size",
]
