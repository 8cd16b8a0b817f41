"""Every kind of mistake: status 2, one message of a few lines that names the field and the nearest right spelling."""

import subprocess
import sys

import pytest

from privlm.cli import main

pytestmark = pytest.mark.torch_free

MISTAKES = {
    "no task": ([], "which task?", "ewtune"),
    "task": (["task=ewtun"], "no task 'ewtun'", "did you mean 'ewtune'?"),
    "option": (["model=minilmm"], "no model 'minilmm'", "did you mean 'minilm'?"),
    "no option": (["privacy="], "no privacy ''", "dp_sgd, none"),
    "no option at all": (["model=null"], "model=null", "~model leaves it out"),
    "group": (["mode=tiny"], "no key 'mode'", "did you mean 'model'?"),
    "key": (["trainer.batch_siz=8"], "no key 'trainer.batch_siz'", "did you mean 'trainer.batch_size'?"),
    "key of another group": (["task.learning_rate=1"], "no key 'task.learning_rate'", "'trainer.learning_rate'?"),
    "added key": (["+trainer.batch_sizes=8"], "no key 'trainer.batch_sizes'", "did you mean 'trainer.batch_size'?"),
    "added group": (["+modle=tiny"], "no key 'modle'", "did you mean 'model'?"),
    "text for a number": (["trainer.batch_size=abc"], "trainer.batch_size: Value 'abc'", "Integer"),
    "fraction for a count": (["trainer.batch_size=8.5"], "trainer.batch_size: Value '8.5'", "Integer"),
    "no bool": (["privacy.allow_large_delta=maybe"], "privacy.allow_large_delta: Value 'maybe'", "bool"),
    "text for a list": (["data.labels=ham"], "data.labels: Invalid value", "list"),
    "enum": (["trainer.precision=fp64"], "trainer.precision: 'fp64'", "did you mean 'fp16'?"),
    "accountant": (["privacy.accountant=pdl"], "privacy.accountant: 'pdl'", "did you mean 'pld'?"),
    "missing value": (["trainer.batch_size=???"], "no value for trainer.batch_size", "trainer.batch_size=VALUE"),
    "nonsense": (["privacy.epsilon=-1"], "privacy.epsilon must be greater than 0", "-1.0"),
    "delta": (["privacy.delta=2"], "privacy.delta must be a number between 0 and 1", "1/2N"),
    "one of two": (["privacy.epsilon=null"], "privacy.epsilon, privacy.noise_multiplier", "one of the two"),
    "shuffled batches": (["privacy.sampling=shuffle"], "privacy.sampling: 'shuffle'", "poisson"),
    "no clipping norm": (["privacy.clipping_norm=nan"], "privacy.clipping_norm must be greater than 0", "nan"),
    "order": (["privacy.order=4"], "privacy.order must be at least 0 and at most 3", "4"),
    "clipping twice": (["trainer.max_grad_norm=1"], "trainer.max_grad_norm", "privacy.clipping_norm instead"),
    "micro-batch": (["trainer.micro_batch_size=0"], "trainer.micro_batch_size must be greater than 0", "0"),
    "few canaries": (["privacy.audit.num_canaries=9"], "privacy.audit.num_canaries", "at least 10"),
    "many guesses": (["privacy.audit.guesses_in=901"], "privacy.audit.guesses_in=901", "num_canaries=1000"),
    "confidence": (["privacy.audit.confidence=1"], "privacy.audit.confidence", "less than 1"),
    "adapter's rank": (["adapter=lora", "adapter.rank=0"], "adapter.rank", "greater than 0"),
    "no override": (["tiny"], "cannot read the override 'tiny'", "KEY=VALUE"),
    "unbalanced": (["data.labels=[ham"], "cannot read the override 'data.labels=[ham'", "quotes"),
    "several values": (["seed=0,1"], "seed has several values", "privlm sweep"),
    "deletion": (["~trainer.momentum"], "trainer.momentum", "does not support deletion"),
    "below null": (["model.random.hidden_size=8"], "model.random.hidden_size=8", "null"),
    "interpolation": (["'privacy.epsilon=${privacy.nothing}'"], "privacy.epsilon", "privacy.nothing"),
    "setting": (["scale=paper", "task.setting=lee"], "task.setting: 'lee'", "own, rgp, li"),
    "config folder": (["--config-dir", "nowhere"], "--config-dir: no folder nowhere", ""),
    "config name": (["--config-name", "confg"], "--config-name", "confg"),
    "flag": (["--dryrun"], "--dryrun", "privlm run --help"),
    "data": (["data.path=nowhere.txt"], "data.path", "nowhere.txt"),
    "batch above data": (["trainer.batch_size=99999"], "trainer.batch_size=99999", "4131"),
}


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working directory of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "at_fault", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message(words, at_fault, remedy, empty_folder, capsys):
    task = [] if at_fault.startswith(("which task", "no task")) else ["task=ewtune"]
    assert main(["run", *task, *words, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert at_fault in err
    assert remedy in err
    assert err.startswith("privlm: ")
    assert len(err.splitlines()) <= 8
    assert out == ""
    assert list(empty_folder.iterdir()) == []


def test_all_problems_of_meaning_are_told_at_once(capsys):
    words = ["trainer.batch_size=-1", "trainer.steps=0", "privacy.clipping_norm=0", "privacy.epsilon=inf"]
    assert main(["run", "task=ewtune", *words]) == 2
    err = capsys.readouterr().err
    assert all(field in err for field in ("batch_size", "trainer.steps", "clipping_norm", "privacy.epsilon=inf"))
    assert len(err.splitlines()) == 5


@pytest.mark.parametrize("flags", [[], ["--cfg", "job"], ["-m"]])
def test_a_process_ends_with_status_2_and_no_traceback(flags, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "privlm", "run", "task=ewtune", "modle=tiny", *flags],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "privlm: no key 'modle'; did you mean 'model'?\n"


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("0.1", 0.1), ("3", 3.0)])
def test_numbers_read_as_floats(written, value):
    from privlm.cli.compose import Words, compose

    learning_rate = compose(Words(("task=ewtune", f"trainer.learning_rate={written}"))).config.trainer.learning_rate
    assert isinstance(learning_rate, float)
    assert learning_rate == value


@pytest.mark.parametrize("task", ["ewtune", "llm_adapters", "pkg"])
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("adapter.rank=999", "adapter.rank=999 exceeds the rank of"),
        ("adapter.target_modules=[nope]", "adapter.target_modules: no Linear or Embedding"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_written(task, word, said, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert main(["run", f"task={task}", "scale=smoke", "adapter=lora", word, f"runs={runs}"]) == 2
    assert said in capsys.readouterr().err
    assert not runs.exists()
