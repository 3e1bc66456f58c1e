import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from research import pretrained
from research.errors import UserError
from research.layers.cores import Performer
from research.layers.norms import RMSNorm
from research.layers.windows import PositionAlone, WindowAttention
from research.models.image_classifier import ImageClassifier
from research.models.swin import AttentionV2, Swin, swin_v2
from research.pretrained import swin, timm_swin
from research.pretrained.configs import settings
from tests.pretrained.shapes import (
    assert_same,
    configure,
    count,
    edit,
    random_variables,
    their_shapes,
)

LAYOUTS = Path(__file__).parent / "layouts"
TRANSFORMERS = ["swin-tiny-hf", "swin-base-hf", "swinv2-tiny-hf"]
TIMM = [
    "timm-swin_tiny_patch4_window7_224",
    "timm-swin_base_patch4_window7_224",
    "timm-swinv2_tiny_window8_256",
]
SMALL = dict(embed_dim=4, depths=[1, 2], num_heads=[1, 2], window_size=3)


def published(name):
    return json.loads((LAYOUTS / f"{name}.json").read_text())


def small(kind="SwinForImageClassification", **changed):
    model_type = "swinv2" if kind.startswith("Swinv2") else "swin"
    labels = {"0": "no", "1": "yes", "2": "perhaps"}
    config = dict(architectures=[kind], model_type=model_type, id2label=labels)
    return swin.model_of(config | SMALL | dict(image_size=24) | changed)


def small_timm(architecture="swin_tiny_patch4_window7_224", **changed):
    args = SMALL | dict(img_size=24, num_classes=3) | changed
    return timm_swin.model_of(dict(architecture=architecture, model_args=args))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_published_layouts(name):
    there = published(name)
    config, expected = there["config"], there["tensors"]
    model = swin.model_of(config)
    leaves = swin.expected_leaves(model)
    prefix = f"{config['model_type']}."
    shapes = their_shapes(swin.leaf_names(leaves, prefix), leaves)
    buffers = {key for key in expected if key.endswith("relative_position_index")}
    assert shapes == {k: tuple(v) for k, v in expected.items() if k not in buffers}
    assert count(shapes) == there["params"]
    assert model.num_classes == 1000 and model.backbone.drop_path_rate == 0.1

    written = json.loads(json.dumps(swin.config_of(model)))
    assert settings(swin.model_of(written)) == settings(model)
    read = config.keys() - swin.FREE - {"id2label", "label2id", "num_channels"}
    assert {key: written[key] for key in read} == {key: config[key] for key in read}
    assert written["architectures"] == config["architectures"]


@pytest.mark.parametrize("name", TIMM)
def test_published_layouts_of_timm(name):
    there = published(name)
    model = timm_swin.model_of(there["config"])
    leaves = timm_swin.expected_leaves(model)
    shapes = their_shapes_side_by_side(timm_swin.leaf_names(leaves), leaves)
    assert shapes == {key: tuple(shape) for key, shape in there["tensors"].items()}
    assert count(shapes) == there["params"]
    written = timm_swin.config_of(model)
    assert written["architecture"] == there["config"]["architecture"]
    assert written["model_args"] == {}
    assert settings(timm_swin.model_of(written)) == settings(model)


def their_shapes_side_by_side(names, leaves):
    """Of tensors that several leaves of ours share: their rows add up."""
    shapes = {}
    order = []
    for ours, (theirs, axes) in names.items():
        (shape,) = their_shapes({ours: (theirs, axes)}, {ours: leaves[ours]}).values()
        if theirs in shapes:
            assert shape[1:] == shapes[theirs][1:]
            shape = (shape[0] + shapes[theirs][0], *shape[1:])
        shapes[theirs] = shape
        order += [ours.split("/")[-2]] if ".qkv." in theirs else []
    blocks = sum(name.endswith("qkv.weight") for name in shapes)
    assert sorted(order, key=["query", "key", "value"].index) == order
    assert order.count("key") in (blocks, 2 * blocks)
    return shapes


@pytest.mark.parametrize("architecture", timm_swin.ARCHITECTURES)
def test_architectures_of_timm(architecture):
    model = timm_swin.model_of({"architecture": architecture})
    written = timm_swin.config_of(model)
    assert (written["architecture"], written["model_args"]) == (architecture, {})


