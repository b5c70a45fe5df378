"""From a file and samples to a verdict: what a user sees."""

from __future__ import annotations

import numpy as np
from transformer_zoo import bert_labels, samples

import packlight


def test_a_trained_encoder_with_labels_meets_its_budget(exported, tmp_path):
    data = samples("bert", 160)
    data["attention_mask"][:] = 1
    np.savez(tmp_path / "data.npz", **data, labels=bert_labels(data["input_ids"]))
    result = packlight.compress(exported("bert"), data=tmp_path / "data.npz", max_drop=0.05)
    evidence = result.evidence
    assert result.verdict in ("met", "not-worth-it")  # the latter on a machine that is busy
    assert evidence.metric.original > 0.6  # a third is chance
    assert evidence.size_bytes.compressed < 0.4 * evidence.size_bytes.original
    compressed = sum(layer.choice != "float32" for layer in evidence.layers)
    kept = sum(layer.choice == "float32" for layer in evidence.layers)
    attention = [x for x in evidence.not_compressed if "two activations" in x.reason]
    assert compressed + kept == 17 and len(attention) == 4
    assert len(evidence.not_compressed) == kept + len(attention)


def test_a_decoder_with_past_needs_no_samples(exported):
    result = packlight.compress(exported("whisper_past", dynamo=False))
    assert result.verdict in ("best-effort", "not-worth-it")
    assert not [note for note in result.evidence.notes if "undone" in note]
    size = result.evidence.size_bytes
    assert size.compressed <= 0.6 * size.original
