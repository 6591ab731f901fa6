"""Writes train.txt and held_out.txt: the Python library's sources and the documentation topics of pydoc.

usage: python_text.py FOLDER
"""

import hashlib
import pathlib
import sys
import sysconfig

from pydoc_data import topics


def documents():
    """(name, text) of each document, in a fixed order."""
    for name, text in sorted(topics.topics.items()):
        yield f"topics/{name}", text
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if name.parts[0] in ("site-packages", "dist-packages", "test", "pydoc_data", "encodings"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) > 500:
            yield str(name), text


def is_held_out(name):
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    everything = sorted(documents(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    for part, wanted in (("train", False), ("held_out", True)):
        text = "\n\n".join(text for name, text in everything if is_held_out(name) is wanted)
        aside = folder / f"{part}.txt.tmp"
        aside.write_text(text, encoding="utf-8")
        aside.rename(folder / f"{part}.txt")
        print(f"{folder}/{part}.txt: {len(text.encode()) / 1e6:.1f} MB")


main()
