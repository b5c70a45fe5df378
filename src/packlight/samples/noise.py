"""Noise that looks like a picture to a network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def natural_noise(
    channels: int, height: int, width: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """One picture of noise [channels, height, width] whose amplitude falls as 1 / frequency.

    Photographs have that spectrum (Field 1987, "Relations between the statistics of natural
    images and the response properties of cortical cells"); white noise drives the
    convolutions of a trained network into ranges that no photograph does. Channels share
    most of their content, as colours do. Brightness and contrast differ from picture to
    picture around mean 0 and deviation 1.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf  # no constant part: brightness is drawn apart
    white = generator.standard_normal((channels + 1, height, width))
    layers = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(height, width))
    deviation = layers.std(axis=(1, 2), keepdims=True)
    layers = layers / np.where(deviation > 0, deviation, 1)
    picture = layers[:1] + 0.35 * layers[1:] if channels > 1 else layers[:1]
    picture = picture / max(float(picture.std()), 1e-6)
    contrast, brightness = generator.uniform(0.6, 1.3), 0.4 * generator.standard_normal()
    return (contrast * picture + brightness).astype(np.float32)
