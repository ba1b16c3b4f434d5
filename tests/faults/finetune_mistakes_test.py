"""A mistake in a run that starts from a model is one line and exit code 2, at the command line;
nothing is written."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from bad_input_test import check_line, digest
from bigmodel_jax import cli

HERE = Path(__file__).parent
PAST = HERE / "past_runs" / "0.1.0"  # a Llama of width 16 over 256 bytes and an end
PEFT = HERE.parent / "pretrained" / "fixtures" / "peft" / "lora"
TEMPLATE = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}{% endfor %}"
NO_ASSISTANT = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
CONFIG = """
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import Arrays, PromptData
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.data.text.preference_data import PreferenceData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.objectives import DPO, Distillation, NextToken, PolicyGradient

def prompts():
    return {{"train": {{"prompt": ["a", "b"]}}, "validation": {{"prompt": ["c"]}}}}

def judge(prompt, response, record):
    return 1.0

def get_config():
    fields = {{"tokenizer_path": "run/tokenizer.json", "seq_len": 32, "cache_dir": "cache"}}
    talks = {{"source": TableFiles("{rows}", "{rows}"), "template_path": "template.jinja"}} | fields
    return Config(
        model=LlamaConfig(
            vocab_size=257, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32,
            max_seq_len=32,
        ),
        train=TrainConfig(steps=2, batch_size=8, init_from="run"),
        {rest}
    )
"""
PARTS = {
    "lora": "objective=NextToken(), data=ChatData(**talks), adapters=Lora(rank=2),",
    "dpo": "objective=DPO(), data=PreferenceData(**talks),",
    "grpo": (
        "objective=PolicyGradient(reward=judge), data=PromptData(source=Arrays(prompts), "
        "tokenizer_path='run/tokenizer.json', max_prompt=4, max_tokens=4, group=4),"
    ),
    "distill": "objective=Distillation(teacher='run'), data=ChatData(**talks),",
}
TALK = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "here"
    folder.mkdir()
    shutil.copytree(PAST / "run", folder / "run")
    for name, rest in PARTS.items():
        rows = "pairs.jsonl" if name == "dpo" else "talks.jsonl"
        (folder / f"{name}.py").write_text(CONFIG.format(rows=rows, rest=rest))
    (folder / "talks.jsonl").write_text(8 * TALK)
    (folder / "pairs.jsonl").write_text(8 * PAIR)
    (folder / "half.jsonl").write_text(PAIR + '{"prompt": "a", "chosen": "b"}\n')
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "no_assistant.jinja").write_text(NO_ASSISTANT)
    return folder


class Case(NamedTuple):
    """args: of the command line; says: what the line must contain."""

    args: str
    says: tuple[str, ...]


CASES = {
    "a pattern that matches no parameter": Case(
        "train lora.py --run_dir new --adapters.targets layer/.*",
        ("adapters.targets = 'layer/.*'", "matches the whole path of no matrix", "layers/attn/q"),
    ),
    "an adapter of another base": Case(
        f"import {PEFT} --base run --run_dir new",
        ("lora_A.weight has shape (4, 32)", "this base needs (4, 16)", "belong to another base"),
    ),
    "a rank larger than the matrix": Case(
        "train lora.py --run_dir new --adapters.rank 64",
        ("adapters.rank = 64", "layers/attn/k, of 16 inputs and 8 outputs", "at most 8"),
    ),
    "pairs without rejected": Case(
        "train dpo.py --run_dir new --data.source.train half.jsonl",
        ("half.jsonl line 2", "rejected", "data.max_bad_records"),
    ),
    "a template without an assistant": Case(
        "train lora.py --run_dir new --data.template_path no_assistant.jinja",
        ("data.template_path = 'no_assistant.jinja'", "it has no assistant"),
    ),
    "a template without an assistant, pairs": Case(
        "train dpo.py --run_dir new --data.template_path no_assistant.jinja",
        ("data.template_path = 'no_assistant.jinja'", "it has no assistant"),
    ),
    "a reward that cannot be imported": Case(
        "train grpo.py --run_dir new --objective.reward grop.py:judge",
        ("objective.reward", "grop.py:judge'", "no such file (perhaps you meant 'grpo.py')"),
    ),
    "a reward that is not there": Case(
        "train grpo.py --run_dir new --objective.reward grpo.py:juge",
        ("objective.reward", "has no function 'juge' (perhaps you meant 'judge')"),
    ),
    "a group that the batch does not divide": Case(
        "train grpo.py --run_dir new --data.group 3", ("data.group = 3", "train.batch_size = 8")
    ),
    "the teacher has another vocabulary": Case(
        "train distill.py --run_dir new --model.vocab_size 300",
        ("objective.teacher = 'run'", "another vocabulary", "257", "model.vocab_size = 300"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_nothing_is_written(name, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    args, says = CASES[name]
    before = digest(folder)
    with pytest.raises(SystemExit) as stop:
        cli.main(args.split())
    check_line(stop.value.code, capsys.readouterr().err, says)
    assert digest(folder) == before
