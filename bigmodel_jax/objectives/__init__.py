"""Objectives: `score(out, batch, params, train) -> Loss` of what a model gave, one task per file."""

from bigmodel_jax.objectives.base import Loss, Objective
from bigmodel_jax.objectives.classification import Classification
from bigmodel_jax.objectives.contrastive import Contrastive
from bigmodel_jax.objectives.diffusion import Diffusion
from bigmodel_jax.objectives.language_model import NextToken
from bigmodel_jax.objectives.masked_language_model import BertPretraining, MaskedLanguageModel
from bigmodel_jax.objectives.policy_gradient import PolicyGradient
from bigmodel_jax.objectives.question_answering import QuestionAnswering
from bigmodel_jax.objectives.regression import Regression

OBJECTIVES: dict[str, type[Objective]] = {
    "next_token": NextToken,
    "masked_language_model": MaskedLanguageModel,
    "bert_pretraining": BertPretraining,
    "question_answering": QuestionAnswering,
    "classification": Classification,
    "regression": Regression,
    "contrastive": Contrastive,
    "diffusion": Diffusion,
    "policy_gradient": PolicyGradient,
}

__all__ = [
    "OBJECTIVES",
    "BertPretraining",
    "Classification",
    "Contrastive",
    "Diffusion",
    "Loss",
    "MaskedLanguageModel",
    "NextToken",
    "Objective",
    "PolicyGradient",
    "QuestionAnswering",
    "Regression",
]
