"""/v1/embeddings, /classify and /images: answers that are not text.

Each function checks a request and returns its work as a generator. The engine's thread runs one
part of it between two steps (`Worker.run`).
"""

import base64
import dataclasses
import json
import time
from collections.abc import Generator
from typing import Annotated, Any, Literal

import numpy as np

from bigmodel_jax.config import ImageSampleConfig
from bigmodel_jax.core import ranges
from bigmodel_jax.core.ranges import Count, Range
from bigmodel_jax.core.ranges import Seed as JaxSeed
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.images import image_text
from bigmodel_jax.inference.sample_images import sampling
from bigmodel_jax.pretrained import labels
from bigmodel_jax.serve import passes, pictures
from bigmodel_jax.serve.completions import usage
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.served import Served

MOST_INPUTS = 256
Work = Generator[None, None, dict]
Guidance = Annotated[float, Range("0 or more and at most 1000", 0, 1000)]
Images = Annotated[int, Range("1 or more and at most 16", 1, 16)]
Text = str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Embedding:
    """The body of /v1/embeddings.

    - input: a text, several texts, or their token ids.
    - model: the name of the served model.
    - encoding_format: lists of numbers, or base64 of little-endian float32.
    """

    input: Text = ()
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"


@dataclasses.dataclass(frozen=True)
class Class:
    """The body of /classify. It has `input` or `image`, whichever the model reads.

    - input: one text or several, or rows of numbers.
    - image: the base64 text of an image file, or several.
    - model: the name of the served model.
    """

    input: str | tuple[str, ...] | tuple[tuple[float, ...], ...] = ()
    image: str | tuple[str, ...] = ()
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """The body of /images.

    - prompt: the name or the number of a class, or a text, depending on the model.
    - model: the name of the served model.
    - n: how many images; seed: the seed of the noise; steps: the sampler's steps.
    - guidance: the scale of classifier-free guidance.
    - response_format: PNG files in base64.
    """

    prompt: str = ""
    model: str = ""
    n: Images = 1
    seed: JaxSeed = 0
    steps: Count = 50
    guidance: Guidance = 3.0
    response_format: Literal["b64_json"] = "b64_json"


def embeddings(served: Served, asked: Embedding) -> Work:
    """The work of a checked /v1/embeddings request."""
    name = served.known(asked.model)
    if not served.embeds:
        raise Refused(f"{name} gives no embeddings: its model has neither a head over words nor bare states", "model")
    texts = [_tokens(served, one) for one in _listed(asked.input, "input")]

    def work() -> Work:
        most = served.config.model.max_seq_len
        found = _finite((yield from passes.embed(served.model, served.weights[name], texts, most)))
        data = [{"object": "embedding", "index": n, "embedding": _encoded(row, asked)} for n, row in enumerate(found)]
        tokens = sum(map(len, texts))
        return {"object": "list", "data": data, "model": name, "usage": usage(tokens, 0)}

    return work()


def _finite(found: np.ndarray) -> np.ndarray:
    """Returns the model's output unchanged. Raises Refused where it holds NaN or infinity."""
    # JSON has no NaN or infinity.
    if not np.isfinite(found).all():
        raise Refused("input: the model's output for it is not finite", "input")
    return found


def _encoded(row: np.ndarray, asked: Embedding) -> Any:
    if asked.encoding_format == "base64":
        # "<f4" fixes the byte order, whatever machine serves.
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()


def _listed(given: Any, param: str) -> list:
    """The inputs as a list, from one or several.

    Raises Refused for too many inputs, or for an empty one.
    """
    one = isinstance(given, str) or bool(given and isinstance(given[0], int | float))
    found = [given] if one else list(given)
    if not 1 <= len(found) <= MOST_INPUTS or not all(map(len, found)):
        raise Refused(f"{param} has {len(found)} texts, or an empty one; it must have 1 to {MOST_INPUTS}", param)
    return found


def _tokens(served: Served, text: Any) -> list[int]:
    """The token ids of a text as the model reads it.

    A decoder gets a prompt. An encoder gets the text with its special tokens around it.
    """
    most, vocab = served.config.model.max_seq_len, served.config.model.vocab_size
    if not isinstance(text, str):
        ids = list(text)
    elif served.model.make_cache is not None:
        ids = served.prompt(text)
    else:
        with served.encoder() as tokenizer:
            ids = tokenizer.encode_whole(text, most + 1)
    if len(ids) > most or not all(0 <= i < vocab for i in ids):
        raise Refused(f"input has a text of {len(ids)} tokens; it must have at most {most}, below {vocab}", "input")
    return ids


# ---------------------------------------------------------------- classes


