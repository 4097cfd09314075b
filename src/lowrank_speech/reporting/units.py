"""Format raw values for people; an unknown value (None) is a dash.

Shares become percent, parameters millions, bytes GB, seconds minutes or hours.
"""

from typing import Any

DASH = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the percent sign: 0.1234 -> 12.3."""
    return DASH if value is None else f"{100 * value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A change in percent with plus or minus: -0.239 -> −23.9. Zero has no sign."""
    if value is None:
        return DASH
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 1, scale: float = 100) -> str:
    """Both ends of an interval, in percent (``scale`` 1: unscaled): 11.2…13.5."""
    if low is None or high is None:
        return DASH
    ends = (f"{round(scale * end, digits) + 0.0:.{digits}f}" for end in (low, high))  # + 0.0: no negative zero
    return "…".join(ends).replace("-", "−")


def cost(value: float | None) -> str:
    """A detection cost with three decimals. It is not a share, because it can exceed 1."""
    return DASH if value is None else f"{value:.3f}"


def parameters(value: float | None) -> str:
    """A number of parameters: 315.4 M, 12.3 k, 0."""
    if value is None:
        return DASH
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}" if value < 10 * size else f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def memory(value: float | None) -> str:
    """Bytes in GB (1e9) or MB."""
    if value is None:
        return DASH
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def duration(value: float | None) -> str:
    """Seconds as 8.2s, 3m05s or 2h07m."""
    if value is None:
        return DASH
    if value < 59.95:
        return f"{value:.1f}s"
    if value < 3599.5:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours}h{minutes:02d}m"


def hours(value: float | None) -> str:
    """Seconds of speech in hours, or in minutes below half an hour."""
    if value is None:
        return DASH
    return f"{value / 3600:.2f} h" if value >= 1800 else f"{value / 60:.1f} min"


def factor(value: float | None) -> str:
    """Seconds of work per second of speech: 0.0123."""
    if value is None:
        return DASH
    return f"{value:.3f}" if value >= 0.1 else f"{value:.4f}" if value >= 0.001 or not value else f"{value:.1e}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return DASH if value is None else f"{value:,.0f}".replace(",", " ")


def plain(value: Any) -> str:
    """Any value of a manifest, for tables whose columns another stage defines."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 else count(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " × ".join(plain(part) for part in value)
    return str(value)
