# ruff: noqa: C408 (configs are keyword arguments, and read as such)
"""Tiny text encoders, two layers each. Comments count idioms per layer."""

from __future__ import annotations

from typing import Any

from .case import Case

VOCABULARY, TOKENS = 64, 9
DECODER = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def _encoder(
    name: str, source: str, config: dict[str, Any], expected: dict[str, int], **inputs: Any
) -> Case:
    return Case(
        name=name,
        source=f"transformers:{source}",
        config=config,
        feed=lambda draw: dict(
            input_ids=draw.tokens(1, TOKENS, high=VOCABULARY), return_dict=False, **inputs
        ),
        expected=expected,
    )


A_DECODER = {"attention": 2, "rms_norm": 2 * 2 + 1, "rotary": 2 * 2}
"""Per layer two norms, q and k rotated, an attention; once more the last norm."""

T5 = _encoder(
    "text_t5",
    "T5EncoderModel",
    dict(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1,
    ),
    # Two norms and an attention. Once more the last norm.
    {"attention": 2, "rms_norm": 2 * 2 + 1},
)
LLAMA = _encoder("text_llama", "LlamaModel", DECODER, A_DECODER, use_cache=False)
QWEN25 = _encoder("text_qwen25", "Qwen2Model", DECODER, A_DECODER, use_cache=False)
QWEN3 = _encoder(
    "text_qwen3",
    "Qwen3Model",
    DECODER | dict(head_dim=8),
    # As Llama, and q and k norms.
    {"attention": 2, "rms_norm": 4 * 2 + 1, "rotary": 2 * 2},
    use_cache=False,
)
GEMMA2 = _encoder(
    "text_gemma2",
    "Gemma2Model",
    DECODER | dict(head_dim=8),
    # Norms before and after both sublayers. Its attention caps the scores and is spelled out.
    {"rms_norm": 4 * 2 + 1, "rotary": 2 * 2},
    use_cache=False,
)

TEXT_ENCODERS = (T5, LLAMA, QWEN25, QWEN3, GEMMA2)
