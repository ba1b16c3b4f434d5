"""Training objectives, one task per file."""

from bigmodel_jax.objectives.autoencoding import Autoencoding
from bigmodel_jax.objectives.base import Loss, Objective
from bigmodel_jax.objectives.classification import Classification
from bigmodel_jax.objectives.contrastive import Contrastive
from bigmodel_jax.objectives.ctc import CTC
from bigmodel_jax.objectives.detection import Detection
from bigmodel_jax.objectives.diffusion import Diffusion
from bigmodel_jax.objectives.discrete_autoencoding import DiscreteAutoencoding
from bigmodel_jax.objectives.distillation import Distillation
from bigmodel_jax.objectives.flow_matching import FlowMatching
from bigmodel_jax.objectives.kto import KTO
from bigmodel_jax.objectives.language_model import NextToken
from bigmodel_jax.objectives.latent_flow import LatentFlow
from bigmodel_jax.objectives.masked_language_model import BertPretraining, MaskedLanguageModel
from bigmodel_jax.objectives.odds_ratio import ORPO
from bigmodel_jax.objectives.policy_gradient import PolicyGradient
from bigmodel_jax.objectives.preference import DPO
from bigmodel_jax.objectives.question_answering import QuestionAnswering
from bigmodel_jax.objectives.regression import Regression
from bigmodel_jax.objectives.reward import RewardModel
from bigmodel_jax.objectives.segmentation import Segmentation
from bigmodel_jax.objectives.self_play import SelfPlay
from bigmodel_jax.objectives.simpo import SimPO
from bigmodel_jax.objectives.text_then_image import TextThenImage

OBJECTIVES: dict[str, type[Objective]] = {
    "next_token": NextToken,
    "distillation": Distillation,
    "masked_language_model": MaskedLanguageModel,
    "bert_pretraining": BertPretraining,
    "question_answering": QuestionAnswering,
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "regression": Regression,
    "contrastive": Contrastive,
    "diffusion": Diffusion,
    "ctc": CTC,
    "flow_matching": FlowMatching,
    "latent_flow": LatentFlow,
    "autoencoding": Autoencoding,
    "discrete_autoencoding": DiscreteAutoencoding,
    "text_then_image": TextThenImage,
    "dpo": DPO,
    "orpo": ORPO,
    "simpo": SimPO,
    "kto": KTO,
    "reward": RewardModel,
    "policy_gradient": PolicyGradient,
    "self_play": SelfPlay,
}

__all__ = [
    "CTC",
    "DPO",
    "KTO",
    "OBJECTIVES",
    "ORPO",
    "Autoencoding",
    "BertPretraining",
    "Classification",
    "Contrastive",
    "Detection",
    "Diffusion",
    "DiscreteAutoencoding",
    "Distillation",
    "FlowMatching",
    "LatentFlow",
    "Loss",
    "MaskedLanguageModel",
    "NextToken",
    "Objective",
    "PolicyGradient",
    "QuestionAnswering",
    "Regression",
    "RewardModel",
    "Segmentation",
    "SelfPlay",
    "SimPO",
    "TextThenImage",
]
