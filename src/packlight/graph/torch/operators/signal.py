"""Fourier transforms, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from packlight.graph.torch.values import DTYPES, Tensor, whole


def dft(
    input: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | int = -2,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along an axis; the last axis has real and imaginary part."""
    along = whole(axis) % input.ndim
    length = None if dft_length is None else whole(dft_length)
    if inverse and onesided:
        spectrum = torch.view_as_complex(input.contiguous())
        real: Tensor = torch.fft.irfft(spectrum, length, along)
        return real.unsqueeze(-1)
    if input.shape[-1] == 2:
        signal = torch.view_as_complex(input.contiguous())
    else:
        signal = input.squeeze(-1)
    if inverse:
        found = torch.fft.ifft(signal, length, along)
    elif onesided and not signal.is_complex():
        found = torch.fft.rfft(signal, length, along)
    else:
        found = torch.fft.fft(signal, length, along)
        if onesided:
            found = found.narrow(along, 0, found.shape[along] // 2 + 1)
    return torch.view_as_real(found)


def dft_17(
    input: Tensor,
    dft_length: Tensor | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """DFT whose axis is an attribute."""
    return dft(input, dft_length, axis, inverse=inverse, onesided=onesided)


def stft(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """The Fourier transforms of frames of a signal [batch, length, 1 or 2]."""
    length = len(window) if frame_length is None and window is not None else whole(frame_length)
    values = torch.view_as_complex(signal) if signal.shape[-1] == 2 else signal[..., 0]
    frames = values.unfold(1, length, whole(frame_step))
    if window is not None:
        frames = frames * window
    if onesided and not frames.is_complex():
        return torch.view_as_real(torch.fft.rfft(frames))
    return torch.view_as_real(torch.fft.fft(frames))


def mel_weight_matrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """Triangles on the mel scale, [spectrum, bands], between whole bins of the spectrum."""
    bands, length = whole(num_mel_bins), whole(dft_length)
    low, high = (
        2595 * torch.log10(1 + edge.double() / 700) for edge in (lower_edge_hertz, upper_edge_hertz)
    )
    step = (high - low) / (bands + 2)
    mel = torch.arange(bands + 2, dtype=torch.float64) * step + low
    hertz = 700 * (10 ** (mel / 2595) - 1)
    edges = torch.floor((length + 1) * hertz / whole(sample_rate)).long().tolist()
    matrix = torch.zeros(length // 2 + 1, bands, dtype=torch.float64)
    for band in range(bands):
        first, middle, last = edges[band : band + 3]
        if middle == first:
            matrix[middle, band] = 1
        for place in range(first, middle + 1):
            if middle != first:
                matrix[place, band] = (place - first) / (middle - first)
        for place in range(middle, last):
            matrix[place, band] = (last - place) / (last - middle)
    return matrix.to(DTYPES[output_datatype])


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "DFT": {17: dft_17, 20: dft},
    "MelWeightMatrix": mel_weight_matrix,
    "STFT": stft,
}
