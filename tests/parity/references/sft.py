"""TRL's supervised fine-tuning: what its trainer makes of conversations, its loss and gradients,
and 20 of its steps."""

import json
import os
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from references.weights import randomize, save_gradients, save_weights

STEPS, SEQ_LEN = 20, 48
MARKED = (
    "{% for m in messages %}{{ m['role'][0] + ':' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
TURNS = [("hi", "yo"), ("k", "fin"), ("abcd", "e"), ("what?", "an answer"), ("", "no"), ("more", "ok, more")]


def talks() -> list[dict]:
    """Conversations of one, two and three turns each way."""
    turns = [TURNS[:2], TURNS[2:3], TURNS[3:6], TURNS[5:], TURNS[1:4], TURNS[4:]] * 2
    return [
        {
            "messages": [
                {"role": role, "content": text}
                for pair in talk
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
        }
        for talk in turns
    ]


def pairs() -> list[dict]:
    return [{"prompt": f"{a} ", "completion": b} for a, b in TURNS]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, with a token in front of every text, as Llama's has one."""
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    out = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    out.chat_template = MARKED
    return out


def model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = LlamaForCausalLM(LlamaConfig(**sizes, **tokens, num_key_value_heads=2, max_position_embeddings=64))
    randomize(made)
    return made


def trainer(records: list[dict], scratch: Path, **settings):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = {"max_length": SEQ_LEN, "per_device_train_batch_size": len(records), **settings}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    args = SFTConfig(output_dir=str(scratch), seed=0, **cpu, **quiet, **settings)
    return SFTTrainer(model=model(), args=args, train_dataset=Dataset.from_list(records), processing_class=tokenizer())


def arrays_of(batch: dict) -> dict[str, np.ndarray]:
    return {name: batch[name].numpy() for name in ("input_ids", "labels", "position_ids") if name in batch}


def one_batch(name: str, records: list[dict], folder: Path, **settings) -> dict[str, np.ndarray]:
    made = trainer(records, folder / "scratch", **settings)
    batch = next(iter(made.get_train_dataloader()))
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    save_gradients(made.model, folder)
    (folder / "gradients.safetensors").rename(folder / f"{name}.safetensors")
    return {f"{name}/{k}": x for k, x in arrays_of(batch).items()} | {f"{name}/loss": np.float64(loss.item())}


def training(folder: Path) -> dict[str, np.ndarray]:
    """The batches that the trainer takes and the loss that it finds at each step."""
    constants = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "weight_decay": 0.1, "max_grad_norm": 1.0}
    constants |= {"adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "optim": "adamw_torch"}
    made = trainer(
        talks(),
        folder / "scratch",
        **constants,
        assistant_only_loss=True,
        packing=True,
        max_steps=STEPS,
        per_device_train_batch_size=2,
    )
    seen, losses, compute = [], [], made.compute_loss

    def recorded(net, batch, *rest, **options):
        seen.append(arrays_of(batch))
        loss = compute(net, batch, *rest, **options)
        losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss

    made.compute_loss = recorded
    made.train()
    longest = max(x["input_ids"].shape[1] for x in seen)
    filled = {"input_ids": 0, "labels": -100, "position_ids": 0}
    stacked = {
        name: np.stack([np.pad(x[name][0], (0, longest - x[name].shape[1]), constant_values=fill) for x in seen])
        for name, fill in filled.items()
    }
    return {f"train/{name}": x.astype(np.int16) for name, x in stacked.items()} | {"train/losses": np.array(losses)}


def write(folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"}
    save_weights(model(), folder)
    tokenizer().save_pretrained(folder)
    for name, records in (("talks", talks()), ("pairs", pairs())):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    found = one_batch("assistant", talks(), folder, assistant_only_loss=True)
    found |= one_batch("packed", talks(), folder, assistant_only_loss=True, packing=True)
    found |= one_batch("completion", pairs(), folder)
    np.savez(folder / "reference.npz", **found, **training(folder))
    for path in sorted((folder / "scratch").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "scratch").rmdir()


SFT = {"sft": write}
