"""JSON lines, or one JSON list, in UTF-8: bytes to objects, each with its line, strictly.

Python's reader lets through what other readers refuse or read otherwise (keys that occur twice,
NaN, halves of surrogate pairs) and what a database cannot keep (NUL). All of that is refused here,
row by row. Pure, standard library only.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

MEBIBYTE = 1024 * 1024
MAX_ROW_BYTES = 8 * MEBIBYTE
MAX_LIST_BYTES = 64 * MEBIBYTE  # a list is held in memory as a whole; lines are not

SPACE = re.compile(r"[ \t\n\r]*")
OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"

Row = dict[str, Any]


class BadFile(Exception):
    """A file of which no row can be trusted; the message says why."""


class BadRow(Exception):
    """A row that is not what was asked for; the message is the reason, without its line."""


def read_objects(file: BinaryIO) -> Iterator[tuple[int, Row | BadRow]]:
    """Each row's line number, and its object or what is wrong with it.

    BadFile where no row can be told from the next: another encoding, a list that is not JSON.
    """
    for count, (number, line) in enumerate(_lines(file)):
        if count == 0 and line.lstrip().startswith(b"["):
            yield from _list_objects(line + file.read(MAX_LIST_BYTES + 1 - len(line)), number)
            return
        yield number, _attempt(_line_object, line)


def _attempt(read: Callable[..., Row], *args: Any) -> Row | BadRow:
    try:
        return read(*args)
    except BadRow as error:
        return error


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank; of one that is too long only its beginning."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 2):
        number += 1
        if number == 1:
            line = _without_mark(line)
        if line.strip() or len(line) > MAX_ROW_BYTES:
            yield number, line
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_ROW_BYTES)


def _without_mark(line: bytes) -> bytes:
    """The first line without UTF-8's byte order mark; BadFile where it is another encoding."""
    if line.startswith(OTHER_ENCODINGS) or b"\x00" in line[:4]:
        raise BadFile("it is not UTF-8 but looks like UTF-16, UTF-32 or no text: save it as UTF-8")
    return line.removeprefix(UTF8_MARK)


def _line_object(line: bytes) -> Row:
    line = line.rstrip(b"\r\n")
    if len(line) > MAX_ROW_BYTES:
        raise BadRow(f"longer than {MAX_ROW_BYTES // MEBIBYTE} MiB")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 (byte {error.start + 1})") from None
    start = _after_space(text, 0)
    value, end = _decode(text, start)
    if _after_space(text, end) < len(text):
        raise BadRow(f"not JSON: more text after the object (column {end + 1})")
    return _checked_object(value, text, start, end)


def _list_objects(data: bytes, line: int) -> Iterator[tuple[int, Row | BadRow]]:
    """The objects of a JSON list, each with the line it begins on."""
    if len(data) > MAX_LIST_BYTES:
        limit = MAX_LIST_BYTES // MEBIBYTE
        raise BadFile(f"it is a JSON list of more than {limit} MiB: write it as JSON lines")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadFile(f"it is not UTF-8 (byte {error.start + 1})") from None
    counted = 0
    start = _after_space(text, text.index("[") + 1)
    mark = text[start : start + 1]
    while mark != "]":
        line, counted = line + text.count("\n", counted, start), start
        end = _end_of_value(text, start, line)
        yield line, _attempt(_element, text, start, end)
        end = _after_space(text, end)
        mark = text[end : end + 1]
        if mark not in ("]", ","):
            line += text.count("\n", counted, end)
            raise BadFile(f"line {line}: not JSON: expected a comma or the end of the list")
        start = end if mark == "]" else _after_space(text, end + 1)
    if _after_space(text, start + 1) < len(text):
        raise BadFile("it holds more text after the end of the list")


def _end_of_value(text: str, start: int, line: int) -> int:
    """Where the value that starts here ends; without it the rest of a list cannot be read."""
    try:
        return LENIENT.raw_decode(text, start)[1]
    except RecursionError:
        raise BadFile(f"line {line}: nested too deeply") from None
    except ValueError as error:
        reason = getattr(error, "msg", "a number is too long")
        raise BadFile(f"line {line}: not JSON: {reason}") from None


def _element(text: str, start: int, end: int) -> Row:
    if end - start > MAX_ROW_BYTES:
        raise BadRow(f"longer than {MAX_ROW_BYTES // MEBIBYTE} MiB")
    return _checked_object(_decode(text, start)[0], text, start, end)


def _decode(text: str, start: int) -> tuple[Any, int]:
    try:
        return STRICT.raw_decode(text, start)
    except RecursionError:
        raise BadRow("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} (column {error.pos + 1})") from None
    except ValueError:
        raise BadRow("not JSON that can be kept: a number is too long") from None


def _checked_object(value: Any, text: str, start: int, end: int) -> Row:
    if not isinstance(value, dict):
        raise BadRow("not an object: expected {...}")
    if text.find("\\u", start, end) >= 0:  # only an escape brings in what UTF-8 and JSON forbid
        try:
            _check_strings(value)
        except RecursionError:
            raise BadRow("nested too deeply") from None
    return value


def _check_strings(value: Any) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise BadRow("holds a NUL character (\\u0000)")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRow("holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)


def _after_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


def _object_of(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRow(f"the key {twice[:60]!a} occurs twice in one object")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BadRow(f"the number {digits[:60]} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise BadRow(f"{name} is not JSON")


STRICT = json.JSONDecoder(
    object_pairs_hook=_object_of, parse_float=_finite, parse_constant=_no_constant
)
LENIENT = json.JSONDecoder()
