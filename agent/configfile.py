"""Reads the agent's configuration file: flat TOML, in which a key that is not known is an error.

tomllib does not say where a key stood; the line is found again in the text, for the messages.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

FILE_BYTES_MAX = 1 << 20

Value = str | int | float | bool | list[str]


class FileRefused(Exception):
    """A configuration file cannot be used; the message says where and why."""


def read_file(path: Path, keys: Mapping[str, tuple[type, ...]]) -> dict[str, tuple[Value, str]]:
    """Return what a file says: by key the value, and FILE:LINE where it stands.

    `keys` are the known ones with the types that a value may have; a list holds only text.

    Raises:
        FileRefused: it cannot be read, is too large or no TOML; a key or a type is wrong.
    """
    text = _text(path)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileRefused(f"{path}: {error}") from None
    except RecursionError:
        raise FileRefused(f"{path}: the brackets are nested too deep") from None
    settings = {}
    for key, value in found.items():
        place = _place(path, text, key)
        if key not in keys:
            near = difflib.get_close_matches(key[:64], keys, n=1)
            hint = f" - did you mean '{near[0]}'?" if near else ""
            raise FileRefused(f"{place}: unknown key '{key}'{hint}")
        # By the exact type, as a truth value is a whole number to isinstance.
        is_texts = not isinstance(value, list) or all(type(item) is str for item in value)
        if type(value) not in keys[key] or not is_texts:
            wanted = " or ".join(_TYPE_WORDS[kind] for kind in keys[key])
            raise FileRefused(f"{place}: {key} {value!r} is not {wanted}")
        settings[key] = (value, place)
    return settings


_TYPE_WORDS = {
    str: "text in quotes",
    int: "a number",
    float: "a fraction",
    bool: "true or false",
    list: 'a list such as ["a", "b"]',
}


def is_there(path: Path) -> bool:
    """Say whether a file is there.

    Raises:
        FileRefused: its folder may not be looked into; not to know is not "no".
    """
    try:
        return path.exists()
    except OSError as error:
        raise FileRefused(f"{path}: cannot be looked for: {error.strerror}") from None


def dump(shown: Mapping[str, tuple[Value | None, str]]) -> str:
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
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FileRefused(f"{path}: the file cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise FileRefused(f"{path}: the file is larger than {FILE_BYTES_MAX:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileRefused(f"{path}:{line}: the text is not UTF-8") from None


def _place(path: Path, text: str, key: str) -> str:
    """Return FILE:LINE of a key or a table, or FILE where it is written in an unusual way."""
    word = re.escape(key)
    match = re.search(rf"^[ \t]*(?:\[\[?[ \t]*)?[\"']?{word}[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    return str(path) if match is None else f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
