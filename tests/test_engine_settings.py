"""The command that holds backends and their settings against each other."""

import importlib.util
import json

import onnxruntime
import pytest
from small_graphs import write_one_block
from svrt.benchmarks import engines
from svrt.benchmarks.engines import Setting

OPENVINO = importlib.util.find_spec("openvino") is not None
NCNN = importlib.util.find_spec("ncnn") is not None


@pytest.fixture(scope="module")
def rows(pocket):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "CHANGES", {"onnxruntime": (("enable_mem_pattern", False), ("no_such_option", 1))})
        return engines.measure(pocket, ["encoder.onnx"], 1)


def test_every_backend_and_change_is_run_in_a_process_of_its_own(rows):
    by_name = {row.setting: row for row in rows}
    expected = ["onnxruntime", "onnxruntime, enable_mem_pattern = False", "onnxruntime, no_such_option = 1"]
    assert list(by_name) == expected + ["openvino-fp32", "openvino"] * OPENVINO
    for name, row in by_name.items():
        if "no_such_option" not in name:
            assert len(row.run_ms) == len(row.load_ms) == len(row.peak_mib) == 1, name
            assert row.run_ms[0] > 0 and row.load_ms[0] > 0 and row.peak_mib[0] > 20, name
            assert row.cosine > 0.999, name


def test_a_setting_that_fails_says_why_and_the_others_go_on(rows):
    (failed,) = (row for row in rows if row.failed)
    assert "no_such_option" in failed.setting and "no_such_option" in failed.failed
    text = engines.table(rows).splitlines()
    assert len(text) == 2 + len(rows)
    assert text[2].startswith("| encoder.onnx | onnxruntime | fp32 | ") and " | 1.00 | " in text[2]


def test_a_change_reaches_the_session(tmp_path, monkeypatch):
    graph = write_one_block(tmp_path / "block.onnx")
    seen, create = [], onnxruntime.InferenceSession

    def spy(path, options, **rest):
        seen.append(options)
        return create(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    for name, value in engines.CHANGES["onnxruntime"]:
        monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
        found = engines.run_one(graph, "fp32", 2, Setting("onnxruntime", name, value), tmp_path / "out.npz")
        assert found["precision"] == "fp32"
        options = seen[-1]
        if "." in name:
            assert options.get_session_config_entry(name) == value
        else:
            assert str(getattr(options, name)).endswith(str(value))


def test_a_bundle_that_is_none_is_an_error_of_one_line(tmp_path, capsys):
    assert engines.main(["--bundle", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: not a bundle")
    with pytest.raises(SystemExit):
        engines.main([])


def test_figures_are_written_as_json(rows, pocket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "measure", lambda *_: rows)
    assert engines.main(["--bundle", str(pocket.path), "--json", str(tmp_path / "rows.json")]) == 0
    assert [engines.Row(**row) for row in json.loads((tmp_path / "rows.json").read_text())] == rows
    assert capsys.readouterr().out.strip() == engines.table(rows)
