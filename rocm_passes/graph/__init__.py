"""Reading and rewriting FX graphs of ATen operators, as Inductor hands them to a post-grad pass."""
