"""The layouts that `research.pretrained` chooses among."""

import json
from dataclasses import replace

import pytest

from research import pretrained
from research.errors import UserError
from research.models.score_unet import ScoreUNet
from research.pretrained import bert, marian, t5, unet2d
from research.pretrained.configs import settings
from tests.pretrained import test_bert, test_marian, test_t5
from tests.pretrained.shapes import assert_same, configure, random_variables


@pytest.mark.parametrize(
    ("layout", "model"),
    [(t5, test_t5.MODEL), (marian, test_marian.MODEL), (bert, test_bert.MODEL)],
)
def test_what_is_saved_is_loaded(tmp_path, layout, model):
    """One class of ours has two layouts: what it is made of tells them apart."""
    variables = random_variables(layout.expected_leaves(model))
    pretrained.save(str(tmp_path), model, variables)
    loaded, again = pretrained.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert pretrained.LOADS[kind] is layout.load


def test_models_of_diffusers(tmp_path, monkeypatch):
    """A network by its class, a pipeline by its index."""
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="sample_size = null"):
        pretrained.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"vae": 1}')
    with pytest.raises(UserError, match="names vae: expected unet and scheduler"):
        pretrained.load(str(tmp_path))


def test_folders_that_are_not_known(tmp_path):
    with pytest.raises(UserError, match="no config.json in .*save_pretrained wrote"):
        pretrained.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    for kind in ("gpt9", ["t5"], None):
        configure(tmp_path, model_type=kind)
        with pytest.raises(UserError, match="is of a model .*one of t5, marian, bert"):
            pretrained.load(str(tmp_path))


def test_models_that_have_no_layout(tmp_path):
    strange = replace(test_t5.MODEL, logit_scale=0.3)
    # What each layout lacks is told.
    match = "logit_scale = 0.3 .*T5ForConditionalGeneration.*; .*"
    with pytest.raises(UserError, match=match):
        pretrained.save(str(tmp_path), strange, {})
    with pytest.raises(UserError, match="unet2d.save"):
        pretrained.save(str(tmp_path), ScoreUNet(), {})
    match = "Stack has no public layout here: expected one of EncoderDecoder, .*Score"
    with pytest.raises(UserError, match=match):
        pretrained.save(str(tmp_path), test_t5.MODEL.encoder, {})
    assert not list(tmp_path.iterdir())
    assert pretrained.LOADS["UNet2DModel"] is unet2d.load
