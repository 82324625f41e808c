"""`srrc train`: relevance that is learned."""

from pathlib import Path
from typing import Annotated

import typer

from srrc.cli_options import Json, Model, ProfilePath, load, print_json
from srrc.errors import OptionError, ProfileError


def train(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="a folder for all that is learned")],
    phase: Annotated[
        str, typer.Option(help="router (gates from traces), or joint (gates and LoRA)")
    ] = "router",
    data: Annotated[
        list[str] | None, typer.Option(help="a domain of the zoo or a file of text; may be given again")
    ] = None,
    profile: ProfilePath = None,
    steps: Annotated[int, typer.Option(help="of phase joint, a batch each")] = 400,
    rank: Annotated[int, typer.Option(help="of the LoRA adapters; 0 trains gates alone")] = 16,
    rate: Annotated[float, typer.Option(help="the adapters' learning rate")] = 3e-4,
    variant: Annotated[str, typer.Option(help="straight-through, gumbel or policy")] = "straight-through",
    budgets: Annotated[str, typer.Option(help="to train under, from easy to hard")] = "0.8,0.7,0.6,0.5,0.4",
    seed: Annotated[int, typer.Option(help="of batches, adapters and noise")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="little of everything, to see that it works")
    ] = False,
    as_json: Json = False,
) -> None:
    """Teach a model's gates what matters; a run that was stopped goes on where it was."""
    import srrc
    from srrc.profile import Profile
    from srrc.training.settings import Joint
    from srrc.training.train import PHASES

    if phase not in PHASES:
        raise OptionError(f"unknown phase {phase!r}; known: {', '.join(PHASES)}")
    settings = Joint(
        steps=steps,
        rank=rank,
        rate=rate,
        budgets=_numbers(budgets),
        variant=variant,
        seed=seed,
    )
    if phase == "joint" and profile is None and not (out / "profile.srr").is_file():
        raise ProfileError(
            f"no profile at {out / 'profile.srr'}; run --phase router first, or give --profile"
        )
    texts = _texts(data or [])
    held = None if profile is None else Profile.load(profile)
    loaded, tokenizer = load(model, "float32")
    made = srrc.train(
        loaded,
        tokenizer,
        out,
        phase=phase,
        texts=texts,
        profile=held,
        settings=settings,
        quick=quick,
    )
    if as_json:
        print_json(
            {"profile": str(made.profile), "adapter": made.adapter and str(made.adapter), **made.report}
        )
        return
    typer.echo(f"{made.profile}: compile with it")
    if made.adapter is not None:
        typer.echo(f"{made.adapter}: merge it into the model first; it is loaded as {model}+{made.adapter}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"budgets={text!r}; give fractions of the dense cost, like 1.0,0.8,0.6") from None


def _texts(data: list[str]) -> dict[str, list[str]] | None:
    """Domain or file -> texts; None for all domains of the zoo."""
    from srrc.models_zoo import texts

    found = {}
    for name in data:
        if name in texts.domains():
            found[name] = texts.split(name, "calibration")
            continue
        try:
            found[name] = [Path(name).read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(texts.domains())
            raise OptionError(
                f"cannot read {name} as text, and it is no domain ({known}): {error}"
            ) from error
    return found or None
