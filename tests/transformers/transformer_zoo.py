"""Small transformer models from configurations, exported to ONNX: what users bring, in small.

Weights are random with a fixed seed (the encoder with a head is trained for a moment, so that
its classes mean something). Every builder gives the module, example inputs and open axes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 211
"""Odd, and no power of two: a generated id must be below it."""

HIDDEN, LAYERS, HEADS, INNER = 64, 2, 4, 128
FRAMES, BINS = 48, 16

OUTLIERS = 2
"""Channels of each normalization that reach far beyond the others."""


@dataclass(frozen=True)
class Source:
    """A module, its example inputs by name, the open axes of each, and its outputs' names."""

    module: Any
    inputs: dict[str, Any]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


def export(name: str, path: Path, *, dynamo: bool = True) -> Path:
    """Write the model `name` of BUILDERS into `path`, by torch.export or the older tracing."""
    import torch

    torch.manual_seed(0)
    with _quietly():
        source = BUILDERS[name]()
        source.module.eval()
        if name != "bert":
            _spread_gains(source.module)
        axes: dict[str, Any]
        if dynamo:
            # The dynamo exporter takes the names of forward's parameters.
            axes = {
                "dynamic_shapes": {
                    key: {axis: torch.export.Dim(word) for axis, word in named.items()}
                    for key, named in source.axes.items()
                }
            }
        else:
            axes = {"dynamic_axes": source.axes}
        torch.onnx.export(
            source.module,
            kwargs=source.inputs,
            f=str(path),
            input_names=list(source.inputs),
            output_names=list(source.outputs),
            dynamo=dynamo,
            opset_version=18,
            external_data=False,
            verbose=False,
            **axes,
        )
    return path


