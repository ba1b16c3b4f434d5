"""A run's data and code: what counts as a change when the run is continued, what does not, and what
may be accepted."""

import dataclasses
import logging
import os
import shutil
import sys

import pytest

import runs
from bigmodel_jax import config_file
from bigmodel_jax.core import processes
from bigmodel_jax.data import Arrays, CaptionFiles, ImageTextData, JsonlFiles, TokenizerConfig
from bigmodel_jax.data import cache as prepared
from bigmodel_jax.data.sources import remembered
from bigmodel_jax.data.tabular import Tables, TabularData
from bigmodel_jax.training import provenance, run_folder

OWN = """
import dataclasses, sys
sys.path.insert(0, {folder!r})
import own_layers
from bigmodel_jax.models import LlamaConfig

@dataclasses.dataclass(frozen=True)
class Own(LlamaConfig):
    pass
"""


@dataclasses.dataclass
class Place:
    """A config file with its data, and a run that began with them."""

    folder: object
    run_dir: object

    def config(self, **source):
        config = config_file.load(self.folder / "tiny.py")
        files = {"train": f"{self.folder}/*.jsonl", "validation": f"{self.folder}/held.txt"} | source
        return dataclasses.replace(config, data=dataclasses.replace(config.data, source=JsonlFiles(**files)))

    def start(self, config=None, *, resumes=True, accept=()):
        config = config or self.config()
        prepared._digests.clear()  # as in a new process
        record = provenance.check(config, self.run_dir, resumes=resumes, source=self.folder / "tiny.py", accept=accept)
        provenance.write(self.run_dir, record)
        return record

    def refusal(self, config=None) -> str:
        with pytest.raises(ValueError, match="holds a run of other") as error:
            self.start(config)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, run_dir = tmp_path / "here", tmp_path / "run"
    folder.mkdir()
    run_dir.mkdir()
    path = runs.write(folder)
    path.write_text(OWN.format(folder=str(folder)) + path.read_text())
    (folder / "own_layers.py").write_text("WIDTH = 1\n")
    (folder / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "b.jsonl").write_text('{"text": "three"}\n')
    (folder / "held.txt").write_text('{"text": "four"}\n')
    found = Place(folder, run_dir)
    found.start(resumes=False)
    yield found
    for name in [n for n in sys.modules if n == "own_layers" or n.startswith(str(tmp_path))]:
        del sys.modules[name]


def forget(*modules) -> None:
    for name in modules:
        sys.modules.pop(str(name), None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.write_text('{"text": "oNe"}\n{"text": "two"}\n'), "a.jsonl has other content (32 bytes, sha256 "),
        (lambda f: f.write_text(f.read_text() + '{"text": "x"}\n'), "now 46 bytes"),
        (lambda f: (f.parent / "c.jsonl").write_text('{"text": "x"}\n'), "c.jsonl is new"),
        (lambda f: f.unlink(), "a.jsonl is gone"),
    ],
)
def test_edited_appended_added_and_deleted_records_are_named(place, change, said):
    change(place.folder / "a.jsonl")
    refused = place.refusal()
    assert "a run of other data: data.source.train: " in refused
    assert said in refused
    assert "--accept data" in refused


def test_a_validation_file_counts_as_well(place):
    (place.folder / "held.txt").write_text('{"text": "five"}\n')
    assert "data.source.validation: " in place.refusal()


def test_touched_files_are_equal_and_untouched_ones_are_not_read(place, monkeypatch):
    for name in ("a.jsonl", "own_layers.py", "tiny.py"):
        os.utime(place.folder / name, (1, 1))
    place.start()
    config = place.config()  # the record knows the new times by now
    monkeypatch.setattr(prepared.hashlib, "file_digest", lambda *_: pytest.fail("a file was read"))
    place.start(config)
    config.data.source.fingerprint("train", place.folder)


def test_a_new_run_on_known_files_reads_none(place, monkeypatch, tmp_path):
    monkeypatch.setattr(remembered, "LEAST", 0)
    for path in place.folder.iterdir():
        os.utime(path, (1, 1))
    first = place.start(resumes=False)
    monkeypatch.setattr(prepared.hashlib, "file_digest", lambda *_: pytest.fail("a file was read"))
    place.run_dir = tmp_path / "second"
    place.run_dir.mkdir()
    assert place.start(resumes=False)["data"] == first["data"]


