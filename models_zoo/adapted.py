"""A model with an adapter merged into its weights: `smollm2-135m+out/adapter`."""

from pathlib import Path

from torch import nn

from srrc.errors import ModelError


def adapter_of(name: str) -> tuple[str, Path] | None:
    """The model's name and the adapter's folder in "MODEL+FOLDER"; None where the name is of no such form."""
    base, plus, folder = name.rpartition("+")
    if not plus or not base or not (Path(folder) / "adapter_config.json").is_file():
        return None
    return base, Path(folder)


def merged(model: nn.Module, folder: Path) -> nn.Module:
    """`model` with the adapter of `folder` in its weights (in place).

    Raises ModelError where it does not fit, or peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("adapters need peft; pip install 'srrc[train]'") from error
    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(f"the adapter in {folder} does not fit this model: {first}") from error
