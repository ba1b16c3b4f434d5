"""Imports published weights as a run, and exports a run's weights as a folder for transformers."""

import contextlib
import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import files, params, sharding
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.precision import Float, Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.core.storage import dense
from bigmodel_jax.data import DataConfig, TextData, TokenizerConfig
from bigmodel_jax.data.audio.transcript_data import TranscriptData
from bigmodel_jax.data.tokenizers import special_tokens, tokenizer_files
from bigmodel_jax.data.tokenizers.sentencepiece_model import SentencePieceModel
from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer, num_ids
from bigmodel_jax.models import GemmaConfig, ModelConfig, ResNetConfig, XLNetConfig
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.models.mup import check_published
from bigmodel_jax.objectives import NextToken, Objective
from bigmodel_jax.objectives.reward import RewardModel
from bigmodel_jax.pretrained import FAMILIES, Family, config_json, ctranslate2, folder, labels, reward
from bigmodel_jax.pretrained.family import OtherArchitecture, spec_by_path
from bigmodel_jax.pretrained.gguf import open_gguf
from bigmodel_jax.pretrained.names import Source
from bigmodel_jax.pretrained.packages import PACKAGES, check_readable, fetch, readable
from bigmodel_jax.pretrained.whisper import WHISPER
from bigmodel_jax.training import constants
from bigmodel_jax.training.checks import check_ids
from bigmodel_jax.training.saved import CHAT_TEMPLATE, load_weights, merged

# Training fields. They do not decide whether weights have a published form.
TRAINING = {
    *("dropout", "label_dropout", "text_dropout", "momentum"),
    *("init_std", "init_factor", "depth_scaled_init", "zero_init", "logit_scale_init", "logit_bias_init"),
    *("load_balancing_loss", "router_z_loss", "balance_loss", "mtp_loss", "bias_update_rate"),
}
COMPUTING = {"compute", "capacity_factor", "expert_buffer"}
# Fields on which the weights do not depend and which no config.json states.
NOT_IN_FILES = {ResNetConfig: ("image_shape",), XLNetConfig: ("max_seq_len",)}
COPY_BYTES = 1 << 26  # host memory for copies while the checkpoint is written; one array may need more


class Exported(NamedTuple):
    """What was exported: the published family, and the step of the checkpoint."""

    family: Family
    step: int


class Opened(NamedTuple):
    """Published weights (`source`, unread), their config, and the tokenizer, if any."""

    family: Family
    config: ModelConfig
    source: Source
    tokenizer: Any
    chat_template: str
    special: SpecialTokens


def open_source(path: Path) -> Opened:
    """Opens a folder, .gguf file or known package, and reads no tensors. ValueError for others."""
    if str(path) in PACKAGES and not path.exists():
        path = fetch(check_readable(str(path)))
    if path.suffix == ".gguf" and path.is_file():
        return Opened(*open_gguf(path))
    if not path.is_dir():
        raise ValueError(
            f"import: {str(path)!r} is no Hugging Face folder, no .gguf file"
            f"{nearest(str(path), readable())}, and not the name of a package: {', '.join(readable())}"
        )
    tokenizer = tokenizer_files.from_folder(path)
    if ctranslate2.is_one(path):
        hf, source, special = ctranslate2.open_whisper(path)
        return Opened(WHISPER, WHISPER.from_hf(hf), source, tokenizer, "", special)
    family, config = folder.read_config(path)
    source, special = folder.open_weights(path), special_tokens.read(path)
    return Opened(family, config, source, tokenizer, _chat_template(path), special)


def _chat_template(path: Path) -> str:
    if (path / CHAT_TEMPLATE).is_file():
        return (path / CHAT_TEMPLATE).read_text()
    tables = [path / name for name in ("chat_template.json", "tokenizer_config.json") if (path / name).is_file()]
    found = next(filter(None, (config_json.read_table(table).get("chat_template") for table in tables)), "")
    if isinstance(found, list):  # named templates: conversations use the "default"
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), "")
    return found if isinstance(found, str) else ""


@contextlib.contextmanager
def whole_or_nothing(target: Path, option: str) -> Iterator[Path]:
    """Yields a new folder that becomes `target` at the end, and is deleted on an error."""
    check_local(option, target)
    taken = f"{option} = {str(target)!r} exists and is not empty; give another"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(taken)
    try:
        with files.new_folder(target) as partial:
            yield partial
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process created it meanwhile
            raise ValueError(taken) from error
        raise


