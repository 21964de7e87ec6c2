"""Templates in annotations: `{{ $value }}` and `{{ $labels.node }}`, and nothing more."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from controller.core.expression_text import did_you_mean

_LABEL = "$labels."


def template_problem(text: str, labels: Collection[str]) -> str | None:
    """Return why the template cannot be filled in with these labels, or None."""
    for part in text.split("{{")[1:]:
        name, closed, _ = part.partition("}}")
        name = name.strip()
        if not closed:
            return "'{{' is never closed"
        if name == "$value":
            continue
        if not name.startswith(_LABEL):
            return (
                f"'{{{{ {name[:64]} }}}}' is not known; there are {{{{ $value }}}} "
                "and {{ $labels.NAME }}"
            )
        label = name.removeprefix(_LABEL)
        if label not in labels:
            return f"its alerts have no label '{label[:64]}'{did_you_mean(label, labels)}"
    return None


def fill(text: str, labels: Mapping[str, str], value: float) -> str:
    """Return the text with its places filled in; the value has six significant digits."""
    first, *parts = text.split("{{")
    filled = [first]
    for part in parts:
        name, _, rest = part.partition("}}")
        name = name.strip()
        filled.append(f"{value:.6g}" if name == "$value" else labels[name.removeprefix(_LABEL)])
        filled.append(rest)
    return "".join(filled)
