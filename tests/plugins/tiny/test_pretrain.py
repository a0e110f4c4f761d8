import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from flowfactory_tiny.pretrain import check_encoding, encode_captions, main, sample, train
from flowfactory_tiny.scenes import WORDS, enumerate_captions
from flowfactory_tiny.untrained import MAX_TOKENS, build_bpe, build_pipeline, build_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "pipeline"
    return train(folder, seed=3, vae_steps=3, true_steps=2, mistaken_steps=2), folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_training_repeats_to_the_bit(trained, tmp_path, monkeypatch):
    _, folder = trained
    torch.manual_seed(7)
    state = torch.get_rng_state()
    arguments = ["--out", str(tmp_path / "again"), "--seed", "3", "--threads", str(torch.get_num_threads())]
    steps = ["--vae-steps", "3", "--true-steps", "2", "--mistaken-steps", "2"]
    monkeypatch.setattr("sys.argv", ["pretrain", *arguments, *steps])
    main()
    assert torch.equal(state, torch.get_rng_state())
    assert files(folder) == files(tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "again.png"]


def test_another_seed_gives_other_weights(trained):
    other = build_pipeline(4).transformer.state_dict()
    assert any(not torch.equal(other[name], weight) for name, weight in build_pipeline(3).transformer.state_dict().items())


def test_the_saved_folder_is_an_ordinary_pipeline(trained):
    pipeline, folder = trained
    loaded = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    loaded.set_progress_bar_config(disable=True)
    check_encoding(loaded)
    texts = ["a large red circle on white", "an orange ring above a blue square on gray"]
    with torch.no_grad():
        for mine, theirs in zip(encode_captions(pipeline, texts), encode_captions(loaded, texts), strict=True):
            # kernels may round otherwise where the weights of a file lie in memory
            torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)
    pictures = sample(loaded, texts, steps=2, guidance=3.0, seed=0)
    assert pictures.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pictures, sample(pipeline, texts, steps=2, guidance=3.0, seed=0), rtol=0, atol=1e-5)


def test_the_weights_are_small_and_the_samples_lie_beside_them(trained):
    _, folder = trained
    assert 8e6 < sum(len(content) for content in files(folder).values()) < 9e6
    with Image.open(folder.with_name("pipeline.png")) as grid:
        assert grid.size == (8 * 132, 6 * 132)
    assert "block_out_channels" not in json.loads((folder / "vae" / "config.json").read_text())


def test_a_folder_that_exists_is_refused(trained):
    _, folder = trained
    with pytest.raises(FileExistsError, match="already exists"):
        train(folder, seed=3, vae_steps=1, true_steps=1, mistaken_steps=1)


def test_an_encoding_that_differs_from_the_pipeline_is_noticed(trained, monkeypatch):
    pipeline, _ = trained
    monkeypatch.setattr("flowfactory_tiny.pretrain.encode_captions", lambda *_: (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(RuntimeError, match="differently"):
        check_encoding(pipeline)


def test_each_word_is_one_token():
    encoder = build_tokenizer()
    assert all(len(encoder(word).input_ids) == 3 for word in WORDS)
    assert max(len(text.split()) for text in enumerate_captions()) + 2 == MAX_TOKENS
    text = "a purple cross left of an orange ring on gray"
    assert encoder.decode(encoder(text).input_ids, skip_special_tokens=True).split() == text.split()


def test_merges_do_not_depend_on_the_order_of_words():
    assert build_bpe(WORDS) == build_bpe(reversed(WORDS))
