"""Forgetting a book, as Harry Potter is in Wang et al. 2025 (FLAT), arXiv:2410.11143, §4.1."""
