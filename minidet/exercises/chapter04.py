"""The exercises of chapter 04: receptive fields counted layer by layer, of an encoder's paths, and by gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from minidet.exercises.check import Exercise, Mistake

Layers = Sequence[tuple[int, int, int]]
RESNET_18 = [
    (7, 2, 1), (3, 2, 1),  # the stem: a convolution and a maximum
    *[(3, 1, 1)] * 4,
    (3, 2, 1), *[(3, 1, 1)] * 3,
    (3, 2, 1), *[(3, 1, 1)] * 3,
    (3, 2, 1), *[(3, 1, 1)] * 3,
]  # fmt: skip


# ---- the field of a stack of layers ---------------------------------------------------------------------------------


def field_of_layers(layers: Layers) -> tuple[int, int]:
    """Receptive field and stride of a stack: (kernel, stride, dilation) of each layer -> size and stride in pixels."""
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        size += (kernel - 1) * dilation * jump
        jump *= stride
    return size, jump


def _random_layers(rng: Generator) -> tuple[Layers]:
    draw = torch.randint(0, 1000, (20, 3), generator=rng).tolist()
    return ([((1, 2, 3, 5)[a % 4], (1, 1, 1, 2)[b % 4], (1, 2, 3)[c % 3]) for a, b, c in draw],)


def _stack(layers: Layers, size: int, step: Callable[[int, int, int, int, int], tuple[int, int]]) -> tuple[int, int]:
    """`step` gets (size, jump, kernel, stride, dilation) for each layer and gives the new size and jump."""
    jump = 1
    for kernel, stride, dilation in layers:
        size, jump = step(size, jump, kernel, stride, dilation)
    return size, jump


FIELD_OF_LAYERS = Exercise(
    answer=field_of_layers,
    returns=("size", "stride"),
    inputs={
        "the three layers of figure 2": lambda rng: ([(3, 1, 1), (3, 2, 1), (3, 1, 1)],),
        "no layer at all": lambda rng: ([],),
        "one layer with dilation 4": lambda rng: ([(3, 1, 4)],),
        "a 1 x 1 with stride 2, then a 5 x 5": lambda rng: ([(1, 2, 1), (5, 1, 1)],),
        "dilation after a stride, then another stride": lambda rng: ([(3, 2, 1), (3, 1, 3), (2, 2, 1), (3, 2, 2)],),
        "ResNet-18 up to C5": lambda rng: (list(RESNET_18),),
        "twenty random layers": _random_layers,
    },
    mistakes=(
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + (k - 1) * d * j * s, j * s)),
            "The stride of a layer is counted too early. Its own taps lie on the map *below* it, so they are the old "
            "stride apart. Enlarge the size first, then multiply the stride.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + (k - 1) * d, j * s)),
            "The strides of the layers below are missing from the size: one step on a map is several pixels of the "
            "picture. Multiply by the product of the strides so far.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + (k - 1) * j, j * s)),
            "The dilation is missing: between the first and the last tap lie (kernel - 1) * dilation steps.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + k * d * j, j * s)),
            "A kernel of 3 has three taps but only two steps between them: it adds kernel - 1, not kernel.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + (k * d - 1) * j, j * s)),
            "Dilation stretches the steps between the taps, not the taps: (kernel - 1) * dilation, not "
            "kernel * dilation - 1.",
        ),
        Mistake(
            lambda layers: _stack(layers, 0, lambda r, j, k, s, d: (r + (k - 1) * d * j, j * s)),
            "Start with 1: without any layer a unit is a pixel and sees itself.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: ((r - 1) * s + (k - 1) * d + 1, j * s)),
            "This is the recurrence that goes from the top layer down to the picture, but the layers come from the "
            "picture upwards. Go through them backwards, or add (kernel - 1) * dilation * stride so far.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + (k - 1) * d * j, j + s)),
            "Strides multiply: two layers that halve the resolution make a quarter, stride 4.",
        ),
        Mistake(
            lambda layers: _stack(layers, 1, lambda r, j, k, s, d: (r + (k - 1) * d * j, s)),
            "Only the last layer's stride is kept. What counts is the product of the strides of all layers so far.",
        ),
        Mistake(
            lambda layers: field_of_layers(layers)[::-1],
            "The two values are in the wrong order: the size first, then the stride.",
        ),
    ),
)


# ---- the set of fields of a dilated encoder -------------------------------------------------------------------------


def encoder_ranges(projector: int, stride: int, dilations: Sequence[int], shortcuts: Sequence[bool]) -> Tensor:
    """All receptive fields that a dilated encoder mixes, in pixels: int64, ascending, each once."""
    sizes = {projector}
    for dilation, shortcut in zip(dilations, shortcuts, strict=True):
        through = {size + 2 * dilation * stride for size in sizes}
        sizes = sizes | through if shortcut else through
    return torch.tensor(sorted(sizes), dtype=torch.int64)


def _random_encoder(rng: Generator) -> tuple[int, int, list[int], list[bool]]:
    dilations = torch.randint(1, 9, (7,), generator=rng).tolist()
    return 547, 32, dilations, [bool(draw) for draw in torch.randint(0, 4, (7,), generator=rng)]


def _paths(
    projector: int, stride: int, dilations: Sequence[int], shortcuts: Sequence[bool], span: Callable[[int], int]
) -> list[int]:
    """The field of every path, in the order of counting; a block of dilation d adds span(d) cells."""
    ways = [(False, True) if shortcut else (True,) for shortcut in shortcuts]
    return [
        projector + stride * sum(span(d) for d, taken in zip(dilations, path, strict=True) if taken)
        for path in itertools.product(*ways)
    ]


def _sorted(sizes: Sequence[int]) -> Tensor:
    return torch.tensor(sorted(set(sizes)), dtype=torch.int64)


def _two(dilation: int) -> int:
    return 2 * dilation


def _in_order(projector: int, stride: int, dilations: Sequence[int], shortcuts: Sequence[bool]) -> Tensor:
    found = [projector]
    for dilation in dilations:
        found.append(found[-1] + 2 * dilation * stride)
    return _sorted(found)


ENCODER_RANGES = Exercise(
    answer=encoder_ranges,
    returns=("sizes",),
    inputs={
        "two blocks": lambda rng: (547, 32, [2, 4], [True, True]),
        "two blocks of the same dilation, and another": lambda rng: (499, 32, [1, 2, 1], [True] * 3),
        "the four blocks of YOLOF": lambda rng: (547, 32, [2, 4, 6, 8], [True] * 4),
        "no block": lambda rng: (547, 32, [], []),
        "the second block without a shortcut": lambda rng: (515, 16, [4, 8, 12], [True, False, True]),
        "no shortcut at all": lambda rng: (547, 32, [2, 4, 6, 8], [False] * 4),
        "seven random blocks": _random_encoder,
    },
    mistakes=(
        Mistake(
            lambda p, stride, dilations, shortcuts: _in_order(p, stride, dilations, shortcuts),
            "These are the fields after the first block, after the second, and so on. A path may also go round an "
            "early block and through a late one: take every subset of the blocks.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(
                _paths(p, stride, dilations, [True] * len(shortcuts), _two)
            ),
            "A block without a shortcut cannot be gone round: every path must go through it.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(
                _paths(p, stride, dilations, [False] * len(shortcuts), _two)
            ),
            "This is the longest path alone. A shortcut also lets the input of its block pass as it is, with the "
            "smaller field.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted([p, *(p + 2 * stride * d for d in dilations)]),
            "Only one block is taken at a time. Two or more blocks on one path add up.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(_paths(p, stride, dilations, shortcuts, lambda d: d)),
            "A 3 x 3 kernel reaches one dilation to *each* side, so a block adds two dilations.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(_paths(p, stride, dilations, shortcuts, lambda d: 3 * d)),
            "A kernel of 3 has two steps between its taps, so a block adds (3 - 1) * dilation cells, not 3 * dilation.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(_paths(p, 1, dilations, shortcuts, _two)),
            "These are cells added to pixels. A cell of this map is `stride` pixels wide.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: torch.tensor(sorted(_paths(p, stride, dilations, shortcuts, _two))),
            "Some sizes stand there twice: two subsets may see equally far (1 + 1 = 2). Keep each size once.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: torch.tensor(
                list(dict.fromkeys(_paths(p, stride, dilations, shortcuts, _two)))
            ),
            "The right sizes, but not in ascending order.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(
                [each for each in _paths(p, stride, dilations, shortcuts, _two) if each != p]
            ),
            "The path that goes round every block is missing. It sees what the projector sees.",
        ),
        Mistake(
            lambda p, stride, dilations, shortcuts: _sorted(_paths(0, stride, dilations, shortcuts, _two)),
            "What the projector sees is missing: every path begins with it.",
        ),
    ),
)


# ---- the effective field --------------------------------------------------------------------------------------------


class _Network:
    """A small network that says what it is; a copy of it is the same one, so that an answer gets just this."""

    def __init__(self, words: str, function: Callable[[Tensor], Tensor]):
        self._words, self._function = words, function

    def __call__(self, x: Tensor) -> Tensor:
        return self._function(x)

    def __deepcopy__(self, memo: dict) -> _Network:
        return self

    def __repr__(self) -> str:
        return self._words


def effective_field(network: Callable[[Tensor], Tensor], x: Tensor, cell: tuple[int, int]) -> Tensor:
    """How strongly each pixel moves one unit: x [1, colours, H, W] -> [H, W], in units of the strongest pixel."""
    x = x.clone().requires_grad_()
    unit = network(x)[0, :, cell[0], cell[1]]  # [channels]
    total = torch.zeros(x.shape[-2:])
    for value in unit:
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        total += gradient[0].square().sum(dim=0)
    field = total.sqrt()
    return field / field.max() if field.max() > 0 else field


def _convolutions(rng: Generator, channels: Sequence[int], strides: Sequence[int], bias: float = 0.1) -> _Network:
    convs = []
    for c_in, c_out, stride in zip(channels[:-1], channels[1:], strides, strict=True):
        conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1)
        conv.weight.data = torch.randn(conv.weight.shape, generator=rng) / (3 * c_in**0.5)
        conv.bias.data.fill_(bias)
        convs.append(conv.requires_grad_(False))
    last = len(convs) - 1

    def function(x: Tensor) -> Tensor:
        for number, conv in enumerate(convs):
            x = conv(x) if number == last and bias > 0 else conv(x).relu()
        return x

    return _Network(f"{len(convs)} convolutions 3 x 3, {channels[-1]} channels at the end", function)


def _one_tap(rng: Generator) -> tuple[_Network, Tensor, tuple[int, int]]:
    weight = torch.tensor([[0.0, 0, 0], [0, 3, 4], [0, 0, 0]]).view(1, 1, 3, 3)
    network = _Network("a 3 x 3 kernel with a 3 in the middle and a 4 on its right", lambda x: _conv(x, weight))
    return network, torch.ones(1, 1, 3, 4), (1, 2)


def _opposite_channels(rng: Generator) -> tuple[_Network, Tensor, tuple[int, int]]:
    kernel = torch.tensor([[0.0, 1, 0], [1, 2, 1], [0, 1, 0]])
    weight = torch.stack([kernel, -kernel])[:, None]  # [2, 1, 3, 3]
    network = _Network("two channels of opposite sign", lambda x: _conv(x, weight))
    return network, torch.rand(1, 1, 5, 5, generator=rng), (2, 2)


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.conv2d(x, weight, padding=1)


def _unequal_colours(rng: Generator) -> tuple[_Network, Tensor, tuple[int, int]]:
    weight = torch.zeros(1, 3, 3, 3)
    weight[0, :, 1, 1], weight[0, :, 1, 2] = torch.tensor([1.0, -1, 1]), torch.tensor([2.0, 1, 0])
    network = _Network("three colours, one of them counted negative", lambda x: _conv(x, weight))
    return network, torch.rand(1, 3, 4, 4, generator=rng), (1, 1)


def _deep(rng: Generator) -> tuple[_Network, Tensor, tuple[int, int]]:
    network = _convolutions(rng, (3, 8, 8, 4), (1, 2, 1))
    return network, torch.rand(1, 3, 17, 23, generator=rng), (3, 8)


def _dead(rng: Generator) -> tuple[_Network, Tensor, tuple[int, int]]:
    network = _convolutions(rng, (1, 2), (1,), bias=-100.0)
    return network, torch.rand(1, 1, 5, 5, generator=rng), (2, 2)


Answer = Callable[[Callable[[Tensor], Tensor], Tensor, tuple[int, int]], Tensor]


def _by(combine: Callable[[Tensor], Tensor], guarded: bool = True) -> Answer:
    """An answer that is right but for how the gradients [channels, colours, H, W] become one number a pixel.

    Args:
        combine: gives that number.
        guarded: without the guard, a unit that no pixel moves gives 0 / 0.
    """

    def answer(network: Callable[[Tensor], Tensor], x: Tensor, cell: tuple[int, int]) -> Tensor:
        return _normalised(combine(_gradients(network, x, cell)), guarded)

    return answer


def _normalised(field: Tensor, guarded: bool) -> Tensor:
    return field / field.max() if field.max() > 0 or not guarded else field


def _gradients(network: Callable[[Tensor], Tensor], x: Tensor, cell: tuple[int, int]) -> Tensor:
    x = x.clone().requires_grad_()
    unit = network(x)[0, :, cell[0], cell[1]]
    return torch.cat([torch.autograd.grad(value, x, retain_graph=True)[0] for value in unit])


def _whole_map(guarded: bool) -> Answer:
    def answer(network: Callable[[Tensor], Tensor], x: Tensor, cell: tuple[int, int]) -> Tensor:
        x = x.clone().requires_grad_()
        maps = network(x)[0]  # [channels, rows, columns]
        gradients = torch.cat([torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in maps])
        return _normalised(_root_of_squares(gradients), guarded)

    return answer


def _root_of_squares(gradients: Tensor) -> Tensor:
    return gradients.square().sum(dim=(0, 1)).sqrt()


# How gradients [channels, colours, H, W] are put together wrongly; people who do so also forget that 0 / 0 is NaN.
_COMBINED_WRONGLY: tuple[tuple[Callable[[Tensor], Tensor], str], ...] = (
    (
        lambda g: g.sum(dim=0).square().sum(dim=0).sqrt(),
        "The channels are added before the gradient is taken, so they cancel. Take the gradient of each channel by "
        "itself (`retain_graph=True` keeps the graph for the next one), then add their squares.",
    ),
    (
        lambda g: g.sum(dim=0).abs().sum(dim=0),
        "The channels are added before the gradient is taken, so they cancel, and the colours are added as absolute "
        "values. Take the gradient of each channel by itself, then the root of the sum of all squares.",
    ),
    (
        lambda g: g.sum(dim=1).square().sum(dim=0).sqrt(),
        "The colours are added before they are squared, so they cancel. Square first, then add.",
    ),
    (
        lambda g: g.sum(dim=(0, 1)),
        "The gradients themselves are added up, so positive and negative ones cancel. Square them first, and take the "
        "root at the end.",
    ),
    (
        lambda g: g.abs().sum(dim=(0, 1)),
        "These are sums of absolute values. Wanted is the root of the sum of squares, over channels and colours.",
    ),
    (
        lambda g: g.square().sum(dim=(0, 1)),
        "The root is missing: these are the squares.",
    ),
    (
        lambda g: g.square().sum(dim=0).sqrt(),
        "There is a number for every colour of every pixel. Add the squares over the colours too.",
    ),
)

EFFECTIVE_FIELD = Exercise(
    answer=effective_field,
    returns=("field",),
    inputs={
        "a kernel with two weights": _one_tap,
        "three colours": _unequal_colours,
        "two channels that cancel": _opposite_channels,
        "three layers, one with stride 2": _deep,
        "a unit that no pixel moves": _dead,
    },
    mistakes=(
        *(Mistake(_by(combine, guarded), hint) for combine, hint in _COMBINED_WRONGLY for guarded in (True, False)),
        *(
            Mistake(
                _whole_map(guarded),
                "This is the gradient of all units together. Pick the unit first: row cell[0], column cell[1] of the "
                "map.",
            )
            for guarded in (True, False)
        ),
        Mistake(
            lambda network, x, cell: _root_of_squares(_gradients(network, x, cell)),
            "Divide by the largest value, so that the strongest pixel has 1.",
        ),
        Mistake(
            lambda network, x, cell: effective_field(network, x, (cell[1], cell[0])),
            "Row and column are swapped: cell is (row, column), and the map is [1, channels, rows, columns].",
        ),
        Mistake(
            _by(_root_of_squares, guarded=False),
            "A unit that depends on no pixel has no strongest one, and 0 / 0 is NaN. Divide only if the largest value "
            "is above 0.",
        ),
    ),
)


EXERCISES = (FIELD_OF_LAYERS, ENCODER_RANGES, EFFECTIVE_FIELD)