def test_a_moved_folder_of_equal_files_is_no_change(place, tmp_path):
    config_file.save(place.config(), place.run_dir / "config.json")
    (place.run_dir / "checkpoints" / "3").mkdir(parents=True)
    shutil.copytree(place.folder, tmp_path / "there")
    moved = place.config(train=str(tmp_path / "there" / "*.jsonl"), validation=str(tmp_path / "there" / "held.txt"))
    run_folder.check(place.run_dir, moved)
    place.start(moved)
    (tmp_path / "there" / "a.jsonl").write_text("{}")
    assert f"{tmp_path}/there/a.jsonl has other content" in place.refusal(moved)


def test_another_path_is_another_run_where_nothing_is_recorded(place):
    config_file.save(place.config(), place.run_dir / "config.json")
    (place.run_dir / "checkpoints" / "3").mkdir(parents=True)
    (place.run_dir / provenance.FILE).unlink()
    with pytest.raises(ValueError, match=r"data\.source\.train was"):
        run_folder.check(place.run_dir, place.config(train="elsewhere.jsonl"))


def test_a_moved_run_is_the_same_run(place, tmp_path):
    place.run_dir = place.run_dir.rename(tmp_path / "moved")
    place.start()


def test_prepared_data_that_is_made_again_is_no_change(place):
    config = config_file.load(place.folder / "tiny.py")
    place.start(config, accept=("data",))
    for _ in range(2):
        config.data.open("train")
        shutil.rmtree(place.folder / "cache")
        prepared._checked.clear()
        place.start(config)


def test_a_tokenizer_and_its_special_tokens_count(place):
    config = place.config()
    path = place.folder / "tok" / "tokenizer.json"
    path.parent.mkdir()
    path.write_text("{}")
    data = dataclasses.replace(config.data, tokenizer=TokenizerConfig(path=str(path)))
    config = dataclasses.replace(config, data=data)
    place.start(config, resumes=False)
    place.start(config)
    path.write_text('{"other": 1}')
    assert "data.tokenizer.path: other content" in place.refusal(config)
    path.write_text("{}")
    place.start(config)
    (path.parent / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    assert "data.tokenizer.path: other content" in place.refusal(config)


def test_pictures_count_by_their_content(place):
    picture, captions = place.folder / "p.png", place.folder / "captions.jsonl"
    picture.write_bytes(b"one")
    captions.write_text('{"image": "p.png", "text": "a picture"}\n')
    source = CaptionFiles(train=str(captions), validation=str(captions))
    config = dataclasses.replace(place.config(), data=ImageTextData(source=source, cache_dir=str(place.folder)))
    place.start(config, resumes=False)
    os.utime(picture, (1, 1))
    place.start(config)
    picture.write_bytes(b"two")
    assert "p.png has other content" in place.refusal(config)


def arrays():
    return {"train": {"text": ["a", *MORE]}, "validation": {"text": ["b"]}}


MORE = []


def test_arrays_count_by_content_and_their_function_by_its_file(place, monkeypatch):
    data = dataclasses.replace(place.config().data, source=Arrays(f"{__name__}:arrays"))
    config = dataclasses.replace(place.config(), data=data)
    record = place.start(config, resumes=False)
    assert record["code"][__name__]["path"] == __file__
    monkeypatch.setattr(sys.modules[__name__], "MORE", ["c"])
    assert "data.source.train: other content" in place.refusal(config)


@pytest.mark.parametrize("name", ["tiny.py", "own_layers.py"])
def test_an_edited_config_file_and_an_edited_neighbour_are_refused_by_name(place, name):
    path = place.folder / name
    before = path.read_text()
    path.write_text(before + "# a comment\n")
    refused = place.refusal()
    assert f"other code: {path} has other content" in refused
    copy = place.run_dir / refused.partition("before: ")[2].partition(")")[0]
    assert copy.read_text() == before, "the copy in the run's folder is what the run has used"


def test_a_record_of_before_files_belonged_to_a_source_is_compared_by_their_content(place, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("x,progression\n" + "".join(f"{i},{i}\n" for i in range(9)))
    config = dataclasses.replace(place.config(), data=TabularData(source=Tables(str(rows))))
    record = place.start(config, resumes=False)
    assert list(record["data"]) == ["data.source.train"]
    provenance.write(place.run_dir, record | {"data": {"data.train": record["data"]["data.source.train"]}})
    assert provenance.compared(place.run_dir, config) == {"data.source.train"}
    place.start(config)
    provenance.write(place.run_dir, record | {"data": {"data.train": record["data"]["data.source.train"]}})
    rows.write_text(rows.read_text() + "9,9\n")
    assert "data.source.train: " in place.refusal(config)


def test_a_model_file_counts_where_the_config_comes_from_config_json(place):
    forget(place.folder / "tiny.py", "own_layers")
    model = place.folder / "tiny.py"
    text = model.read_text().replace("model=LlamaConfig(", "model=Own(")
    model.write_text(text)
    config = config_file.load(model)
    assert type(config.model).__name__ == "Own"
    provenance.write(place.run_dir, provenance.check(config, place.run_dir, resumes=False, source=model))
    model.write_text(text + "\n")
    with pytest.raises(ValueError, match=r"tiny\.py has other content"):
        provenance.check(config, place.run_dir, resumes=True, source=place.run_dir)
    (place.folder / "own_layers.py").write_text("WIDTH = 2\n")
    with pytest.raises(ValueError, match=r"tiny\.py has other content.*own_layers\.py has other content"):
        provenance.check(config, place.run_dir, resumes=True, source=place.run_dir)


def test_installed_packages_and_this_one_are_not_the_users_code(place):
    assert set(place.start()["code"]) == {"tiny.py", "own_layers"}


def test_accepted_changes_are_logged_with_both_digests_and_recorded(place, caplog):
    old = place.start()
    (place.folder / "a.jsonl").write_text('{"text": "other"}\n')
    (place.folder / "own_layers.py").write_text("WIDTH = 2\n")
    for kind in provenance.KINDS:
        with pytest.raises(ValueError, match="a run of other " + ("code" if kind == "data" else "data") + ":"):
            place.start(accept=(kind,))
    caplog.clear()
    new = place.start(accept=("data", "code"))
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    path = str(place.folder / "a.jsonl")
    digests = [record["data"]["data.source.train"]["files"][path][1][:12] for record in (old, new)]
    assert [line.split(":")[1] for line in said] == [" data", " code"]
    assert all(digest in said[0] for digest in digests)
    assert all(record["code"]["own_layers"]["digest"][:12] in said[1] for record in (old, new))
    assert len(list((place.run_dir / "code").glob("own_layers.*.py"))) == 2
    place.start()


def test_a_run_of_before_is_recorded_when_it_is_first_continued(place, caplog):
    caplog.set_level(logging.INFO)
    (place.run_dir / provenance.FILE).unlink()
    (place.folder / "a.jsonl").write_text('{"text": "other"}\n')
    place.start()
    assert "nothing was recorded of them when this run began" in caplog.text
    (place.folder / "a.jsonl").write_text('{"text": "one more"}\n')
    place.refusal()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"data": 1}', '{"data": {"a": {}}, "code": {}}', '{"data": {}, "code": {"a": 3}}']
)
def test_a_damaged_record_is_said_and_made_anew(place, text, caplog):
    (place.run_dir / provenance.FILE).write_text(text)
    place.start()
    assert "provenance.json is damaged" in caplog.text
    place.start()
    assert caplog.text.count("is damaged") == 1


