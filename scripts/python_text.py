"""Writes text for training and held-out text to compare on, from the Python that runs this.

usage: python_text.py FOLDER             the library's sources and the documentation topics of pydoc: train.txt
       python_text.py --sources FOLDER   the sources of the library and of the packages that scripts/setup brings: train.jsonl, a
                                         row a file

The other file is held_out.txt: one document of ten, by its name, which the training text does not hold.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIREMENTS = ["build.txt", "cpu.txt"]
# No package is more than a small share of the text: bytes.
PACKAGE_LIMIT = 3_000_000
SKIPPED = {"site-packages", "dist-packages", "test", "pydoc_data", "encodings"}


def sources(folder):
    """(name, text) of each Python file of some length, in a fixed order."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if name.parts[0] not in SKIPPED:
            text = path.read_text(encoding="utf-8", errors="replace")
            if len(text) > 500 and "\0" not in text:
                yield str(name), text


def topics():
    from pydoc_data import topics as pydoc

    for name, text in sorted(pydoc.topics.items()):
        yield f"topics/{name}", text


def library():
    return sources(pathlib.Path(sysconfig.get_path("stdlib")))


def package_folders():
    """Of the packages that every environment has, whatever else was installed since: the text would be another."""
    lines = (line for name in REQUIREMENTS for line in (ROOT / "requirements" / name).read_text().splitlines())
    names = [line.split("==")[0] for line in lines if "==" in line and not line.startswith("#")]
    site = pathlib.Path(sysconfig.get_path("purelib"))
    brought = [item for item in importlib.metadata.distributions() if item.name in {*names, "pip", "setuptools"}]
    parts = {file.parts[0] for item in brought for file in item.files or ()}
    return [site / part for part in sorted(parts) if (site / part).is_dir()]


def packages():
    """The files of each package, up to the limit, in an order that their names' hashes give."""
    for folder in package_folders():
        left = PACKAGE_LIMIT
        for name, text in in_hash_order(sources(folder)):
            left -= len(text)
            if left < 0:
                break
            yield f"{folder.name}/{name}", text


def name_hash(item):
    return hashlib.sha256(item[0].encode()).digest()


def in_hash_order(documents):
    return sorted(documents, key=name_hash)


def without_copies(documents):
    """Packages carry copies of each other's files: the first of equal texts."""
    seen = set()
    for name, text in documents:
        if text not in seen:
            seen.add(text)
            yield name, text


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    as_rows = sys.argv[1] == "--sources"
    folder = pathlib.Path(sys.argv[-1])
    documents = [*library(), *(packages() if as_rows else topics())]
    parts = {True: [], False: []}
    for item in in_hash_order(without_copies(documents)):
        parts[name_hash(item)[0] % 10 == 0].append(item[1])
    rows = "".join(json.dumps({"text": text}) + "\n" for text in parts[False])
    write(folder / "train.jsonl", rows) if as_rows else write(folder / "train.txt", "\n\n".join(parts[False]))
    write(folder / "held_out.txt", "\n\n".join(parts[True]))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)
    print(f"{path}: {len(text.encode()) / 1e6:.1f} MB")


main()
