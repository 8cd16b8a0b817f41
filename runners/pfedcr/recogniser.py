"""A convolutional-recurrent recogniser of text lines (CRNN; Shi, Bai and Yao, arXiv 1507.05717) with attention gates.

Shapes: B lines, C channels, H and W of a feature map, T frames, A characters and a blank.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from privlm import files
from privlm.models.loaded import Loaded
from privlm.models.lstm import UnrolledLSTM

from .alphabet import Alphabet, require_same
from .frames import NUM_FRAMES

REDUCTION = 8
"""Channels of a gate's middle layer: C / 8."""

SPATIAL_KERNEL = 7
NUM_GROUPS = 8  # of norm=group
NUM_GATED = 2  # blocks at the end that have a gate
ALPHABET = "alphabet.json"


@dataclass(frozen=True)
class Block:
    """A convolution with what follows it. pool: window of the maximum, (1, 1) for none. normed: before the ReLU."""

    channels: int
    stride: int = 1
    kernel: int = 3
    padding: int = 1
    pool: tuple[int, int] = (1, 1)
    normed: bool = True


@dataclass(frozen=True)
class Shape:
    """blocks: one after the other. hidden: of each direction of each recurrent layer. column_norm: LayerNorm of each
    frame's features before the recurrent layers.
    """

    blocks: tuple[Block, ...]
    hidden: int
    num_layers: int
    column_norm: bool

    def column_size(self, height: int) -> int:
        """Features of a frame: channels times rows that are left of the height."""
        for block in self.blocks:
            height = ((height + 2 * block.padding - block.kernel) // block.stride + 1) // block.pool[0]
        return height * self.blocks[-1].channels


SHAPES = {
    "crnn_small": Shape(
        (Block(16, stride=2), Block(32, pool=(2, 1)), Block(48, pool=(2, 1)), Block(64)),
        hidden=64,
        num_layers=1,
        column_norm=True,
    ),
    "crnn": Shape(
        (
            Block(64, pool=(2, 2), normed=False),
            Block(128, pool=(2, 2), normed=False),
            Block(256),
            Block(256, pool=(2, 1), normed=False),
            Block(512),
            Block(512, pool=(2, 1), normed=False),
            Block(512, kernel=2, padding=0),
        ),
        hidden=256,
        num_layers=2,
        column_norm=False,
    ),
}
"""model.family -> shape; `crnn` is the VGG of the CRNN paper, for lines of 32 pixels."""


class ChannelGate(nn.Module):
    """A factor for each channel, from its pooled values (squeeze and excitation, arXiv 1709.01507; with the maximum
    beside the mean as in CBAM, arXiv 1807.06521). Factors are 2 sigmoid(x), and 1 before any training.
    """

    def __init__(self, channels: int, *, with_maximum: bool) -> None:
        super().__init__()
        self.with_maximum = with_maximum
        self.squeeze = nn.Linear(channels, channels // REDUCTION)
        self.excite = nn.Linear(channels // REDUCTION, channels)
        _silence(self.excite)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pooled = [x_BCHW.mean((2, 3)), *([x_BCHW.amax((2, 3))] if self.with_maximum else [])]
        factors_BPC = self.excite(self.squeeze(torch.stack(pooled, dim=1)).relu())
        return x_BCHW * (2 * factors_BPC.sum(1).sigmoid())[:, :, None, None]


class SpatialGate(nn.Module):
    """A factor for each place, from mean and maximum over the channels there (CBAM); 1 before any training."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(2, 1, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2)
        _silence(self.look)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        seen_B2HW = torch.cat([x_BCHW.mean(1, keepdim=True), x_BCHW.amax(1, keepdim=True)], dim=1)
        return x_BCHW * (2 * self.look(seen_B2HW).sigmoid())


def _silence(last: nn.Linear | nn.Conv2d) -> None:
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def _gate(kind: str, channels: int) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "se":
        return ChannelGate(channels, with_maximum=False)
    return nn.Sequential(ChannelGate(channels, with_maximum=True), SpatialGate())


class ConvBlock(nn.Module):
    """Convolution, norm, ReLU, attention, pooling."""

    def __init__(self, entering: int, block: Block, norm: str, attention: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(entering, block.channels, block.kernel, stride=block.stride, padding=block.padding)
        self.norm = _norm(norm, block.channels) if block.normed else nn.Identity()
        self.attention = _gate(attention, block.channels)
        self.pool = nn.MaxPool2d(block.pool) if block.pool != (1, 1) else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.norm(self.conv(x_BCHW)).relu()
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW)
        return self.pool(x_BCHW)


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(NUM_GROUPS, channels)


class Recogniser(nn.Module):
    """Log-probabilities of the characters at each frame of a line.

    family: of SHAPES. height: of the lines, in pixels. unrolled: the recurrent layers are of Linear layers, which
    privacy needs; the same function with the same weights.
    """

    def __init__(
        self, family: str, height: int, num_classes: int, *, norm: str, attention: str, unrolled: bool = False
    ) -> None:
        super().__init__()
        shape = SHAPES[family]
        self.family = family
        entering = [1, *(block.channels for block in shape.blocks)]
        gated = len(shape.blocks) - NUM_GATED
        self.blocks = nn.Sequential(
            *(
                ConvBlock(entering[number], block, norm, attention if number >= gated else "none")
                for number, block in enumerate(shape.blocks)
            )
        )
        size = shape.column_size(height)
        self.column_norm = nn.LayerNorm(size) if shape.column_norm else nn.Identity()
        recurrent = nn.LSTM(size, shape.hidden, shape.num_layers, batch_first=True, bidirectional=True)
        out = nn.Linear(2 * shape.hidden, num_classes)  # drawn before the copy, so that both kinds start alike
        self.recurrent: nn.Module = recurrent
        if unrolled:
            same = UnrolledLSTM(size, shape.hidden, shape.num_layers, bidirectional=True)
            self.recurrent = same.copy_weights(recurrent)
        self.out = out

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 1, H, W] -> [B, T, 1 + A]."""
        x_BCHW = self.blocks(image)
        columns_BTf = x_BCHW.flatten(1, 2).transpose(1, 2)
        hidden = self.recurrent(self.column_norm(columns_BTf))
        hidden_BTh = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.out(hidden_BTh).log_softmax(-1)

    def num_frames(self, width: Tensor) -> Tensor:
        """Of lines so wide, before the padding: [B] -> [B]."""
        return NUM_FRAMES[self.family](width)


def is_attention(name: str) -> bool:
    """Whether a parameter belongs to a gate, by its name."""
    return "attention" in name.split(".")


def is_output(name: str) -> bool:
    """Whether it belongs to the output layer."""
    return name.startswith("out.")


@torch.no_grad()
def with_fused_lstm(model: Recogniser) -> Recogniser:
    """The same function with torch's own LSTM, which can be exported; a model that has it already, as it is."""
    unrolled = model.recurrent
    if not isinstance(unrolled, UnrolledLSTM):
        return model
    cells: list[Any] = list(unrolled.cells)
    fused = nn.LSTM(
        cells[0].from_input.in_features,
        cells[0].from_hidden.in_features,
        len(cells) // unrolled.num_directions,
        batch_first=True,
        bidirectional=unrolled.num_directions == 2,
    )
    weights = iter(fused.parameters())  # in the order that UnrolledLSTM.copy_weights reads
    for cell in cells:
        gates = cell.from_input, cell.from_hidden
        for copied in (*(layer.weight for layer in gates), *(layer.bias for layer in gates)):
            next(weights).copy_(copied)
    same = copy.deepcopy(model)
    same.recurrent = fused
    return same.train(model.training)


def load_recogniser(config: Any, alphabet: Alphabet, seed: int, *, unrolled: bool) -> Loaded:
    """The untrained recogniser of a model config. It is saved with its alphabet, which loading compares."""

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return Recogniser(
            config.family,
            config.height,
            alphabet.num_classes,
            norm=config.norm,
            attention=config.attention,
            unrolled=unrolled,
        )

    names = ("family", "height", "norm", "attention")
    made_of = {name: getattr(config, name) for name in names} | {"seed": seed, "alphabet": alphabet.symbols}
    loaded = Loaded.of(build, made_of=made_of, tokenizer=alphabet)

    def save(model: nn.Module, folder: Path) -> None:
        loaded.save(model, folder)
        files.write_json(folder / ALPHABET, {"symbols": alphabet.symbols})

    def load(model: nn.Module, folder: Path) -> None:
        kept = files.read_json(folder / ALPHABET)
        if kept is not None:
            require_same(Alphabet(kept["symbols"]), alphabet, f"{folder / ALPHABET}")
        loaded.load(model, folder)

    return replace(loaded, save=save, load=load)
