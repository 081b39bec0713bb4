"""Run folders: whose they are, and what is kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from minidet.errors import RunError
from minidet.training.checkpoint import checkpoint_path, checkpoints, save_checkpoint
from minidet.training.run_folder import RunFolder, differences, read_metrics
from tests.training.squares import SMALL, run

CONFIG = {"model": {"name": "a", "num_classes": 2}, "recipe": {"epochs": 3}, "data": {}, "seed": 0, "command": ["x"]}


def opened(path: Path, config: dict, resume: bool) -> RunFolder:
    folder = RunFolder(path, config)
    folder.open(resume)
    return folder


def begun(path: Path, epochs_done: int = 0, resume: bool = False) -> RunFolder:
    folder = opened(path, CONFIG, resume)
    folder.begin(epochs_done)
    return folder


def listing(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


def test_nothing_is_written_before_a_run_begins(tmp_path):
    folder = opened(tmp_path / "run", CONFIG, resume=False)
    assert not (tmp_path / "run").exists()
    folder.begin(0)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG


def test_a_folder_with_another_run_is_left_alone(tmp_path):
    folder = begun(tmp_path)
    save_checkpoint(checkpoint_path(folder.path, 2), {})
    before = listing(tmp_path)
    with pytest.raises(RunError, match=r"holds another run already, saved up to epoch_0002\.pt.*--resume"):
        opened(tmp_path, CONFIG, resume=False)
    assert listing(tmp_path) == before


def test_a_folder_with_foreign_files_is_not_polluted(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"is not empty \(thesis\.tex\)"):
        opened(tmp_path, CONFIG, resume=False)
    assert listing(tmp_path) == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file, but a run needs a folder"):
        opened(tmp_path / "thesis.tex", CONFIG, resume=False)


def test_resuming_where_there_is_no_run_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match="there is no run to resume here"):
            opened(path, CONFIG, resume=True)
    assert listing(tmp_path) == []


def test_resuming_with_other_settings_names_every_difference(tmp_path):
    begun(tmp_path)
    other = CONFIG | {"model": {"name": "b", "num_classes": 2}, "recipe": {"epochs": 5}, "seed": 1, "command": ["y"]}
    with pytest.raises(RunError) as caught:
        opened(tmp_path, other, resume=True)
    text = str(caught.value)
    assert "model.name: the run has 'a', now it is 'b'" in text
    assert "recipe.epochs: the run has 3, now it is 5" in text
    assert "seed: the run has 0, now it is 1" in text
    assert "num_classes" not in text
    assert "command" not in text  # the same run may be resumed by another command


def test_differences_go_into_the_depth_and_see_missing_keys():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: the run has 2, now it is None",
        "a.d: the run has None, now it is 3",
    ]
    assert differences({"a": [1, 2]}, {"a": [1, 2]}) == []


def test_a_torn_last_line_of_the_metrics_is_forgotten(tmp_path):
    folder = begun(tmp_path)
    folder.add_metrics({"epoch": 1, "ap": None})
    folder.add_metrics({"epoch": 2, "ap": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "ap"')
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    again = begun(tmp_path, epochs_done=2, resume=True)
    again.add_metrics({"epoch": 3, "ap": 0.6})
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_broken_line_in_the_middle_of_the_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\nhello\n{"epoch": 3}\n')
    with pytest.raises(RunError, match="line 2 is not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_epochs_that_will_be_trained_again_leave_the_metrics(tmp_path):
    folder = begun(tmp_path)
    for epoch in (1, 2, 3):
        folder.add_metrics({"epoch": epoch, "ap": 0.1 * epoch})
    assert begun(tmp_path, epochs_done=2, resume=True).best() == (0.2, 2)
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_the_newest_checkpoints_and_the_best_one_are_kept(tmp_path):
    folder = begun(tmp_path)
    for epoch, ap in enumerate((0.1, 0.4, None, 0.4, 0.2, 0.3), 1):
        save_checkpoint(checkpoint_path(tmp_path, epoch), {})
        folder.add_metrics({"epoch": epoch, "ap": ap})
        folder.prune(keep_last=2)
    assert folder.best() == (0.4, 2)  # of equals the first
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch_0006.pt", "epoch_0005.pt", "epoch_0002.pt"]


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path):
    begun(tmp_path)
    for epoch in (1, 2, 3):
        save_checkpoint(checkpoint_path(tmp_path, epoch), {"epoch": epoch})
    for epoch in (2, 3):
        checkpoint_path(tmp_path, epoch).write_bytes(b"")
    said: list[str] = []
    state = opened(tmp_path, CONFIG, resume=True).newest_state(said.append)
    assert state == {"epoch": 1}
    assert len(said) == 3
    assert "epoch_0003.pt" in said[0]
    assert "epoch_0002.pt" in said[1]
    assert "Going on from" in said[2]
    checkpoint_path(tmp_path, 1).write_bytes(b"")
    with pytest.raises(RunError, match="none of its 3 checkpoints can be read"):
        opened(tmp_path, CONFIG, resume=True).newest_state(said.append)


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    (tmp_path / ".config.json.abc.part").touch()  # killed while the folder was claimed: still as good as empty
    begun(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".epoch_0001.pt.xyz.part").touch()
    begun(tmp_path, resume=True)
    assert not any(name.endswith(".part") for name in listing(tmp_path))


def test_a_run_from_before_a_setting_existed_is_resumed_with_its_default(whole, squares, tmp_path):
    shutil.copytree(whole.run_dir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["recipe"]["momentum"], config["recipe"]["augmentation"]["flip_prob"], config["ranks"]
    del config["model"]["box_weight"], config["model"]["assigner"]["radius"], config["accumulate"]
    path.write_text(json.dumps(config))
    said: list[str] = []
    result = run(tmp_path / "run", squares, resume=True, log=said.append)
    assert said == [said[0], f"{tmp_path / 'run'}: this run is finished (4 epochs); nothing is left to do."]
    assert result.metrics == whole.metrics
    with pytest.raises(RunError, match=r"recipe\.momentum: the run has 0\.9, now it is 0\.8"):
        run(tmp_path / "run", squares, dataclasses.replace(SMALL, momentum=0.8), resume=True)


def test_what_else_a_resumed_run_does_differently_is_told(whole, squares, tmp_path):
    shutil.copytree(whole.run_dir, tmp_path / "run")
    said: list[str] = []
    run(tmp_path / "run", squares, resume=True, precision="bf16", log=said.append)
    assert said[0] == (
        "Note: precision: the run has 'fp32', now it is 'bf16'; the run goes on, but not bit for bit as it would have."
    )
