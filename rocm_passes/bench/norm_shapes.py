"""The RMSNorm inputs of diffusion transformers at production size: every distinct shape of one
step, by model.

[batch, tokens, heads, head size] where a model normalises q and k by the head, [batch, tokens,
width] elsewhere. Batch 2 where a pipeline runs both branches of its guidance at once. Text has as
many tokens as the pipeline pads to, or at most takes. All in bfloat16: Mochi and Kandinsky cast to
float32 and back, which a compiler fuses. Stable Diffusion 3.5 and Cosmos norm a transposed view; it
stands here in memory's order.

Read off the inputs of diffusers' RMSNorm modules in a forward of each class with one block of each
kind.
"""

from __future__ import annotations

Shape = tuple[int, ...]

SHAPES: dict[str, tuple[Shape, ...]] = {
    # q and k at full width; k of the cross attention is text, in image-to-video of 2.1 also 257
    # image tokens.
    "Wan 14B, 1280x720, 81 frames": ((1, 75600, 5120), (1, 512, 5120), (1, 257, 5120)),
    "Wan 14B, 832x480, 81 frames": ((1, 32760, 5120), (1, 512, 5120)),
    "Wan 1.3B, 832x480, 81 frames": ((1, 32760, 1536), (1, 512, 1536)),
    "Wan 2.2 5B, 1280x704, 121 frames": ((1, 27280, 3072), (1, 512, 3072)),
    # Image, caption, and both joined; four norms at full width round attention and MLP. The last:
    # caption features.
    "Z-Image, 1024x1024": (
        (1, 4096, 3840),
        (1, 512, 3840),
        (1, 4608, 3840),
        (1, 4096, 30, 128),
        (1, 512, 30, 128),
        (1, 4608, 30, 128),
        (512, 2560),
    ),
    # Image and text; the text features once.
    "Qwen-Image, 1328x1328": ((1, 6889, 24, 128), (1, 512, 24, 128), (1, 512, 3584)),
    # Image and text of a double block; both joined in a single one.
    "FLUX.1, 1024x1024": ((1, 4096, 24, 128), (1, 512, 24, 128), (1, 4608, 24, 128)),
    "FLUX.2, 1024x1024": ((1, 4096, 48, 128), (1, 512, 48, 128), (1, 4608, 48, 128)),
    "HunyuanVideo, 1280x720, 129 frames": (
        (1, 118800, 24, 128),
        (1, 256, 24, 128),
        (1, 119056, 24, 128),
    ),
    # Text of two encoders and image tokens: 1000 + 256 + 729.
    "HunyuanVideo 1.5, 720p, 121 frames": ((1, 111600, 16, 128), (1, 1985, 16, 128)),
    # Norms of the hidden states, and of q and k at full width; k of the cross attention.
    "LTX-Video 2B, 704x512, 161 frames": ((2, 7392, 2048), (2, 128, 2048)),
    "LTX-Video 13B, 704x512, 161 frames": ((2, 7392, 4096), (2, 128, 4096)),
    # Video, audio, text for either, and video's q and k against audio.
    "LTX-2, 768x512, 121 frames": (
        (2, 6144, 4096),
        (2, 126, 2048),
        (2, 1024, 4096),
        (2, 1024, 2048),
        (2, 6144, 2048),
    ),
    "Mochi, 848x480, 163 frames": (
        (2, 44520, 3072),
        (2, 256, 1536),
        (2, 44520, 24, 128),
        (2, 256, 24, 128),
    ),
    "Mochi, 848x480, 19 frames": (
        (2, 6360, 3072),
        (2, 256, 1536),
        (2, 6360, 24, 128),
        (2, 256, 24, 128),
    ),
    "Stable Diffusion 3.5 large, 1024x1024": ((2, 4096, 38, 64), (2, 333, 38, 64)),
    "Stable Diffusion 3.5 medium, 1024x1024": ((2, 4096, 24, 64), (2, 333, 24, 64)),
    # Caption, image, and both joined; fewer heads for k than for q.
    "Lumina 2, 1024x1024": (
        (1, 256, 2304),
        (1, 4096, 2304),
        (1, 4352, 2304),
        (1, 256, 24, 96),
        (1, 4096, 24, 96),
        (1, 4352, 24, 96),
        (1, 256, 8, 96),
        (1, 4096, 8, 96),
        (1, 4352, 8, 96),
    ),
    # Image, text, and both joined; q and k at full width.
    "HiDream-I1, 1024x1024": ((2, 4096, 2560), (2, 384, 2560), (2, 4480, 2560)),
    "Kandinsky 5 Lite, 768x512, 121 frames": ((1, 47616, 28, 64), (1, 512, 28, 64)),
    # The last is the embedded time of the 24 latent frames.
    "Cosmos-Predict2 2B, 1280x704, 93 frames": ((1, 84480, 16, 128), (1, 512, 16, 128), (24, 2048)),
}


def distinct() -> dict[Shape, tuple[str, ...]]:
    """Each shape once, with the models that have it."""
    found: dict[Shape, tuple[str, ...]] = {}
    for model, shapes in SHAPES.items():
        for shape in shapes:
            found[shape] = (*found.get(shape, ()), model)
    return found
