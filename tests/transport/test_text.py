from __future__ import annotations

import lzma

import pytest

from packlight.errors import UnusablePack
from packlight.transport.text import decode_text, encode_text
from packlight.transport.usual import USUAL


@pytest.mark.parametrize("content", [b"", b"\0", bytes(range(256)), b"abcabcabcabcab", USUAL[:600]])
def test_text_comes_back(content: bytes) -> None:
    coded = encode_text(content)
    assert decode_text(coded, len(content)) == content


def test_a_usual_graph_takes_less_than_half_of_lzma(model: object) -> None:
    del model
    names = "".join(
        f'\n\x16layer{i}.conv.weight_codes\x12\x19layer{i}.conv.weight_scale"\x10DequantizeLinear'
        for i in range(12)
    ).encode()
    assert 2 * len(encode_text(names)) < len(lzma.compress(names))


def test_these_bytes() -> None:
    assert encode_text(b"fc1.weight_codes, fc1.weight_scale; 12345").hex() == GOLDEN


GOLDEN = "78f901006ae0282a98231adc08e22d3d"


def test_a_wrong_length_is_noticed() -> None:
    coded = encode_text(b"some text that is long enough")
    for broken, length in ((coded, 20), (coded[:-2], 29), (coded[:3], 29)):
        with pytest.raises(UnusablePack):
            decode_text(broken, length)