def test_windows_of_timm_that_have_grown():
    """The last stage's maps had 6x6 places at 192 pixels: timm/models, swin v2."""
    for size in ("12to16_192to256", "12to24_192to384"):
        model = timm_swin.model_of({"architecture": f"swinv2_large_window{size}"})
        trained = [
            attention.keywords["position"].keywords["trained_window_size"]
            for attention in model.backbone.attention
        ]
        assert trained == [12, 12, 12, 6]


@pytest.mark.parametrize(
    "kind",
    [
        f"{version}{end}"
        for version in ("Swin", "Swinv2")
        for end in ("ForImageClassification", "Model", "Backbone")
    ],
)
def test_kinds_come_back(tmp_path, kind):
    is_v2, is_backbone = kind.startswith("Swinv2"), kind.endswith("Backbone")
    changed = dict(
        patch_size=2,
        qkv_bias=False,
        hidden_act="silu",
        layer_norm_eps=1e-3,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        use_absolute_embeddings=True,
        mlp_ratio=2.0,
    )
    if is_backbone:
        changed |= dict(out_features=["stage1"])
    if is_v2:
        changed |= dict(pretrained_window_sizes=[0, 5])
    model = small(kind, **changed)
    assert isinstance(model, Swin if is_backbone else ImageClassifier)
    variables = random_variables(swin.expected_leaves(model, channels=1))
    pretrained.save(str(tmp_path), model, variables)
    loaded, again = pretrained.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [kind] and config["num_channels"] == 1
    names = load_file(tmp_path / swin.WEIGHTS)
    if is_backbone:
        norms = sorted(name for name in names if name.startswith("hidden"))
        ends = () if is_v2 else ("bias", "weight")
        assert norms == [f"hidden_states_norms.stage1.{end}" for end in ends]
        # A part of another model's file has its prefix.
        prefix = f"{config['model_type']}."
        edit(
            tmp_path / swin.WEIGHTS,
            **{name: None for name in names if not name.startswith("hidden")},
            **{f"{prefix}{n}": t for n, t in names.items() if n[:6] != "hidden"},
        )
        assert_same(pretrained.load(str(tmp_path))[1], variables)


@pytest.mark.parametrize(
    ("architecture", "changed"),
    [
        (
            "swin_tiny_patch4_window7_224",
            dict(
                depths=[1, 1, 1],
                num_heads=[1, 2, 2],
                window_size=[3, 2, 5],
                patch_size=2,
                drop_rate=0.1,
            ),
        ),
        ("swin_tiny_patch4_window7_224", dict(num_classes=0, qkv_bias=False)),
        ("swinv2_tiny_window8_256", dict(pretrained_window_sizes=[2, 0])),
        ("swinv2_tiny_window8_256", dict(proj_drop_rate=0.1, attn_drop_rate=0.2)),
    ],
)
def test_timm_comes_back(tmp_path, architecture, changed):
    model = small_timm(architecture, **changed)
    variables = random_variables(timm_swin.expected_leaves(model, channels=2))
    timm_swin.save(str(tmp_path), model, variables)
    loaded, again = pretrained.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"].startswith(architecture.split("_")[0])
    assert config["pretrained_cfg"]["input_size"] == [2, 24, 24]


def test_rows_of_timm_are_queries_keys_values(tmp_path):
    model = small_timm(qkv_bias=True)
    variables = random_variables(timm_swin.expected_leaves(model))
    timm_swin.save(str(tmp_path), model, variables)
    theirs = load_file(tmp_path / timm_swin.WEIGHTS)
    block = variables["params"]["backbone"]["stage_1_block_0"]["mixer"]["attention"]
    for row, name in enumerate(("query", "key", "value")):
        rows = slice(8 * row, 8 * row + 8)
        kernel = theirs["layers.1.blocks.0.attn.qkv.weight"][rows]
        np.testing.assert_array_equal(kernel, block[name]["kernel"].T)
        bias = theirs["layers.1.blocks.0.attn.qkv.bias"][rows]
        np.testing.assert_array_equal(bias, block[name]["bias"])
    merge = variables["params"]["backbone"]["merge_0"]["reduction"]["kernel"]
    there = theirs["layers.1.downsample.reduction.weight"]
    np.testing.assert_array_equal(there, merge.T)


