import json
import re
from pathlib import Path

import pytest
from PIL import Image

SETTINGS = ("training.iterations=2", "training.updates=2", "sampling.groups=3", "sampling.group_size=6")
SHORT = tuple(word for setting in SETTINGS for word in ("--set", setting))
PROMISED = {
    *("iteration", "reward/scene/mean", "reward/scene/std", "loss", "old_distance", "optimality"),
    *("grad_norm", "seconds/sample", "seconds/reward", "seconds/update", "peak_memory_mb"),
}


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def heldout(tmp_path: Path) -> tuple[str, str]:
    """Eight held-out prompts, so that evaluation takes no time here."""
    import flowfactory_tiny

    lines = (flowfactory_tiny.FOLDER / "data" / "heldout.txt").read_text().splitlines()[:8]
    (tmp_path / "few.txt").write_text("\n".join(lines))
    return "--set", f"prompts.heldout={tmp_path / 'few.txt'}"


def test_the_quickstart_runs_from_an_empty_directory_and_leaves_what_it_promises(flowfactory, heldout, tmp_path):
    done = flowfactory("run", "quickstart", *SHORT, *heldout)
    said = done.stdout
    run = tmp_path / "runs" / "quickstart"
    assert said.count("preflight: ") == 4
    assert re.search(r"held-out strict: \d\.\d{4} before, \d\.\d{4} after", said)
    assert f"report: {run / 'report.html'}" in said
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [0, 1, 2]
    assert all(record.keys() >= PROMISED for record in records[1:])
    assert "eval/strict/mean" in records[0]
    assert "eval/strict/mean" in records[2]
    assert "data:image/png;base64," in (run / "report.html").read_text()
    assert size(run / "samples" / "000000" / "000.png") == (32, 32)

    drawn = flowfactory("sample", run, "two red circles on white", "a blue ring on black", "--count", 2, "--out", "drawn")
    assert [Path(line).name for line in drawn.stdout.split()] == ["000.png", "001.png", "002.png", "003.png"]
    assert size(tmp_path / "drawn" / "003.png") == (32, 32)
    flowfactory("sample", run, "a blue ring on black", "--out", "drawn")
    told = [(item["file"], item["prompt"]) for item in json.loads((tmp_path / "drawn" / "index.json").read_text())]
    ring = "a blue ring on black"
    assert told == [(f"{i:03d}.png", "two red circles on white" if i < 2 else ring) for i in range(5)]

    scored = json.loads(flowfactory("eval", run).stdout)
    assert scored["eval/samples"] == 8
    assert scored["eval/strict/mean"] == pytest.approx(records[2]["eval/strict/mean"])

    (run / "report.html").unlink()
    assert flowfactory("report", run).stdout.strip() == str(run / "report.html")
    assert (run / "report.html").exists()

    again = flowfactory("run", "quickstart", *SHORT, *heldout, code=2)
    assert "already holds a run" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1


def test_a_prompt_that_the_reward_cannot_read_stops_the_run_with_a_sentence(flowfactory, tmp_path):
    (tmp_path / "odd.txt").write_text("a photograph of a cat\n")
    done = flowfactory("run", "quickstart", *SHORT, "--set", f"prompts.train={tmp_path / 'odd.txt'}", code=2)
    assert "a photograph of a cat" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_lora_trains_the_embedded_model_too(flowfactory, heldout, tmp_path):
    lora = ("--set", "model.train={lora: {rank: 4, alpha: 8}}", "--set", "training.optimizer.lr=1e-3")
    said = flowfactory("run", "quickstart", *SHORT, *heldout, *lora, "--out", "lora").stdout
    assert re.search(r"preflight: LoRA on \d+ layers \(.*to_q.*\)", said)
    assert (tmp_path / "lora" / "checkpoints" / "000002" / "pytorch_lora_weights.safetensors").exists()
