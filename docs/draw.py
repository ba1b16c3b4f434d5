"""Draws the pictures in docs/images from the code: run `uv run docs/draw.py` after a change.

layers.svg shows the folders of the package in layers, batch.svg the way of a batch, parameter.svg
the way of a parameter, and mesh.svg the mesh axes on the parameters of a Llama. tests/draw_test.py
fails where a picture differs from what this script writes.
"""

import ast
import functools
import re
import textwrap
from html import escape
from pathlib import Path

from bigmodel_jax.core import params, precision, sharding
from bigmodel_jax.data.text import packing
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.pretrained.llama import ROWS

ROOT = Path(__file__).parents[1]
PACKAGE = "bigmodel_jax"
WIDTH, MARGIN, SIZE = 640, 24, 20  # text of 20 units is 12 pixels high on a screen of 390 pixels
INK, GREY, BLUE, PAPER, LINE, FILL = "#1c2333", "#5a6478", "#27508f", "#fdfdfb", "#c9cfda", "#eef2f8"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# One colour for each mesh axis, dark enough for white text.
COLOURS = {"stage": "#8a4fb0", "data": "#5b6b7a", "fsdp": "#1f6fb5", "expert": "#a8560a", "seq": "#2b7d53"}
COLOURS["tensor"] = "#b3304b"
# LAYERS of tests/layers_test.py, read without importing that file.
_TABLE = re.compile(r"^LAYERS = (\{.*?^\})", re.DOTALL | re.MULTILINE)
LAYERS = ast.literal_eval(_TABLE.search((ROOT / "tests" / "layers_test.py").read_text())[1])
IMPORT = re.compile(rf"^[ \t]*((?:from|import) {PACKAGE}[^\n(]*(?:\([^)]*\))?)", re.MULTILINE)


class Picture:
    """An SVG that grows downwards: `y` is where the next element goes."""

    def __init__(self, title: str, about: str):
        self.parts, self.y, self.title = [], 20, title
        self.text(title, size=28, bold=True)
        self.lines(about, colour=GREY)
        self.y += 10

    def text(self, words: str, x: float = MARGIN, *, y: float | None = None, size: int = SIZE, **how) -> None:
        """One line of text; without `y` it goes below the last element."""
        if y is None:
            self.y += size + 6
            y = self.y - 4
        font = MONO if how.get("mono") else FONT
        weight = ' font-weight="600"' if how.get("bold") else ""
        place = f' text-anchor="{how["anchor"]}"' if "anchor" in how else ""
        look = f'font-family="{font}" font-size="{size}" fill="{how.get("colour", INK)}"'
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {look}{weight}{place}>{escape(words)}</text>')

    def lines(self, words: str, x: float = MARGIN, **how) -> None:
        """Text in as many lines as it needs."""
        for line in textwrap.wrap(words, int((WIDTH - MARGIN - x) / (SIZE * 0.55))):
            self.text(line, x, **how)

    def box(self, x: float, y: float, width: float, height: float, *, fill: str = FILL, line: str = LINE) -> None:
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect {place} rx="6" fill="{fill}" stroke="{line}"/>')

    def tag(self, words: str, x: float, y: float, fill: str) -> float:
        """A small coloured box with a word in it. Returns where the next one begins, from x."""
        width = len(words) * 12.4 + 22
        self.box(x, y, width, 34, fill=fill, line=fill)
        self.text(words, x + width / 2, y=y + 24, colour="#ffffff", bold=True, anchor="middle")
        return width + 8

    def frame(self, top: float, start: int) -> None:
        """A box from `top` to here, behind the parts that were drawn since part number `start`."""
        self.box(MARGIN, top, WIDTH - 2 * MARGIN, self.y - top)
        self.parts.insert(start, self.parts.pop())

    def arrow(self, x: float, y: float, end: float) -> None:
        """A vertical arrow from y down to `end`."""
        shape = f"M{x - 1.5:g} {y:g}h3V{end - 10:g}h6.5L{x:g} {end:g}l-8 -10h6.5z"
        self.parts.append(f'<path d="{shape}" fill="{GREY}"/>')

    def svg(self) -> str:
        """The whole picture on a background of its own, for light and dark pages."""
        size = f'width="{WIDTH}" height="{self.y + 24:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {self.y + 24:g}" role="img">'
        head += f'<title>{escape(self.title)}</title><rect {size} rx="12" fill="{PAPER}"/>'
        return "\n".join([head, *self.parts, "</svg>", ""])