def samples(name: str, count: int, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Samples as a user would have them, by input: real lengths, ids, masks, pictures, sound."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, VOCABULARY, (count, 12))
    mask = np.ones_like(ids)
    mask[: count // 4, 9:] = 0
    hidden = draw.standard_normal((count, FRAMES // 2, HIDDEN)).astype(np.float32)
    sound = draw.standard_normal((count, BINS, FRAMES)).astype(np.float32)
    known: dict[str, dict[str, NDArray[Any]]] = {
        "bert": {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": (np.arange(12) > 5).astype(np.int64) * np.ones_like(ids),
        },
        "vit": {"pixel_values": draw.standard_normal((count, 3, 32, 32)).astype(np.float32)},
        "whisper_encoder": {"input_features": sound},
        "whisper_decoder": {"decoder_input_ids": ids, "encoder_hidden_states": hidden},
        "marian_encoder": {"input_ids": ids, "attention_mask": mask},
        "marian_decoder": {
            "decoder_input_ids": ids,
            "encoder_hidden_states": hidden[:, :12],
            "encoder_attention_mask": mask,
        },
        "gpt2": {"input_ids": ids},
        "llama": {"input_ids": ids},
    }
    if name == "whisper_past":
        past = draw.standard_normal((count, HEADS, 5, HIDDEN // HEADS)).astype(np.float32)
        return {
            "decoder_input_ids": ids[:, :1],
            "encoder_hidden_states": hidden,
            **{
                f"past_{what}_{i}": past * (i + 1)
                for i in range(LAYERS)
                for what in ("key", "value")
            },
        }
    return known[name]


def _spread_gains(module: Any) -> None:
    """Give normalizations gains and shifts as trained ones have: unlike, a few of them large."""
    import torch

    draw = torch.Generator().manual_seed(2)
    for part in module.modules():
        if not type(part).__name__.endswith(("LayerNorm", "RMSNorm")):
            continue
        size = part.weight.shape
        with torch.no_grad():
            part.weight.copy_(torch.exp(0.3 * torch.randn(size, generator=draw)))
            part.weight[torch.randperm(size[0], generator=draw)[:OUTLIERS]] *= 30.0
            if getattr(part, "bias", None) is not None:
                part.bias.copy_(0.1 * torch.randn(size, generator=draw))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's warnings, logs and prints, which are none of our business."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _bert() -> Source:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    _train_bert(model)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).logits

    ids = torch.randint(3, VOCABULARY, (2, 9))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return Source(Encoder(), inputs, axes, ("logits",))


def bert_labels(ids: NDArray[Any]) -> NDArray[np.int64]:
    """The class that the encoder is trained to tell: whose third of the vocabulary is commonest."""
    thirds = ids * 3 // VOCABULARY
    counts = np.stack([(thirds == k).sum(axis=1) for k in range(3)], axis=1)
    return counts.argmax(axis=1)


def _train_bert(model: Any) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = np.random.default_rng(1)
    model.train()
    for _ in range(150):
        ids = draw.integers(3, VOCABULARY, (64, 12))
        labels = torch.from_numpy(bert_labels(ids))
        loss = model(input_ids=torch.from_numpy(ids), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _vit() -> Source:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        image_size=32,
        patch_size=8,
        num_labels=10,
        attn_implementation="eager",
    )
    model = ViTForImageClassification(config)

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values).logits

    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    return Source(Vision(), inputs, {"pixel_values": {0: "batch"}}, ("logits",))


def _whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=BINS,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=INNER,
        decoder_ffn_dim=INNER,
        max_source_positions=FRAMES // 2,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
    )
    return WhisperForConditionalGeneration(config)


def _whisper_encoder() -> Source:
    import torch

    model = _whisper()

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.model.encoder

        def forward(self, input_features: Any) -> Any:
            return self.encoder(input_features, return_dict=False)[0]

    inputs = {"input_features": torch.randn(2, BINS, FRAMES)}
    return Source(Encoder(), inputs, {"input_features": {0: "batch"}}, ("last_hidden_state",))


def _whisper_decoder() -> Source:
    import torch

    model = _whisper()

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = model.model.decoder
            self.proj_out = model.proj_out

        def forward(self, decoder_input_ids: Any, encoder_hidden_states: Any) -> Any:
            hidden = self.decoder(
                input_ids=decoder_input_ids,
                encoder_hidden_states=encoder_hidden_states,
                use_cache=False,
                return_dict=False,
            )[0]
            return self.proj_out(hidden)

    inputs = {
        "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 7)),
        "encoder_hidden_states": torch.randn(2, FRAMES // 2, HIDDEN),
    }
    axes = {
        "decoder_input_ids": {0: "batch", 1: "decoder_sequence"},
        "encoder_hidden_states": {0: "batch"},
    }
    return Source(Decoder(), inputs, axes, ("logits",))


def _whisper_past() -> Source:
    """One step of the decoder, with the keys and values of the tokens before it."""
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    model = _whisper()

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = model.model.decoder
            self.proj_out = model.proj_out

        def forward(
            self,
            decoder_input_ids: Any,
            encoder_hidden_states: Any,
            past_key_0: Any,
            past_value_0: Any,
            past_key_1: Any,
            past_value_1: Any,
        ) -> Any:
            own = DynamicCache()
            own.update(past_key_0, past_value_0, 0)
            own.update(past_key_1, past_value_1, 1)
            cache = EncoderDecoderCache(own, DynamicCache())
            hidden = self.decoder(
                input_ids=decoder_input_ids,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=cache,
                use_cache=True,
                return_dict=False,
            )[0]
            kept = [part for layer in own.layers for part in (layer.keys, layer.values)]
            return (self.proj_out(hidden), *kept)

    past = torch.randn(2, HEADS, 5, HIDDEN // HEADS)
    inputs = {
        "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 1)),
        "encoder_hidden_states": torch.randn(2, FRAMES // 2, HIDDEN),
    }
    axes: dict[str, dict[int, str]] = {
        "decoder_input_ids": {0: "batch"},
        "encoder_hidden_states": {0: "batch"},
    }
    outputs = ["logits"]
    for i in range(LAYERS):
        for what in ("key", "value"):
            inputs[f"past_{what}_{i}"] = past.clone()
            axes[f"past_{what}_{i}"] = {0: "batch", 2: "past_length"}
            outputs.append(f"present_{what}_{i}")
    return Source(Step(), inputs, axes, tuple(outputs))


def _marian() -> Any:
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=INNER,
        decoder_ffn_dim=INNER,
        max_position_embeddings=40,
        pad_token_id=0,
        eos_token_id=2,
        forced_eos_token_id=2,
        decoder_start_token_id=0,
        activation_function="relu",
        scale_embedding=True,
        attn_implementation="eager",
    )
    return MarianMTModel(config)


def _marian_encoder() -> Source:
    import torch

    model = _marian()

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.model.encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=False
            )[0]

    ids = torch.randint(3, VOCABULARY, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return Source(Encoder(), inputs, axes, ("last_hidden_state",))


def _marian_decoder() -> Source:
    import torch

    model = _marian()

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = model.model.decoder
            self.lm_head = model.lm_head
            self.register_buffer("shift", torch.randn(1, VOCABULARY) * 0.1)

        def forward(
            self, decoder_input_ids: Any, encoder_hidden_states: Any, encoder_attention_mask: Any
        ) -> Any:
            hidden = self.decoder(
                input_ids=decoder_input_ids,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                use_cache=False,
                return_dict=False,
            )[0]
            return self.lm_head(hidden) + self.shift

    inputs = {
        "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 7)),
        "encoder_hidden_states": torch.randn(2, 9, HIDDEN),
        "encoder_attention_mask": torch.ones(2, 9, dtype=torch.int64),
    }
    axes = {
        "decoder_input_ids": {0: "batch", 1: "decoder_sequence"},
        "encoder_hidden_states": {0: "batch", 1: "encoder_sequence"},
        "encoder_attention_mask": {0: "batch", 1: "encoder_sequence"},
    }
    return Source(Decoder(), inputs, axes, ("logits",))


def _language(model: Any) -> Source:
    import torch

    class Language(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False, return_dict=False)[0]

    inputs = {"input_ids": torch.randint(3, VOCABULARY, (2, 9))}
    return Source(Language(), inputs, {"input_ids": {0: "batch", 1: "sequence"}}, ("logits",))


def _gpt2() -> Source:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=INNER,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    return _language(GPT2LMHeadModel(config))


def _llama() -> Source:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=40,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    return _language(LlamaForCausalLM(config))


BUILDERS: dict[str, Callable[[], Source]] = {
    "bert": _bert,
    "vit": _vit,
    "whisper_encoder": _whisper_encoder,
    "whisper_decoder": _whisper_decoder,
    "whisper_past": _whisper_past,
    "marian_encoder": _marian_encoder,
    "marian_decoder": _marian_decoder,
    "gpt2": _gpt2,
    "llama": _llama,
}
