"""`srrc optimize`: from a model to a folder of ONNX files."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from srrc.cli_options import MaxDrift, Model, ProfilePath, load, number, options, status
from srrc.errors import OptionError

Out = Annotated[Path, typer.Option("--out", "-o", help="the folder to make, or the model's file in it")]


def optimize(
    model: Model,
    out: Out,
    budget: Annotated[
        str | None, typer.Option(help="share of the dense latency that may be spent, in (0, 1]")
    ] = None,
    max_drift: MaxDrift = None,
    profile: ProfilePath = None,
    levels: Annotated[str | None, typer.Option(help="some of layer,neuron,vocab; by default all")] = None,
    coarse: Annotated[
        str, typer.Option(help="bits of the weights that stand in for a branch's own: 8, 4, or none")
    ] = "8",
    precision: Annotated[str, typer.Option(help="float32, float16, bfloat16, int8 or int4")] = "float32",
    opset: Annotated[int, typer.Option(help="of the files")] = 23,
    threads: Annotated[int, typer.Option(help="of ONNX Runtime where it is timed")] = 1,
    prompts: Annotated[int, typer.Option(help="whose greedy continuation is compared with eager's")] = 4,
    new_tokens: Annotated[int, typer.Option(help="of each continuation")] = 32,
    heldout_tokens: Annotated[int, typer.Option(help="that drift is measured on")] = 2048,
    prefill: Annotated[int, typer.Option(help="tokens of a first call, where it is timed")] = 128,
    past: Annotated[int, typer.Option(help="tokens in the cache, where decoding is timed")] = 256,
    rounds: Annotated[int, typer.Option(help="calls to time")] = 10,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="measure and plot every budget that the file serves")
    ] = False,
    variants: Annotated[
        str,
        typer.Option(help="budgets that get a small file of their own over the same weights, like 1.0,0.8"),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the folder if it exists")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Write a model as ONNX whose irrelevant pathways plain ONNX Runtime skips."""
    from srrc.backends.onnx.quantise import BITS
    from srrc.optimization.folder import check_target, target_of
    from srrc.optimization.settings import Settings

    options(None, None, profile)  # whether the file is there
    settings = Settings(
        budget=_given(budget),
        max_drift=_given(max_drift),
        coarse=_bits(coarse),
        precision=precision,
        opset=opset,
        threads=threads,
        prompts=prompts,
        new_tokens=new_tokens,
        heldout_tokens=heldout_tokens,
        prefill=prefill,
        past=past,
        rounds=rounds,
        frontier=frontier,
        variants=_budgets(variants),
        overwrite=overwrite,
        **({} if levels is None else {"levels": _levels(levels)}),
    )
    check_target(target_of(out)[0], overwrite=overwrite)
    if model.endswith(".onnx"):
        loaded, second = _file(model)
    else:
        loaded, second = load(model, "float32" if precision in BITS else precision)
    report = _run(model, loaded, second, out, profile, settings)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), default=str))
        return
    console = Console()
    for table in report.tables():
        console.print(table)
    typer.echo(f"{out}: {', '.join(each.name for each in report.files)}")


def _run(name: str, model: Any, second: Any, out: Path, profile: Path | None, settings: Any) -> Any:
    from srrc.optimization.optimize import optimize as write

    given = isinstance(second, dict)  # what a factory may give beside its model: one call's inputs
    with status(f"optimizing {name}") as shown:
        return write(
            model,
            out,
            tokenizer=None if given else second,
            inputs=second if given else None,
            profile=profile,
            settings=settings,
            name=name,
            progress=lambda what: shown.update(f"{name}: {what}"),
        )


def _file(name: str) -> tuple[Path, Any]:
    """An ONNX file, and the tokenizer beside it, if there is one."""
    from srrc.models_zoo import hugging_face

    path = Path(name)
    if not path.is_file():
        raise OptionError(f"there is no file {name}")
    return path, hugging_face.tokenizer_in(path.parent)


def _given(text: str | None) -> Any:
    """A number; anything else is for the settings to refuse."""
    return number(text)


def _bits(text: str) -> int | None:
    if text == "none":
        return None
    if text not in {"4", "8"}:
        raise OptionError(f"coarse={text!r} is no width that there are kernels for; give 4, 8 or none")
    return int(text)


def _budgets(text: str) -> tuple[Any, ...]:
    return tuple(number(each.strip()) for each in text.split(",") if each.strip())


def _levels(text: str) -> Any:
    from srrc.options import parse_options

    return parse_options({"levels": [level.strip() for level in text.split(",")]}).levels
