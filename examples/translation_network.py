"""The network of translate.py: a small Transformer, in two halves as they are exported."""

from __future__ import annotations

import math

import torch  # noqa: TID251  (training is not part of the package)
from torch import Tensor, nn  # noqa: TID251
from translate import PAD


class Attention(nn.Module):
    """Heads that look from `queries` at keys and values [batch, heads, places, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def split(self, x: Tensor) -> Tensor:
        """[batch, places, heads * width] as [batch, heads, places, width]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def remember(self, x: Tensor) -> Tensor:
        """The keys and the values of x [batch, places, width]: [batch, 2, heads, places, ..]."""
        return torch.stack([self.split(part) for part in self.key_value(x).chunk(2, dim=2)], dim=1)

    def forward(self, x: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        """What x finds in memory (keys and values), where hidden is 0 and not very negative."""
        queries = self.split(self.query(x))
        scores = queries @ memory[:, 0].transpose(2, 3) / math.sqrt(queries.shape[3]) + hidden
        found = scores.softmax(dim=3) @ memory[:, 1]
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A layer of either side: attention to itself, to the other side, and two linear layers."""

    def __init__(self, width: int, heads: int, dropout: float, *, crosses: bool) -> None:
        super().__init__()
        self.itself = Attention(width, heads)
        self.other = Attention(width, heads) if crosses else None
        self.wide = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if crosses else 2))
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, hidden: Tensor, past: Tensor | None, memory: Tensor | None, padded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the new x [batch, places, width] and its keys and values, after those of past."""
        y = self.norms[0](x)
        seen = self.itself.remember(y)
        if past is not None:
            seen = torch.cat([past, seen], dim=3)
        x = x + self.drop(self.itself(y, seen, hidden))
        if self.other is not None:
            x = x + self.drop(self.other(self.norms[1](x), memory, padded))
        return x + self.drop(self.wide(self.norms[-1](x))), seen


class Translation(nn.Module):
    """A Transformer (Vaswani et al. 2017), normalized before each part (Xiong et al. 2020)."""

    def __init__(
        self, pieces: int, width: int = 256, layers: int = 3, dropout: float = 0.2
    ) -> None:
        super().__init__()
        heads = width // 64
        self.cache_shape = (2 * layers, heads, 64)
        self.table = nn.Embedding(pieces, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.encoder = nn.ModuleList(
            Block(width, heads, dropout, crosses=False) for _ in range(layers)
        )
        self.decoder = nn.ModuleList(
            Block(width, heads, dropout, crosses=True) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(dropout)
        frequencies = torch.exp(-math.log(10000) * torch.arange(0, width, 2) / width)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def embed(self, pieces: Tensor, positions: Tensor) -> Tensor:
        """Rows of the table, with waves of the positions added."""
        angles = positions[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.drop(self.table(pieces) * math.sqrt(self.table.embedding_dim) + waves)

    def encode(self, source: Tensor) -> Tensor:
        """Reads source [batch, places] and returns what the decoder's layers look at (`memory`):
        keys and values of each, [batch, 2 * layers, heads, places, 64].
        """
        padded = hide(source == PAD)
        x = self.embed(source, torch.arange(source.shape[1]))
        for block in self.encoder:
            x, _ = block(x, padded, None, None, padded)
        x = self.norms[0](x)
        return torch.cat([block.other.remember(x) for block in self.decoder], dim=1)

    def decode(
        self, source: Tensor, memory: Tensor, pieces: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Goes on with pieces [batch, new] after past [batch, 2 * layers, heads, places, 64]:
        returns logits [batch, new, pieces] of what follows each, and past with the new ones.
        """
        padded = hide(source == PAD)
        places = torch.arange(past.shape[3] + pieces.shape[1])
        new = places[past.shape[3] :]
        later = hide(places[None, None] > new[None, :, None])
        x, present = self.embed(pieces, new), []
        for number, block in enumerate(self.decoder):
            own = slice(2 * number, 2 * number + 2)
            x, seen = block(x, later, past[:, own], memory[:, own], padded)
            present.append(seen)
        logits = self.norms[1](x) @ self.table.weight.transpose(0, 1)
        return logits, torch.cat(present, dim=1)

    def empty_past(self, batch: int) -> Tensor:
        """The past of a sentence's first piece."""
        sides, heads, width = self.cache_shape
        return torch.zeros(batch, sides, heads, 0, width)

    def forward(self, source: Tensor, pieces: Tensor) -> Tensor:
        """Logits of what follows each piece of whole sentences."""
        past = self.empty_past(len(source))
        return self.decode(source, self.encode(source), pieces, past)[0]


def hide(places: Tensor) -> Tensor:
    """Places [batch, keys] or [batch, queries, keys] as what is added to scores of attention."""
    shown = places[:, None, None] if places.dim() == 2 else places[:, None]
    return shown * -1e4


class Encoder(nn.Module):
    """What encoder.onnx holds."""

    def __init__(self, model: Translation) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor) -> Tensor:
        """See Translation.encode."""
        return self.model.encode(source)


class Decoder(Encoder):
    """What decoder.onnx holds."""

    def forward(
        self, source: Tensor, memory: Tensor, pieces: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See Translation.decode."""
        return self.model.decode(source, memory, pieces, past)
