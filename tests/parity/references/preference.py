"""TRL's preference and reward losses of one batch each, with gradients, and the tokens that it
makes of pairs.

One tiny decoder, a second one as its reference, and a reward model. Every loss has a
`<name>.safetensors` of gradients, and in reference.npz `<name>/loss`, `<name>/ids`, `held` and
`asked` (rows, T): which places hold a token, and which are answers.
"""

import copy
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from references.steps import trained
from references.weights import randomize, save_weights

BETA = 0.1
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
# Answers of unequal length, and prompts, too.
PAIRS = {
    "prompt": ["ab", "abcd", "k l", "hello there"],
    "chosen": ["cde", "xy", "a longer answer", "g"],
    "rejected": ["zz z", "qrstuv", "n", "gh ij"],
}
UNPAIRED = {
    "prompt": ["ab", "abc", "k", "lm no", "pq"],
    "completion": ["cde", "xy", "no", "pqrst uv", "w"],
    "label": [True, False, True, False, True],
}


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


# Pairs as people keep them: the prompt apart, repeated in both answers, and with more than one
# turn.
RECORDS = {
    "text": [{name: PAIRS[name][i] for name in PAIRS} for i in range(4)],
    "messages": [
        {"prompt": user("ab"), "chosen": assistant("cde"), "rejected": assistant("z")},
        {
            "prompt": [*user("k"), *assistant("l"), *user("m n")],
            "chosen": [*assistant("o"), *user("p"), *assistant("q")],
            "rejected": assistant("rst"),
        },
    ],
    "repeated": [
        {"chosen": [*user("ab"), *assistant("cde")], "rejected": [*user("ab"), *assistant("z")]},
        {
            "chosen": [*user("k"), *assistant("l"), *user("m n"), *assistant("o")],
            "rejected": [*user("k"), *assistant("l"), *user("m n"), *assistant("rst")],
        },
    ],
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = "abcdefghijklmnopqrstuvwxyz:Ġ"
    vocab = {c: i for i, c in enumerate(["<pad>", "<eos>", *alphabet])}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = TEMPLATE
    return made


def config(size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        attention_dropout=0.0,
        num_labels=1,
    )


def made(kind, size: int, seed: int):
    model = kind(config(size))
    randomize(model, seed)
    return model


def write_tree(model, path: Path, *, gradients: bool = False) -> None:
    """Weights, or gradients under the same names."""
    if gradients:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    with tempfile.TemporaryDirectory() as scratch:
        save_weights(model, Path(scratch))
        shutil.copyfile(Path(scratch) / "model.safetensors", path)


class Writer:
    """Trainers of TRL on this folder's models, and what they compute."""

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.tokenizer, self.arrays = folder, make_tokenizer(), {}
        rows = {"per_device_train_batch_size": 4, "output_dir": str(scratch)}
        quiet = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
        self.args = rows | quiet | {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "seed": 0}
        self.args["max_length"] = 48

    def policy(self, kind=LlamaForCausalLM, seed: int = 0):
        return made(kind, len(self.tokenizer), seed)

    def loss(self, name: str, trainer, lengths: dict[str, tuple[str, str]]):
        """Writes a batch, its loss and gradients; lengths: {prefix of ours: (their ids, their
        completion mask or labels)}."""
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))

        def backward() -> float:
            loss = trainer.compute_loss(trainer.model, dict(batch))
            loss = loss[0] if isinstance(loss, tuple) else loss
            loss.backward()
            return loss.item()

        start = copy.deepcopy(trainer.model.state_dict())
        loss = backward()
        write_tree(trainer.model, self.folder / f"{name}.safetensors", gradients=True)
        trainer.model.load_state_dict(start)
        found = {"loss": loss, "losses": trained(trainer.model, backward)}
        for prefix, (ids, asked) in lengths.items():
            held = batch[ids.replace("input_ids", "attention_mask")]
            answers = batch[asked] if "mask" in asked else (batch[asked] != -100).long()
            found |= {f"{prefix}ids": batch[ids], f"{prefix}held": held, f"{prefix}asked": answers}
        found |= {"label": batch["label"].long()} if "label" in batch else {}
        self.arrays |= {f"{name}/{key}": np.asarray(x) for key, x in found.items()}
        print(f"{name:20} loss {loss:.6f}", {key: np.shape(x) for key, x in found.items()})

    def dpo(self, name: str, **fields):
        from trl import DPOConfig, DPOTrainer

        args = DPOConfig(**self.args, beta=BETA, **fields)
        trainer = DPOTrainer(
            model=self.policy(),
            ref_model=self.policy(seed=1),
            args=args,
            train_dataset=self.pairs(),
            processing_class=self.tokenizer,
        )
        self.loss(name, trainer, {"": ("input_ids", "completion_mask")})

    def pairs(self, records: dict = PAIRS):
        from datasets import Dataset

        return Dataset.from_dict(records)


