"""StableHLO: what a process that has jax alone computes from an exported folder is what the model
computes."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

import saved_runs
from bigmodel_jax import cli
from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import DataConfig, ImageAnswerData
from bigmodel_jax.data.audio.speech import SpeechData
from bigmodel_jax.data.audio.transcript_data import TranscriptData
from bigmodel_jax.export import programs
from bigmodel_jax.export.programs import BESIDE, Sizes
from bigmodel_jax.export.subject import Subject
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import MODELS
from bigmodel_jax.models.bert import BertConfig

NAMED = {"bert_classifier": dataclasses.replace(BertConfig.tiny(), head="classification", num_classes=3)}
FIRST = ("mlp", "llama")
# The lengths of its relative positions are numpy's.
CLOSED = {"xlnet": ["--batch", "3", "--length", "7"]}
# The shapes of spectrograms and of pictures beside texts are the data's; smolvlm reads three
# pictures a row.
DATA = {
    "llava": ImageAnswerData(image_size=8, image_tokens=4),
    "paligemma": ImageAnswerData(image_size=8, image_tokens=4),
    "idefics3": ImageAnswerData(image_size=16, image_tokens=4),
    "smolvlm": ImageAnswerData(image_size=16, image_tokens=4, tiles=2),
    "conformer": SpeechData(num_mels=16, max_seconds=0.4, subsampling=4),
    "whisper": TranscriptData(num_mels=8, max_seconds=0.32),
}
PICTURED = ("llava", "paligemma", "idefics3", "smolvlm")
GENERATE = ("llama", "gemma2", "mixtral", "deepseek", "rnn", "t5", "transformer", "bart")


def model_of(name):
    return NAMED.get(name) or MODELS[name].tiny()


def batch_of(signature: dict, rng) -> dict[str, np.ndarray]:
    """Random inputs of 3 rows and 7 tokens, of which the last row has 5."""
    sizes, out = {"b": 3, "t": 7, "e": 6}, {}
    for name, text in signature["programs"]["forward"]["arguments"]["batch"].items():
        dtype, shape = text.rstrip("]").split("[")
        shape = [sizes[n] if n in sizes else int(n) for n in shape.split(",")]
        if name in BESIDE and name != "token_types":
            out[name] = np.ones(shape, np.int32)
            out[name][2, 5:] = 0
        elif name == "token_types":
            out[name] = np.zeros(shape, np.int32)
        else:
            out[name] = rng.integers(0, 10, shape).astype(dtype) if dtype == "int32" else rng.normal(size=shape)
            out[name] = out[name].astype(dtype)
    return out


def compare(names, tmp_path):
    """Exports every model, calls them in one bare process, and compares with the models' own
    outputs."""
    commands, expected = [], {}
    for name in names:
        config = saved_runs.save_run(model_of(name), tmp_path / name, data=DATA.get(name, DataConfig()))
        out = tmp_path / f"{name}_out"
        cli.main(["export", str(tmp_path / name), str(out), "--format", "stablehlo", *CLOSED.get(name, [])])
        batch = batch_of(json.loads((out / "signature.json").read_text()), np.random.default_rng(1))
        if name in PICTURED:  # half of the picture's states take the places of tokens
            batch["tokens"][:, 1:3] = config.model.image_token_id
        np.savez(out / "in.npz", **batch)
        model = config.make_model()
        value = jax.jit(lambda p, b, model=model: model.apply(p, b).value)(
            saved_runs.drawn(model.spec), {key: jnp.asarray(x) for key, x in batch.items()}
        )
        expected[name] = (batch, value)
        commands.append([out / "use.py", "--inputs", out / "in.npz", "--outputs", out / "out.npz"])
    saved_runs.run_alone(saved_runs.bare_python(tmp_path / "packages"), *commands)
    for name, (batch, value) in expected.items():
        found = dict(np.load(tmp_path / f"{name}_out" / "out.npz"))
        wanted = programs.named(value, "output")
        assert set(found) == set(wanted)
        for key, x in wanted.items():
            x, got = np.asarray(x, np.float32), found[key]
            real = batch["segment_ids"][:, : x.shape[1]] > 0 if "segment_ids" in batch and x.ndim == 3 else ...
            np.testing.assert_allclose(got[real], x[real], atol=1e-5 * max(1, np.abs(x[real]).max()), err_msg=name)


@pytest.mark.slow
def test_a_process_with_jax_alone_computes_the_models_outputs(tmp_path, capsys):
    compare(FIRST, tmp_path)
    assert "for cpu, cuda, tpu, float32" in capsys.readouterr().out
    card = (tmp_path / "llama_out" / "README.md").read_text()
    assert [said for said in ("LlamaConfig", "step 0", "| weights.safetensors |") if said not in card] == []


# Slow: each kind of inputs and outputs once.
SLOW = ("bert_classifier", "t5", "xlnet", "clip", "dit", "autoencoder")
# Their exports take long, because their programs are large.
LONG = ("segformer", "unet", "conformer", "whisper", "detr", "mmdit_text")


@pytest.mark.slow
def test_so_does_a_model_of_each_kind(tmp_path):
    compare(SLOW, tmp_path)


@pytest.mark.exhaustive
def test_so_does_every_model(tmp_path):
    compare([name for name in (*MODELS, *NAMED) if name not in (*FIRST, *LONG, *SLOW)], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LONG)
def test_so_does_a_model_of_a_large_program(name, tmp_path):
    compare([name], tmp_path)


def follow(config, prompts, tokens):
    model = config.make_model()
    sample = SampleConfig(max_tokens=tokens, temperature=0.0)
    return generate(model, saved_runs.drawn(model.spec), prompts, sample, stop=())


@pytest.mark.few("deepseek")
@pytest.mark.slow
@pytest.mark.parametrize("name", few(GENERATE, "deepseek", "t5", "rnn"))
def test_prefill_and_decode_write_what_the_engine_writes(name, tmp_path):
    config = saved_runs.save_run(model_of(name), tmp_path / "run")
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "stablehlo"])
    packages = saved_runs.bare_python(tmp_path / "packages")
    prompts = [[5, 17, 3, 9, 11], [7]]
    commands = [
        [tmp_path / "out" / "use.py", "--prompt", ",".join(map(str, prompt)), "--tokens", "9"] for prompt in prompts
    ]
    out = saved_runs.run_alone(packages, *commands)
    found = [[int(n) for n in line.split(",")] for line in out.splitlines()]
    assert found == follow(config, prompts, 9)


def by_forward(config, prompt, tokens, beside):
    """Greedy tokens without a cache: each one from a forward pass over the whole text."""
    model, ids = config.make_model(), list(prompt)
    weights, length = saved_runs.drawn(model.spec), len(prompt) + tokens
    apply = jax.jit(lambda batch: model.apply(weights, batch).value[0])
    for num in range(len(prompt), length):  # one length, so one program: a decoder sees nothing after a token
        row = np.array([[*ids, *[0] * (length - num)]], np.int32)
        prefix = {"prefix": np.array([[1] * len(prompt) + [0] * tokens], np.int32)}
        ids.append(int(apply({"tokens": row} | prefix | beside)[num - 1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("name", few(("whisper", "llava", "paligemma"), "llava"))
def test_a_prompt_is_read_with_the_picture_or_recording_beside_it(name, tmp_path):
    config = saved_runs.save_run(model_of(name), tmp_path / "run", data=DATA[name])
    out = tmp_path / "out"
    cli.main(["export", str(tmp_path / "run"), str(out), "--format", "stablehlo"])
    beside = {
        key: np.random.default_rng(2).normal(size=(1, *DATA[name].row()[key].shape)).astype(np.float32)
        for key in config.model.inputs()
        if key in ("image", "log_mel")
    }
    np.savez(out / "in.npz", **beside)
    prompt = [1, 63, 63, 9] if name in PICTURED else [1, 17, 9]
    asked = [out / "use.py", "--prompt", ",".join(map(str, prompt)), "--tokens", "6", "--inputs", out / "in.npz"]
    said = saved_runs.run_alone(saved_runs.bare_python(tmp_path / "packages"), asked)
    assert [int(n) for n in said.split(",")] == by_forward(config, prompt, 6, beside)


@pytest.mark.parametrize(("name", "beside"), [("llava", "image"), ("whisper", "log_mel"), ("t5", ""), ("llama", "")])
def test_prefill_takes_what_a_model_reads_beside_texts(name, beside):
    model = model_of(name).make()
    subject = Subject(model_of(name), model, programs.abstract(params.paths(model.spec)), 0)
    batch = programs.prefill(subject, Sizes(2, 5, 6, 12), DATA.get(name, DataConfig()).row()).arguments["batch"]
    tokens = {"encoder_tokens", "encoder_segment_ids"} if name == "t5" else {"tokens", "positions", "segment_ids"}
    assert set(batch) == tokens | ({beside} if beside else set())


@pytest.mark.slow
def test_weights_are_inputs_and_no_constants(tmp_path):
    saved_runs.save_run(model_of("llama"), tmp_path / "run")
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "stablehlo", "--dtype", "bfloat16"])
    spec = params.paths(model_of("llama").make().spec)
    about = json.loads((tmp_path / "out" / "signature.json").read_text())["programs"]
    for program in about.values():
        weights = program["arguments"]["weights"]
        assert weights == {path: f"bfloat16[{','.join(map(str, p.shape))}]" for path, p in spec.items()}
        assert program["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["decode"]["arguments"]["cache"] == about["decode"]["results"]["cache"]
    assert about["prefill"]["arguments"]["batch"]["tokens"] == "int32[b,t]"
    size = sum(p.size for p in spec.values())
    assert size * 2 < (tmp_path / "out" / "weights.safetensors").stat().st_size < size * 2 + 10_000
    assert (tmp_path / "out" / "forward.stablehlo").stat().st_size < 60_000


@pytest.mark.slow
def test_a_model_without_open_sizes_is_one_line_with_the_operation(tmp_path, capsys):
    saved_runs.save_run(model_of("xlnet"), tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "stablehlo"])
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert re.search(
        r"the program forward of XLNetConfig .* at `angle = np.arange.*` \(xlnet.py:\d+\): .*--length N", said
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
