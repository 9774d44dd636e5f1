"""The command that holds cuts of the sampler's cost against the sampler without any."""

import json

import pytest
from svrt.benchmarks import sampler_cuts


@pytest.fixture(scope="module")
def found(pocket, clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("cuts") / "cuts.json"
    arguments = ["--bundle", str(pocket.path), "--other", str(pocket.path), "--rounds", "1", "--json", str(out)]
    assert sampler_cuts.main([*arguments, str(clip)]) == 0
    return json.loads(out.read_text())


def test_cuts_that_change_no_feature_keep_every_keyframe(found):
    rows = {row["cut"]: row for row in found["rows"]}
    exact = [name for name in rows if name.startswith((sampler_cuts.BASE, "equal pictures once", "onnxruntime"))]
    assert len(exact) == 2 + len(sampler_cuts.BATCHES)
    for name in exact:
        assert (rows[name]["same_clips"], rows[name]["shared"], rows[name]["keyframes"]) == (1, 16, 16), name
    assert found["rows"][-1]["cut"] == "pocket: 96 pixels, fp32", "another bundle's sampler is a cut too"


def test_every_row_has_a_time_of_each_clip(found):
    assert all(len(row["vgg16_ms"]) == 1 and row["vgg16_ms"][0] > 0 for row in found["rows"])
    (remainder,) = found["remainders"]
    assert remainder["frames"] == 40 and remainder["reduce_ms"] > 0 and remainder["choose_ms"] > 0


def test_the_table_has_a_line_for_every_cut(found):
    rows = [sampler_cuts.Row(**row) for row in found["rows"]]
    remainders = [sampler_cuts.Remainder(**one) for one in found["remainders"]]
    text = sampler_cuts.table(sampler_cuts.Found(rows, remainders))
    assert [line.split(" | ")[0] for line in text.splitlines()[2 : 2 + len(rows)]] == [f"| {row.cut}" for row in rows]
    assert "| 1.00 | 1 of 1 | 100.0% |" in text.splitlines()[2]


def test_a_clip_that_cannot_be_read_is_an_error_of_one_line(pocket, tmp_path, capsys):
    assert sampler_cuts.main(["--bundle", str(pocket.path), str(tmp_path / "none.mp4")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path / 'none.mp4'}: ")
