"""The operators that idioms become, as `torch.ops.rocm_passes.*`. One file per operator."""
