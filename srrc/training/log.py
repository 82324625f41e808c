"""What a training tells while it runs: a bar, TensorBoard events, and one JSON line a step for anything else."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Log(Protocol):
    """Takes the numbers of one step."""

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """`numbers` by name, such as `loss` or `kl/0.6`."""
        ...


@contextmanager
def logging(folder: Path, phase: str, steps: int, done: int, *, show: bool) -> Iterator[Log]:
    """A log of one phase: `folder/PHASE.jsonl`, TensorBoard's events in `folder/tensorboard/PHASE`, and a bar.

    done: steps of an earlier run; what that one wrote stays
    show: whether there is a bar, on standard error
    TensorBoard's events are left out where it is not installed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    writer = _tensorboard(folder / "tensorboard" / phase)
    columns = (
        TextColumn(f"training {phase}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    lines = folder / f"{phase}.jsonl"
    kept = lines.read_text().splitlines()[:done] if lines.exists() else []
    with (
        Progress(*columns, console=Console(stderr=True), disable=not show) as bar,
        lines.open("w", encoding="utf-8") as file,
    ):
        file.writelines(f"{line}\n" for line in kept)
        task = bar.add_task("", total=steps, completed=done)

        def log(step: int, numbers: Mapping[str, float]) -> None:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
            file.flush()
            if writer is not None:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, step)
            told = f"KL {numbers['kl']:.4f}" if "kl" in numbers else ""
            bar.update(task, completed=step, description=told)

        try:
            yield log
        finally:
            if writer is not None:
                writer.close()


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


def _tensorboard(folder: Path) -> _Writer | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: _Writer = SummaryWriter(str(folder))
    return writer
