"""DETR and its losses against transformers', live, folders going both ways.

All in float32, with images of odd sizes and padding of their own. timm's ResNet, whose
names the public folders have, is written out here, dilation included.
"""

import json
from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.torch import load_file
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)
from transformers.loss.loss_for_object_detection import (
    ForObjectDetectionLoss,
    ForSegmentationLoss,
    HungarianMatcher,
    ImageLoss,
)
from transformers.models.detr.modeling_detr import replace_batch_norm

from research import pretrained
from research.pretrained import detr, resnet
from research.tasks.detection import Detection
from tests.layers import slow

TOLERANCE = 1e-5  # of the largest element
TINY = dict(embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1])
STAGES = [f"stage{i}" for i in range(1, 5)]
SMALL = dict(
    d_model=32,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=8,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=20,
    num_queries=5,
    num_labels=6,
    dropout=0.0,
)
SIZES = ((75, 98), (64, 37), (31, 98))
"""Of the images: height and width."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only wait for each other, on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**changed):
    backbone = ResNetConfig(**TINY, out_features=STAGES)
    return DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, **SMALL | changed
    )


class Bottleneck(torch.nn.Module):
    def __init__(self, width, channels, stride, dilation, has_skip):
        super().__init__()
        inner, conv = channels // 4, partial(torch.nn.Conv2d, bias=False)
        self.conv1, self.bn1 = conv(width, inner, 1), torch.nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride, dilation, dilation)
        self.bn2 = torch.nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, channels, 1), torch.nn.BatchNorm2d(channels)
        self.downsample = None
        if has_skip:
            self.downsample = torch.nn.Sequential(
                conv(width, channels, 1, stride), torch.nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        h = self.bn1(self.conv1(x)).relu()
        h = self.bn3(self.conv3(self.bn2(self.conv2(h)).relu()))
        return (h + (x if self.downsample is None else self.downsample(x))).relu()


class TimmResNet(torch.nn.Module):
    """resnet26 with its names; `dilated` in the last stage, as timm's stride of 16."""

    def __init__(self, dilated):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        width = 64
        for stage in range(4):
            channels, last = 256 * 2**stage, stage == 3 and dilated
            stride = 2 if stage and not last else 1
            blocks = [
                Bottleneck(width, channels, stride, 1, True),
                Bottleneck(channels, channels, 1, 2 if last else 1, False),
            ]
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
            width = channels

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


def randomize(model):
    """Every number of it, norms' included, such that no map dies out."""
    torch.manual_seed(0)
    leaves = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for path, leaf in leaves:
            if path.endswith("running_var"):
                leaf.uniform_(0.5, 2.0)
            elif path.endswith("num_batches_tracked"):
                continue
            elif leaf.ndim == 1:
                leaf.normal_(std=0.2).add_(1.0 * path.endswith("weight"))
            elif leaf.ndim == 4:
                leaf.normal_(std=(1 / leaf[0].numel()) ** 0.5)
            else:
                leaf.normal_(std=0.3)
    return model.eval()


CASES = {
    "boxes": lambda: DetrForObjectDetection(config()),
    "masks": lambda: DetrForSegmentation(config()),
    "learned": lambda: DetrForObjectDetection(
        config(position_embedding_type="learned", activation_function="gelu")
    ),
    "timm": lambda: with_timm(DetrForObjectDetection(timm_config()), dilated=False),
    "timm-dc5": lambda: with_timm(DetrForSegmentation(timm_config()), dilated=True),
}


def timm_config():
    """A backbone of the right widths, which the other then takes the place of."""
    wide = ResNetConfig(depths=[1, 1, 1, 1], out_features=STAGES)
    return DetrConfig(use_timm_backbone=False, backbone_config=wide, **SMALL)


def with_timm(model, dilated):
    network = TimmResNet(dilated)
    replace_batch_norm(network)
    getattr(model, "detr", model).model.backbone.model = network
    return model


