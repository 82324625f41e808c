"""The shell door: `srrc calibrate | train | explain | bench | generate | cache | optimize`.

Exit code 0: done. 2: what was asked cannot be done, with one line on standard error that says why. 1:
anything else, with a traceback.

With `--json`, standard output carries one JSON value and nothing else.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from srrc.cli_optimize import optimize
from srrc.cli_options import (
    Budget,
    Dtype,
    Json,
    MaxDrift,
    Model,
    ProfilePath,
    Prompt,
    load,
    options,
    print_json,
    status,
    texts_of,
)
from srrc.cli_train import train
from srrc.errors import CacheError, DriftError, OptionError, SrrError


class _OneLine(TyperGroup):
    """A group of commands whose `SrrError`s end in one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SrrError as error:
            typer.echo(f"srrc: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1 if isinstance(error, DriftError) else 2) from error


app = typer.Typer(
    cls=_OneLine,
    help="Semantic Relevance Router compiler: compute only what matters for the input at hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PROMPT = "What is the capital of France, and what is it known for?"


@app.command()
def generate(
    model: Model,
    prompt: Prompt = _PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="how many tokens to write")] = 64,
    backend: Annotated[str, typer.Option(help="eager, inductor, inductor-frozen or srr")] = "srr",
    budget: Budget = None,
    max_drift: MaxDrift = None,
    profile: ProfilePath = None,
    dtype: Dtype = "float32",
    raw: Annotated[bool, typer.Option(help="leave out the chat template")] = False,
    as_json: Json = False,
) -> None:
    """Let a model continue a prompt, and say how fast and how far from dense."""
    from srrc.bench import generation

    asked = options(budget, max_drift, profile)
    loaded, tokenizer = load(model, dtype)
    with status(f"compiling {model} for {backend}"):
        made = generation.generate(
            loaded,
            tokenizer,
            prompt,
            backend=backend,
            options=asked,
            max_new_tokens=max_new_tokens,
            raw=raw,
        )
    if as_json:
        print_json(dataclasses.asdict(made))
        return
    typer.echo(made.text)
    typer.echo(
        f"{made.decode_tokens_per_s:.1f} tokens/s, first token after {1000 * made.prefill_s:.0f} ms, "
        f"compiled in {made.compile_s:.1f} s, drift {made.kl:.2g} nats a token",
        err=True,
    )


