"""Fine-tuning: what a public folder gives a task, and what is drawn anew."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from research.data.loader import Data
from research.errors import UserError
from research.experiment import Experiment
from research.models.swin import resize
from research.models.transformer import MaskedLanguageModel, SequenceClassifier
from research.pretrained import bert, swin
from research.pretrained.start import FromPretrained
from research.tasks.sequence_classification import SequenceClassification
from research.train.builder import build
from research.train.optimizers import Adam
from research.train.schedules import Constant
from research.train.start import Fitted, begin
from research.train.state import Ema, TrainState
from tests.layers import slow
from tests.pretrained.shapes import random_variables
from tests.train.runs import leaves

CONFIG = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
}
POOLED = bert.model_of(CONFIG)
CLASSES = replace(POOLED, num_classes=3)
HEAD = "^params/logits/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a BERT with a pooler, and its parameters."""
    path = str(tmp_path_factory.mktemp("bert"))
    params = slow.random_params(POOLED, jnp.zeros((1, 1), jnp.int32))
    bert.save(path, POOLED, {"params": params})
    return path, params


def expected(network):
    init = partial(network.init, jax.random.key(0))
    shapes = jax.eval_shape(init, jnp.zeros((1, 1), jnp.int32))
    return flatten_dict(shapes, sep="/")


@pytest.mark.parametrize("trainable", ["", "^logits/"])
def test_a_run_begins_with_the_folder_and_a_new_head(folder, trainable):
    """Sharded, and the average begins there, too."""
    path, params = folder
    assert isinstance(CLASSES, SequenceClassifier)
    program = build(
        Experiment(
            task=SequenceClassification(CLASSES),
            data=Data(
                train=[],
                batch_size=8,
                spec={"tokens": ((5,), "int32"), "label": ((), "int32")},
            ),
            optimizer=Adam(Constant(1e-3)),
            num_steps=1,
            ema=Ema(0.9),
            trainable=trainable,
            mesh={"data": 2, "fsdp": 4},
        )
    )
    fresh = program.init()
    kernel = np.asarray(fresh.params["logits"]["kernel"])
    state = begin(fresh, FromPretrained(path, fresh=HEAD))
    given = leaves(params)
    ours = leaves(state.params)
    assert ours.keys() == given.keys() | {"logits/kernel", "logits/bias"}
    for name, leaf in given.items():
        np.testing.assert_array_equal(ours[name], leaf)
    np.testing.assert_array_equal(ours["logits/kernel"], kernel)
    for name, leaf in leaves(state.ema).items():
        np.testing.assert_array_equal(leaf, ours[name])
    placed = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    assert placed == jax.tree.map(lambda leaf: leaf.sharding, program.state.params)


def test_a_folder_may_become_a_part(folder):
    """A pooled network under a name, with what else there is left to chance."""
    path, params = folder
    shapes = expected(POOLED)
    task = {f"params/pooled/{n.partition('/')[2]}": s for n, s in shapes.items()}
    task |= {"params/other": jax.ShapeDtypeStruct((3,), jnp.float32)}
    found = FromPretrained(path, under="pooled")(task)
    assert found.keys() == task.keys() - {"params/other"}
    np.testing.assert_array_equal(
        found["params/pooled/dense/kernel"], params["dense"]["kernel"]
    )


def test_leaves_of_the_folder_can_be_left_aside(folder):
    path, _ = folder
    encoder = replace(CLASSES, hidden_dim=None)
    found = FromPretrained(path, fresh="^params/(dense|logits)/")(expected(encoder))
    assert found and all(name.startswith("params/encoder/") for name in found)


def swin_of(image_size, window_size, num_classes):
    return swin.model_of(
        {
            "architectures": ["SwinForImageClassification"],
            "model_type": "swin",
            "embed_dim": 4,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "image_size": image_size,
            "window_size": window_size,
            "num_labels": num_classes,
            "use_absolute_embeddings": True,
        }
    )


def test_a_swin_begins_on_larger_images_than_the_folders(tmp_path):
    """Tables and the first map's positions are resized, and its head is new."""
    small, large = swin_of(32, 4, 3), swin_of(64, 8, 2)
    variables = random_variables(swin.expected_leaves(small))
    swin.save(str(tmp_path), small, variables)
    shapes = swin.expected_leaves(large)
    zeros = {path: jnp.zeros(leaf.shape) for path, leaf in shapes.items()}
    params = unflatten_dict(zeros, sep="/")["params"]
    state = TrainState(0, 0, params, opt_state=(), ema=None, extra={})
    start = FromPretrained(str(tmp_path))

    begun = begin(state, Fitted(start, fit=resize, fresh=HEAD))
    found = flatten_dict(begun.variables(), sep="/")
    resized = resize(flatten_dict(dict(variables), sep="/"), shapes)
    for path in found.keys() | resized.keys():
        wanted = zeros if path.startswith("params/logits/") else resized
        np.testing.assert_array_equal(found[path], wanted[path])

    table = "stage_0_block_0/mixer/position/table"
    told = rf"{table} with shape \(49, 1\), but it has \(225, 1\) .* resize it .fit"
    with pytest.raises(UserError, match=told):
        begin(state, Fitted(start, fresh=f"{HEAD}|absolute|stage_1"))
    told = r"logits/\w+ with shape .*3.*, but .*2.* anew .fresh='\^params/logits/\w+\$"
    with pytest.raises(UserError, match=told):
        begin(state, Fitted(start, fit=resize))


@pytest.mark.parametrize(
    ("network", "settings", "told"),
    [
        (
            CLASSES,
            {},
            r"params/logits/bias is not there in .*, and has shape \(3,\) in this "
            r"task: .* fresh='\^params/logits/bias\$'",
        ),
        (
            replace(CLASSES, hidden_dim=None),
            {"fresh": HEAD},
            "params/dense/bias has shape .8,. in .* is not there in this task",
        ),
        (CLASSES, {"fresh": "nothing"}, "start.fresh='nothing' matches no path"),
        (CLASSES, {"fresh": "("}, "start.fresh='.': .*unterminated"),
        (CLASSES, {"under": "body"}, "start.under='body': this task has no such part"),
        (CLASSES, {"folder": "nowhere"}, "no config.json in nowhere"),
    ],
)
def test_what_does_not_fit_is_told(folder, network, settings, told):
    with pytest.raises(UserError, match=told):
        FromPretrained(**{"folder": folder[0], **settings})(expected(network))


def test_the_heads_of_pretraining_are_another_architectures(tmp_path):
    """A masked model is no classifier, though both have a layer called dense."""
    masked = bert.model_of({**CONFIG, "architectures": ["BertForMaskedLM"]})
    assert isinstance(masked, MaskedLanguageModel)
    params = slow.random_params(masked, jnp.zeros((1, 1), jnp.int32))
    bert.save(str(tmp_path), masked, {"params": params})
    encoder, variables = bert.load(str(tmp_path), architecture="BertModel")
    assert type(encoder) is type(POOLED.encoder)
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"], dict(params["encoder"])
    )
    start = FromPretrained(
        str(tmp_path),
        under="encoder",
        load=partial(bert.load, architecture="BertModel"),
    )
    found = start(expected(CLASSES))
    assert all(name.startswith("params/encoder/") for name in found)
    with pytest.raises(UserError, match="architecture='Bert': expected one of BertM"):
        bert.load(str(tmp_path), architecture="Bert")
