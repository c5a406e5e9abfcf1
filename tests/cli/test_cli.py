"""The command line, as a user meets it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import fusestep
import pytest
import small_runs
import torch
from fusestep.cli import main, train
from fusestep.training import read_metrics
from small_runs import one_thread  # noqa: F401  # for every test of this file

TINY = ["--steps", "6", "--batch-size", "2", "--context", "16", "--eval-every", "3"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    return path


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def succeed(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def fail(capsys, *arguments) -> str:
    """The one line that a user's mistake ends with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fusestep: ")
    return lines[0]


def test_a_run_leaves_all_its_files_and_says_what_it_did(capsys, text, run_dir):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY)
    out, err = capsys.readouterr()
    assert {path.name for path in run_dir.iterdir()} == {
        "config.json", "metrics.jsonl", "health.jsonl", "curves.png", "checkpoints", "sample.txt",
    }  # fmt: skip
    metrics = read_metrics(run_dir / "metrics.jsonl")
    assert [m.step for m in metrics] == [1, 2, 3, 4, 5, 6]
    config = json.loads((run_dir / "config.json").read_text())
    assert config["settings"]["text"] == [str(text)]
    assert config["settings"]["steps"] == 6
    assert config["fusestep"] == fusestep.__version__
    for part in (
        "parameters",
        "1,800 bytes, 1,620 to train on and 180 to validate",
        "N = b x s: 100 sequences of 16 bytes in batches of 2: 50 steps",
        "fusestep.optim.AdamW",
        "WarmupCosine(",
        "step     3   training",
        f"validation loss {metrics[-1].val_loss:.3f} nats a byte (byte frequencies alone: ",
        (run_dir / "sample.txt").read_text(),
    ):
        assert part in out
    assert "6/6" in err
    assert "tokens/s" in err


def test_the_dashboard_goes_on_and_is_overwritten(capsys, text, run_dir):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]'")
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--dashboard", "tensorboard")
    succeed("train", "--run-dir", run_dir, "--resume", "--steps", "9")
    assert len(list((run_dir / "tensorboard").iterdir())) == 2
    health = (run_dir / "health.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in health] == list(range(1, 10))
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--dashboard", "tensorboard", "--overwrite")
    assert len(list((run_dir / "tensorboard").iterdir())) == 1


def test_a_dashboard_that_is_not_there(capsys, monkeypatch, text, run_dir):
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = fail(capsys, "train", "--text", text, "--run-dir", run_dir, *TINY, "--dashboard", "wandb")
    assert "pip install 'fusestep[wandb]'" in line
    assert not run_dir.exists()


def test_quick_is_a_short_run_of_its_own():
    assert 0 < train.QUICK.steps * train.QUICK.batch_size < train.Settings().steps * train.Settings().batch_size / 8


def test_resume_with_more_steps(capsys, text, run_dir):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY)
    succeed("train", "--run-dir", run_dir, "--resume", "--steps", "9")
    assert f"resumed from {run_dir / 'checkpoints'}" in capsys.readouterr().out
    assert [m.step for m in read_metrics(run_dir / "metrics.jsonl")] == list(range(1, 10))
    assert json.loads((run_dir / "config.json").read_text())["settings"]["steps"] == 9
    succeed("train", "--run-dir", run_dir, "--resume")
    assert "nothing left to do: the run has 9 of 9 steps" in capsys.readouterr().out


def test_resume_goes_on_bit_for_bit(text, run_dir, tmp_path):
    succeed("train", "--text", text, "--run-dir", tmp_path / "straight", *TINY, "--steps", "120")
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--steps", "120")
    succeed("train", "--run-dir", run_dir, "--resume", run_dir / "checkpoints" / "step-00000100")
    straight, resumed = (small_runs.last_checkpoint(run)["model"] for run in (tmp_path / "straight", run_dir))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("kernels", train.KERNELS)
def test_kernels_are_recorded_and_resumed(capsys, text, run_dir, kernels):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--kernels", kernels)
    assert json.loads((run_dir / "config.json").read_text())["settings"]["kernels"] == kernels
    assert f"kernels='{kernels}'" in capsys.readouterr().out
    succeed("train", "--run-dir", run_dir, "--resume", "--steps", "7")
    assert f"kernels='{kernels}'" in capsys.readouterr().out
    other = next(name for name in train.KERNELS if name != kernels)
    line = fail(capsys, "train", "--run-dir", run_dir, "--resume", "--kernels", other)
    assert f"--kernels: expected {kernels} as the run began with, got {other}" in line