@lru_cache
def reference(name):
    return randomize(CASES[name]())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each case, as their library writes it, or as the public ones are."""

    @lru_cache
    def folder(name):
        path, model = tmp_path_factory.mktemp(name), reference(name)
        model.save_pretrained(path)
        if name.startswith("timm"):
            settings = json.loads((path / "config.json").read_text())
            settings |= dict(
                use_timm_backbone=True, backbone="resnet26", backbone_config=None
            )
            settings["dilation"] = name == "timm-dc5"
            (path / "config.json").write_text(json.dumps(settings))
        return path

    return folder


@lru_cache
def images():
    """Normalised images, zero beyond each one's size, and where they are."""
    draws = np.random.default_rng(0).normal(size=(3, 75, 98, 3)).astype(np.float32)
    valid = np.zeros((3, 75, 98), bool)
    for row, (height, width) in enumerate(SIZES):
        valid[row, :height, :width] = True
    return draws * valid[..., None], valid


def run(model, image, valid):
    """Logits and boxes after every layer, and masks where it has them."""
    boxes, states = getattr(model, "detr", model), []
    decoder = boxes.model.decoder
    hooks = [
        layer.register_forward_hook(lambda *args: states.append(args[-1]))
        for layer in decoder.layers
    ]
    found = model(
        pixel_values=torch.tensor(image).permute(0, 3, 1, 2),
        pixel_mask=torch.tensor(valid).long(),
    )
    for hook in hooks:
        hook.remove()
    normed = decoder.layernorm(torch.stack(states))
    outputs = {
        "logits": boxes.class_labels_classifier(normed),
        "boxes": boxes.bbox_predictor(normed).sigmoid(),
    }
    torch.testing.assert_close(outputs["logits"][-1], found.logits)
    if "pred_masks" in found:
        outputs["masks"] = found.pred_masks
    return outputs


def theirs(model):
    with torch.no_grad():
        return run(model, *images())


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_every_layer(folders, tmp_path, name):
    there = reference(name)
    model, variables = pretrained.load(str(folders(name)))
    found = slow.jit(model.apply)(variables, *map(jnp.asarray, images()))
    expected = theirs(there)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        value = value.numpy()
        assert found[part].shape == value.shape
        scale = abs(value).max()
        assert 0.1 < scale < 100 and value.std() > 0.01 * scale
        assert abs(found[part] - value).max() <= TOLERANCE * scale, part

    pretrained.save(str(tmp_path), model, variables)
    written, before = (load_file(f / detr.WEIGHTS) for f in (tmp_path, folders(name)))
    counters = {k for k in before if k.endswith("num_batches_tracked")}
    assert written.keys() == before.keys() - counters
    for leaf, value in written.items():
        np.testing.assert_array_equal(value, before[leaf], err_msg=leaf)
    if not name.startswith("timm"):
        again, told = type(there).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(told.values()), told
        torch.testing.assert_close(theirs(again.eval()), expected, rtol=0, atol=0)


RESNETS = {
    "classes": lambda: ResNetForImageClassification(ResNetConfig(**TINY, num_labels=5)),
    "model": lambda: ResNetModel(ResNetConfig(**TINY)),
    "backbone": lambda: ResNetBackbone(ResNetConfig(**TINY, out_features=STAGES)),
}


