"""The profile's file: what it keeps, what it refuses, and that it is never half written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from srrc import fingerprint, profile
from srrc.errors import ProfileError
from srrc.profile import GateCost, GateProfile, Joint, Profile


def gate(name: str, units: int = 8) -> GateProfile:
    fractions = torch.tensor([0.0, 0.5, 0.9])
    return GateProfile(
        id=name,
        quantiles=torch.linspace(0, 4, 5),
        fractions=fractions,
        drift=fractions**3,
        error=fractions**3 / 10,
        kept_low=torch.tensor([1.0, 0.4, 0.05]),
        cost=GateCost(units, 12.0, 48.0, 1.0, 3.0, 4.0),
        scale=0.25,
    )


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(40, 30),
        "b": torch.randn(()),
        "empty": torch.zeros(0, 3),
        "n": torch.arange(9),
    }


@pytest.fixture
def made() -> Profile:
    gates = [gate("channel:a.weight"), gate("neuron:b.weight/down")]
    return Profile(
        gates={each.id: each for each in gates},
        samples=fingerprint.take(weights().items()),
        model={"class": "Net", "parameters": 1200},
        texts={"sha256": "00", "tokens": 7},
        joint=(Joint(0.01, 0.02, 0.001),),
        vectors={"channel:a.weight/norm": torch.rand(8).to(torch.bfloat16), "x": torch.rand(4, 4).t()},
    )


def test_it_comes_back_as_it_was(made: Profile, tmp_path: Path) -> None:
    made.save(tmp_path / "p.srr")
    back = Profile.load(tmp_path / "p.srr")
    assert list(back.gates) == list(made.gates)
    for name, each in made.gates.items():
        for field in ("quantiles", "fractions", "drift", "error", "kept_low"):
            assert torch.equal(getattr(back.gates[name], field), getattr(each, field)), field
        assert (back.gates[name].cost, back.gates[name].scale) == (each.cost, each.scale)
    assert (back.model, back.texts, back.joint) == (made.model, made.texts, made.joint)
    assert back.vectors.keys() == made.vectors.keys()
    assert all(torch.equal(back.vectors[name], made.vectors[name]) for name in made.vectors)
    back.check(weights())


def test_an_empty_one_comes_back(tmp_path: Path) -> None:
    Profile({}, ()).save(tmp_path / "p.srr")
    assert Profile.load(tmp_path / "p.srr").gates == {}


def test_places_and_records() -> None:
    each = gate("neuron:m.up.weight/down")
    assert (each.kind, each.place) == ("neuron", "m.up.weight")
    assert (each.threshold(0.0), each.min_kept(0.0)) == (-1.0, 0.0)
    assert each.threshold(0.5) == pytest.approx(2.0)
    assert each.min_kept(0.7) == pytest.approx(0.225)
    assert each.drift_at(0.25) == pytest.approx(0.0625)
    assert each.drift_at(0.99) == pytest.approx(0.9**3)


class TestRefusals:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ProfileError, match=r"no profile at .*srrc calibrate"):
            Profile.load(tmp_path / "none.srr")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ProfileError, match="cannot read"):
            Profile.load(tmp_path)

    def test_truncated_anywhere(self, made: Profile, tmp_path: Path) -> None:
        path = tmp_path / "p.srr"
        made.save(path)
        whole = path.read_bytes()
        for size in [0, 1, 7, 8, 9, 20, len(whole) // 2, len(whole) - 1]:
            path.write_bytes(whole[:size])
            with pytest.raises(ProfileError, match="truncated or damaged") as error:
                Profile.load(path)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [b"hello, this is a text and no profile", b"PK\x03\x04" + bytes(100)])
    def test_something_else(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "p.srr"
        path.write_bytes(content)
        with pytest.raises(ProfileError, match="not a profile"):
            Profile.load(path)

    def test_a_model_is_no_profile(self, tmp_path: Path) -> None:
        save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
        with pytest.raises(ProfileError, match="not a profile"):
            Profile.load(tmp_path / "model.safetensors")

    def test_another_version(self, made: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(profile, "FORMAT", 999)
        made.save(tmp_path / "p.srr")
        monkeypatch.undo()
        with pytest.raises(ProfileError, match=r"format 999 .*calibrate anew"):
            Profile.load(tmp_path / "p.srr")

    def test_missing_parts(self, tmp_path: Path) -> None:
        described = {"format": profile.FORMAT, "gates": [{"id": "channel:a"}]}
        save_file({"samples": torch.zeros(0)}, tmp_path / "p.srr", {"srrc_profile": json.dumps(described)})
        with pytest.raises(ProfileError, match="damaged"):
            Profile.load(tmp_path / "p.srr")


class TestWriting:
    def test_what_was_there_survives_a_failure(
        self, made: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "p.srr"
        made.save(path)
        before = path.read_bytes()

        def full(self: Path, content: bytes) -> int:
            with self.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(ProfileError, match="No space left"):
            made.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_others_may_read_it(self, made: Profile, tmp_path: Path) -> None:
        (tmp_path / "plain").write_bytes(b"")
        made.save(tmp_path / "p.srr")
        assert (tmp_path / "p.srr").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_folder_that_is_not_there(self, made: Profile, tmp_path: Path) -> None:
        with pytest.raises(ProfileError, match="cannot write"):
            made.save(tmp_path / "none" / "p.srr")

    def test_a_kill_in_the_middle(self, tmp_path: Path) -> None:
        path = tmp_path / "p.srr"
        program = (
            "import sys, torch; from srrc.profile import Profile\n"
            "made = Profile({}, (), vectors={'big': torch.zeros(4_000_000)})\n"
            "while True: made.save(sys.argv[1]); print('saved', flush=True)"
        )
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"saved\n"
            time.sleep(0.05)
            os.kill(child.pid, signal.SIGKILL)
        assert Profile.load(path).vectors["big"].shape == (4_000_000,)


class TestFingerprint:
    def test_a_cast_is_the_same_model(self) -> None:
        floats = {name: value for name, value in weights().items() if value.is_floating_point()}
        for made_in in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            samples = fingerprint.take((name, value.to(made_in)) for name, value in floats.items())
            for used_in in (torch.float64, torch.float32, torch.bfloat16):
                used = {name: value.to(made_in).to(used_in) for name, value in floats.items()}
                assert fingerprint.difference(samples, used) is None, (made_in, used_in)

    def test_a_profile_of_the_cast_fits_the_original(self) -> None:
        model = nn.Linear(30, 40)
        samples = fingerprint.take((n, p.bfloat16()) for n, p in model.named_parameters())
        assert fingerprint.difference(samples, dict(model.named_parameters())) is None

    def test_strides_do_not_matter(self, made: Profile) -> None:
        moved = weights()
        moved["a.weight"] = moved["a.weight"].t().contiguous().t()
        assert fingerprint.difference(made.samples, moved) is None

    def test_an_optimiser_step_is_seen(self, made: Profile) -> None:
        moved = weights()
        moved["a.weight"] += 1e-5
        with pytest.raises(ProfileError, match=r"values of a\.weight differ.*calibrate"):
            made.check(moved)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"a.weight": torch.zeros(30, 40)}, "is .30, 40. here"),
            ({"other": torch.zeros(3)}, "no parameter of this model"),
            ({}, "no parameter of this model"),
        ],
    )
    def test_another_model_is_seen(self, made: Profile, given: dict[str, torch.Tensor], message: str) -> None:
        with pytest.raises(ProfileError, match=message):
            made.check(given)

    def test_part_of_a_model_is_enough(self, made: Profile) -> None:
        made.check({"a.weight": weights()["a.weight"], "unknown": torch.zeros(3)})

    def test_nan_equals_nan(self) -> None:
        broken = {"w": torch.full((4,), float("nan"))}
        assert fingerprint.difference(fingerprint.take(broken.items()), broken) is None