def test_a_run_without_a_save_begins_anew_with_whatever_there_is(place):
    (place.folder / "a.jsonl").write_text('{"text": "mended"}\n')
    place.start(resumes=False)
    place.start()


def test_all_processes_get_the_first_ones_answer(place, monkeypatch):
    monkeypatch.setattr(processes, "first", lambda: False)
    monkeypatch.setattr(processes, "from_first", lambda value: "data.source.train: other")
    with pytest.raises(ValueError, match=r"data\.source\.train: other"):
        place.start()
    monkeypatch.setattr(processes, "from_first", lambda value: "")
    before = (place.run_dir / provenance.FILE).read_bytes()
    (place.folder / "a.jsonl").write_text('{"text": "not looked at"}\n')
    place.start()
    assert (place.run_dir / provenance.FILE).read_bytes() == before


def test_of_many_files_one_digest_is_kept(place, monkeypatch):
    monkeypatch.setattr(provenance, "MOST", 1)
    place.start(resumes=False)
    assert place.start()["data"]["data.source.train"]["files"] == {}
    (place.folder / "b.jsonl").write_text('{"text": "six"}\n')
    assert "data.source.train: other content" in place.refusal()


def test_accept_names_what_it_knows():
    assert provenance.kinds("data,code") == ("data", "code")
    assert provenance.kinds("") == ()
    with pytest.raises(
        ValueError, match=r"--accept date: 'date' is unknown; allowed: data, code \(perhaps you meant 'data'"
    ):
        provenance.kinds("date")
