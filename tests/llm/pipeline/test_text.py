from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from packlight.errors import UnusableModel, UnusableSamples
from packlight.llm.text import MOST_BYTES, open_tokenizer, read_texts, read_windows


def by_bytes(text: str) -> list[int]:
    """One token a byte: what was cut is what was read."""
    return list(text.encode())


def numbered(count: int) -> str:
    return " ".join(f"{i:05}" for i in range(count))


def test_windows_are_the_text_in_order_and_no_part_shares_any(tmp_path: Path):
    (tmp_path / "a.txt").write_text(numbered(20_000))
    windows = read_windows(
        tmp_path / "a.txt", by_bytes, vocabulary=256, length=240, calibration=20, search=5, proof=10
    )
    assert windows.calibration.shape == (20, 240)
    assert windows.search.shape == (5, 240)
    assert windows.proof.shape == (10, 240)
    parts = [windows.calibration, windows.search, windows.proof]
    words = [{w for row in part for w in bytes(row.astype(np.uint8)).split()} for part in parts]
    whole = [{w for w in one if len(w) == 5} for one in words]
    assert not whole[0] & whole[1]
    assert not whole[1] & whole[2]
    # Contiguous stretches: everything for calibration comes before the search, that before proof.
    assert max(whole[0]) < min(whole[1])
    assert max(whole[1]) < min(whole[2])
    # Spread over the whole text, not its beginning.
    assert int(max(whole[2])) > 19_000


def test_a_short_text_gets_shorter_windows(tmp_path: Path):
    (tmp_path / "a.txt").write_text(numbered(1500))
    windows = read_windows(tmp_path / "a.txt", by_bytes, vocabulary=256)
    assert windows.length < 2048
    assert min(map(len, (windows.calibration, windows.search, windows.proof))) >= 1
    assert len(windows.calibration) > len(windows.search)


def test_too_little_text_is_said_with_both_numbers(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * 100)
    with pytest.raises(UnusableSamples, match=r"100 tokens and at least 768 are needed"):
        read_windows(tmp_path / "a.txt", by_bytes, vocabulary=256)


def test_as_many_tokens_as_the_message_asks_for_are_enough(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * 768)
    windows = read_windows(tmp_path / "a.txt", by_bytes, vocabulary=256)
    assert (len(windows.calibration), len(windows.search), len(windows.proof)) == (8, 1, 3)


def test_every_window_starts_with_the_token_that_begins_a_sequence(tmp_path: Path):
    (tmp_path / "a.txt").write_text(numbered(5000))
    windows = read_windows(tmp_path / "a.txt", by_bytes, vocabulary=300, length=128, begin=299)
    for part in (windows.calibration, windows.search, windows.proof):
        assert (part[:, 0] == 299).all()
        assert (part[:, 1:] < 256).all()
    assert windows.length == 128


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text(numbered(500))
    with pytest.raises(UnusableSamples, match="the model knows 40"):
        read_windows(tmp_path / "a.txt", by_bytes, vocabulary=40)


def test_chats_are_joined_plainly(tmp_path: Path):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Ho"}]}
    lines = [json.dumps(chat), "", json.dumps({"text": "plain"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert "".join(read_texts(tmp_path / "a.jsonl")) == "user: Hi\nbot: Ho\n\nplain\n\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ('{"messages": "x"}', "line 2: expected"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 2: expected"),
        ("3", "line 2: expected"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line)
    with pytest.raises(UnusableSamples, match=message):
        list(read_texts(tmp_path / "a.jsonl"))


def test_text_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnusableSamples, match=r"a\.txt is no text in UTF-8"):
        list(read_texts(tmp_path / "a.txt"))


def test_a_folder_is_read_in_the_order_of_names_and_links_out_of_it_are_not(tmp_path: Path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "b.md").write_text("second")
    (folder / "a.txt").write_text("first ")
    (folder / "c.bin").write_text("no text")
    (folder / "d.txt").symlink_to(tmp_path / "secret.txt")
    assert "".join(read_texts(folder)) == "first second"


def test_no_more_is_read_than_the_bound(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * (MOST_BYTES + 100_000))
    assert sum(map(len, read_texts(tmp_path / "a.txt"))) <= MOST_BYTES


def test_missing_text_and_tokenizer_are_said(tmp_path: Path):
    with pytest.raises(UnusableSamples, match="no such text file"):
        list(read_texts(tmp_path / "none.txt"))
    with pytest.raises(UnusableModel, match="has no tokenizer"):
        open_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path: Path):
    pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnusableModel, match=r"tokenizer\.json cannot be read"):
        open_tokenizer(tmp_path)


def test_fingerprints_tell_windows_apart(tmp_path: Path):
    (tmp_path / "a.txt").write_text(numbered(5000))
    (tmp_path / "b.txt").write_text(numbered(5000).replace("00000", "00009"))
    first, again, other = (
        read_windows(tmp_path / name, by_bytes, vocabulary=256, length=128, proof=2000).fingerprint
        for name in ("a.txt", "a.txt", "b.txt")
    )
    assert first == again
    assert first != other
