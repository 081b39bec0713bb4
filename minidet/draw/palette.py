"""One colour and one mark for every class, the same in all pictures, told apart with any colour vision."""

from __future__ import annotations

# The colours of Okabe and Ito ("Color Universal Design", 2008), with a dark red for their black: for any colour vision.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#882255")
# For boxes without room for a word. There are 7, so that colour and mark together repeat only after 7 * 8 = 56 classes.
MARKS = ("o", "s", "^", "D", "v", "P", "X")

# From the best of a list of numbers to the worst: light to dark, so that it can be told without any colour ("cividis").
HEAT = ("#FEE838", "#CBBA69", "#948E77", "#666970", "#3A486B", "#00224E")


def colour(label: int) -> str:
    """The colour of a class, "#RRGGBB"; classes beyond the palette begin it again, with another mark."""
    return PALETTE[int(label) % len(PALETTE)]


def mark(label: int) -> str:
    """The matplotlib marker of a class."""
    return MARKS[int(label) % len(MARKS)]


def heat(share: float) -> str:
    """The colour between best (0) and worst (1)."""
    place = min(max(share, 0.0), 1.0) * (len(HEAT) - 1)
    first = min(int(place), len(HEAT) - 2)
    low, high = ([int(each[start : start + 2], 16) for start in (1, 3, 5)] for each in HEAT[first : first + 2])
    return "#" + "".join(f"{round(a + (b - a) * (place - first)):02X}" for a, b in zip(low, high, strict=True))


def text_colour(background: str) -> str:
    """Black or white, whichever is read more easily on a colour (WCAG 2.2, contrast ratio)."""
    channels = [int(background[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#FFFFFF"