@app.command()
def calibrate(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="where to write the profile")],
    domain: Annotated[
        list[str] | None, typer.Option(help="a domain of text of the zoo; may be given again")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="a file of text; may be given again")] = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="measure gates on whole branches too; small models hardly use them"),
    ] = False,
    coarse: Annotated[
        int | None,
        typer.Option(help="measure gates that let weights of 4 or 8 bits stand in, for `srrc optimize`"),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(help="measure gates on so many blocks of each MLP's neurons, for `srrc optimize`"),
    ] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Measure what each gate of a model is worth on some text, and write a profile."""
    import srrc

    texts = texts_of(domain or [], text or [])
    if not out.parent.is_dir():
        raise OptionError(f"cannot write {out}: there is no folder {out.parent}")
    loaded, tokenizer = load(model, dtype)
    profile = srrc.calibrate(loaded, tokenizer, texts, layers=layers, coarse=coarse, blocks=blocks)
    profile.save(out)
    if as_json:
        print_json({"profile": str(out), "gates": len(profile.gates)})
    else:
        typer.echo(f"{out}: {len(profile.gates)} gates")


@app.command()
def explain(
    model: Model,
    prompt: Prompt = _PROMPT,
    budget: Budget = None,
    max_drift: MaxDrift = None,
    profile: ProfilePath = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """List every pathway of a model: kind, place, cost, relevance per cost, decision, and why not."""
    import srrc
    from srrc.bench import generation

    asked = options(budget, max_drift, profile)
    loaded, tokenizer = load(model, dtype)
    with status(f"compiling {model}"):
        generation.run_once(loaded, tokenizer, prompt, asked)
    report = srrc.explain(loaded)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        typer.echo(str(report))


@app.command()
def bench(
    model: Model,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="draw drift against speed into it")] = None,
    profile: ProfilePath = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="a LoRA adapter of the routed variants; all are held against the model without it"),
    ] = None,
    budgets: Annotated[str, typer.Option(help="of the routed variants")] = "0.9,0.8,0.7,0.6,0.5",
    variants: Annotated[
        str | None,
        typer.Option(help="some of eager,inductor,inductor-frozen,srr,routed,random; by default all"),
    ] = None,
    dtype: Dtype = "float32",
    threads: Annotated[int, typer.Option(help="of each variant")] = 1,
    batch: Annotated[int, typer.Option(help="rows of every call, each another text")] = 1,
    prompts: Annotated[int, typer.Option(help="how many prompts (batches of them) to continue")] = 20,
    rounds: Annotated[int, typer.Option(help="how many of them the routed variants continue")] = 8,
    new_tokens: Annotated[int, typer.Option(help="tokens to write after each prompt")] = 128,
    prefill_length: Annotated[int, typer.Option(help="tokens of each prompt")] = 128,
    heldout_tokens: Annotated[int, typer.Option(help="tokens of each domain to judge by")] = 512,
    cold: Annotated[
        bool, typer.Option(help="time compilation, from empty caches and again from full ones")
    ] = True,
    guards: Annotated[
        bool, typer.Option(help="check Dynamo's guards on each call, as it does unless told not to")
    ] = True,
    quality: Annotated[
        bool, typer.Option(help="judge by kinds of text and of requests, and time nothing")
    ] = False,
    tasks: Annotated[int, typer.Option(help="requests of each kind, with --quality")] = 40,
    quick: Annotated[bool, typer.Option(help="a smoke run: everything once, and little of it")] = False,
) -> None:
    """Measure eager, inductor, and srr exact and at budgets, against each other."""
    from srrc.bench.run import bench as measure
    from srrc.bench.settings import Settings, parse_budgets

    settings = Settings(
        model,
        dtype=dtype,
        threads=threads,
        batch=batch,
        prompts=prompts,
        rounds=rounds,
        new_tokens=new_tokens,
        prefill_length=prefill_length,
        heldout_tokens=heldout_tokens,
        guards=guards,
        cold=cold,
        budgets=parse_budgets(budgets),
        profile=profile,
        adapter=adapter,
    )
    kinds = None if variants is None else [kind.strip() for kind in variants.split(",")]
    if quality:
        settings = settings.judging(tasks)
        kinds = kinds or ["eager", *(["routed", "random"] if profile else ["srr"])]
    for path in (json_path, plot_path):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    measure(settings.quick() if quick else settings, kinds=kinds, json_path=json_path, plot_path=plot_path)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option(help="remove what was compiled")] = False,
    models: Annotated[bool, typer.Option(help="with --clear: the fetched models too")] = False,
    as_json: Json = False,
) -> None:
    """Show what the cache on disk holds, or clear it."""
    from srrc.paths import cache_root

    root = cache_root()
    rooms = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if clear:
        for room in rooms:
            if models or room.name != "zoo":
                _remove(room)
        rooms = [room for room in rooms if room.is_dir()]
    sizes = {room.name: _size(room) for room in rooms}
    if as_json:
        print_json({"folder": str(root), "bytes": sizes})
        return
    typer.echo(str(root))
    for name, size in sizes.items():
        typer.echo(f"  {name:<12} {size / 1e6:10.1f} MB")


@app.command()
def demo(
    model: Annotated[str, typer.Argument(help="as for generate")] = "smollm2-135m",
    prompt: Prompt = _PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="how many tokens to write")] = 64,
    budget: Annotated[str, typer.Option(help="for the routed variant, which needs --profile")] = "0.6",
    profile: ProfilePath = None,
    dtype: Dtype = "float32",
) -> None:
    """One answer under eager, inductor and srr, side by side."""
    from srrc.bench.demo import demo_table, run_demo

    options(budget if profile else None, None, profile)
    load(model, dtype)  # fetch it, and fail on it, once
    rows = []
    console = Console(width=None if sys.stdout.isatty() else 120)  # a log breaks no line of the table
    with status("asking each backend in a process of its own; compiling takes minutes"):
        for name, row in run_demo(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            budget=budget,
            profile=str(profile) if profile else None,
            dtype=dtype,
        ):
            console.print(f"[bold]{name}[/]: ", end="")
            console.print(row["text"], markup=False, highlight=False)
            rows.append((name, row))
    console.print(demo_table(rows))


app.command()(optimize)
app.command()(train)


def main() -> None:
    """Entry point of the console script."""
    # As under `python -m`, a module:factory of the working directory can be named; last, to shadow nothing.
    sys.path.append("")
    app()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise CacheError(f"cannot remove {folder}: {error.strerror}") from error
