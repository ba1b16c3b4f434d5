"""Explains the output of a run's model for one input of the user's."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.explain import arrays, texts
from bigmodel_jax.explain.explained import Explained
from bigmodel_jax.explain.subject import Subject
from bigmodel_jax.pretrained import labels
from bigmodel_jax.training import checks, saved

MOST_TOKENS = 128  # the page shows layers x tokens, and patching runs the model once for each of these


@dataclasses.dataclass(frozen=True)
class Asked:
    """The user's request. Exactly one of text, image and row is given.

    - image: a file; row: a row of the validation split
    - against: a second text, for activation patching
    - target: the token or class to explain; "" = the likeliest
    - step, adapter: as in `saved.load_weights`
    """

    text: str | None = None
    against: str | None = None
    image: str = ""
    row: int | None = None
    target: str = ""
    step: str = ""
    adapter: str = ""


def explain_run(config: Config, run_dir: Path, asked: Asked, say: Callable[[str], None] = lambda _: None) -> Explained:
    """The explanation. `say` gets what is being done, as text.

    Raises ValueError, one line, before weights are read, if it is impossible.
    """
    reads = _check(config, asked)
    prepare = _of_text if reads == "tokens" else functools.partial(_of_array, reads)
    compute = prepare(config, run_dir, asked)
    say("Reading the weights")
    # One input gives nothing to shard.
    config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    weights, step = saved.load_weights(config, run_dir, mesh, asked.step, adapter=asked.adapter)
    kind = type(config.model).__name__.removesuffix("Config")
    # Attributions are differences, which bfloat16 would drown in rounding.
    return dataclasses.replace(compute(cast(weights, "float32"), say), kind=kind, step=step)


def _check(config: Config, asked: Asked) -> str:
    """The name of the batch array to explain. Raises ValueError if options and model do not fit."""
    given = {"--text": asked.text is not None, "--image": bool(asked.image), "--row": asked.row is not None}
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) != 1:
        raise ValueError(f"explain: {' and '.join(chosen) or 'nothing'} is given; give one of {', '.join(given)}")
    reads, kind = tuple(config.model.inputs()), type(config.model).__name__
    if len(reads) != 1 or reads[0] not in ("tokens", "image", "features"):
        raise ValueError(f"explain: {kind} reads {', '.join(reads) or 'what it does not say'}; give a model "
                         "of one text, one picture or one row of numbers")  # fmt: skip
    takes = {"tokens": ("--text",), "image": ("--image", "--row"), "features": ("--row",)}[reads[0]]
    if chosen[0] not in takes:
        raise ValueError(f"explain: {chosen[0]} is given, but {kind} reads {reads[0]}; give {' or '.join(takes)}")
    if asked.against is not None and reads[0] != "tokens":
        raise ValueError("explain: --against needs --text: activations are patched between two texts")
    return reads[0]


# ---------------------------------------------------------------- texts


def _of_text(config: Config, run_dir: Path, asked: Asked) -> Callable[..., Explained]:
    model, kind = config.make_model(), type(config.model).__name__
    if model.parts is None:
        raise ValueError(f"explain: {kind} has no taps: it is not given as one stack of layers (models/base.py, Parts)")
    tokenizer = saved.open_tokenizer(config, run_dir)
    if tokenizer is None:
        raise ValueError(f"explain: {type(config.data).__name__} has no tokenizer that reads --text")
    checks.check_ids(config.model, tokenizer.vocab_size, "explain: ")
    next_token = model.make_cache is not None
    encode = functools.partial(_tokens, config, tokenizer, next_token)
    ids = encode("--text", asked.text)
    other = None if asked.against is None else encode("--against", asked.against)
    special = {number: text for text, number in tokenizer.control.items()}
    pieces = [tuple(special.get(i) or tokenizer.piece(i) for i in found or ()) for found in (ids, other)]
    if other is not None and len(other) != len(ids):
        raise ValueError(f"explain: --text has {len(ids)} tokens ({'|'.join(pieces[0])}) and --against {len(other)} "
                         f"({'|'.join(pieces[1])}); both must have the same number")  # fmt: skip
    _check_answer(config, model, len(ids), next_token)
    # A decoder's answers are tokens, and a classifier's are labels.
    names = () if next_token else labels.of_run(run_dir)
    name = tokenizer.piece if next_token else functools.partial(_name, names)
    target = _token(tokenizer, asked.target) if next_token else _class(config, names, asked.target)
    empty, baseline = _baseline(tokenizer, ids, next_token)

    def compute(weights: Any, say: Callable[[str], None]) -> Explained:
        subject = Subject(model, weights, _row(ids), next_token, name, say)
        against = other and (jnp.asarray([other]), pieces[1])
        given = {"baseline_name": empty, "target": target, "against": against}
        return Explained(
            texts.explain(subject, pieces[0], jnp.asarray([baseline]), **given), asked.text, asked.against or ""
        )

    return compute


def _row(ids: list[int]) -> dict[str, jax.Array]:
    return {"tokens": jnp.asarray([ids]), "segment_ids": jnp.ones((1, len(ids)), jnp.int32)}


def _tokens(config: Config, tokenizer: Tokenizer, next_token: bool, option: str, text: str) -> list[int]:
    if not text.strip():
        raise ValueError(f"explain: {option} = {text!r}: it is empty; give at least one word")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"explain: {option} = {text[:40]!r} is not UTF-8 text")
    most = min(MOST_TOKENS, config.model.max_seq_len)
    # One token more than is allowed shows that the text is too long.
    ids = [tokenizer.start, *tokenizer.encode(text)] if next_token else tokenizer.encode_whole(text, most + 1)
    if len(ids) > most:
        raise ValueError(f"explain: {option} has more than {most} tokens; give a shorter text")
    return ids


def _check_answer(config: Config, model: Any, length: int, next_token: bool) -> None:
    """Raises ValueError if the output is not logits, either of the next token or of classes."""
    value = _output(model, _row([0] * length))
    if not hasattr(value, "shape") or len(value.shape) != (3 if next_token else 2):
        raise ValueError(f"explain: {type(config.model).__name__} answers --text with neither a next token nor a class; "
                         "give a decoder or a classifier of texts")  # fmt: skip


def _output(model: Any, batch: dict[str, Any]) -> Any:
    """The model's output as shapes."""
    return jax.eval_shape(lambda tree: model.apply(tree, batch).value, params.abstract(model.spec))