def write(folder: Path) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", WANDB_DISABLED="true")
    logging.disable(logging.WARNING)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    with tempfile.TemporaryDirectory() as scratch:
        to = Writer(folder, Path(scratch))
        save_weights(to.policy(), folder)
        write_tree(to.policy(seed=1), folder / "other.safetensors")
        write_tree(to.policy(LlamaForSequenceClassification, 2), folder / "scores.safetensors")
        to.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(TEMPLATE)

        for kind in ("sigmoid", "hinge", "ipo", "sigmoid_norm"):
            to.dpo(f"dpo_{kind}", loss_type=[kind])
        to.dpo("dpo_robust", loss_type=["robust"], label_smoothing=0.1)

        given = {"train_dataset": to.pairs(), "processing_class": to.tokenizer}
        two = {f"{side}_": (f"{side}_input_ids", f"{side}_labels") for side in ("chosen", "rejected")}
        simpo = {"beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}
        args = CPOConfig(**to.args, loss_type="simpo", **simpo)
        to.loss("simpo", CPOTrainer(model=to.policy(), args=args, **given), two)
        # Its sigmoid with no reference is DPO's with label smoothing, where the reference says 0.
        args = CPOConfig(**to.args, loss_type="sigmoid", beta=BETA, cpo_alpha=0.0, label_smoothing=0.2)
        to.loss("smoothed", CPOTrainer(model=to.policy(), args=args, **given), two)
        args = ORPOConfig(**to.args, beta=BETA)
        to.loss("orpo", ORPOTrainer(model=to.policy(), args=args, **given), two)

        args = KTOConfig(**(to.args | {"per_device_train_batch_size": 5}), beta=BETA, undesirable_weight=1.5)
        given = {"train_dataset": Dataset.from_dict(UNPAIRED), "processing_class": to.tokenizer}
        rows = {"": ("input_ids", "completion_mask"), "KL_": ("KL_input_ids", "KL_completion_mask")}
        # The other way round: here the distance from the reference is above its floor.
        trainer = KTOTrainer(model=to.policy(seed=1), ref_model=to.policy(), args=args, **given)
        to.loss("kto", trainer, rows)

        talks = Dataset.from_list(RECORDS["repeated"] + RECORDS["repeated"][::-1])
        for name, weight in (("reward", None), ("reward_centered", 0.3)):
            args = RewardConfig(**to.args, center_rewards_coefficient=weight)
            model = to.policy(LlamaForSequenceClassification, 2)
            given = {"train_dataset": talks, "processing_class": to.tokenizer}
            to.loss(name, RewardTrainer(model=model, args=args, **given), {"": ("input_ids", "attention_mask")})

        tokens = {}
        for form, records in RECORDS.items():
            trainer = DPOTrainer(
                model=to.policy(),
                ref_model=to.policy(seed=1),
                args=DPOConfig(**to.args),
                train_dataset=Dataset.from_list(records),
                processing_class=to.tokenizer,
            )
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            tokens[form] = [{name: row[name] for name in names} for row in trainer.train_dataset]
    (folder / "records.json").write_text(json.dumps({"records": RECORDS, "tokens": tokens}) + "\n")
    np.savez_compressed(folder / "reference.npz", **to.arrays)


PREFERENCE = {"preference": write}
