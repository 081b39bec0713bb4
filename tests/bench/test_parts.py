"""`minidet bench`: every part is measured, with rates that follow from the times."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import minidet
from minidet.bench.parts import PARTS, Setting, bench, crowded_predictions, random_targets
from minidet.cli import main
from minidet.errors import MinidetError
from minidet.evaluation.speed import count_gflops

QUICK = Setting("yolox-nano", (64, 96), batch_size=2, objects=3, device="cpu", compile=False, seconds=0.01)


@pytest.fixture(scope="module")
def report():
    return bench(QUICK)


def test_every_part_is_measured(report):
    assert [row.part for row in report.rows if row.part != "inference"] == [
        "postprocessing",
        "postprocessing",
        "assignment",
        "step",
        "step",
        "loader",
    ]
    assert {row.what for row in report.rows if row.part == "inference"} == {
        "as trained, fp32",
        "optimized, fp32",
        "optimized, bf16",
    }
    assert {row.part for row in report.rows} == set(PARTS)
    assert all(row.timing.ms > 0 for row in report.rows)
    assert report.hardware["torch"] == torch.__version__


def test_rates_follow_from_times_and_the_models_operations(report):
    gflops = count_gflops(minidet.create_model("yolox-nano"), (64, 96))
    for row in report.rows:
        assert row.images_per_second == pytest.approx(2000 / row.timing.ms)
        passes = {"inference": 1, "step": 3}.get(row.part)
        if passes is None:
            assert row.gflops_per_second is row.share_of_peak is None
        else:
            assert row.gflops_per_second == pytest.approx(passes * gflops * row.images_per_second)
            precision = "bf16" if "bf16" in row.what else "fp32"
            assert row.share_of_peak == pytest.approx(row.gflops_per_second / report.peak_gflops[precision])


def test_the_table_has_a_line_for_each_row_and_names_the_hardware(report):
    table = report.table()
    assert report.hardware["name"] in table
    assert "yolox-nano, batch 2, 64 x 96, 3 objects an image" in table
    for row in report.rows:
        assert any(line.startswith(row.part) and row.what in line for line in table.splitlines())


def test_what_cannot_be_compiled_is_a_row_with_the_reason(monkeypatch):
    def fails(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    report = bench(replace(QUICK, compile=True), ["inference"])
    failed = [row for row in report.rows if row.timing is None]
    assert [row.what for row in failed] == ["compiled, fp32", "compiled, bf16"]
    assert all("no compiler here" in row.note for row in failed)
    assert "no compiler here" in report.table()


def test_made_up_objects_lie_in_the_input_and_made_up_predictions_find_them():
    model = minidet.create_model("yolox-nano", input_hw=(128, 160))
    for target in random_targets(Setting(batch_size=2, objects=50), model):
        boxes = target["boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([160, 128]) + 1e-3).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 8 - 1e-3
    scores = crowded_predictions(2, 5, model).class_scores().amax(dim=2)
    assert 0.02 < (scores > 0.001).float().mean() < 0.6
    assert 10 < (scores > 0.3).sum() < 250  # 2 images of 5 objects of 25 slots, about half of them sure


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it is at least 1"),
        ({"objects": -1}, "objects is -1; it is at least 0"),
        ({"workers": -1}, "workers is -1; it is at least 0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"model": "yolox-z"}, "no model 'yolox-z'"),
        ({"input_hw": (50, 64)}, "multiples of 32"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
    ],
)
def test_bad_settings_are_clear_errors(changes, message):
    with pytest.raises(MinidetError, match=message):
        bench(replace(QUICK, **changes), [])


def test_the_command_prints_the_table_and_writes_json(tmp_path, capsys):
    options = "--input-size 64 64 --seconds 0.01 --parts assignment postprocessing --device cpu --no-compile".split()
    assert main(["bench", "yolox-nano", *options, "--out", str(tmp_path / "bench.json")]) == 0
    captured = capsys.readouterr()
    assert "SimOTA" in captured.out
    assert "measuring postprocessing" in captured.err
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["part"] for row in written["rows"]] == ["assignment", "postprocessing", "postprocessing"]
    assert written["setting"]["model"] == "yolox-nano"
    assert written["hardware"]["device"] == "cpu"

    assert main(["bench", "yolox-nano", "--batch-size", "0"]) == 2
    assert "error: batch_size is 0" in capsys.readouterr().err
    assert main(["bench", "yolox-nano", *options, "--data", str(tmp_path), "--parts", "loader"]) == 2
    assert "error:" in capsys.readouterr().err