def classes(served: Served, asked: Class) -> Work:
    """The work of a checked /classify request."""
    name = served.known(asked.model)
    reads = tuple(served.config.model.inputs())
    other = "input" if reads == ("image",) else "image"
    if getattr(asked, other):
        raise Refused(f"{other} is given, which {name} does not read; it reads {', '.join(reads)}", other)
    if "label" not in served.config.objective.reads or reads not in (("tokens",), ("image",), ("features",)):
        raise Refused(f"{name} is no classifier of texts, pictures or rows of numbers", "model")
    batch = {"tokens": _of_texts, "image": _of_pictures, "features": _of_numbers}[reads[0]](served, asked)
    names = labels.of_run(served.run_dir)

    def work() -> Work:
        found = _finite((yield from passes.classify(served.model, served.weights[name], batch)))
        data = []
        for index, probs in enumerate(found):
            best = int(probs.argmax())
            label = str(names[best]) if best < len(names) else str(best)
            data.append({"index": index, "label": label, "class": best, "probs": probs.tolist()})
        return {"object": "list", "data": data, "labels": list(names), "model": name}

    return work()


def _of_texts(served: Served, asked: Class) -> dict[str, np.ndarray]:
    texts = _listed(asked.input, "input")
    if not all(isinstance(text, str) for text in texts):
        raise Refused("input is no text, which this model reads", "input")
    return passes.rows_of([_tokens(served, text) for text in texts], served.config.model.max_seq_len)


def _of_pictures(served: Served, asked: Class) -> dict[str, np.ndarray]:
    shape, data = tuple(served.config.model.inputs()["image"]), served.config.data.of_run(served.run_dir)
    return {"image": pictures.read(data, _listed(asked.image, "image"), shape)}


def _of_numbers(served: Served, asked: Class) -> dict[str, np.ndarray]:
    """Rows of numbers, standardised with the mean and scale from training if the run's folder has
    them.
    """
    (num,), rows = served.config.model.inputs()["features"], _listed(asked.input, "input")
    if not all(len(row) == num and not isinstance(row, str) for row in rows):
        raise Refused(
            f"input has rows of {sorted({len(row) for row in rows})[:4]} numbers; the model reads {num}", "input"
        )
    path = served.run_dir / "scaling.json"
    found = json.loads(path.read_text()).get("features", {}) if path.is_file() else {}
    with np.errstate(over="ignore"):
        values = np.array(rows, np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise Refused("input has a number that float32 does not hold", "input")
    values = values - np.float32(found.get("mean", 0.0))
    return {"features": values / np.float32(found.get("scale", 1.0))}


# ---------------------------------------------------------------- pictures


def images(served: Served, asked: Picture) -> Work:
    """The work of a checked /images request. The noise is drawn from the request's seed."""
    name, objective = served.known(asked.model), served.config.objective
    if "images" not in objective.endings:
        raise Refused(f"{name} draws no pictures", "model")
    if asked.steps > objective.num_steps:
        raise Refused(f"steps = {asked.steps}; it must be at most {objective.num_steps}", "steps")
    conditions = _conditions(served, asked)
    how = ImageSampleConfig(asked.n, asked.steps, asked.guidance)
    ranges.check(how)
    shape = (asked.n, *served.config.model.image_shape)
    noise = np.random.default_rng(asked.seed).standard_normal(shape, np.float32)

    def work() -> Work:
        drawn = yield from sampling(served.model, served.weights[name], objective, conditions, noise, how)
        return {"created": int(time.time()), "data": [{"b64_json": file} for file in pictures.written(drawn)]}

    return work()


def _conditions(served: Served, asked: Picture) -> dict[str, np.ndarray]:
    """The batch that tells the model what to draw: `n` times the class or the prompt's tokens."""
    inputs = served.config.model.inputs()
    if "label" in inputs:
        names, num = labels.of_run(served.run_dir), served.config.model.num_classes
        known = dict(zip(names, range(num), strict=False)) | {str(n): n for n in range(num)}
        if asked.prompt not in known:
            allowed = ", ".join(map(str, names[:10])) or f"0 .. {num - 1}"
            raise Refused(f"prompt is no class; allowed: {allowed}{nearest(asked.prompt[:60], known)}", "prompt")
        return {"label": np.full(asked.n, known[asked.prompt], np.int32)}
    if "tokens" not in inputs or not asked.prompt:
        raise Refused("prompt is empty, or the model is told by something else than a text", "prompt")
    most = served.config.data.seq_len
    with served.encoder() as tokenizer:
        num, ids = len(tokenizer.encode(asked.prompt)), image_text.encode(tokenizer, [asked.prompt], most)
    if num >= most:  # `encode` truncates, because captions in a training set do not stop a run
        raise Refused(f"prompt has {num} tokens; it must have at most {most - 1}", "prompt")
    ids = np.repeat(ids, asked.n, axis=0)
    return {"tokens": np.maximum(ids, 0), "segment_ids": (ids >= 0).astype(np.int32)}
