"""Forgetting a book, such as Harry Potter in Wang et al. 2025 (FLAT), arXiv:2410.11143, §4.1."""
