"""Long pieces of writing: how much of them is not repeated. Compressed models fall into loops first."""

from collections.abc import Sequence

from srrc.bench.scenarios.base import Scenario, Task

_BEGINNINGS = (
    "The lighthouse keeper had not spoken to anyone for three weeks when",
    "On the morning of the fair, the old clockmaker discovered that",
    "Nobody in the village believed the girl who said she had seen",
    "When the last train left the station, the musician opened his case and",
    "Deep below the city there was a library in which",
    "The letter arrived forty years late, and it said",
    "My grandmother kept a garden where every plant had a name, and",
    "The captain looked at the map once more. The island that",
    "It was the first snow of the year, and the fox",
    "After the storm, the fishermen found on the beach",
    "The painter mixed a colour that nobody had seen before, and",
    "At midnight the statue in the square",
)
_N = 4


def _tasks(count: int) -> Sequence[Task]:
    return [
        Task(f"A short story.\n\n{each}", (), most=160, stop="", temperature=0.8)
        for each in _BEGINNINGS[:count]
    ]


def distinct(text: str, n: int = _N) -> float:
    """Share of the runs of n words that did not occur before in the text; 1 for a text of fewer words."""
    words = text.split()
    runs = list(zip(*(words[at:] for at in range(n)), strict=False))
    return len(set(runs)) / len(runs) if runs else 1.0


def _score(written: str, task: Task) -> float:
    return distinct(written)


CREATIVE = Scenario("creative", "not repeated", _tasks, _score)