def _baseline(tokenizer: Tokenizer, ids: list[int], next_token: bool) -> tuple[str, list[int]]:
    """(name, tokens) of the empty text. Tokens that the tokenizer adds around a text stay."""
    control = set(tokenizer.control.values())
    if next_token:
        return tokenizer.piece(tokenizer.separator), [tokenizer.start] + [tokenizer.separator] * (len(ids) - 1)
    known = [
        (name, tokenizer.control[name]) for name in ("[MASK]", "<mask>", "[PAD]", "<pad>") if name in tokenizer.control
    ]
    name, empty = known[0] if known else (tokenizer.piece(tokenizer.separator), tokenizer.separator)
    return name, [i if i in control else empty for i in ids]


def _token(tokenizer: Tokenizer, target: str) -> int | None:
    if not target:
        return None
    ids = tokenizer.encode(target)
    if len(ids) != 1:
        pieces = "|".join(tokenizer.piece(i) for i in ids)
        raise ValueError(
            f"explain: --target = {target!r} is {len(ids)} tokens ({pieces}); give one, with its space in front"
        )
    return ids[0]


# ---------------------------------------------------------------- classes


def _name(names: tuple[str, ...], number: int) -> str:
    return str(names[number]) if number < len(names) else str(number)


def _class(config: Config, names: tuple[str, ...], target: str, num: int = 0) -> int | None:
    if not target:
        return None
    num = num or getattr(config.model, "num_classes", 0)
    if target in names:
        return names.index(target)
    if target.isdecimal() and int(target) < num:
        return int(target)
    allowed = ", ".join(names[:10]) or f"0 .. {num - 1}"
    raise ValueError(f"explain: --target = {target!r} is no class; allowed: {allowed}{nearest(target, names)}")