@functools.cache
def modules() -> dict[str, Path]:
    """The file of every module, configs and launch.py included."""
    files = [ROOT / "launch.py", *(ROOT / "configs").glob("*.py"), *(ROOT / PACKAGE).rglob("*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in names.items()}


def imports(module: str) -> set[str]:
    """The modules of this repository that a module imports, also inside functions."""
    found = set()
    # Parsing the import statements alone is ten times faster than parsing whole files.
    for statement in IMPORT.findall(modules()[module].read_text()):
        node = ast.parse(statement.strip()).body[0]
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        whole = {prefix + alias.name for alias in node.names}
        found |= {name if name in modules() else prefix[:-1] for name in whole}
    return found & modules().keys()


def named(where: str) -> str:
    """`module.py: name`, for "module:name"; raises ValueError where the code has no such name."""
    module, _, name = where.partition(":")
    path = modules().get(f"{PACKAGE}.{module}")
    if path is None:
        raise ValueError(f"a picture names {module}, which does not exist")
    for part in name.split("."):
        if not re.search(rf"^ *(?:def|class) {part}\b", path.read_text(), re.MULTILINE):
            raise ValueError(f"a picture names {where}, but {module} has no {part}")
    return f"{path.relative_to(ROOT / PACKAGE)}: {name}"


Node = tuple[float, str]  # a layer, and a folder that lies in it whole or in part


def node_of(module: str) -> Node:
    """The layer and the folder of a module; the longest name in LAYERS counts."""
    name = module
    while name not in LAYERS:
        name = name.rpartition(".")[0]
    parts = module.split(".")
    return LAYERS[name], parts[1] if parts[0] == PACKAGE and len(parts) > 1 else parts[0]


def reduced(edges: dict[Node, set[Node]]) -> dict[Node, set[Node]]:
    """The edges without those that other edges imply."""

    @functools.cache
    def below(node: Node) -> frozenset[Node]:
        return frozenset().union(*({n} | below(n) for n in edges.get(node, ())))

    return {a: {b for b in to if not any(b in below(c) for c in to)} for a, to in edges.items()}


def layers() -> str:
    nodes, edges = {}, {}  # the modules of each node, and the nodes that they import
    for module in modules():
        node = node_of(module)
        nodes.setdefault(node, []).append(module)
        edges.setdefault(node, set()).update(n for n in map(node_of, imports(module)) if n[0] < node[0])
    needs = reduced(edges)
    rule = "A module may import from lower layers, and from its own folder in its own layer. "
    p = Picture("Layers of the package", rule + "Each layer lists its imports, without what those import in turn.")
    for number in sorted({n for n, _ in nodes}, reverse=True):
        top, start = p.y, len(p.parts)
        folders = sorted(node for node in nodes if node[0] == number)
        x, y = MARGIN + 12, top + 10
        for chip in (_chip(folder, nodes[layer, folder]) for layer, folder in folders):
            if x + len(chip) * 12.4 + 22 > WIDTH - MARGIN - 12:
                x, y = MARGIN + 12, y + 40
            x += p.tag(chip, x, y, BLUE)
        below = ", ".join(sorted({folder for node in folders for _, folder in needs[node] if folder != PACKAGE}))
        p.y = y + 36
        if below and x + len(below) * 11.5 + 110 < WIDTH - MARGIN:
            p.text(f"imports {below}", x + 4, y=y + 24, colour=GREY)
        elif below:
            p.lines(f"imports {below}", MARGIN + 14, colour=GREY)
        p.y += 8
        p.frame(top, start)
        p.y += 10
    return p.svg()


def _chip(folder: str, found: list[str]) -> str:
    """The name of a folder; for a part of a folder, its module or the number of its modules."""
    if f"{PACKAGE}.{folder}" in found or folder in (PACKAGE, "configs", *found):
        return folder
    return found[0].removeprefix(f"{PACKAGE}.") if len(found) == 1 else f"{folder}: {len(found)} modules"


def flow(title: str, about: str, steps: str) -> str:
    """Boxes one below the other. A step is a line "name: what happens", then a line of names in the
    code."""
    p = Picture(title, about)
    lines = [line for line in steps.splitlines() if line]
    for said, code in zip(lines[::2], lines[1::2], strict=True):
        if said != lines[0]:
            p.arrow(WIDTH / 2, p.y, p.y + 30)
            p.y += 30
        top, start, (name, _, words) = p.y, len(p.parts), said.partition(": ")
        p.y += 8
        p.text(name, MARGIN + 14, size=24, bold=True)
        p.lines(words, MARGIN + 14)
        for where in code.split():
            p.text(named(where), MARGIN + 14, mono=True, colour=BLUE)
        p.y += 12
        p.frame(top, start)
    return p.svg()


def batch() -> str:
    fields, rules = ", ".join(packing.row(1)), sharding.Rules()
    steps = f"""
source: reads documents from files, a data set or a bucket
data.sources.source:Source data.text.documents:usable
tokenize: turns documents into token ids, once, and stores them in the cache
data.text.tokenized:make
pack: lays documents into rows of seq_len tokens
data.text.packing:make_plan
batch: takes shuffled rows, a function of seed and batch number, as arrays: {fields}
data.loader:Sampler data.text.packing:collate
device: shards the rows over the mesh axes {", ".join(rules.batch)}, and the tokens of a row over {rules.seq}
data.loader:Placement
step: computes loss, gradients and the update in one compiled program
training.step:train_step
metrics: come back as sums and counts, are divided once, and go to metrics.jsonl
training.loop:Run.record report.writers:Writers
"""
    return flow("The way of a batch", "From a source of text to a line of metrics, with the code of each step.", steps)


def parameter() -> str:
    path, policy = "layers/attn/q", precision.Policy()
    p = params.paths(LlamaConfig().make().spec)[path]
    where = zip(p.axes, sharding.partition_spec(p.axes, sharding.Rules()), strict=True)
    lies = ", ".join(f"{name} {f'on {axis}' if axis else 'whole'}" for name, axis in where)
    theirs = next(row.theirs for row in ROWS if row.ours == path)
    steps = f"""
spec: declares shape {p.shape} and axes {", ".join(p.axes)}, before any array exists
models.llama:block_spec core.params:Param
init: draws {p.init}; each device makes only its own shards
training.state:init_state core.params:init
sharding: looks the axes up in the rules table: {lies}
core.sharding:partition_spec core.sharding:placed
cast: converts {policy.param} to the compute dtype ({policy.compute} by default), once per step
core.precision:cast
gradient: is summed over microbatches and devices in float32, then divided by the global count
training.step:accumulate
optimizer: clips the gradient, updates the moments and the parameter
optim.config:OptimConfig.make training.step:train_step
checkpoint: stores the leaf params/{path} with a digest, and the moments
checkpoint.store:save
export: writes each layer under its published name, {theirs}
pretrained.transfer:export_weights pretrained.names:to_theirs
"""
    about = f"{path} of a Llama, from its declaration to the exported file, with the code of each step."
    return flow("The way of a parameter", about, steps)


def mesh() -> str:
    rules = sharding.Rules()
    about = "Each dimension has a logical name; the rules table puts it on a mesh axis. The cells show name, size and axis. "
    p = Picture("Six mesh axes on a Llama", about + "Sizes are those of LlamaConfig() (Llama 2 7B).")
    x = MARGIN
    for axis in sharding.AXES:
        x += p.tag(axis, x, p.y + 6, COLOURS[axis])
    p.y += 46
    activations = ("batch", "seq", "embed")
    shared = sharding.partition_spec(activations, rules, strict=False)
    _cells(p, "activations of the model", activations, ("", "", ""), shared)
    alike: dict[tuple, list[str]] = {}
    for path, one in params.paths(LlamaConfig().make().spec).items():
        alike.setdefault((one.axes, one.shape), []).append(path)
    used: set[str] = set()
    for (axes, shape), paths in alike.items():
        used |= _cells(p, ", ".join(paths), axes, tuple(f"{n:,}" for n in shape), sharding.partition_spec(axes, rules))
    unused = ", ".join(axis for axis in sharding.AXES if axis not in used)
    p.lines(f"Axes without a parameter of this model: {unused}. Its batch and sequence use them.", colour=GREY)
    return p.svg()


def _cells(p: Picture, title: str, names: tuple, sizes: tuple, spec) -> set[str]:
    """A row of cells, one for each dimension, in the colour of its mesh axis. Returns the mesh
    axes."""
    p.lines(title, mono=True)
    column, x, tall = (WIDTH - 2 * MARGIN + 8) / 4, MARGIN, 84 if any(sizes) else 58
    for name, size, entry in zip(names, sizes, spec, strict=True):
        axes = sharding.axis_names(entry)
        width = column * (2 if len(axes) > 1 else 1) - 8
        p.box(x, p.y + 2, width, tall, fill=COLOURS[axes[0]] if len(axes) == 1 else "#ffffff")
        colour = "#ffffff" if len(axes) == 1 else INK
        p.text(name, x + width / 2, y=p.y + 24, colour=colour, bold=True, anchor="middle")
        if size:
            p.text(size, x + width / 2, y=p.y + 49, colour=colour, anchor="middle")
        if len(axes) > 1:
            at = x + 4
            for axis in axes:
                wide = (width - 4) * (len(axis) + 1) / sum(len(a) + 1 for a in axes)
                p.box(at, p.y + 30, wide - 4, 26, fill=COLOURS[axis])
                p.text(axis, at + wide / 2 - 2, y=p.y + 50, colour="#ffffff", anchor="middle")
                at += wide
        else:
            p.text(axes[0] if axes else "whole", x + width / 2, y=p.y + tall - 10, colour=colour, anchor="middle")
        x += width + 8
    p.y += tall + 10
    return {axis for entry in spec for axis in sharding.axis_names(entry)}


PICTURES = {"layers": layers, "batch": batch, "parameter": parameter, "mesh": mesh}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "images" / f"{name}.svg").write_text(draw())
