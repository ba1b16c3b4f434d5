"""docs/design.md, section 2: the list of files names each module of the package in its room, and
nothing else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bigmodel_jax"
SECTION = re.search(r"## 2\. Rooms and files\n(.*?)\n### Layers", (ROOT / "docs/design.md").read_text(), re.DOTALL)[1]
# Room -> its item without remarks in parentheses; "" is the package's own folder.
ITEMS = {
    room.strip("/") if room.endswith("/") else "": " ".join(re.sub(r"\s*\([^()]*\)", "", text).split())
    for room, text in re.findall(r"^- \*\*(.+?)\*\*(.*?)(?=^- \*\*|\Z)", SECTION, re.DOTALL | re.MULTILINE)
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def parts(room: str) -> dict[str, str]:
    """Subfolder -> its part of the room's item, from "name/" on; "" is the room itself."""
    pieces = re.split(r"(?<!\S)(\w+)/(?!\S*\.)", ITEMS[room])
    return {"": pieces[0]} | dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_each_folder_of_the_package_has_an_item():
    assert {path.parts[0] if len(path.parts) > 1 else "" for path in MODULES} == ITEMS.keys()


@pytest.mark.parametrize("room", ITEMS)
def test_the_item_of_a_room_names_its_files(room):
    found = parts(room)
    files = [path for path in MODULES if room == (path.parts[0] if len(path.parts) > 1 else "")]
    lacking = [str(p) for p in files if not named(p.stem, found.get("/".join(p.parts[1:-1]), ""))]
    assert not lacking


def named(stem: str, text: str) -> bool:
    return re.search(rf"(?<![\w.]){stem}(?![\w]|\.\w)", text) is not None


@pytest.mark.parametrize("room", ITEMS)
def test_what_the_item_names_in_a_list_is_there(room):
    there = {path.stem for path in (PACKAGE / room).rglob("*")}
    listed = {word for text in parts(room).values() for word in re.findall(r"(?<=[,:;] )(\w+)(?=[,.;](?:\s|$))", text)}
    assert listed <= there
