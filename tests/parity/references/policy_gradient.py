"""TRL's GRPO losses on one fixed batch: each form's loss and gradients, and those of a batch in two
pieces."""

import contextlib
import copy
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
RATE = 5e-4  # so low that some ratios are still within the clip at the last step
LENGTHS = (6, 4, 5, 2)
ADVANTAGES = (-1.0, 1.0, 0.5, -0.5)
# What GRPOConfig is told, by the name of the case; every case has the same batch.
CASES = {
    "grpo": {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    "bnpo": {"loss_type": "bnpo", "beta": 0.04, "use_bias_correction_kl": False},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    "lag": {"loss_type": "dapo", "beta": 0.04},
    "pieces": {"loss_type": "bnpo", "beta": 0.04, "use_bias_correction_kl": False},
}


def tiny() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    randomize(model)
    return model


def batch_of(model) -> dict[str, torch.Tensor]:
    """Old and reference log-probabilities lie around the model's own, so that some ratios are
    clipped and some are not."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCAB, (4, PROMPT + RESPONSE), generator=g)
    mask = (torch.arange(RESPONSE) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        whole = torch.cat([torch.ones(4, PROMPT, dtype=torch.long), mask], dim=1)
        logits = model(input_ids=ids, attention_mask=whole, use_cache=False).logits[:, PROMPT - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]

    def near(spread: float) -> torch.Tensor:
        return own + spread * torch.randn(own.shape, generator=g)

    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(4, PROMPT, dtype=torch.long),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": near(0.3),
        "ref_per_token_logps": near(0.5),
        "sampling_per_token_logps": near(0.4),
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS))),
    }


def trainer(model, folder: str, **options):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.config._name_or_path = folder  # a reference is read from there
    config = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=RESPONSE,
        **({"beta": 0.0} | options),
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["w3", "w4"]}),
        processing_class=tokenizer,
    )


def measure(name: str, start, options: dict, batch: dict) -> dict[str, np.ndarray]:
    model = copy.deepcopy(start)
    with tempfile.TemporaryDirectory() as folder:
        found = trainer(model, folder, **options)
        found.model.train()
        found.model.zero_grad()
        pieces = [slice(0, None, 2), slice(1, None, 2)] if name == "pieces" else [slice(None)]
        found.current_gradient_accumulation_steps = len(pieces)
        batch = dict(batch)
        if name == "lag":
            found.use_vllm = True
            ratio = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).exp()
            batch["importance_sampling_ratio"] = ratio.clamp(max=1.2)
        parts = [{k: v[piece] if v.ndim else v for k, v in batch.items()} for piece in pieces]

        def backward() -> float:
            losses = [found.compute_loss(found.model, dict(part)) for part in parts]
            sum(losses).backward()
            return sum(loss.item() for loss in losses)

        loss = backward()
        grads = {f"grad/{name}/{n}": p.grad.numpy().copy() for n, p in found.model.named_parameters()}
        losses = trained(found.model, backward, RATE)
    return {f"loss/{name}": np.float64(loss), f"losses/{name}": losses, **grads}


def write(folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "WANDB_DISABLED": "true"}
    model = tiny()
    batch = batch_of(model)
    out = {k: v.numpy() for k, v in batch.items()}
    for name, options in CASES.items():
        with contextlib.redirect_stdout(io.StringIO()):
            out |= measure(name, model, options, batch)
    save_weights(model, folder)
    np.savez(folder / "reference.npz", **out)


POLICY_GRADIENT = {"policy_gradient": write}
