"""One tensor's bytes in few bytes: every way that suits is tried, the smallest is kept.

A coded segment begins with the number of its method; a method that takes a tensor apart
(floats, values) holds coded segments in turn. See docs/format.md.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusablePack
from packlight.maths.entropy import ideal_bits
from packlight.transport.bits import BitReader, BitWriter, Ints, lanes_for
from packlight.transport.codes import MOST_DIGITS, Layout, walk_codes
from packlight.transport.tables import decode_bytes, encode_bytes
from packlight.transport.text import MOST_BYTES as MOST_TEXT
from packlight.transport.text import decode_text, encode_text
from packlight.transport.varints import Numbers, write_number, zigzag

STORED, LZMA, TABLE, WALK, FLOATS, VALUES, SCALED, TEXT, ZEROS = range(9)
METHOD_NAMES = (
    "stored", "LZMA", "byte table", "predicted", "float parts", "few values", "scaled", "text",
    "zeros apart",
)  # fmt: skip

MOST_SEGMENT_BYTES = 1 << 26
"""No segment is larger unpacked: what reading needs of memory is bounded by it."""

MOST_WALKED = 1 << 20
"""Codes that are walked as one; a larger tensor is cut into runs of rows."""

_WALK_BOTH = 1 << 19
_FEW_FLOATS = 1 << 11
"""Up to here exponents are predicted; prediction gains little on more, and takes its time."""

_FILLED = 0.95
"""Where more are other than 0, telling which takes more than it spares."""

_DICTIONARY = 1 << 23
_DEEPEST = 3


@dataclass(frozen=True)
class Form:
    """What the bytes of a segment are.

    kind: "i" or "u" for integers, "f" for floats, "b" for bytes of no known meaning. bits: of
    one element. layout: of the elements; the last byte of 4-bit elements may be half full.
    """

    kind: str
    bits: int
    layout: Layout

    @property
    def count(self) -> int:
        """Elements."""
        return self.layout.rows * self.layout.columns

    @property
    def length(self) -> int:
        """Bytes."""
        return (self.count * self.bits + 7) // 8


def encode_segment(content: bytes, form: Form, earlier: Sequence[bytes] = ()) -> bytes:
    """Give coded bytes for the `content` of a tensor.

    earlier: the contents of float32 segments that a reader knows by then, the latest last.
    """
    scaled = _encode_scaled(content, form, earlier)
    return scaled if scaled is not None else _encode(content, form, 0)


def decode_segment(coded: bytes, form: Form, earlier: Sequence[bytes] = ()) -> bytes:
    """Give the content back. Raises UnusablePack for what no writer wrote."""
    if coded[:1] == bytes([SCALED]):
        return _decode_scaled(coded, form, earlier)
    return _decode(coded, form, 0)


def encode_plain(content: bytes) -> bytes:
    """Give coded bytes for what is no tensor: text, and graphs without their numbers."""
    form = Form("b", 8, Layout(1, len(content)))
    found = [bytes([STORED]) + content, bytes([LZMA]) + _squeeze(content)]
    if len(content) <= MOST_TEXT:
        found.append(bytes([TEXT]) + encode_text(content))
    elif len(content) > 4096:
        found.append(_encode(content, form, _DEEPEST))
    return min(found, key=len)


def _encode(content: bytes, form: Form, depth: int) -> bytes:
    found = [bytes([STORED]) + content]
    if len(content) > 8:
        found.append(bytes([LZMA]) + _squeeze(content))
    if len(content) > 2048:
        found.append(bytes([TABLE]) + encode_bytes(content))
    if depth < _DEEPEST:
        for more in (_encode_walk, _encode_floats, _encode_values, _encode_zeros):
            one = more(content, form, depth)
            if one is not None:
                found.append(one)
    return min(found, key=len)


def decode_plain(coded: bytes, length: int) -> bytes:
    """Give back what `encode_plain` coded. Raises UnusablePack for what no writer wrote."""
    return _decode(coded, Form("b", 8, Layout(1, length)), 0)


def _decode(coded: bytes, form: Form, depth: int) -> bytes:
    if not coded or depth > _DEEPEST:
        raise UnusablePack("A segment is empty or nested too deeply: the file is damaged.")
    method, rest = coded[0], coded[1:]
    if method == STORED:
        content = rest
    elif method == LZMA:
        content = _unsqueeze(rest, form.length)
    elif method == TABLE:
        content = decode_bytes(rest, form.length)
    elif method == TEXT and form.length <= MOST_TEXT:
        content = decode_text(rest, form.length)
    elif method == WALK and form.kind in "iu" and form.count <= MOST_WALKED:
        content = _decode_walk(rest, form)
    elif method == FLOATS and form.kind == "f":
        content = _decode_floats(rest, form, depth)
    elif method == VALUES and form.kind == "f":
        content = _decode_values(rest, form, depth)
    elif method == ZEROS and form.kind == "f":
        content = _decode_zeros(rest, form, depth)
    else:
        raise UnusablePack(f"A segment is coded in a way that does not suit it ({method}).")
    if len(content) != form.length:
        raise UnusablePack("A segment is shorter or longer than it says: the file is damaged.")
    return content


# --- integers, predicted


def _encode_walk(content: bytes, form: Form, depth: int) -> bytes | None:
    if form.kind not in "iu" or not 4 <= form.count <= MOST_WALKED:
        return None
    codes = _to_integers(content, form)
    if codes is None:
        return None
    # Nearly every byte value about as often as the others: prediction does not pay its time.
    if form.count > 1 << 13 and ideal_bits(codes) > 0.8 * form.bits * form.count:
        return None
    values, counts = np.unique(codes, return_counts=True)
    middle = int(values[np.argmax(counts)])
    if counts.max() < 0.2 * form.count:
        middle = int(np.sort(codes, axis=None)[form.count // 2])
    codes = codes - middle
    if int(abs(codes).max()) >= 1 << MOST_DIGITS:
        return None
    ways = [False, True] if 1 not in codes.shape and form.count <= _WALK_BOTH else [False]
    best: tuple[BitWriter, bool] | None = None
    for turned in ways:
        writer = BitWriter()
        walk_codes(writer, _turn(form.layout, turned), codes.T if turned else codes)
        if best is None or writer.bits < best[0].bits:
            best = (writer, turned)
    assert best is not None
    writer, turned = best
    lanes = lanes_for(writer.bits)
    head = bytes([WALK]) + write_number(2 * (lanes.bit_length() - 1) + turned)
    return head + write_number(zigzag(middle)) + writer.finish(lanes)


def _decode_walk(coded: bytes, form: Form) -> bytes:
    numbers = Numbers(coded)
    how = numbers.read(most=31)
    middle = numbers.read_signed(most=1 << 33)
    turned = bool(how & 1)
    reader = BitReader(numbers.rest(), 1 << (how >> 1))
    codes = walk_codes(reader, _turn(form.layout, turned), None)
    reader.finish()
    return _from_integers((codes.T if turned else codes) + middle, form)


def _turn(layout: Layout, turned: bool) -> Layout:
    return Layout(layout.columns, layout.rows) if turned else layout


def _to_integers(content: bytes, form: Form) -> Ints | None:
    shape = (form.layout.rows, form.layout.columns)
    if form.bits == 4:
        packed = np.frombuffer(content, np.uint8)
        flat = np.stack([packed & 15, packed >> 4], axis=1).ravel()
        if np.any(flat[form.count :]):
            return None
        codes = flat[: form.count].astype(np.int64).reshape(shape)
        return ((codes ^ 8) - 8) if form.kind == "i" else codes
    if form.bits == 64:
        wide = np.frombuffer(content, "<i8")
        fits = bool(np.all((wide > -(1 << 32)) & (wide < 1 << 32)))
        return wide.astype(np.int64).reshape(shape) if fits else None
    return np.frombuffer(content, f"<{form.kind}{form.bits // 8}").astype(np.int64).reshape(shape)


def _from_integers(codes: Ints, form: Form) -> bytes:
    flat = codes.ravel()
    if form.bits == 4:
        even = np.zeros(form.length * 2, np.uint8)
        even[: form.count] = flat & 15
        return (even[0::2] | even[1::2] << 4).astype(np.uint8).tobytes()
    return flat.astype(f"<{form.kind if form.bits < 64 else 'i'}{form.bits // 8}").tobytes()


# --- floats, in parts: exponent with the first digits, sign, the other bytes


def _encode_floats(content: bytes, form: Form, depth: int) -> bytes | None:
    if form.kind != "f" or form.bits not in (16, 32) or form.count < 8:
        return None
    words = np.frombuffer(content, f"<u{form.bits // 8}").astype(np.int64)
    top = words >> (form.bits - 16)
    parts = [np.packbits(top >> 15).tobytes()]
    if form.count <= _FEW_FLOATS:
        parts.append((top & 0x7FFF).astype("<u2").tobytes())
    else:
        parts += [(part).astype(np.uint8).tobytes() for part in (top >> 7 & 255, top & 127)]
    parts += [(words >> shift & 255).astype(np.uint8).tobytes() for shift in _low_shifts(form)]
    coded = b""
    for part, own in zip(parts, _float_forms(form), strict=True):
        one = _encode(part, own, depth + 1)
        coded += write_number(len(one)) + one
    return bytes([FLOATS]) + coded


def _decode_floats(coded: bytes, form: Form, depth: int) -> bytes:
    if form.bits not in (16, 32):
        raise UnusablePack("A segment is taken for floats that are none: the file is damaged.")
    numbers = Numbers(coded)
    parts = [
        _decode(numbers.take(numbers.read(most=len(coded))), own, depth + 1)
        for own in _float_forms(form)
    ]
    numbers.end()
    signs = np.unpackbits(np.frombuffer(parts[0], np.uint8), count=form.count)
    if form.count <= _FEW_FLOATS:
        top, low = np.frombuffer(parts[1], "<u2").astype(np.int64) & 0x7FFF, parts[2:]
    else:
        upper, lower = (np.frombuffer(part, np.uint8).astype(np.int64) for part in parts[1:3])
        top, low = (upper << 7) | (lower & 127), parts[3:]
    words = (top | signs.astype(np.int64) << 15) << (form.bits - 16)
    for part, shift in zip(low, _low_shifts(form), strict=True):
        words |= np.frombuffer(part, np.uint8).astype(np.int64) << shift
    return bytes(words.astype(f"<u{form.bits // 8}").tobytes())


def _low_shifts(form: Form) -> range:
    return range(form.bits - 24, -1, -8)


def _float_forms(form: Form) -> list[Form]:
    signs = Form("b", 8, Layout(1, (form.count + 7) // 8))
    whole = Form("b", 8, form.layout)
    if form.count <= _FEW_FLOATS:
        return [signs, Form("u", 16, form.layout)] + [whole for _ in _low_shifts(form)]
    return [signs, whole, whole] + [whole for _ in _low_shifts(form)]


# --- floats of few values: the values, and which


def _encode_values(content: bytes, form: Form, depth: int) -> bytes | None:
    if form.kind != "f" or form.bits not in (16, 32) or form.count < 64:
        return None
    words = np.frombuffer(content, f"<u{form.bits // 8}")
    if len(np.unique(words[:4096])) > 256:
        return None
    values, which = np.unique(words, return_inverse=True)
    if len(values) > 256:
        return None
    # In the order of the numbers, so that neighbours in value are neighbours in code.
    order = np.argsort(_ordinal(values, form.bits), kind="stable")
    place = np.empty(len(order), np.uint8)
    place[order] = np.arange(len(order))
    child = _encode(place[which].tobytes(), Form("u", 8, form.layout), depth + 1)
    return bytes([VALUES]) + write_number(len(values)) + values[order].tobytes() + child


def _decode_values(coded: bytes, form: Form, depth: int) -> bytes:
    if form.bits not in (16, 32):
        raise UnusablePack("A segment is taken for floats that are none: the file is damaged.")
    numbers = Numbers(coded)
    count = numbers.read(most=256)
    values = np.frombuffer(numbers.take(count * form.bits // 8), f"<u{form.bits // 8}")
    child = _decode(numbers.rest(), Form("u", 8, form.layout), depth + 1)
    which = np.frombuffer(child, np.uint8)
    if count == 0 or int(which.max()) >= count:
        raise UnusablePack("A segment names values that it does not have: the file is damaged.")
    return values[which].tobytes()


def _ordinal(words: NDArray[Any], bits: int) -> Ints:
    wide = words.astype(np.int64)
    sign = 1 << (bits - 1)
    return np.where(wide & sign, sign - 1 - (wide & (sign - 1)), wide | sign)


# --- floats of which many are 0: where they are, and the others


def _encode_zeros(content: bytes, form: Form, depth: int) -> bytes | None:
    """As parts of floats each byte would have to tell anew which of them are 0."""
    if form.kind != "f" or form.bits not in (16, 32) or form.count < 64:
        return None
    words = np.frombuffer(content, f"<u{form.bits // 8}")
    filled = words != 0
    count = int(np.count_nonzero(filled))
    if not 0 < count <= form.count * _FILLED:
        return None
    where = _encode(filled.astype(np.uint8).tobytes(), Form("u", 8, form.layout), depth + 1)
    rest = _encode(words[filled].tobytes(), _filled_form(form, count), depth + 1)
    return bytes([ZEROS]) + write_number(len(where)) + where + rest


def _decode_zeros(coded: bytes, form: Form, depth: int) -> bytes:
    if form.bits not in (16, 32):
        raise UnusablePack("A segment is taken for floats that are none: the file is damaged.")
    numbers = Numbers(coded)
    where = numbers.take(numbers.read(most=len(coded)))
    filled = np.frombuffer(_decode(where, Form("u", 8, form.layout), depth + 1), np.uint8)
    count = int(np.count_nonzero(filled))
    if not count:
        raise UnusablePack("A segment of zeros has nothing besides: the file is damaged.")
    words = np.zeros(form.count, f"<u{form.bits // 8}")
    rest = _decode(numbers.rest(), _filled_form(form, count), depth + 1)
    words[filled != 0] = np.frombuffer(rest, words.dtype)
    return words.tobytes()


def _filled_form(form: Form, count: int) -> Form:
    return Form("f", form.bits, Layout(1, count))


# --- scales that are another tensor's times one number, as those of biases are


def _encode_scaled(content: bytes, form: Form, earlier: Sequence[bytes]) -> bytes | None:
    if (form.kind, form.bits) != ("f", 32) or form.count < 3:
        return None
    goal = np.frombuffer(content, "<f4")
    with np.errstate(all="ignore"):
        for back, before in enumerate(reversed(earlier[-64:]), 1):
            if len(before) != len(content):
                continue
            base = np.frombuffer(before, "<f4")
            ratio = np.float32(goal[0] / base[0])
            if not np.isfinite(ratio) or ratio == 0:
                continue
            word = int(ratio.view(np.uint32))
            for near in range(max(word - 3, 0), word + 4):
                factor = np.array([near], np.uint32).view("<f4")
                if (base * factor).tobytes() == content:
                    return bytes([SCALED]) + write_number(back) + factor.tobytes()
    return None


def _decode_scaled(coded: bytes, form: Form, earlier: Sequence[bytes]) -> bytes:
    numbers = Numbers(coded[1:])
    back = numbers.read(most=64)
    factor = np.frombuffer(numbers.take(4), "<f4")
    numbers.end()
    if not 1 <= back <= len(earlier) or len(earlier[-back]) != form.length:
        raise UnusablePack("A segment refers to another that is not there: the file is damaged.")
    with np.errstate(all="ignore"):
        product = np.frombuffer(earlier[-back], "<f4") * factor
    return bytes(product.astype("<f4").tobytes())


# --- LZMA


def _squeeze(content: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": _DICTIONARY}]
    return lzma.compress(content, lzma.FORMAT_RAW, filters=filters)


def _unsqueeze(coded: bytes, length: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": _DICTIONARY}]
    reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    try:
        content: bytes = reader.decompress(coded, length + 1)
        if len(content) == length and not reader.eof:
            content += reader.decompress(b"", 1)
    except (lzma.LZMAError, EOFError) as error:
        raise UnusablePack(f"A segment is damaged ({error}).") from None
    if not reader.eof or reader.unused_data:
        raise UnusablePack("A segment of LZMA does not end as it must: the file is damaged.")
    return content
