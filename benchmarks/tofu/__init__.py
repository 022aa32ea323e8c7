"""TOFU: forgetting fictitious authors. Maini et al. 2024, arXiv:2401.06121."""
