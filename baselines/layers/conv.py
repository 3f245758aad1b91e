"""A convolution with batch normalisation and ReLU."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ConvBn(nn.Sequential):
    """A convolution of stride 1 that keeps the size, batch normalisation, ReLU; parameters are `conv` and `bn`."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out), activate=nn.ReLU()))