def test_an_existing_run_is_refused(capsys, text, run_dir):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY)
    before = (run_dir / "metrics.jsonl").read_bytes()
    line = fail(capsys, "train", "--text", text, "--run-dir", run_dir, *TINY)
    assert str(run_dir) in line
    assert "--resume or --overwrite" in line
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--steps", "2", "--overwrite")
    assert len(read_metrics(run_dir / "metrics.jsonl")) == 2


def test_resume_without_a_run(capsys, run_dir):
    assert f"there is no run in '{run_dir}'" in fail(capsys, "train", "--run-dir", run_dir, "--resume")
    assert not run_dir.exists()


def test_resume_of_a_damaged_checkpoint(capsys, text, run_dir):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--steps", "101")
    checkpoint, earlier = (run_dir / "checkpoints" / f"step-{step:08d}" for step in (101, 100))
    model = checkpoint / "model.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["train", "--run-dir", str(run_dir), "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"'{checkpoint}' is corrupt or truncated" in error
    assert f"resume from '{earlier}'" in error
    assert "Traceback" not in error
    succeed("train", "--run-dir", run_dir, "--resume", earlier)
    assert len(read_metrics(run_dir / "metrics.jsonl")) == 101


def test_resume_with_other_settings_or_text(capsys, text, run_dir):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY)
    line = fail(capsys, "train", "--run-dir", run_dir, "--resume", "--batch-size", "4")
    assert "--batch-size: expected 2 as the run began with, got 4" in line
    text.write_bytes(text.read_bytes()[::-1])
    assert "the text is not the one" in fail(capsys, "train", "--run-dir", run_dir, "--resume")
    (run_dir / "config.json").write_text("{")
    assert "--resume: cannot use" in fail(capsys, "train", "--run-dir", run_dir, "--resume")


def test_bad_texts(capsys, tmp_path, run_dir):
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("too short")

    def with_text(path):
        return fail(capsys, "train", "--text", path, "--run-dir", run_dir)

    assert f"'{tmp_path / 'gone'}', which does not exist" in with_text(tmp_path / "gone")
    assert f"'{tmp_path}': Is a directory" in with_text(tmp_path)
    assert f"'{tmp_path / 'empty'}', which is empty" in with_text(tmp_path / "empty")
    assert "Give more text, or a smaller" in with_text(tmp_path / "short")
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "an integer >= 1, got 0"),
        ("--batch-size", "0", "an integer >= 1, got 0"),
        ("--context", "-5", "an integer >= 1, got -5"),
        ("--lr", "-1", "a finite number > 0, got -1.0"),
        ("--lr", "nan", "a finite number > 0, got nan"),
        ("--dropout", "1", "a finite number >= 0 and < 1, got 1.0"),
        ("--accumulate", "0", "an integer >= 1, got 0"),
        ("--eval-every", "0", "an integer >= 1, got 0"),
        ("--seed", "-1", "an integer >= 0, got -1"),
        ("--device", "cuda", "cpu, got cuda. This machine, this torch or this build"),
        ("--device", "cuda:x", "cpu, got cuda:x. This machine, this torch or this build"),
        ("--device", "toaster", "cpu, got toaster. This machine, this torch or this build"),
    ],
)
def test_bad_values(capsys, run_dir, option, value, message):
    line = fail(capsys, "train", "--run-dir", run_dir, f"{option}={value}")
    assert line.startswith(f"fusestep: train: {option}: expected {message}")
    assert not run_dir.exists()


def test_what_the_kernels_refuse_is_refused_before_anything_is_read(capsys, monkeypatch, text, run_dir):
    """A device without attention: one line, no text read, no run directory."""

    def refused(self):
        raise ValueError("attention: query: expected an array in CPU memory, got one elsewhere")

    monkeypatch.setattr("fusestep.models.GPT.check_kernels", refused)
    monkeypatch.setattr("fusestep.data.read_text", lambda *_: pytest.fail("the text was read"))
    line = fail(capsys, "train", "--text", text, "--run-dir", run_dir, *TINY)
    assert "train: --device: cpu cannot train this model. attention: query: expected an array in CPU memory" in line
    assert "--kernels torch trains there" in line
    assert not run_dir.exists()


