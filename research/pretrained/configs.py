"""What public layouts say of a model in `config.json`, and the settings it stands for.

A module beside this one has a table of the keys that it reads, each with what may be
there. Whatever else a file holds is refused by name: a key that is passed over in
silence may be the one that changes the network.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.layers.mlp import gelu

CONFIG = "config.json"

Config = dict[str, Any]
"""What `config.json` holds."""


class Key(NamedTuple):
    """A key of their config: its value where it is absent, and what may be there."""

    default: Any
    accepts: Callable[[Any], bool]
    supported: str


def only(*values: Any, default: Any = None) -> Key:
    """Some values, the default one of them or, unsupported, given."""
    default = values[0] if default is None else default
    supported = " or ".join(map(json.dumps, values))
    return Key(default, lambda value: value in values, supported)


def count(value: Any) -> bool:
    return type(value) is int and value > 0


def token(value: Any) -> bool:
    return type(value) is int and value >= 0


def rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def read_config(path: Path, source: str) -> Config:
    """The keys of a file of theirs.

    Raises:
      UserError: no such file, which `source` tells how to come by, or no JSON of keys.
    """
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}: {source}")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): copy the folder again"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no keys: expected a config: {source}")
    return config


def write_config(path: Path, config: Config) -> None:
    """Writes a file that `read_config` reads."""
    path.write_text(json.dumps(config, indent=2) + "\n")


def checked(
    config: Config,
    keys: Mapping[str, Key],
    file: str,
    free: frozenset[str] = frozenset(),
) -> Config:
    """With the value of every key, each supported alone.

    Args:
      config: of theirs.
      keys: what is read.
      file: its name.
      free: keys that say nothing of what is read.

    Raises:
      UserError: a key or a value that is not supported, by its name and its file's.
    """
    for key in sorted(config.keys() - keys.keys() - free):
        raise UserError(
            f"{key} = {json.dumps(config[key])} in {file} is not supported: expected "
            f"only {', '.join(keys)}"
        )
    config = {key: config.get(key, there.default) for key, there in keys.items()}
    for key, there in keys.items():
        require_value(config, file, there.accepts(config[key]), key, there.supported)
    return config


def require_value(
    config: Config, file: str, holds: bool, key: str, supported: str
) -> None:
    """Raises `UserError` about the value of a key unless it holds."""
    if not holds:
        raise UserError(
            f"{key} = {json.dumps(config[key])} in {file} is not supported: expected "
            f"{supported}"
        )


# transformers

TRANSFORMERS = frozenset(
    # Where a file comes from, and what it is for.
    "_name_or_path _commit_hash _from_model_config transformers_version architectures "
    "torch_dtype dtype finetuning_task task_specific_params problem_type "
    "tokenizer_class id2label label2id num_labels _num_labels "
    # How it is run.
    "_attn_implementation _attn_implementation_autoset attn_implementation "
    "gradient_checkpointing chunk_size_feed_forward torchscript use_bfloat16 use_cache "
    "output_attentions output_hidden_states output_past return_dict "
    # How tokens are drawn from it.
    "bos_token_id eos_token_id sep_token_id decoder_start_token_id prefix max_length "
    "min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
    "forced_eos_token_id force_bos_token_to_be_generated remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens".split()
)
"""Keys of `transformers` 4 and 5, of any model, that say nothing of the network."""

TRANSFORMERS_KEYS = {
    "is_decoder": only(False),
    "add_cross_attention": only(False),
    "cross_attention_hidden_size": only(None),
    "tie_encoder_decoder": only(False),
    "pruned_heads": Key(None, lambda heads: not heads, "none"),
}
"""Keys of any model there that do, with what they are in the models read here."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    # Further names of these.
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "swish": jax.nn.silu,
}
"""By their names there; the first that fits is written."""


def activation_name(activation: Any) -> str | None:
    """What they call it; None if they do not have it."""
    wanted = settings(activation)
    names = (name for name, there in ACTIVATIONS.items() if settings(there) == wanted)
    return next(names, None)


# Settings of ours

# How something is computed, and what it starts from, not what it is.
_FREE = ("parent", "name", "dtype", "param_dtype", "precision", "remat", "unroll")


def setting(model: nn.Module, path: str) -> Any:
    """The value at a path of `settings`; of a slot, what is in it.

    Raises:
      UserError: there is none.
    """
    part: Any = model
    for name in path.split("."):
        children = _children(part)
        if name not in children:
            raise UserError(
                f"{type(model).__name__} has no setting {path} here: expected a model "
                "of the same parts as the layout's"
            )
        part = children[name]
    return part


def settings(model: Any) -> dict[str, Any]:
    """Every setting of a model by its path, such as `encoder.blocks.0.mlp.mlp_dim`.

    Also those that are defaults. What does not change the function that the variables
    stand for, such as initialisers, is left out.
    """
    return dict(_settings(model, ""))


def require_same(model: nn.Module, again: nn.Module, layout: str) -> None:
    """Raises `UserError` unless all settings agree.

    Args:
      model: that is to be written.
      again: what its config is read as.
      layout: that the config is of.
    """
    given, expected = settings(model), settings(again)
    for path in [*expected, *given]:
        if given.get(path) != expected.get(path):
            raise UserError(
                f"{path or 'the class'} = {_shown(given.get(path))} of the model has "
                f"no counterpart in {layout}: expected {_shown(expected.get(path))}"
            )


def _settings(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(part, tuple):
        yield path, _kind(part)
    join = f"{path}." if path else ""
    for name, value in _children(part).items():
        if not (name in _FREE or name.endswith("init")):
            yield from _settings(value, f"{join}{name}")


def _kind(part: Any) -> Any:
    """The class of a record, the class or function of a slot, any other value."""
    if isinstance(part, partial):
        return part.func
    return type(part) if _is_record(part) else part


def _children(part: Any) -> dict[str, Any]:
    """The settings of a record or a slot, which may be defaults."""
    if isinstance(part, tuple):
        return {str(index): value for index, value in enumerate(part)}
    if _is_record(part):
        return {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    try:
        parameters = inspect.signature(_kind(part)).parameters.values()
    except (TypeError, ValueError):  # no function, or one that does not tell
        return {}
    given = {} if not isinstance(part, partial) else part.keywords
    children = {p.name: given.get(p.name, p.default) for p in parameters}
    empty = inspect.Parameter.empty
    return {name: value for name, value in children.items() if value is not empty}


def _is_record(part: Any) -> bool:
    return dataclasses.is_dataclass(part) and not isinstance(part, type)


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)
