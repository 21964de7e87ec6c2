"""Reads a configuration file: flat TOML, in which a key that is not known is an error.

Owns the file of the controller and that of the agent; what a value means is theirs to say. tomllib
does not say where a key stood; the line is found again in the text, for the messages.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mass.errors import InvalidValue
from mass.units import size_words

FILE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as TOML has it, and FILE:LINE where it stands."""

    value: object
    place: str


def read_file(path: Path, keys: Collection[str]) -> dict[str, Entry]:
    """Return what a file says, by key.

    Raises:
        InvalidValue: it cannot be read, is too large or no TOML, or has a key not in `keys`.
    """
    text = _text(path)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidValue(f"{path}: {error}") from None
    except RecursionError:
        raise InvalidValue(f"{path}: the brackets are nested too deep") from None
    for key in found:
        if key not in keys:
            place = _place(path, text, key)
            raise InvalidValue(f"{place}: unknown key '{key}'{_hint(key, keys)}", key=key)
    return {key: Entry(value, _place(path, text, key)) for key, value in found.items()}


def is_there(path: Path) -> bool:
    """Say whether a file is there.

    Raises:
        InvalidValue: its folder may not be looked into; not to know is not "no".
    """
    try:
        return path.exists()
    except OSError as error:
        raise InvalidValue(f"{path}: cannot be looked for: {error.strerror}") from None


def dump(shown: Mapping[str, tuple[object, str]]) -> str:
    """Return settings as the text of a file, each with a comment that says where it is from."""
    lines = []
    for key, (value, origin) in shown.items():
        if value is None:
            lines.append(f"# {key} is not set")
        else:
            # What JSON writes of text, numbers, truth values and lists of text is TOML too.
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}  # {origin}")
    return "".join(f"{line}\n" for line in lines)


def _text(path: Path) -> str:
    try:
        # /dev/null stands for "no file", so what is no regular file is read all the same.
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidValue(f"{path}: the file cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise InvalidValue(f"{path}: the file is larger than {size_words(FILE_BYTES_MAX)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidValue(f"{path}:{line}: the text is not UTF-8") from None


def _hint(key: str, keys: Collection[str]) -> str:
    same = [known for known in keys if known == key.lower()]
    # A key of any length would make difflib slow; what is typed by hand is short.
    near = same or difflib.get_close_matches(key[:64], keys, n=1)
    return f" - did you mean '{near[0]}'?" if near else ""


def _place(path: Path, text: str, key: str) -> str:
    """Return FILE:LINE of a key or a table, or FILE where it is written in an unusual way."""
    word = re.escape(key)
    match = re.search(rf"^[ \t]*(?:\[\[?[ \t]*)?[\"']?{word}[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    return str(path) if match is None else f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
