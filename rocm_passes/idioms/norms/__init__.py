"""Norms, alone and with what stands around them: residuals, modulations, SiLU, padding."""
