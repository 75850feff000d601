"""The ledger and its forms: text, HTML, JSON."""
