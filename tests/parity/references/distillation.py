"""TRL's divergences on fixed logits (GKD), and its distillation loss of a student and a teacher on
one fixed batch."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from references.steps import trained
from references.weights import randomize, save_weights

VOCAB, PROMPT, RESPONSE = 48, 5, 6
LENGTHS = (6, 4, 5, 2)
GKD = {"forward": (0.0, 1.0), "jsd": (0.3, 2.0), "even": (0.5, 0.7), "reverse": (1.0, 2.0)}  # beta, temperature
TRAINER = {"forward": (0.0, 1.0), "jsd": (0.5, 1.0), "warm": (0.2, 2.0), "reverse": (1.0, 1.0)}


def decoder(width: int, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    randomize(model)
    return model


def divergences() -> dict[str, np.ndarray]:
    from trl.experimental.gkd import GKDTrainer

    g = torch.Generator().manual_seed(5)
    student, teacher = 2 * torch.randn(2, 4, 7, generator=g), 2 * torch.randn(2, 4, 7, generator=g)
    labels = torch.tensor([[1, 2, 3, -100], [1, -100, 2, 2]])
    out = {"gkd/student": student.numpy(), "gkd/teacher": teacher.numpy(), "gkd/mask": (labels != -100).numpy()}
    for name, (beta, temperature) in GKD.items():
        x = student.clone().requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(x, teacher, labels=labels, beta=beta, temperature=temperature)
        loss.backward()
        out |= {f"gkd/loss/{name}": loss.detach().numpy(), f"gkd/grad/{name}": x.grad.numpy()}
    return out


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(2, VOCAB, (4, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(3))
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(4, PROMPT, dtype=torch.long),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": (torch.arange(RESPONSE) < torch.tensor(LENGTHS)[:, None]).long(),
    }


def backward(trainer) -> torch.Tensor:
    """The loss of the batch, whose gradients are then those of the model."""
    count = torch.tensor(float(sum(LENGTHS)))
    loss = trainer.compute_loss(trainer.model, batch(), num_items_in_batch=count)
    loss.backward()
    return loss.detach()


def measure(name: str, beta: float, temperature: float) -> dict[str, np.ndarray]:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import DistillationConfig, DistillationTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            max_completion_length=RESPONSE,
            beta=beta,
            temperature=temperature,
        )
        trainer = DistillationTrainer(
            model=decoder(16, 0),
            teacher_model=decoder(24, 1),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["w3", "w4", "w5", "w6"]}),
            processing_class=tokenizer,
        )
        trainer.model.train()
        trainer.model.zero_grad()
        loss = backward(trainer)
    grads = {f"grad/{name}/{n}": p.grad.numpy() for n, p in trainer.model.named_parameters()}
    grads = {k: g.copy() for k, g in grads.items()}
    losses = trained(trainer.model, lambda: backward(trainer).item())
    return {f"loss/{name}": loss.numpy(), f"losses/{name}": losses, **grads}


def write(folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "WANDB_DISABLED": "true"}
    out = divergences() | {k: v.numpy() for k, v in batch().items()}
    for name, options in TRAINER.items():
        with contextlib.redirect_stdout(io.StringIO()):
            out |= measure(name, *options)
    save_weights(decoder(16, 0), folder)
    (folder / "teacher").mkdir(exist_ok=True)
    save_weights(decoder(24, 1), folder / "teacher")
    np.savez(folder / "reference.npz", **out)


DISTILLATION = {"distillation": write}
