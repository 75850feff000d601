"""Reading and writing FX graphs of ATen operators. Knows no idiom."""