@pytest.mark.parametrize(
    ("layout", "block", "patches", "norms"),
    [
        (
            swin,
            "swin.encoder.layers.1.blocks.0",
            "swin.embeddings.patch_embeddings.projection",
            ("layernorm_before", "layernorm_after"),
        ),
        (timm_swin, "layers.1.blocks.0", "patch_embed.proj", ("norm1", "norm2")),
    ],
    ids=["transformers", "timm"],
)
def test_leaves_that_shapes_cannot_tell(tmp_path, layout, block, patches, norms):
    model = small() if layout is swin else small_timm()
    variables = random_variables(layout.expected_leaves(model))
    layout.save(str(tmp_path), model, variables)
    theirs, ours = load_file(tmp_path / layout.WEIGHTS), variables["params"]["backbone"]
    kernel = np.einsum("yxio->oiyx", ours["patch_embedding"]["kernel"])
    np.testing.assert_array_equal(theirs[f"{patches}.weight"], kernel)
    part = ours["stage_1_block_0"]
    for name, residual in zip(norms, ("mixer_residual", "mlp_residual"), strict=True):
        for leaf, there in (("scale", "weight"), ("bias", "bias")):
            expected = part[residual]["norm"][leaf]
            np.testing.assert_array_equal(theirs[f"{block}.{name}.{there}"], expected)
    if layout is swin:
        for name in ("query", "key", "value"):
            expected = part["mixer"]["attention"][name]["kernel"].T
            there = theirs[f"{block}.attention.self.{name}.weight"]
            np.testing.assert_array_equal(there, expected)


@pytest.mark.parametrize("layout", [swin, timm_swin])
def test_buffers_and_other_files_leaves(tmp_path, layout):
    model = small() if layout is swin else small_timm()
    variables = random_variables(layout.expected_leaves(model))
    layout.save(str(tmp_path), model, variables)
    weights = tmp_path / layout.WEIGHTS
    block = {
        swin: "swin.encoder.layers.0.blocks.0.attention.self",
        timm_swin: "layers.0.blocks.0.attn",
    }[layout]
    edit(weights, **{f"{block}.relative_position_index": np.arange(81).reshape(9, 9)})
    assert_same(layout.load(str(tmp_path))[1], variables)
    table = f"{block}.relative_position_bias_table"
    there = load_file(weights)[table]
    edit(weights, **{table: there[:9]})
    with pytest.raises(UserError, match=r"table .*\(9, 1\), but \(25, 1\) is expected"):
        layout.load(str(tmp_path))
    edit(weights, **{table: None})
    with pytest.raises(UserError, match=r"lacks .*bias_table .*position/table"):
        layout.load(str(tmp_path))
    edit(weights, **{table: there, "decoder.0.weight": there})
    with pytest.raises(UserError, match=r"holds decoder.0.weight with shape \(25, 1\)"):
        layout.load(str(tmp_path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    model = small()
    swin.save(str(folder), model, random_variables(swin.expected_leaves(model)))
    return folder


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"architectures": ["SwinForMaskedImageModeling"]}, "architectures = .*Masked"),
        ({"architectures": ["Swinv2Model"]}, "architectures = .*SwinModel"),
        ({"model_type": "swin2sr"}, "is of a model 'swin2sr'"),
        ({"hidden_act": "mish"}, "hidden_act = .mish.*gelu"),
        ({"window_size": [7, 7]}, "window_size = .*the side of a window"),
        ({"image_size": [224, 192]}, "image_size = .*the side of a square"),
        ({"num_heads": [1, 3]}, r"num_heads = \[1, 3\].*a divisor of its width, 4"),
        ({"num_heads": [1]}, r"num_heads = \[1\].*for each of 2 stages"),
        ({"pretrained_window_sizes": [3, 3]}, "pretrained_window_sizes = .*swinv2"),
        ({"use_mean_pooling": True}, "use_mean_pooling = true .*expected only"),
        (
            {"architectures": ["SwinBackbone"], "out_features": ["stem"]},
            "out_features = .*some of stage1, stage2",
        ),
    ],
)
def test_configs_that_are_not_read(saved, tmp_path, changed, match):
    folder = Path(shutil.copytree(saved, tmp_path / "swin"))
    configure(folder, **changed)
    with pytest.raises(UserError, match=match):
        pretrained.load(str(folder))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (dict(img_size=20), "img_size = 20 .*a size whose maps their windows divide"),
        (dict(img_size=26), "img_size = 26 "),
        (dict(window_size=[3, 3, 3]), r"window_size = \[3, 3, 3\].*each of 2 stages"),
        (dict(window_size=[3, 2]), r"window_size = \[3, 2\].*more than two stages"),
        (dict(global_pool="max"), 'global_pool = "max" in model_args'),
        (dict(norm_layer="rmsnorm"), "norm_layer = .*in model_args .*expected only"),
    ],
)
def test_arguments_of_timm_that_are_not_read(changed, match):
    with pytest.raises(UserError, match=match):
        small_timm(**changed)


