"""What the commands share: their common options, and how they load, report and print."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from srrc.errors import OptionError

Model = Annotated[
    str,
    typer.Argument(
        help="a name of the zoo, a Hugging Face directory or hub id, or module:factory; +FOLDER merges an adapter"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value")]
Budget = Annotated[
    str | None,
    typer.Option(help="fraction of the dense cost that may be spent, in (0, 1], or a time, '9 ms'"),
]
MaxDrift = Annotated[str | None, typer.Option(help="largest KL from the dense model, in nats a token")]
ProfilePath = Annotated[Path | None, typer.Option("--profile", help="a profile made by `srrc calibrate`")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16")]
Prompt = Annotated[str, typer.Option(help="text to continue")]


def load(name: str, dtype: str) -> tuple[Any, Any]:
    """A model, and its tokenizer or processor. Raises OptionError for an unknown dtype, ModelError for a model."""
    import torch

    from srrc import models_zoo

    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise OptionError(f"no dtype {dtype!r}; known: {', '.join(dtypes)}")
    with status(f"loading {name}"):
        return models_zoo.load(name, dtype=dtypes[dtype])


def options(budget: str | None, max_drift: str | None, profile: Path | None) -> Mapping[str, object]:
    """The options that were given, checked before anything is loaded."""
    from srrc.options import parse_options

    given = {"budget": number(budget), "max_drift": number(max_drift), "profile": profile}
    asked = {name: value for name, value in given.items() if value is not None}
    parse_options(asked)
    if profile is not None and not profile.is_file():
        raise OptionError(f"no profile at {profile}; make one with `srrc calibrate`")
    return asked


def number(text: str | None) -> float | str | None:
    """The number that a text spells, else the text itself, for the options to refuse by name."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def texts_of(domains: list[str], files: list[Path]) -> list[str]:
    """Calibration texts of domains of the zoo and of files; topics of the Python reference without either."""
    from srrc.models_zoo import texts

    found = [
        text for name in domains or ([] if files else ["docs"]) for text in texts.split(name, "calibration")
    ]
    for path in files:
        try:
            found.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read {path} as text: {error}") from error
    return found


def status(message: str) -> Any:
    """A spinner on standard error."""
    return Console(stderr=True).status(message)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    typer.echo(json.dumps(value, default=str))