def import_weights(
    path: Path,
    run_dir: Path,
    *,
    dtype: Float = "float32",
    parallel: ParallelConfig = ParallelConfig(),
    pad_vocab: int = 1,
) -> Config:
    """Makes `run_dir` a run at step 0 with the weights of `path`, and returns its config.

    pad_vocab: the model field. One parameter at a time is in host memory, and only this process's
    part. Raises a ValueError of one line, and writes nothing, for files that cannot be read.
    """
    found = open_source(path)
    if pad_vocab != 1:
        if not hasattr(found.config, "pad_vocab"):
            raise ValueError(f"--pad_vocab {pad_vocab}: {type(found.config).__name__} has no such field")
        found = found._replace(config=dataclasses.replace(found.config, pad_vocab=pad_vocab))
    if found.tokenizer is not None:
        check_ids(found.config, num_ids(found.tokenizer), f"import: {path}: ")
    with whole_or_nothing(run_dir, "run_dir") as partial:
        config = dataclasses.replace(make_config(found, run_dir), parallel=parallel, precision=Policy(param=dtype))
        validate(dataclasses.replace(config, data=DataConfig()))
        mesh = sharding.make_mesh(parallel)
        spec = found.config.make().spec
        placed = params.paths(sharding.shardings(spec, mesh, parallel.rules))
        tree = params.from_paths(folder.load_params(found.family, found.config, found.source, placed, dtype))
        trained, frozen, fixed = (params.of_kind(tree, spec, kind) for kind in ("trained", "statistic", "constant"))
        constants.keep(partial, config, fixed, {})
        state = {"step": jnp.zeros((), jnp.int32), "params": trained, "frozen": frozen}
        with store.open_store(partial / "checkpoints", CheckpointConfig(), copy_bytes=COPY_BYTES) as saves:
            store.save(saves, 0, state, {"next_batch": 0}, config_file.to_json(config))
        config_file.save(config, partial / "config.json")
        labels.keep(path, partial)
        found.special.write(partial)
        if found.tokenizer is not None:
            found.tokenizer.save(str(partial / "tokenizer.json"))
        if found.chat_template:
            (partial / CHAT_TEMPLATE).write_text(found.chat_template)
    return config


def make_config(found: Opened, run_dir: Path) -> Config:
    """A config with which the imported model can be evaluated, generate and be fine-tuned."""
    if found.tokenizer is None or found.config.make().make_cache is None:
        return Config(model=found.config, objective=Objective(), data=DataConfig())
    tokenizer = TokenizerConfig(path=str(run_dir / "tokenizer.json"))
    if "log_mel" in found.config.inputs():
        heard = TranscriptData(tokenizer=tokenizer, num_mels=found.config.num_mels, seq_len=found.config.max_seq_len)
        return Config(model=found.config, objective=NextToken(), data=heard)
    data = TextData(tokenizer=tokenizer, seq_len=min(1024, found.config.max_seq_len))
    return Config(model=found.config, objective=NextToken(), data=data)


def family_of(config: ModelConfig) -> Family:
    """The family whose config.json expresses exactly this config; ValueError if there is none."""
    reasons = []
    for family in FAMILIES.values():
        if family.config is type(config):
            try:  # one config class may serve several architectures, one for each head
                hf = {"architectures": [family.architecture], **family.to_hf(config)}
                if published(family.from_hf(hf)) == published(config):
                    return family
            except OtherArchitecture:
                continue  # that architecture's reason says nothing about this config
            except ValueError as error:
                reasons.append(str(error))
    if len(reasons) == 1:
        raise ValueError(reasons[0])
    known = sorted({family.config.__name__ for family in FAMILIES.values()})
    raise ValueError(
        f"model: {type(config).__name__} with these fields has no Hugging Face form; known: {', '.join(known)}"
    )


def published(config: Any) -> Any:
    """The config with default values in all fields that do not change its published form."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in TRAINING | COMPUTING or field.name in NOT_IN_FILES.get(type(config), ()):
            changes[field.name] = field.default
        elif dataclasses.is_dataclass(value):
            changes[field.name] = published(value)
    if isinstance(config, GemmaConfig) and (not config.window or config.global_every == 1):
        changes |= {"window": 0, "global_every": 1}  # in both cases every layer is global
    return dataclasses.replace(config, **changes)


class Published(NamedTuple):
    """A run's weights by our paths: adapters merged, dense, of one dtype, without padding rows."""

    family: Family
    config: ModelConfig
    weights: dict[str, Any]
    spec: dict[str, params.Param]
    step: int