@pytest.mark.parametrize(
    ("input_size", "args", "side"),
    [
        ([3, 384, 384], {}, 384),
        ([3, 384, 384], dict(img_size=448), 448),
        (None, {}, 224),
    ],
)
def test_size_of_images_of_timm(input_size, args, side):
    """As published folders tell it, or the architecture's."""
    config = {
        "architecture": "swin_base_patch4_window7_224",
        "model_args": args | dict(window_size=side // 32),
        "pretrained_cfg": {"input_size": input_size} if input_size else {},
    }
    assert timm_swin.model_of(config).backbone.image_size == side


def with_backbone(model, **changed):
    return replace(model, backbone=replace(model.backbone, **changed))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (with_backbone(small(), shifts=(0.0,)), "shifts.1 = None .*expected 0.5"),
        (
            with_backbone(small(), window_size=(3, 3)),
            "window_size = .*side of a window",
        ),
        (
            with_backbone(
                small("Swinv2Model"),
                attention=partial(AttentionV2, match=PositionAlone),
            ),
            "attention.match = PositionAlone .*expected Cosine",
        ),
        (
            with_backbone(small(), attention=partial(WindowAttention, position=None)),
            "attention.position = None .*expected RelativePosition",
        ),
        (
            with_backbone(
                small(), attention=partial(WindowAttention, core=Performer())
            ),
            "Swin has no setting attention.core.dropout_rate",
        ),
        (replace(small(), norm=RMSNorm), "norm = RMSNorm .*expected LayerNorm"),
        (with_backbone(small(), image_size=24), "image_size = 24 .*expected None"),
        (
            replace(ImageClassifier(swin_v2()), num_classes=3),
            "image_size = None .*expected 256",
        ),
        (ImageClassifier(ImageClassifier(Swin())), "on a ImageClassifier has no"),
    ],
)
def test_models_without_a_counterpart(tmp_path, model, match):
    with pytest.raises(UserError, match=match):
        swin.save(str(tmp_path / "new"), model, {})
    assert not (tmp_path / "new").exists()


def test_which_layout_a_model_has(tmp_path):
    """Windows made for one size of images are timm's, of the first version."""
    for model, key in [(small(), "model_type"), (small_timm(), "architecture")]:
        variables = random_variables(swin.expected_leaves(model))
        pretrained.save(str(tmp_path), model, variables)
        assert key in json.loads((tmp_path / "config.json").read_text())
    strange = with_backbone(small(), shifts=(0.0,))
    with pytest.raises(UserError, match="transformers' Swin: .*; img_size = null"):
        pretrained.save(str(tmp_path), strange, {})


def test_variables_that_do_not_fit(tmp_path):
    variables = random_variables(swin.expected_leaves(small()))
    params = {k: v for k, v in variables["params"].items() if k != "logits"}
    match = r"params/logits/bias .*None, expected \(3,\)"
    for layout, model in ((swin, small()), (timm_swin, small_timm())):
        with pytest.raises(UserError, match=match):
            layout.save(str(tmp_path / "new"), model, {"params": params})
    assert not (tmp_path / "new").exists()


def test_a_classifier_holds_a_backbone():
    """Its leaves stand where those of a backbone alone do, as for a detector."""
    whole = swin.expected_leaves(small())
    alone = swin.expected_leaves(small("SwinBackbone", out_features=["stage2"]))
    norms = {path for path in alone if "out_norm" in path}
    assert {
        path.replace("params/", "params/backbone/") for path in alone
    } - whole.keys() == {path.replace("params/", "params/backbone/") for path in norms}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in alone.values())