# ---------------------------------------------------------------- pictures and rows of numbers


def _of_array(key: str, config: Config, run_dir: Path, asked: Asked) -> Callable[..., Explained]:
    data, shape = config.data.of_run(run_dir), tuple(config.model.inputs()[key] or ())
    model, names = config.make_model(), labels.of_run(run_dir)
    values, label = (_file(data, asked.image, shape), None) if asked.image else _validation(data, key, asked.row)
    if values.shape != shape:
        raise ValueError(f"explain: the input has shape {values.shape}, but the model reads {key} of shape {shape}")
    outputs = getattr(_output(model, {key: values[None]}), "shape", ())
    if len(outputs) != 2:
        raise ValueError(f"explain: {type(config.model).__name__} answers with neither classes nor numbers")
    columns, classes, picture = _columns(run_dir, key, outputs[1]), "label" in config.objective.reads, len(shape) == 3
    names = names if classes else columns.targets
    target = _class(config, names, asked.target, outputs[1])
    baseline = data.blank(shape) if picture else np.zeros(shape, np.float32)
    title = Path(asked.image).name if asked.image else f"Row {asked.row:,} of the validation split"
    size = getattr(config.model, "patch_size", 0)
    patches = (shape[0] // size, shape[1] // size) if picture and size else None

    def compute(weights: Any, say: Callable[[str], None]) -> Explained:
        name = functools.partial(_name, names)
        subject = Subject(model, weights, {key: jnp.asarray(values[None])}, False, name, say)
        found = arrays.explain(subject, key, baseline, target=target, classes=classes, patches=patches)
        shown = data.shown(values[None])[0] if picture else values.ravel() * columns.scale + columns.mean
        truth = "" if label is None else _name(names, int(label))
        number = found.answer.target
        own = {} if classes else {"unit": columns.target_scale[number], "mean": columns.target_mean[number]}
        return Explained(found, title, names=columns.names, shown=shown, truth=truth, **own)

    return compute


def _file(data: Any, image: str, shape: tuple[int, ...]) -> np.ndarray:
    path = Path(image).expanduser()
    if not path.is_file():
        raise ValueError(f"explain: --image = {image!r}: no such file")
    try:
        found = data.picture(path, shape) if len(shape) == 3 else None
    except ValueError as error:
        raise ValueError(f"explain: --image = {image!r}: {error}") from None
    if found is None:
        raise ValueError(f"explain: --image = {image!r}: {type(data).__name__} reads no pictures; give --row")
    return found


def _validation(data: Any, key: str, row: int) -> tuple[np.ndarray, Any]:
    rows = data.open("validation")
    if not 0 <= row < len(rows):
        raise ValueError(f"explain: --row = {row}; the validation split has the rows 0 .. {len(rows) - 1}")
    batch = rows.batch(np.array([row]), None)
    return np.asarray(batch[key][0], np.float32), batch["label"][0] if "label" in batch else None


class Columns(NamedTuple):
    """The names of a table's columns and targets, and their means and scales in their own units."""

    names: tuple[str, ...]
    targets: tuple[str, ...]
    mean: Any
    scale: Any
    target_mean: Any
    target_scale: Any


def _columns(run_dir: Path, key: str, outputs: int) -> Columns:
    """The columns as the run's folder describes them; key: the array that holds them."""
    path = run_dir / "scaling.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    own, target = found.get(key, {}), found.get("target", {})
    names = (tuple(part.get("names", ())) for part in (own, target))
    of_targets = target.get("mean", [0.0] * outputs), target.get("scale", [1.0] * outputs)
    return Columns(*names, own.get("mean", 0.0), own.get("scale", 1.0), *of_targets)