@pytest.mark.parametrize("name", RESNETS)
def test_resnets(tmp_path, name):
    there = randomize(RESNETS[name]())
    there.save_pretrained(tmp_path / "theirs")
    model, variables = pretrained.load(str(tmp_path / "theirs"))
    image, _ = images()
    found = slow.jit(model.apply)(variables, jnp.asarray(image))
    with torch.no_grad():
        out = there(torch.tensor(image).permute(0, 3, 1, 2))
    if name == "backbone":
        found = [np.moveaxis(np.asarray(m), -1, 1) for m in found]
        expected = [m.numpy() for m in out.feature_maps]
    else:
        expected = out.logits if name == "classes" else out.pooler_output[..., 0, 0]
        found, expected = [np.asarray(found)], [expected.numpy()]
    for ours, value in zip(found, expected, strict=True):
        assert ours.shape == value.shape
        assert abs(ours - value).max() <= TOLERANCE * abs(value).max()

    pretrained.save(str(tmp_path / "ours"), model, variables)
    load = partial(type(there).from_pretrained, output_loading_info=True)
    again, told = load(tmp_path / "ours")
    assert not any(told.values()), told
    for leaf, value in there.state_dict().items():
        torch.testing.assert_close(again.state_dict()[leaf], value, rtol=0, atol=0)
    # The same for a network that begins with it.
    base, frozen = resnet.backbone(str(tmp_path / "theirs"))
    maps = slow.jit(base.apply)(frozen, jnp.asarray(image))
    if name == "backbone":
        for ours, value in zip(maps, expected, strict=True):
            ours = np.moveaxis(np.asarray(ours), -1, 1)
            assert abs(ours - value).max() <= TOLERANCE * abs(value).max()


# Losses


class Answers(nn.Module):
    """What was found, as parameters."""

    found: dict

    @nn.compact
    def __call__(self, image, valid, train):
        return {
            name: self.param(name, lambda _, v=value: jnp.asarray(v))
            for name, value in self.found.items()
        }


def targets(num_objects=(2, 0, 5), most=7, classes=6, size=(75, 98)):
    """A batch of ours, and labels of theirs."""
    rng = np.random.default_rng(3)
    rows = len(num_objects)
    boxes = rng.uniform(0.2, 0.5, (rows, most, 4)).astype(np.float32)
    kinds = rng.integers(0, classes, (rows, most)).astype(np.int32)
    present = np.arange(most)[None] < np.array(num_objects)[:, None]
    segments = rng.integers(0, most + 1, (rows, *size)).astype(np.int32)
    sizes = np.array(SIZES, np.int32)
    batch = {
        "image": np.zeros((rows, *size, 3), np.uint8),
        "size": sizes,
        "boxes": np.where(present[..., None], boxes, 0),
        "classes": np.where(present, kinds, 0),
        "present": present.astype(np.float32),
        "segments": segments,
    }
    labels = [
        {
            "class_labels": torch.tensor(kinds[row, :n]).long(),
            "boxes": torch.tensor(boxes[row, :n]),
            "masks": torch.tensor(
                np.stack([segments[row] == i + 1 for i in range(n)])
                if n
                else np.zeros((0, *size), bool)
            ).float(),
        }
        for row, n in enumerate(num_objects)
    ]
    return {name: jnp.asarray(part) for name, part in batch.items()}, labels


@lru_cache
def answers(alike=False):
    rng = np.random.default_rng(4)
    boxes = rng.normal(size=(3, 3, 8, 4)) * (0.01 if alike else 1.0)
    return {
        "logits": rng.normal(size=(3, 3, 8, 7)).astype(np.float32) * 2,
        "boxes": (1 / (1 + np.exp(-boxes))).astype(np.float32),
        "masks": rng.normal(size=(3, 8, 19, 25)).astype(np.float32),
    }


@pytest.mark.parametrize("alike", [False, True])
def test_matching(alike):
    found, (batch, labels) = answers(alike), targets()
    logits, boxes = (jnp.asarray(found[k]).swapaxes(0, 1) for k in ("logits", "boxes"))
    task = Detection(Answers({}))
    index = jax.jit(task.match)(
        logits,
        boxes,
        batch["classes"],
        batch["boxes"],
        batch["present"] > 0,
    )
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    for layer in range(3):
        outputs = {
            "logits": torch.tensor(found["logits"][layer]),
            "pred_boxes": torch.tensor(found["boxes"][layer]),
        }
        for row, (query, place) in enumerate(matcher(outputs, labels)):
            expected = np.full(7, -1)
            expected[place] = query
            np.testing.assert_array_equal(index[row, layer], expected)


