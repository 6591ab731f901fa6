"""Writes text for training and held-out text to compare on, from the Python that runs this.

usage: python_text.py FOLDER             the library's sources and the documentation topics of pydoc: train.txt
       python_text.py --sources FOLDER   the sources of the library and of the installed packages: train.jsonl, a row a file

The other file is held_out.txt: one document of ten, by its name, which the training text does not hold.
"""

import hashlib
import json
import pathlib
import sys
import sysconfig

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


def packages():
    """The files of each installed package, up to the limit, in an order that their names' hashes give."""
    for folder in sorted(pathlib.Path(sysconfig.get_path("purelib")).iterdir()):
        left = PACKAGE_LIMIT if folder.is_dir() else 0
        for name, text in in_hash_order(sources(folder) if left else ()):
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