def published_weights(
    config: Config, run_dir: Path, *, dtype: Float = "float32", which: str = "", adapter: str = ""
) -> Published:
    """One checkpoint's weights in their family's form; ValueError where there is no such form."""
    check_published(config.mup, config.make_model())
    plain = unpadded(config.model)
    family = family_of(plain)
    mesh = sharding.make_mesh(config.parallel)
    tree, step = load_weights(config, run_dir, mesh, which, adapter=adapter)
    flat, spec = params.paths(merged(config, tree, mesh)), spec_by_path(plain)
    if isinstance(config.objective, RewardModel):
        family = reward.with_head(family)
        own = params.paths(config.objective.parameters(plain))
        spec = own | {path: p for path, p in spec.items() if path != "head/table"}  # reward models score no tokens
    flat = {path: dense(flat[path], dtype)[tuple(map(slice, p.shape))].astype(dtype) for path, p in spec.items()}
    return Published(family, plain, flat, spec, step)


def export_weights(
    config: Config,
    run_dir: Path,
    target: Path,
    *,
    dtype: Float = "float32",
    which: str = "",
    adapter: str = "",
    kind: str = "",
) -> Exported:
    """Writes a run's weights, config.json and tokenizer as a Hugging Face folder.

    which, adapter: as in `load_weights`; kind: as in `folder.save_params`.
    """
    found = published_weights(config, run_dir, dtype=dtype, which=which, adapter=adapter)
    with whole_or_nothing(target, "export") as partial:
        folder.save_params(found.family, found.config, found.weights, partial, found.spec, kind)
        write_about(config, run_dir, partial)
    return Exported(found.family, found.step)


def write_about(config: Config, run_dir: Path, target: Path) -> None:
    """Writes tokenizer and preprocessor files. Adds classes and special ids to config.json."""
    labels.restore(run_dir, target)
    if about := config.data.processor(run_dir):
        (target / "preprocessor_config.json").write_text(json.dumps(about, indent=2) + "\n")
    _write_special(run_dir, target)
    write_tokenizer(run_dir, target)


def _write_special(run_dir: Path, target: Path) -> None:
    """Writes the ids of special tokens to config.json and generation_config.json.

    The ids come from imported files or a trained tokenizer. transformers' defaults may not fit.
    """
    special, path = special_tokens.read(run_dir), target / "config.json"
    hf = json.loads(path.read_text())
    if special:
        hf |= special.model
    elif "_class_name" not in hf and (run_dir / "tokenizer.json").is_file():  # diffusers has no such ids
        own = load_tokenizer(run_dir / "tokenizer.json")
        hf = {"bos_token_id": own.start, "eos_token_id": own.separator, **hf}
    path.write_text(json.dumps(hf, indent=2) + "\n")
    if special.generation:
        generation = special.generation | {name: hf[name] for name in config_json.GENERATION if name in hf}
        (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def write_tokenizer(run_dir: Path, target: Path) -> None:
    """Writes tokenizer.json, and tokenizer_config.json for transformers' AutoTokenizer."""
    if not (run_dir / "tokenizer.json").is_file():
        return
    own = load_tokenizer(run_dir / "tokenizer.json")
    if own.special:
        ids = {f"{kind}_token": own.special.ids(f"{kind}_token_id")[:1] for kind in ("bos", "eos", "pad")}
        found = {name: own.model.id_to_token(i[0]) for name, i in ids.items() if i}
        names = {name: token for name, token in found.items() if token} | own.special.names
    else:
        names = {"eos_token": own.piece(own.separator), "bos_token": own.piece(own.start)}
    # This class reads tokenizer.json as it stands. Other classes rebuild the tokenizer.
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    if isinstance(own.model, SentencePieceModel):
        about |= own.model.export(target)
    else:
        shutil.copyfile(run_dir / "tokenizer.json", target / "tokenizer.json")
    (target / "tokenizer_config.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    if (run_dir / CHAT_TEMPLATE).is_file():
        shutil.copyfile(run_dir / CHAT_TEMPLATE, target / CHAT_TEMPLATE)
