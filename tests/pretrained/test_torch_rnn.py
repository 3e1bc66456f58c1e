from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.layers.recurrent import GruCell, LstmCell, RecurrentStack
from research.pretrained import torch_rnn

STACK = RecurrentStack(3, 2, LstmCell(recurrent_bias=True), num_bidirectional=2)


def test_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    theirs = {}
    for layer, width in enumerate((2, 6)):
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            theirs[f"weight_ih_{suffix}"] = (12, width)
            theirs[f"weight_hh_{suffix}"] = (12, 3)
            theirs[f"bias_ih_{suffix}"] = theirs[f"bias_hh_{suffix}"] = (12,)
    theirs = {k: rng.standard_normal(v, np.float32) for k, v in theirs.items()}
    path = str(tmp_path / "lstm.safetensors")
    save_file(theirs, path)
    variables = torch_rnn.load(path, STACK, 2)
    layer = variables["params"]["layer_1_reverse"]
    kernel = layer["recurrent"]["kernel"]
    np.testing.assert_array_equal(kernel, theirs["weight_hh_l1_reverse"].T)
    torch_rnn.save(path, STACK, 2, variables)
    again = load_file(path)
    assert again.keys() == theirs.keys()
    assert all(np.array_equal(again[name], theirs[name]) for name in theirs)
    with pytest.raises(UserError, match="weight_ih_l0"):
        torch_rnn.load(path, STACK, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"cell": LstmCell()},
        {"cell": GruCell(reset_first=True, recurrent_bias=True)},
        {"num_bidirectional": 1},
        {"residual_from": 1},
    ],
)
def test_stacks_that_pytorch_lacks(change):
    with pytest.raises(UserError, match="PyTorch has no module"):
        torch_rnn.leaf_names(replace(STACK, **change))
