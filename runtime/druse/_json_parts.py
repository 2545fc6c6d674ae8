"""JSON cut into the elements of its outermost list or object, in bounded memory and without building anything."""

import json
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from druse._limits import Limits

_CHUNK = 1 << 18
_IN_TEXT = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["\[\]{}]')
_OUTERMOST = re.compile(r'["\[\]{},]')
_KEY = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:')


class Part(NamedTuple):
    """An element: its text, or why there is none; and its key in an object."""

    text: str
    fault: str = ""
    key: str = ""


def json_parts(read: Callable[[int], str], limits: Limits) -> Iterator[Part]:
    """The elements of a list or object that a file holds, given the function that reads so many characters of it.

    A file that ends too early or goes on too long has a last part that says so. One that is neither a list nor an
    object has no parts.
    """
    depth, deepest, in_text, skip, size = 0, 0, False, 0, 0
    kept: list[str] = []
    outermost = ""

    def part(end: str = "") -> Part:
        text = "".join(kept)
        kept.clear()
        if size > limits.text:
            return Part("", f"longer than {limits.text:,} characters")
        if deepest > limits.depth:
            return Part("", f"brackets {deepest} deep, more than {limits.depth}")
        if outermost == "{" and not end:
            match = _KEY.match(text)
            return Part(text[match.end() :], "", _decoded(match[1])) if match else Part("", "no key in an object")
        return Part(text, end)

    def keep(text: str) -> None:
        nonlocal size
        size += len(text)
        if size > limits.text:
            kept.clear()
        else:
            kept.append(text)

    while chunk := read(_CHUNK):
        place = start = 0
        if not outermost:
            stripped = chunk.lstrip()
            if not stripped:
                continue
            if stripped[0] not in "[{":
                return
            outermost, place, depth = stripped[0], len(chunk) - len(stripped) + 1, 1
            start = place
        elif depth == 0:
            if chunk.strip():
                yield Part("", "there is more after the end of its JSON")
                return
            continue
        place, skip = place + skip, 0
        while True:
            pattern = _IN_TEXT if in_text else _OUTERMOST if depth == 1 else _OUTSIDE
            match = pattern.search(chunk, place)
            if match is None:
                keep(chunk[start:])
                break
            place, sign = match.end(), match[0]
            if sign == '"':
                in_text = not in_text
            elif sign == "\\":
                place += 1
                skip = max(place - len(chunk), 0)
            elif sign in "[{":
                depth += 1
                deepest = max(deepest, depth)
            elif sign in "]}":
                depth -= 1
            if depth == 0 or (sign == "," and depth == 1):
                keep(chunk[start : match.start()])
                if depth or size > limits.text or "".join(kept).strip():
                    yield part()
                kept.clear()
                start, size, deepest = place, 0, 0
                if depth == 0:
                    if chunk[place:].strip():
                        yield Part("", "there is more after the end of its JSON")
                        return
                    break
    if outermost and depth:
        yield part("the file ends inside of it")


def _decoded(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text
