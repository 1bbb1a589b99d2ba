"""The simulation of docs/scale.md, by hand, and what is no run for it."""

import pytest
from checks import load_script


def test_a_shared_bandwidth_by_hand():
    shared = load_script("simulate_scale").Shared(2.0)
    shared.add(0.0, 10.0, "a")
    shared.add(2.0, 10.0, "b")  # 6 of a are left, which take 6 s at half of the rate; then 4 of b at all of it
    assert shared.next() == 8.0 and shared.pop() == "a" and shared.next() == 10.0 and shared.pop() == "b"
    assert shared.busy == 10.0


def test_a_simulated_sweep_by_hand():
    script = load_script("simulate_scale")
    rates = dict(weights=10.0, source=4.0, result=6.0, states=0.0, store_rate=2.0, disk_rate=5.0)
    scale = script.Scale(
        edits=2, gpus=1, edits_a_gpu=1, start_seconds=3.0, edit_seconds=0.0, table_seconds=7.0, table_each=True, **rates
    )
    # Start 3, weights 10/2 once and 10/5, source 4/2, result 6/2, table 7: 22 s, then 17 s without the weights' way.
    assert script.simulate(scale)["hours"] * 3600 == pytest.approx(39)
    each = script.simulate(scale._replace(weights_once=False, table_each=False))
    assert each["hours"] * 3600 == pytest.approx(2 * (3 + 5 + 2 + 3)) and each["store_busy"] == pytest.approx(20 / 26)


@pytest.mark.parametrize(
    "metrics, name",
    [
        (None, None),
        ("{}", "field.safetensors"),  # a source
        ('{"edit_seconds": 3}', "edited.png"),  # an edit of an image
        ('{"edit_seconds"', "field.safetensors"),
        ("[]", "field.safetensors"),
    ],
)
def test_what_is_no_edit_of_a_scene_is_told(tmp_path, metrics, name):
    if name is not None:
        (tmp_path / "metrics.json").write_text(metrics)
        (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=f"error: --run {tmp_path} has to be the folder of a finished edit"):
        load_script("simulate_scale").main(["--run", str(tmp_path), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
