"""Convolutions with a norm and ReLU."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ConvBn(nn.Sequential):
    """A convolution of stride 1 that keeps the size, batch normalisation, ReLU; parameters are `conv` and `bn`."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out), activate=nn.ReLU()))


class ConvGn(nn.Sequential):
    """The same with group normalisation, which does not depend on the batch; parameters are `conv` and `gn`."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(OrderedDict(conv=conv, gn=nn.GroupNorm(32, out), activate=nn.ReLU()))
