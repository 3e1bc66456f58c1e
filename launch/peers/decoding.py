"""transformers' `generate` on the same folder, eager and compiled."""

from typing import Any

import numpy as np
import torch
import transformers

from launch.bench_decoding import Generator, Workload


def generators(work: Workload) -> list[Generator]:
    """Eager with its growing cache, and compiled with its static one."""
    return [_generator(work, compiled) for compiled in (False, True)]


def _generator(work: Workload, compiled: bool) -> Generator:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(work.folder)
    model: Any = loaded.to(device).eval()
    source = torch.tensor(work.source, device=device)
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(source),
        "min_new_tokens": work.new_tokens,
        "max_new_tokens": work.new_tokens,
        "num_beams": work.beam_size,
        "do_sample": False,
        "decoder_start_token_id": work.begin,
        # Or the last token is the end, whatever is likely.
        "forced_eos_token_id": None,
        "bad_words_ids": None,
    }
    if compiled:
        model.forward = torch.compile(model.forward)
        options["cache_implementation"] = "static"
    model.generation_config.forced_eos_token_id = None
    model.generation_config.bad_words_ids = None

    @torch.no_grad()
    def generate() -> np.ndarray:
        return model.generate(source, **options)[:, 1:].cpu().numpy()

    how = "compiled" if compiled else "eager"
    return Generator(f"transformers {transformers.__version__} {how}", generate)