@pytest.mark.parametrize("masks", [False, True])
def test_losses_and_their_gradients(masks):
    found, (batch, labels) = answers(), targets()
    names = ("logits", "boxes", "masks") if masks else ("logits", "boxes")
    task = Detection(Answers({name: found[name] for name in names}))
    params = {name: jnp.asarray(found[name]) for name in names}
    step = slow.jit(
        jax.value_and_grad(
            lambda p: task.loss({"params": p}, batch, jax.random.key(0), True),
            has_aux=True,
        )
    )
    (loss, (metrics, _)), grads = step(params)

    leaves = {name: torch.tensor(found[name], requires_grad=True) for name in names}
    settings = DetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(**TINY),
        num_labels=6,
        auxiliary_loss=True,
        decoder_layers=3,
    )
    last = (leaves["logits"][-1], labels, "cpu", leaves["boxes"][-1])
    each = (settings, leaves["logits"], leaves["boxes"])
    if masks:
        expected, told, _ = ForSegmentationLoss(*last, leaves["masks"], *each)
    else:
        expected, told, _ = ForObjectDetectionLoss(*last, *each)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5)
    assert told.keys() == {k for k in metrics if "class_error" not in k and k != "loss"}
    for name, value in told.items():
        total, count = metrics[name]
        np.testing.assert_allclose(total / count, value.detach(), rtol=1e-5)
    expected.backward()
    for name, leaf in leaves.items():
        scale = abs(leaf.grad).max().item()
        assert abs(np.asarray(grads[name]) - leaf.grad.numpy()).max() <= 1e-5 * scale


def test_gradients_of_every_weight(folders, tmp_path):
    """Of all losses of all layers, masks included, by way of a folder."""
    batch, labels = targets()
    model, variables = pretrained.load(str(folders("masks")))
    image, _ = images()
    # Theirs gets what the task makes of an image of eight bits.
    levels = np.random.default_rng(5).integers(0, 256, image.shape).astype(np.uint8)
    batch["image"] = jnp.asarray(levels)
    task = Detection(model)
    normalized, valid = task._inputs(batch)
    frozen = {"frozen": variables["frozen"]}

    @slow.jit
    def step(params):
        def loss(params):
            given = {"params": params, **frozen}
            return task.loss(given, batch, jax.random.key(0), True)[0]

        return jax.value_and_grad(loss)(params)

    loss, grads = step(variables["params"])

    there = randomize(DetrForSegmentation(config()))
    for leaf in there.parameters():
        leaf.requires_grad_(True)
    found = run(there, np.asarray(normalized), np.asarray(valid))
    outputs = {
        "logits": found["logits"][-1],
        "pred_boxes": found["boxes"][-1],
        "pred_masks": found["masks"],
        "auxiliary_outputs": [
            {"logits": a, "pred_boxes": b}
            for a, b in zip(found["logits"][:-1], found["boxes"][:-1], strict=True)
        ],
    }
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    kinds = ["labels", "boxes", "cardinality", "masks"]
    told = ImageLoss(matcher, 6, 0.1, kinds)(outputs, labels)
    weights = {"ce": 1, "bbox": 5, "giou": 2, "mask": 1, "dice": 1}
    total = sum(
        weights[name.split("_")[1]] * value
        for name, value in told.items()
        if name.startswith("loss")
    )
    total.backward()
    np.testing.assert_allclose(loss, total.detach(), rtol=1e-5)
    with torch.no_grad():
        for leaf in there.parameters():
            leaf.copy_(leaf.grad)
    there.save_pretrained(tmp_path)
    _, expected = pretrained.load(str(tmp_path))
    expected = flatten_dict(expected["params"], sep="/")
    # Biases of keys have none: all logits of a query rise alike.
    least = 0.01 * max(abs(grad).max() for grad in expected.values())
    for path, grad in flatten_dict(grads, sep="/").items():
        scale = max(abs(expected[path]).max(), least)
        assert abs(np.asarray(grad) - expected[path]).max() <= 1e-4 * scale, path