def test_a_run_directory_that_cannot_be(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in fail(capsys, "train", *TINY, "--run-dir", tmp_path / "file" / "run")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["train", "--lr", "x"]])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: fusestep" in capsys.readouterr().err


def test_shards_of_a_single_process(capsys, text, run_dir):
    line = fail(capsys, "train", "--text", text, "--run-dir", run_dir, *TINY, "--shard")
    assert "--shard: expected several processes, got one. Start it with torchrun" in line
    assert not run_dir.exists()


@pytest.mark.parametrize("optimizer", list(train.RATES))
def test_optimizers_learn(text, run_dir, optimizer):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--steps", "30", "--optimizer", optimizer)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    assert metrics[-1].val_loss < min(metrics[2].val_loss, 3.17)  # 3.177: byte frequencies alone
    assert max(m.lr for m in metrics) == pytest.approx(train.RATES[optimizer], rel=1e-15)


@pytest.mark.parametrize("schedule", train.SCHEDULES)
def test_schedules_run(text, run_dir, schedule):
    succeed(
        "train", "--text", text, "--run-dir", run_dir, *TINY, "--steps", "20", "--schedule", schedule, "--lr", "0.01"
    )
    rates = [m.lr for m in read_metrics(run_dir / "metrics.jsonl")]
    assert max(rates) == pytest.approx(0.01, rel=1e-15)
    assert rates[0] < 0.01 or schedule == "constant"


def test_accumulation_counts_in_the_epoch(capsys, text, run_dir):
    succeed("train", "--text", text, "--run-dir", run_dir, *TINY, "--accumulate", "5")
    assert "in batches of 10: 10 steps; the run's 6 are 0.6 epochs" in capsys.readouterr().out
    assert read_metrics(run_dir / "metrics.jsonl")[-1].tokens == 6 * 5 * 2 * 16


def test_info(capsys):
    succeed("info")
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["version"].strip() == fusestep.__version__
    assert any(name.strip() == "torch" for name in lines)


def test_info_json_and_no_torch():
    program = "import sys; from fusestep.cli import main; main(['info', '--json']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert {name: facts[name] for name in fusestep.info()}.keys() == fusestep.info().keys()
    assert facts["version"] == fusestep.__version__
    assert facts["torch"] == importlib.metadata.version("torch")
    assert facts["numpy"] == importlib.metadata.version("numpy")


def test_info_without_torch(capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    succeed("info", "--json")
    assert json.loads(capsys.readouterr().out)["torch"] is None
    succeed("info")
    assert "not found" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["torch", "tqdm", "safetensors"])
def test_train_says_what_to_install(missing, capsys, monkeypatch, run_dir):
    monkeypatch.setitem(sys.modules, missing, None)
    line = fail(capsys, "train", "--run-dir", run_dir)
    assert missing in line
    assert "pip install 'fusestep[train]'" in line
    assert not run_dir.exists()


@pytest.mark.parametrize("package", ["fusestep.optim", "fusestep.nn", "fusestep.models", "fusestep.training"])
def test_packages_for_torch_say_what_to_install(package):
    program = f"import sys; sys.modules['torch'] = None\nimport fusestep, {package}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("ImportError: fusestep.optim, fusestep.nn and fusestep.Trainer are for PyTorch")
    assert "pip install 'fusestep[torch]'" in line


def test_version_and_help(capsys):
    for arguments in (["--version"], ["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"fusestep {fusestep.__version__}\n")
    assert "adamw 0.002" in out


def test_bench_gets_its_own_arguments(monkeypatch):
    import fusestep.bench

    seen = []
    monkeypatch.setattr(fusestep.bench, "main", lambda argv: seen.append(argv) or 0)
    assert main(["bench", "optim", "--json"]) == 0
    assert seen == [["optim", "--json"]]


def test_python_m():
    done = subprocess.run([sys.executable, "-m", "fusestep", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fusestep {fusestep.__version__}\n"


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [("--schedule", "cosin", "cosine"), ("--optimizer", "adamv", "adam"), ("--precision", "bf-16", "bf16"),
     ("--kernels", "fusedstep", "fusestep")],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(capsys, run_dir, option, value, nearest):
    line = fail(capsys, "train", "--run-dir", run_dir, option, value)
    assert f"train: {option}: expected one of " in line
    assert f"got '{value}'. Did you mean '{nearest}" in line
    assert not run_dir.exists()
