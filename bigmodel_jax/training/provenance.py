"""Provenance: records a run's data and the user's code, and compares them when the run resumes.

provenance.json holds a digest of every file that the data is made from, and of the user's Python
files: the config file, the files of its classes, and imported files below their folders. code/
holds a copy of each of these Python files. A difference ends the start with one line, unless
`--accept` names its kind.

A file whose path, size and modification time are as recorded is not read again. Code is compared
byte by byte, so a new comment is a change. A file that was only moved or touched counts as
unchanged.
"""

import functools
import hashlib
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_jax.config import Config
from bigmodel_jax.core import files, paths, processes, user_code
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache
from bigmodel_jax.data.sources import remembered

FILE = "provenance.json"
KINDS = ("data", "code")
ENTRIES = {"data": {"digest"}, "code": {"path", "bytes", "digest", "copy"}}  # the keys that each entry must have
MOST = 1000  # most files of a field whose digests are stored one by one; more files share one digest
INSTALLED = [Path(__file__).parents[1], *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib"))]

log = logging.getLogger("bigmodel_jax")


def kinds(text: str) -> tuple[str, ...]:
    """Parses the value of `--accept`: "data", "code" or "data,code". Raises ValueError
    for others.
    """
    found = tuple(filter(None, text.split(",")))
    if wrong := [kind for kind in found if kind not in KINDS]:
        raise ValueError(f"--accept {text}: {wrong[0]!r} is unknown; allowed: data, code{nearest(wrong[0], KINDS)}")
    return found


def check(
    config: Config, run_dir: Path, *, resumes: bool, source: Path | None = None, accept: Sequence[str] = ()
) -> dict:
    """Makes the record that `write` writes. For a resumed run, compares it with the stored one.

    Raises a one-line ValueError that names the change, the same in all processes. If `accept` has
    the kind of the change, the change is logged instead. `source` is the file that the config was
    read from, if known.
    """
    record, wrong = {}, ""
    if processes.first():
        try:
            before = _named_as_now(read(run_dir), config) if resumes else {}
            record = _record(config, source, before)
            wrong = _judge(run_dir, before, record, accept) if resumes else ""
        except (ValueError, OSError) as error:
            wrong = str(error)
    if wrong := processes.from_first(wrong):
        raise ValueError(wrong)
    return record


def write(run_dir: Path, record: dict) -> None:
    """Writes the record and the copies of code. Only process 0 does."""
    if not processes.first():
        return
    for entry in record["code"].values():
        # The name of a copy has its digest, so a copy that is there has the right content.
        copy = run_dir / entry["copy"]
        content = Path(entry["path"]).read_bytes() if not copy.exists() else b""
        if hashlib.sha256(content).hexdigest() == entry["digest"]:  # the user may have edited the file since
            copy.parent.mkdir(exist_ok=True)
            files.replace(copy, content)
    files.replace(run_dir / FILE, json.dumps(record, indent=1) + "\n")


def read(run_dir: Path) -> dict:
    """The stored record. It is empty if there is none or it is damaged."""
    try:
        found = json.loads((run_dir / FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if isinstance(found, dict) and all(_whole(found.get(kind), keys) for kind, keys in ENTRIES.items()):
        return found
    log.warning("%s is damaged; the run's data and code are not compared; they are recorded again", run_dir / FILE)
    return {}


def _whole(part: Any, keys: set[str]) -> bool:
    return isinstance(part, dict) and all(isinstance(e, dict) and keys <= e.keys() for e in part.values())


def compared(run_dir: Path, config: Config) -> set[str]:
    """The config fields whose files are compared by content, so that their paths may change."""
    return set(_named_as_now(read(run_dir), config).get("data", {}))


def _named_as_now(record: dict, config: Config) -> dict:
    """A record with old field names of the data replaced by the current ones."""
    now = {f"data.{old}": f"data.{new}" for old, new in type(config.data).RENAMED.items()}
    return record and record | {"data": {now.get(name, name): entry for name, entry in record["data"].items()}}


# ---------------------------------------------------------------- the current data and code


def _record(config: Config, source: Path | None, before: dict) -> dict:
    known = before.get("data", {})
    root = config.data.root()
    data = {name: _entry(name, what, known.get(name, {}), root) for name, what in config.data.reads().items()}
    return {"data": data, "code": {name: _copy(path) for name, path in code_files(config, source).items()}}


def _entry(name: str, what: list[Path] | str, before: dict, root: Path) -> dict:
    """The record's entry for one text, which is {"digest"}, or for several files.

    An entry of files is {"digest", "stamp", "files": {path: [bytes, sha256]}}. `before` is returned
    if its stamp still holds. `root` is the cache folder, which remembers digests of large files.
    """
    if isinstance(what, str):
        return {"digest": what}
    path = ""
    try:
        stats = {path: paths.stat(path) for path in map(paths.absolute, what)}
        stamp = cache.key([[path, *stat] for path, stat in stats.items()])
        # Sources ask for these digests as well, and get them from the cache without reading the
        # files.
        if before.get("stamp") == stamp:
            for path, (size, digest) in before["files"].items():
                cache.know_digest(path, size, stats[path].changed, digest)
            return before
        digests = dict(zip(map(paths.absolute, what), remembered.digests(what, root), strict=True))
        found = {path: [stats[path].size, digests[path]] for path in stats}
    except OSError as error:  # the error of a failed read has no file name
        raise ValueError(f"{name}: {str(error.filename or path)!r} cannot be read: {error.strerror}") from error
    whole = hashlib.sha256("".join(digest for _, digest in found.values()).encode()).hexdigest()
    return {"digest": whole, "stamp": stamp, "files": found if len(found) <= MOST else {}}


def _copy(path: Path) -> dict:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    copy = f"code/{path.stem}.{digest[:8]}.py"  # never overwritten, so the version before an accepted change is kept
    return {"path": str(path), "bytes": len(content), "digest": digest, "copy": copy}


def code_files(config: Config, source: Path | None) -> dict[str, Path]:
    """The user's Python files in use, by module name, or by file name if loaded by path.

    These are the config file, the files of the config's classes and named functions, and imports
    from their folders. Installed packages and this package do not count.
    """
    names = {type(part).__module__ for part in user_code.parts(config)}
    names |= {name.rpartition(":")[0] for name in user_code.functions(config)}
    if source is not None and source.suffix == ".py":
        names.add(str(source.resolve()))
    found = {name: file for name in names if (file := _own_file(name))}
    real = functools.cache(os.path.realpath)
    folders = tuple(f"{file.parent}{os.sep}" for file in found.values())
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        by_path = name == "__main__" or name.endswith(".py")  # such a module was not imported by another file
        if isinstance(file, str) and not by_path and f"{real(os.path.dirname(file))}{os.sep}".startswith(folders):
            found |= {name: own} if (own := _own_file(name)) else {}
    return {Path(name).name if name.endswith(".py") else name: found[name] for name in sorted(found)}


def _own_file(module: str) -> Path | None:
    """The file of an imported module; None if it has none or is installed."""
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "").resolve()
    installed = "site-packages" in path.parts or any(path.is_relative_to(folder) for folder in INSTALLED)
    return path if path.suffix == ".py" and path.is_file() and not installed else None


# ---------------------------------------------------------------- the comparison


def _judge(run_dir: Path, before: dict, now: dict, accept: Sequence[str]) -> str:
    """The message that refuses to resume, or "".

    If code is not in use this time, its entries are copied from `before` to `now`.
    """
    if not before:
        log.info("data and code: nothing was recorded of them when this run began; what there is now is recorded")
        return ""
    for name in now["code"].keys() - before["code"].keys():
        log.info("code: %s is in use for the first time in this run", now["code"][name]["path"])
    now["code"] = before["code"] | now["code"]
    changed = {"data": _changed_data(before["data"], now["data"]), "code": _changed_code(before["code"], now["code"])}
    for kind in accept:
        for change in changed[kind]:
            log.warning("accepted: %s: %s", kind, change)
    refused = [kind for kind in KINDS if changed[kind] and kind not in accept]
    if not refused:
        return ""
    shown = [change for kind in refused for change in changed[kind]]
    more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
    return (
        f"run_dir = {str(run_dir)!r} holds a run of other {' and '.join(refused)}: {'; '.join(shown[:3])}{more}; put back "
        f"what was there, give another --run_dir, or add --accept {','.join(refused)}"
    )


def _changed_data(before: dict, now: dict) -> list[str]:
    found = [f"{name} was read from files, and is not now" for name in before.keys() - now.keys()]
    found += [f"{name} was not read before" for name in now.keys() - before.keys()]
    both = [name for name in now if name in before and before[name]["digest"] != now[name]["digest"]]
    return sorted(found) + [f"{name}: {_difference(before[name], now[name])}" for name in both]


def _difference(before: dict, now: dict) -> str:
    """Describes the difference between two entries by the first file that differs."""
    old, new = before.get("files", {}), now.get("files", {})
    for path in [*new, *old]:
        if path in old and path in new and old[path] != new[path]:
            return f"{path} has other content ({_sizes(*old[path], *new[path])})"
    if old.keys() & new.keys() or (new and len(old) != len(new)):
        words = [f"{path} is new" for path in new if path not in old] + [f"{p} is gone" for p in old if p not in new]
        return words[0] if words else "the files come in another order"
    return f"other content ({_short(before['digest'])}, now {_short(now['digest'])})"


def _changed_code(before: dict, now: dict) -> list[str]:
    pairs = [(before[name], now[name]) for name in now if name in before]
    return [
        f"{b['path']} has other content ({_sizes(a['bytes'], a['digest'], b['bytes'], b['digest'])}; before: {a['copy']})"
        for a, b in pairs
        if a["digest"] != b["digest"]
    ]


def _sizes(old_size: int, old: str, new_size: int, new: str) -> str:
    return f"{old_size:,} bytes, sha256 {old[:12]}, now {new_size:,} bytes, sha256 {new[:12]}"


def _short(digest: str) -> str:
    """The first 12 digits of a sha256; other texts unchanged."""
    return digest[:12] if len(digest) == 64 else digest
