"""Programs that show the backend at work, run from a checkout: python -m examples.demo."""
